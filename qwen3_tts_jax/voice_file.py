"""Voice files: written and read as safetensors; the official demo's .pt files are read too. No JAX.

A voice file holds the tensors x_vector float32 [D] and, for a voice cloned in context, codes int32 [T, Q];
its metadata are format, version, tool (which wrote it) and, where known, text (the transcript), name,
model_size, model_type and seconds.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from qwen3_tts_jax import torch_file
from qwen3_tts_jax.files import check_place, completed
from qwen3_tts_jax.voice_prompt import VoicePrompt

FORMAT = "qwen3-tts-jax voice"
VERSION = 1
"""Bumped when earlier releases would misread new files."""

_TENSORS = {"x_vector": "F32", "codes": "I32"}
_NO_TRANSCRIPT = "has codes but no transcript: make the voice again with the text of its recording"


def save(
    voice: VoicePrompt,
    path: str | Path,
    *,
    name: str | None = None,
    model_size: str | None = None,
    model_type: str | None = None,
    seconds: float | None = None,
) -> None:
    """Writes a voice; the file appears under its name only once it is complete.

    Args:
        voice: what is written.
        path: any name in a folder that exists; an older file is replaced.
        name: the voice's.
        model_size: of the model that made it (`ModelConfig.model_size`).
        model_type: likewise.
        seconds: how long its recording is.

    Raises:
        ValueError: a voice that `load` would refuse.
        OSError: the folder does not exist, or no file can be written there.
    """
    path = Path(path)
    check_place(path)
    _require_whole(f"the voice for {path}", voice)
    # The safetensors package writes the memory of a view, whatever its strides.
    tensors = {"x_vector": np.ascontiguousarray(voice.x_vector)}
    if voice.codes is not None:
        tensors["codes"] = np.ascontiguousarray(voice.codes)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"qwen3-tts-jax {version('qwen3-tts-jax')}",
        "text": voice.text,
        "name": name,
        "model_size": model_size,
        "model_type": model_type,
        "seconds": seconds,
    }
    content = serialize(tensors, {key: str(value) for key, value in metadata.items() if value is not None})
    with completed(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | Path) -> VoicePrompt:
    """Reads a file of `save` or a .pt file of the official demo, told apart by content, without PyTorch.

    `voice_prompt.check_voice` tells whether the voice fits a model.

    Raises:
        ValueError: another kind of file, a broken one, a newer format, or several voices (see `load_all`).
        OSError: there is no such file, or it cannot be read.
    """
    return _only(path, load_all(path))


def load_all(path: str | Path) -> list[VoicePrompt]:
    """Reads all voices of a file, as `load` reads one: a .pt file may have several."""
    return _read(Path(path))[0]


def describe(path: str | Path) -> dict[str, Any]:
    """What is known about the voice in a file that `load` reads; what is unknown is None.

    Returns:
        format ("qwen3-tts-jax voice" or "torch"), tool, name, model_size, model_type and seconds (float), as
        they were saved, and x_vector_width, frames, codebooks and text.
    """
    voices, metadata = _read(Path(path))
    voice = _only(path, voices)
    frames, codebooks = (None, None) if voice.codes is None else voice.codes.shape
    try:
        seconds = float(metadata["seconds"]) if "seconds" in metadata else None
    except ValueError:
        raise ValueError(f"{path} is broken: its seconds are {metadata['seconds']!r}") from None
    return {
        **{key: metadata.get(key) for key in ("format", "tool", "name", "model_size", "model_type")},
        "seconds": seconds,
        "x_vector_width": voice.x_vector.size,
        "frames": frames,
        "codebooks": codebooks,
        "text": voice.text,
    }


def _only(path: str | Path, voices: list[VoicePrompt]) -> VoicePrompt:
    if len(voices) > 1:
        raise ValueError(f"{path} holds {len(voices)} voices where one is needed: read them with load_all")
    return voices[0]


def _read(path: Path) -> tuple[list[VoicePrompt], dict[str, str]]:
    """The voices of a file, and the metadata beside them."""
    if not path.exists():
        raise FileNotFoundError(f"there is no voice file {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a voice file")
    with path.open("rb") as stream:
        start = stream.read(4)
    if start in torch_file.MAGIC:
        return _of_demo(path, torch_file.read(path)), {"format": "torch"}
    try:
        with safe_open(path, "numpy") as file:
            return _of_safetensors(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is no voice file, or it is cut short or damaged ({error})") from None


def _of_safetensors(path: Path, file: Any) -> tuple[list[VoicePrompt], dict[str, str]]:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not of a voice: its metadata lack format = {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has version {metadata.get('version')!r} of the voice format and this package reads {VERSION}: "
            "install a newer one"
        )
    found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    expected = {name: dtype for name, dtype in _TENSORS.items() if name == "x_vector" or name in found}
    if found != expected:
        raise ValueError(
            f"{path} is broken: a voice has the tensors {_TENSORS}, codes only in context; this has {found}"
        )
    codes = file.get_tensor("codes") if "codes" in found else None
    return [_voice(str(path), file.get_tensor("x_vector"), codes, metadata.get("text"))], metadata


def _of_demo(path: Path, content: Any) -> list[VoicePrompt]:
    """The voices of {"items": [asdict(VoiceClonePromptItem), …]}, with the defaults of the official demo."""
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{path} is a torch file, but not of voices: it has no list of items")
    voices = []
    for i, item in enumerate(items):
        subject = str(path) if len(items) == 1 else f"item {i} of {path}"
        x_vector, codes, text = (item.get(key) for key in ("ref_spk_embedding", "ref_code", "ref_text"))
        in_context = item.get("icl_mode", not item.get("x_vector_only_mode", False))
        if not isinstance(x_vector, np.ndarray) or x_vector.dtype.kind != "f":
            raise ValueError(f"{subject} has no x-vector: ref_spk_embedding is no tensor of floats")
        if not in_context:
            codes = text = None
        elif not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
            raise ValueError(f"{subject} is to be cloned in context, but ref_code is no tensor of integers")
        elif codes.size and not 0 <= codes.min() <= codes.max() < 2**31:
            raise ValueError(f"{subject} is broken: its codes are {codes.min()} … {codes.max()}")
        codes = None if codes is None else codes.astype(np.int32)
        voices.append(_voice(subject, x_vector.astype(np.float32), codes, text))
    return voices


def _voice(subject: str, x_vector: np.ndarray, codes: np.ndarray | None, text: Any) -> VoicePrompt:
    if codes is not None and not isinstance(text, str):
        raise ValueError(f"{subject} {_NO_TRANSCRIPT}")
    if codes is None and text is not None:
        raise ValueError(f"{subject} is broken: it has a transcript but no codes")
    voice = VoicePrompt(x_vector, codes, text)
    _require_whole(subject, voice)
    return voice


def _require_whole(subject: str, voice: VoicePrompt) -> None:
    x_vector, codes = voice.x_vector, voice.codes
    if x_vector.dtype != np.float32 or x_vector.ndim != 1 or x_vector.size == 0:
        raise ValueError(
            f"{subject} is broken: its x-vector is {x_vector.dtype} {list(x_vector.shape)}, not float32 [D]"
        )
    if not np.isfinite(x_vector).all():
        raise ValueError(f"{subject} is broken: its x-vector is not finite")
    if codes is None:
        return
    if codes.dtype != np.int32 or codes.ndim != 2 or codes.size == 0:
        raise ValueError(f"{subject} is broken: its codes are {codes.dtype} {list(codes.shape)}, not int32 [T, Q]")
    if codes.min() < 0:
        raise ValueError(f"{subject} is broken: it has the code {codes.min()}")
    if not voice.text.strip():
        raise ValueError(f"{subject} {_NO_TRANSCRIPT}")
