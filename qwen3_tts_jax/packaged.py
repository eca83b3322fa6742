"""`mini`, the model that is part of this package, and the folders of models that need no network. No JAX."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

MINI = "mini"
"""Its short name; a folder of that name is "./mini"."""
MINI_VOICES = {"heart": "American woman", "henry": "American man"}


def local_folder(model: str | Path) -> Path | None:
    """The folder of `mini`, or `model` itself if it is a folder; else None."""
    if str(model) == MINI:
        return Path(str(files("qwen3_tts_jax") / MINI))
    folder = Path(model).expanduser()
    # An empty name would be the current folder.
    return folder if str(model) and folder.is_dir() else None
