"""Files and folders that appear under their names only once they are complete."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


def check_place(path: Path) -> None:
    """Finds out, before long work, whether a file can be put there.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: as `check_folder` of its folder.
    """
    check_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")


def check_folder(folder: Path) -> None:
    """Finds out, before long work, whether files can be put into a folder.

    Raises:
        FileNotFoundError: it does not exist.
        PermissionError: no file can be created in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; create it first")
    probe = _partial_name(folder / "probe")
    try:
        # Creating a file is the only sure test: permission bits say nothing of a read-only disk.
        probe.touch(exist_ok=False)
    except OSError as error:
        raise PermissionError(f"cannot write into the folder {folder}: {error.strerror}") from None
    probe.unlink()


@contextmanager
def completed(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A name to write a file under, which then is renamed to `path`; an error removes it and leaves `path` as it was.

    Args:
        path: of the finished file.
        sync: wait until the file is on the disk before it gets its name, and then for the name.
    """
    temporary = _partial_name(path)
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        temporary.replace(path)
        if sync:
            sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def completed_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which then is renamed to `path`; an error removes it.

    Args:
        path: of the finished folder; the folder that it lies in is created if need be.

    Raises:
        FileExistsError: `path` is there.
    """
    require_absent(path)
    # One name, by which what a killed process left is found again: it may be gigabytes.
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_absent(path: Path) -> None:
    """Raises a FileExistsError where something is at `path`."""
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another folder or move it away")


def is_partial(path: Path) -> bool:
    """Whether it is what a process left that was killed while it wrote a file."""
    return _PARTIAL.fullmatch(path.name) is not None


def sync_path(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex}.partial")
