"""Codes stored in files, as data to learn."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.train.codec.data import Recording
from qwen3_tts_jax.train.lines import DataError, Line

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_codes(lines: Sequence[Line | Recording], config: CodecConfig) -> dict[Line | Recording, np.ndarray]:
    """Codes int32 [T, Q] of the lines that name a file of them; each .npz file is opened once.

    Raises:
        DataError: a broken file, a missing array, or one that does not hold codes of the codec.
    """
    codes: dict[Line | Recording, np.ndarray] = {}
    archives: dict[Path, list[Line | Recording]] = {}
    for line in lines:
        if line.codes is not None and line.key is None:
            with _reading(line):
                codes[line] = _checked(np.load(line.codes, allow_pickle=False), line, config)
        elif line.codes is not None:
            archives.setdefault(line.codes, []).append(line)
    for path, named in archives.items():
        with _reading(named[0]), np.load(path, allow_pickle=False) as archive:
            for line in named:
                with _reading(line):
                    codes[line] = _checked(archive[line.key], line, config)
    return codes


def _name(line: Line | Recording) -> str:
    return f"{line.where}: codes {line.codes}" + ("" if line.key is None else f" {line.key}")


@contextmanager
def _reading(line: Line | Recording) -> Iterator[None]:
    """Turns what the library raises on a line's file into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{_name(line)} cannot be read: {error}") from error


def _checked(codes: np.ndarray, line: Line | Recording, config: CodecConfig) -> np.ndarray:
    count, size = config.num_codebooks, config.decoder.codebook_size
    if codes.ndim != 2 or codes.shape[1] != count or not np.issubdtype(codes.dtype, np.integer):
        raise DataError(
            f"{_name(line)} must be whole numbers [T, {count}], a column per codebook, got {codes.dtype} "
            f"{list(codes.shape)}"
        )
    if len(codes) == 0:
        raise DataError(f"{_name(line)} has no frames")
    if codes.min() < 0 or codes.max() >= size:
        raise DataError(f"{_name(line)} has codes from {codes.min()} to {codes.max()}; the codec's are 0 … {size - 1}")
    return codes.astype(np.int32)
