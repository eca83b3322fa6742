"""Samples → sound files."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

# (format, subtype) of libsndfile by the ending of a file's name
_FORMATS: Mapping[str, tuple[str, str]] = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
}

# libsndfile's Vorbis encoder keeps a whole call's samples on the stack, and overflows it on long audio.
_BLOCK = 1 << 16


def check_writable(path: str | Path) -> None:
    """Finds out, before long work, whether `write(path, …)` will be able to put its file there.

    Raises:
        ValueError: the name's ending is not that of a supported format.
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: `path` is a folder.
        PermissionError: no file can be created in the folder.
    """
    path = Path(path)
    _format_of(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    probe = _temporary_name(path)
    try:
        # Creating a file is the only sure test: permission bits say nothing of a read-only disk.
        probe.touch(exist_ok=False)
    except OSError as error:
        raise PermissionError(f"cannot write into the folder {path.parent}: {error.strerror}") from None
    probe.unlink()


def write(path: str | Path, samples: np.ndarray, sample_rate: int) -> None:
    """Writes mono samples as WAV or FLAC (16-bit PCM) or OGG (Vorbis), by the ending of the name.

    The file appears under its name only once it is complete.

    Args:
        path: a name that ends in .wav, .flac or .ogg.
        samples: floats [N] in ±1; louder ones are clipped.
        sample_rate: in Hz.

    Raises:
        ValueError: `samples` are not floats [N] or not finite, or as `check_writable`.
        OSError: as `check_writable`.
    """
    path = Path(path)
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"samples must be floats of shape [N], got {samples.dtype} of shape {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples for {path} are not finite"
        )
    check_writable(path)
    file_format, subtype = _format_of(path)
    clipped = np.clip(samples.astype(np.float32), -1.0, 1.0)
    temporary = _temporary_name(path)
    try:
        with soundfile.SoundFile(
            temporary, "w", samplerate=sample_rate, channels=1, format=file_format, subtype=subtype
        ) as file:
            for start in range(0, len(clipped), _BLOCK):
                file.write(clipped[start : start + _BLOCK])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _format_of(path: Path) -> tuple[str, str]:
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise ValueError(
            f"cannot write {path.name!r}: the ending {ending!r} is not supported, use one of {', '.join(_FORMATS)}"
        )
    return _FORMATS[ending]


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex}.partial")
