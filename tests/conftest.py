"""Fixtures without PyTorch; those that need the official package are in parity/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from qwen3_tts_jax import Qwen3TTS
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint
from tests.tokenizer_files import write_tokenizer_files

# What a test compiles, here or in a process it starts, is not for the user's cache folder, nor may a test find what
# another version compiled.
jax.config.update("jax_enable_compilation_cache", False)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

# XLA's optimizations, and the newer of its two ways to make kernels for CPUs, take longer here than all that they speed
# up. With XLA_FLAGS in the environment, be it empty, programs are compiled as that says.
_QUICKLY = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# A flag that an XLA does not know, be it that of libtpu, ends the process.
if jax.__version_info__[:2] == (0, 10) and find_spec("libtpu") is None:
    _QUICKLY.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICKLY))


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets compiled programs before their memory maps, three each, reach what Linux allows a process (65,530)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published text tokenizer: vocab.json, merges.txt, tokenizer_config.json."""
    return write_tokenizer_files(tmp_path_factory.mktemp("text_tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    """The published text tokenizer."""
    return TextTokenizer.from_folder(tokenizer_folder)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[..., Qwen3TTS]:
    """load(variant, eos_boost): a small model in float32."""

    @cache
    def load(variant: str, eos_boost: float = 1.0) -> Qwen3TTS:
        folder = tmp_path_factory.mktemp(variant)
        write_small_checkpoint(folder, SMALL[variant], tokenizer_folder, eos_boost=eos_boost)
        return Qwen3TTS.from_pretrained(folder, dtype="float32")

    return load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error of the program to load weights."""

    def load(*_, **__):
        raise AssertionError("weights were loaded")

    for name in (
        "pipeline.Qwen3TTS.from_pretrained",
        "speech_tokenizer.SpeechTokenizer.from_pretrained",
        "convert.load_checkpoint",
    ):
        monkeypatch.setattr(f"qwen3_tts_jax.{name}", load)
