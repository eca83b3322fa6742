"""Fixtures that run the official package; without it the tests in this folder are skipped.

With QWEN3_TTS_JAX_REQUIRE_PARITY=1 in the environment they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.parity.oracle import OracleMissingError, import_official, load_official
from tests.parity.random_checkpoint import write_random_checkpoint
from tests.shapes import SMALL

# PyTorch's threads wait for each other in loops: where as many processes as cores have one per core, tests take seven
# times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def _why_missing() -> str | None:
    try:
        import_official()
    except OracleMissingError as error:
        return str(error)
    return None


class _ModuleWithoutOracle(pytest.Module):
    """Reports a test module that cannot run, before its own imports fail less clearly."""

    def collect(self) -> list[pytest.Item]:
        if os.environ.get("QWEN3_TTS_JAX_REQUIRE_PARITY") == "1":
            pytest.fail(_why_missing(), pytrace=False)
        pytest.skip(_why_missing(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _ModuleWithoutOracle.from_parent(parent, path=module_path) if _why_missing() else None


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[..., Path]:
    """checkpoint(variant, **options): the folder of a small random checkpoint, written once per session.

    `variant` is a key of `tests.shapes.SMALL`; options are those of `write_random_checkpoint`.
    """

    @cache
    def write(variant: str, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / variant
        return write_random_checkpoint(folder, SMALL[variant], tokenizer_files=tokenizer_folder, **options)

    return write


@pytest.fixture(scope="session")
def official(checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """official(variant, **options): the official `Qwen3TTSModel` of `checkpoint(variant, **options)`."""

    @cache
    def load(variant: str, **options: Any) -> Any:
        return load_official(checkpoint(variant, **options))

    return load
