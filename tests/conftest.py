"""Fixtures without PyTorch; those that need the official package are in parity/conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tokenizer_files import write_tokenizer_files


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published text tokenizer: vocab.json, merges.txt, tokenizer_config.json."""
    return write_tokenizer_files(tmp_path_factory.mktemp("text_tokenizer"))
