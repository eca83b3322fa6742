"""Files and folders that appear under their names only once they are complete, folders that one process keeps to
itself, and differences between the settings that files hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None

LOCK = ".lock"
"""The file that locks a folder."""

_SHOWN = 60
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


def check_place(path: Path) -> None:
    """Checks, before long work, that a file can be put at `path`.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: as `check_folder` for its folder.
    """
    check_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")


def check_folder(folder: Path) -> None:
    """Checks, before long work, that files can be put into a folder.

    Raises:
        FileNotFoundError: it does not exist.
        PermissionError: no file can be created in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; create it first")
    probe = _partial_name(folder / "probe")
    with _writing_into(folder):
        # Creating a file is the only sure test: permission bits say nothing of a read-only disk.
        probe.touch(exist_ok=False)
    probe.unlink()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes that lock a folder out of it; the lock ends with the process, however that ends.

    The lock file stays: if it were removed, one process could hold it and another its successor.

    Raises:
        BlockingIOError: another process is at work in it.
        PermissionError: no file can be written into it.
        OSError: its disk or this system has no locks.
    """
    if fcntl is None:
        raise OSError(f"the folder {folder} cannot be locked: this system has no fcntl")
    with _writing_into(folder):
        lock = (folder / LOCK).open("a+b", buffering=0)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BlockingIOError(
                f"another process ({lock.read().decode() or 'unknown'}) is at work in {folder}: wait for it, or choose "
                "another folder"
            ) from None
        except OSError as error:
            raise OSError(f"the folder {folder} cannot be locked: {error.strerror}; choose a local one") from None
        # Only what other processes are told depends on it, but a full disk takes nothing else either.
        with _writing_into(folder):
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        yield


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PermissionError(f"cannot write into the folder {folder}: {error.strerror}") from None


@contextmanager
def completed(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A name to write a file under, then renamed to `path`; an error removes the file and leaves `path` as it was.

    Args:
        path: of the finished file.
        sync: wait until the file is on the disk before it gets its name, and then for the name.

    Raises:
        OSError: it cannot be written; the error's filename is `path`.
    """
    temporary = _partial_name(path)
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        temporary.replace(path)
        if sync:
            sync_path(path.parent)
    except OSError as error:
        # The error of a full disk names no file, others the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def completed_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, then renamed to `path`; an error removes it.

    Args:
        path: of the finished folder; the folder that it lies in is created if need be.

    Raises:
        FileExistsError: `path` exists.
        BlockingIOError: another process is filling it.
    """
    require_absent(path)
    # A fixed name, so that what a killed process left, maybe gigabytes, is found again.
    temporary = path.with_name(f".{path.name}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    with _alone_in(temporary, path):
        try:
            for left in temporary.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield temporary
            temporary.rename(path)
        except BaseException:
            # Not after the renaming: by then another process may have made a new one.
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _alone_in(temporary: Path, path: Path) -> Iterator[None]:
    """Keeps other processes from filling `temporary`, which is to become `path`, where folders can be locked."""
    if fcntl is None:
        yield
        return
    busy = BlockingIOError(f"another process is writing {path}: wait for it, or choose another folder")
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # As on some network file systems.
        # Whoever held it before may just have renamed it.
        if not temporary.exists() or not os.path.samestat(os.fstat(descriptor), temporary.stat()):
            raise busy
        yield
    finally:
        os.close(descriptor)


def require_absent(path: Path) -> None:
    """Checks, before long work, that something new can be put at `path`, with the folders that it lies in.

    Raises:
        FileExistsError: something is at `path`, or a file where it needs a folder.
        PermissionError: nothing can be created there.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another folder or move it away")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise FileExistsError(f"{nearest} is a file, not a folder")
    check_folder(nearest)


def is_partial(path: Path) -> bool:
    """Whether `path` was left by a process that was killed while it wrote a file."""
    return _PARTIAL.fullmatch(path.name) is not None


def sync_path(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, nested ones by their path: "name was 1, is 2"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            difference
            for key in keys
            for difference in differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    if before == now:
        return []
    was, is_now = _shown(before), _shown(now)
    return [f"{name} is another" if was == is_now else f"{name} was {was}, is {is_now}"]


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex}.partial")
