"""The folder of a batch job: what is finished in it, and that it stays so.

    job.json        the settings and items that the sound depends on, written before all else
    index.jsonl     a line per finished item, and per line or item that is bad or failed
    ID.wav          or .flac
    codes/ID.npy    int16 [T, Q], if wanted

An item is finished if the index has a whole line of it and its files are there: files come before the line, and both
are on the disk before the next item's. No JAX.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import soundfile

from qwen3_tts_jax import audio
from qwen3_tts_jax.manifest import BadLine

if TYPE_CHECKING:
    from qwen3_tts_jax.batch import Task
    from qwen3_tts_jax.synthesis import Speech

VERSION = 1
"""Of job.json; raised when a folder of an earlier release cannot be gone on with."""

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")
_LOCK = ".lock"
_SHOWN = 60


class FolderError(Exception):
    """A folder that the job cannot work in, in one line."""


@dataclass
class JobFolder:
    """An open folder; a context manager that keeps other jobs out.

    Attributes:
        path: the folder, created if its parent is there.
        audio_format: "wav" or "flac".
        save_codes: whether codes are written too.
        finished: index lines of finished items by id; of `begin`.
    """

    path: Path
    audio_format: str = "wav"
    save_codes: bool = False

    def __post_init__(self) -> None:
        self.finished: dict[str, dict[str, Any]] = {}
        self._index = self.path / "index.jsonl"

    def __enter__(self) -> Self:
        """Raises: FolderError, where no file can be written or another job is at work."""
        self.check()
        try:
            self.path.mkdir(exist_ok=True)
            if self.save_codes:
                (self.path / "codes").mkdir(exist_ok=True)
            self._lock = (self.path / _LOCK).open("a+b", buffering=0)
        except OSError as error:
            raise FolderError(f"cannot write into the folder {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            process = self._lock.read().decode()
            self._lock.close()
            raise FolderError(
                f"another job is at work in {self.path} (process {process or 'unknown'}): wait for it, or choose "
                "another folder"
            ) from None
        except OSError as error:
            self._lock.close()
            raise FolderError(f"{self.path} cannot be locked: {error.strerror}; choose a local folder") from None
        try:
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()).encode())
        except OSError as error:
            # Only what other jobs are told depends on it, but a disk that is full takes no speech either.
            self._lock.close()
            raise FolderError(f"cannot write into the folder {self.path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def begin(self, settings: Mapping[str, Any], tasks: Sequence[Task], bad: Iterable[BadLine] = ()) -> None:
        """Finds out what is finished, and writes down what the job is.

        Args:
            settings: all that the sound of every item depends on, for JSON.
            tasks: of the manifest; it may have more than when the job began.
            bad: lines that are skipped.

        Raises:
            FolderError: the folder holds other files, or a job of other settings or whose finished items are
                not those of the manifest; or it cannot be written.
        """
        settings = {**settings, "format": self.audio_format, "codes saved": self.save_codes}
        items = {task.id: task.identity for task in tasks}
        records = self.read_index()
        job = self._job()
        if job is not None:
            self._require_same(job["settings"], settings)
            self._require_unchanged(job["items"], items, records)
        content = json.dumps({"version": VERSION, "settings": settings, "items": items}, indent=1, ensure_ascii=False)
        lines = [*records.values(), *({"id": line.id, "line": line.line, "status": "bad", "reason": line.reason}
                                      for line in bad)]  # fmt: skip
        try:
            for leftover in [*self.path.iterdir(), *(self.path / "codes").glob(".*")]:
                if _is_partial(leftover):
                    leftover.unlink()
            _replace(self.path / "job.json", content.encode() + b"\n")
            _replace(self._index, b"".join(map(_line, lines)))
        except OSError as error:
            raise FolderError(f"cannot write into the folder {self.path}: {error.strerror}") from None
        self.finished = records

    def _job(self) -> dict[str, Any] | None:
        path = self.path / "job.json"
        try:
            job = json.loads(path.read_bytes())
            if job["version"] != VERSION:
                raise FolderError(
                    f"{path} has version {job['version']!r} and this package goes on with {VERSION}: choose another "
                    "folder"
                )
            _ = job["settings"], job["items"]
            return job
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise FolderError(f"{path} is damaged: choose another folder, or remove this one") from None
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error.strerror}") from None

    def check(self) -> None:
        """Refuses what cannot be the folder of a job, or has other things that it might overwrite; writes nothing.

        Raises:
            FolderError: a file, a folder in one that does not exist, or one that holds no job but other files.
        """
        if not self.path.parent.is_dir():
            raise FolderError(f"the folder {self.path.parent} does not exist; create it first")
        if not self.path.exists() or (self.path / "job.json").exists():
            return
        if not self.path.is_dir():
            raise FolderError(f"{self.path} is a file, not a folder")
        # What a job leaves that was ended before it wrote job.json.
        own = (_LOCK, "codes")
        others = [found.name for found in self.path.iterdir() if found.name not in own and not _is_partial(found)]
        if others:
            raise FolderError(f"{self.path} holds no job but other files, such as {min(others)}: choose a new folder")

    def read_index(self) -> dict[str, dict[str, Any]]:
        """The whole index lines of items whose files are there; a line that was torn off counts for nothing."""
        records: dict[str, dict[str, Any]] = {}
        try:
            lines = self._index.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return records
        except OSError as error:
            raise FolderError(f"{self._index} cannot be read: {error.strerror}") from None
        for line in lines:
            try:
                record = json.loads(line)
                files = [record[key] for key in ("file", "codes") if key in record]
                if record["status"] == "done" and files and all((self.path / file).is_file() for file in files):
                    records[record["id"]] = record
            except (ValueError, KeyError, TypeError):
                continue
        return records

    def _require_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differences = _differences(before, json.loads(json.dumps(now)))
        if differences:
            raise FolderError(
                f"{self.path} holds a job of other settings: {'; '.join(differences)}; use the same, or another folder"
            )

    def _require_unchanged(self, before: Mapping, now: Mapping, finished: Iterable[str]) -> None:
        changed = []
        for name in finished:
            if name not in now:
                changed.append(f"{name} is not in the manifest")
            elif before.get(name) != now[name]:
                changed.append(f"{name}: {', '.join(_differences(before.get(name, {}), now[name]))}")
        if changed:
            more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise FolderError(
                f"{len(changed)} finished item{'s' * (len(changed) > 1)} of {self.path} changed since: "
                f"{'; '.join(changed[:3])}{more}; use another folder, or other ids"
            )

    def add(self, task: Task, speech: Speech) -> dict[str, Any]:
        """Writes the files of a finished item, then its index line, which is returned.

        Raises:
            FolderError: they cannot be written; the items before it stay finished.
        """
        record = {
            "id": task.id,
            "status": "done",
            "file": f"{task.id}.{self.audio_format}",
            "seconds": round(speech.seconds, 6),
            "frames": len(speech.codes),
            "finish_reason": speech.finish_reason,
            "seed": task.seed,
        }
        path = self.path / record["file"]
        try:
            if self.save_codes:
                record["codes"] = f"codes/{task.id}.npy"
                _replace(self.path / record["codes"], _npy(speech.codes.astype(np.int16)))
            audio.write(path, speech.samples, speech.sample_rate)
            _sync(path)
            _sync(self.path)
            self._append(record)
        except (OSError, soundfile.SoundFileError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FolderError(f"cannot write {path}: {' '.join(reason.split())}") from None
        self.finished[task.id] = record
        return record

    def add_failure(self, task: Task, reason: str) -> None:
        """Writes an index line of an item that failed; the next job tries it again."""
        try:
            self._append({"id": task.id, "status": "failed", "reason": reason})
        except OSError as error:
            raise FolderError(f"cannot write {self._index}: {error.strerror}") from None

    def _append(self, record: Mapping[str, Any]) -> None:
        with self._index.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())


def _is_partial(path: Path) -> bool:
    return _PARTIAL.fullmatch(path.name) is not None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _npy(codes: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, codes)
    return content.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name only once it is on the disk."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, nested ones by their path: "name was 1, is 2"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            difference
            for key in keys
            for difference in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if before == now else [f"{name} was {_shown(before)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
