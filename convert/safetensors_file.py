"""Reads tensors of a safetensors file straight into preallocated arrays.

The format: eight bytes of header length (little endian), a JSON header, then the tensors. With the
safetensors package, whose memory map and extra copy of each tensor count too, loading a 0.6B checkpoint
peaked at 1.7 times the size of the tree; plain reads into place peak at 1.06 times.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.convert.transforms import IDENTITY, SQUEEZE, Transform

DTYPES = {"F32": jnp.dtype("float32"), "BF16": jnp.dtype("bfloat16"), "F16": jnp.dtype("float16")}
_PIECE = 4 << 20


class BrokenFileError(ValueError):
    """A file that may not be read, is shorter or longer than its header says, or has no valid header."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` bytes into `file`. `dtype` is the format's name for it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the file's order.

    Raises:
        BrokenFileError: the file or its header cannot be read, or it does not fit the size of the file or of a tensor.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 + length:
                raise BrokenFileError(f"has {size:,} bytes: it is no safetensors file or it is truncated")
            header = stream.read(length)
    except PermissionError as error:
        raise BrokenFileError(f"cannot be read: {error.strerror}") from None
    start = 8 + length
    tensors = {}
    try:
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                begin, end = map(operator.index, entry["data_offsets"])
                shape = tuple(map(operator.index, entry["shape"]))
                if not 0 <= begin <= end:
                    raise ValueError
                tensors[name] = StoredTensor(file, str(entry["dtype"]), shape, start + begin, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenFileError("is no safetensors file: its header cannot be read") from None
    expected = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=start)
    if size != expected:
        raise BrokenFileError(f"has {size:,} bytes, but its header says {expected:,}: download it again")
    for name, tensor in tensors.items():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None and tensor.nbytes != math.prod(tensor.shape) * dtype.itemsize:
            raise BrokenFileError(f"has a broken header: {name} {list(tensor.shape)} has {tensor.nbytes} bytes")
    return tensors


def read_into(
    stream: BinaryIO,
    tensor: StoredTensor,
    transform: Transform,
    out: np.ndarray,
    advance: Callable[[int], None],
) -> None:
    """Reads one tensor from its open file into `out`, in the layout of `transform` and the dtype of `out`.

    `advance` is called with the number of bytes of every piece, after it is read.
    """
    dtype = DTYPES[tensor.dtype]
    stream.seek(tensor.offset)
    if transform not in (IDENTITY, SQUEEZE) or not out.flags.c_contiguous:
        whole = np.empty(tensor.shape, dtype)
        _read(stream, whole)
        out[...] = transform.apply(whole).reshape(out.shape)
        advance(tensor.nbytes)
        return
    flat = out.reshape(-1)
    scratch = np.empty(min(tensor.nbytes, _PIECE) // dtype.itemsize, dtype)
    for start in range(0, flat.size, max(scratch.size, 1)):
        piece = flat[start : start + scratch.size]
        if dtype == out.dtype:
            _read(stream, piece)
        else:
            _read(stream, scratch[: piece.size])
            piece[...] = scratch[: piece.size]
        advance(piece.size * dtype.itemsize)


def _read(stream: BinaryIO, out: np.ndarray) -> None:
    data = out.reshape(-1).view(np.uint8)
    if stream.readinto(data) != data.size:
        raise BrokenFileError(f"{stream.name} ended while it was read")
