"""Compiling for devices that are not there: skipped without the compilers of the extra `deviceless`.

With QWEN3_TTS_JAX_REQUIRE_DEVICELESS=1 in the environment they fail instead.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

# libtpu looks for a machine's metadata, for minutes, and lets one process in at a time.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# The compiler for NVIDIA needs none of the libraries that the plugin looks for.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

_COMPILERS = {
    "cuda": ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc"),
    "tpu": ("libtpu",),
}


def _has(module: str) -> bool:
    parent, _, _ = module.rpartition(".")
    return (not parent or find_spec(parent) is not None) and find_spec(module) is not None


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest) -> None:
    """Skips a test whose module is named after a platform, test_<platform>.py, without its compiler."""
    platform = request.path.stem.removeprefix("test_")
    missing = [module for module in _COMPILERS[platform] if not _has(module)]
    if missing:
        message = f"no compiler for {platform}: {', '.join(missing)} is missing; install the extra 'deviceless'"
        if os.environ.get("QWEN3_TTS_JAX_REQUIRE_DEVICELESS") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
