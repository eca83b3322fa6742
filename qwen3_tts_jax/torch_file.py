"""Reads files of `torch.save` that hold plain data and tensors, without PyTorch and without running anything.

The format: an uncompressed zip archive with a pickle (data.pkl), whose tensors refer to entries of raw
storage (data/0, data/1, …). A pickle is a program that may call any function it names. Here its
instructions are limited to those that plain data needs, and the functions to the one that puts a tensor
together; a file that asks for more is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""What a file of `torch.save` starts with: a zip archive, or the bare pickles of PyTorch before 1.6."""

LARGEST_BYTES = 1 << 28
"""The largest file accepted: it is read whole. Five minutes of codes are half a megabyte."""

_MOST_AXES = 8

# Bytes per element in the file, and the dtype that it becomes: bfloat16 is the upper half of a float32.
_STORAGES = {
    "DoubleStorage": (8, np.dtype("float64")),
    "FloatStorage": (4, np.dtype("float32")),
    "HalfStorage": (2, np.dtype("float16")),
    "BFloat16Storage": (2, np.dtype("float32")),
    "LongStorage": (8, np.dtype("int64")),
    "IntStorage": (4, np.dtype("int32")),
    "ShortStorage": (2, np.dtype("int16")),
    "CharStorage": (1, np.dtype("int8")),
    "ByteStorage": (1, np.dtype("uint8")),
}

# All that plain data and tensors need. Left out above all: BUILD, NEWOBJ, INST, OBJ and EXT, which make
# objects, and BYTEARRAY8, which allocates before it reads.
_INSTRUCTIONS = frozenset([
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID",
])  # fmt: skip


class TorchFileError(ValueError):
    """A file that is not of `torch.save`, is broken, or asks for more than plain data; the message is one line."""


def read(path: str | Path) -> Any:
    """What was given to `torch.save`, its tensors as read-only NumPy arrays.

    Dicts, lists, tuples, strings, numbers, None and dense tensors of real numbers are understood. Dtypes are
    kept, except for bfloat16, which becomes float32 and loses nothing.

    Raises:
        TorchFileError: anything else.
        OSError: the file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise TorchFileError(f"{path} has {size >> 20} MiB; voices take less than {LARGEST_BYTES >> 20}")
    content = path.read_bytes()
    if content.startswith(MAGIC[1]):
        raise TorchFileError(
            f"{path} is in the format of PyTorch before 1.6, which cannot be read safely: load it with PyTorch and "
            "save it again"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _Archive(archive, len(content)).load()
    except TorchFileError as error:
        raise TorchFileError(f"{path} {error}") from None
    except (zipfile.BadZipFile, EOFError, OverflowError, RuntimeError, ValueError, struct.error):
        raise TorchFileError(f"{path} is no file of torch.save, or it is cut short or damaged") from None


class _Archive:
    """The entries of one file. Errors complete the sentence "{path} …"."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        entries = archive.infolist()
        # Entries that are not compressed and add up to no more than the file cannot fill the memory.
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise TorchFileError("has compressed or encrypted entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > file_size:
            raise TorchFileError("is broken: its entries are larger than the file")
        self._archive = archive
        self._names = {entry.filename for entry in entries}
        roots = [name.removesuffix("data.pkl") for name in self._names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise TorchFileError("is a zip archive, but not one of torch.save: it needs one entry data.pkl")
        self._root = roots[0]
        # Files from before PyTorch 2.1 do not say; big-endian machines hardly wrote any.
        order = self._read("byteorder") if self._root + "byteorder" in self._names else b"little"
        if order not in (b"little", b"big"):
            raise TorchFileError(f"is broken: its byte order is {order[:20]!r}")
        self._order = "<" if order == b"little" else ">"
        self._storages: dict[tuple[str, str], np.ndarray] = {}

    def load(self) -> Any:
        data = self._read("data.pkl")
        try:
            _check_instructions(data)
            return _Unpickler(data, self.storage).load()
        except TorchFileError:
            raise
        except Exception as error:  # the documentation of `pickle` leaves open which ones a broken pickle raises
            raise TorchFileError(f"is broken: its data.pkl cannot be read ({type(error).__name__})") from None

    def _read(self, name: str) -> bytes:
        if self._root + name not in self._names:
            raise TorchFileError(f"is broken: it lacks the entry {_quoted(name)}")
        return self._archive.read(self._root + name)

    def storage(self, storage_type: str, key: str, count: int) -> np.ndarray:
        """The storage `key` as [count], read once."""
        size, dtype = _STORAGES[storage_type]
        if (storage_type, key) not in self._storages:
            data = self._read(f"data/{key}")
            bits = np.frombuffer(data, f"{self._order}u{size}").astype(f"u{dtype.itemsize}")
            self._storages[storage_type, key] = (bits << 8 * (dtype.itemsize - size)).view(dtype)
        storage = self._storages[storage_type, key]
        if storage.size != count:
            raise TorchFileError(f"is broken: storage {key} has {storage.size} elements instead of {count}")
        return storage


def _check_instructions(data: bytes) -> None:
    """Refuses a pickle by its instructions, before the first of them is executed."""
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS:
            raise TorchFileError(
                f"holds more than plain data and tensors (pickle instruction {instruction.name}): refused"
            )
        if instruction.name == "LONG_BINPUT" and argument > len(data):
            raise TorchFileError("is broken: its data.pkl asks for more memory than it can use")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, storage: Any):
        super().__init__(io.BytesIO(data))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return _no_hooks
        if module == "torch" and name in _STORAGES:
            return name
        function = _quoted(f"{module}.{name}")
        raise TorchFileError(f"asks to run {function}: refused; only plain data and tensors are read")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage that ("storage", type, key, device, count) refers to."""
        kind, storage_type, key, _, count = pid
        if kind != "storage" or storage_type not in _STORAGES or type(key) is not str or type(count) is not int:
            raise TorchFileError("is broken: a tensor refers to no storage")
        return self._storage(storage_type, key, count)


def _no_hooks() -> dict:
    """The gradient hooks of a tensor. It takes no arguments, because copies of a large dict could fill the memory."""
    return {}


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> np.ndarray:
    """The read-only view of `storage` that the arguments describe; offset and strides count elements.

    Not a copy, because any number of tensors may view one storage.
    """
    if not isinstance(storage, np.ndarray) or not len(shape) == len(strides) <= _MOST_AXES or metadata:
        raise TorchFileError("is broken: it has a tensor that is not dense")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise TorchFileError("is broken: a tensor's shape, strides or offset are no counts")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A stride of 0 can make any number of elements of one.
    if count > storage.size or (count > 0 and last >= storage.size):
        raise TorchFileError(f"is broken: a tensor {list(shape)} reaches beyond its storage of {storage.size} elements")
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides, writeable=False)


def _quoted(text: str) -> str:
    """A name from the file, safe to print in one line."""
    return ascii(text if len(text) <= 80 else text[:80] + "…")
