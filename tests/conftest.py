"""Fixtures without PyTorch; those that need the official package are in parity/conftest.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tokenizer_files import write_tokenizer_files

# What a test compiles is not for the user's cache folder, nor may a test find what another version compiled.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published text tokenizer: vocab.json, merges.txt, tokenizer_config.json."""
    return write_tokenizer_files(tmp_path_factory.mktemp("text_tokenizer"))
