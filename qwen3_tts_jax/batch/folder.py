"""The folder of a batch job: which items in it are finished, and what keeps them so.

    index.jsonl                 a line per finished item, per bad line and per failed item; empty at first
    job.json                    the settings and items that the sound depends on, written before any sound
    ID.wav                      or .flac
    codes/ID.npy                int16 [T, Q], if wanted
    data/train-00000.parquet    in place of both in a job of shards, and
    spool/                      the sound and codes of finished items that are not in a shard yet

An item is finished if the index has its whole line and its files exist: files are written before the line, and both
are on the disk before the next items'. A shard is written before its line, and only then are its items' own files
removed. So a killed job leaves few files without a line; if there are many, lines were lost. No JAX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import soundfile

from qwen3_tts_jax import audio
from qwen3_tts_jax.batch import index as batch_index
from qwen3_tts_jax.batch import settings as batch_settings
from qwen3_tts_jax.batch.index import Record
from qwen3_tts_jax.batch.manifest import BadLine
from qwen3_tts_jax.batch.settings import FolderError
from qwen3_tts_jax.files import LOCK, completed, is_partial, locked_folder

if TYPE_CHECKING:
    from qwen3_tts_jax.batch.plan import Task
    from qwen3_tts_jax.batch.speak import Result

SHARD_ITEMS = 1000
_INDEX, _JOB = "index.jsonl", "job.json"
# Disks take several files in little more time than one.
_WRITERS = 8
MOST_WAITING = 64
"""How many results may wait for the disk; also how many are written at once, all their files before their lines."""
_CODES, _SPOOL, _SHARDS = "codes", "spool", "data"


@dataclass(frozen=True)
class Settled:
    """What job.json says of a finished item: its `Task.identity` and `Task.source`."""

    identity: dict[str, Any]
    source: dict[str, Any]


@dataclass
class JobFolder:
    """The folder of a job; a context manager that keeps other jobs out.

    Attributes:
        path: the folder, created if its parent is there.
        audio_format: "wav", "flac" or "parquet".
        save_codes: whether codes are written too.
        shard_items: how many items a shard has; the last may have fewer.
        finished: records of finished items by id, from `begin` on.
        removed: how many unfinished items had files, which `begin` removed.
    """

    path: Path
    audio_format: str = "wav"
    save_codes: bool = False
    shard_items: int = SHARD_ITEMS

    def __post_init__(self) -> None:
        self.finished: dict[str, Record] = {}
        self.removed = 0
        self._items: dict[str, dict[str, Any]] = {}
        self._others: list[Record] = []
        self._spooled: list[str] = []
        self._shards = 0
        self._index = self.path / _INDEX
        self._sharded = self.audio_format == "parquet"
        own = {_SPOOL: self._sharded, _SHARDS: self._sharded, _CODES: self.save_codes and not self._sharded}
        self._folders = [self.path / name for name, used in own.items() if used]

    def __enter__(self) -> Self:
        """Creates and locks it; raises a FolderError if it cannot be used, or another process is at work in it."""
        self.check()
        with self._writing():
            self.path.mkdir(exist_ok=True)
            for folder in self._folders:
                folder.mkdir(exist_ok=True)
        self._lock = locked_folder(self.path)
        try:
            self._lock.__enter__()
        except OSError as error:
            raise FolderError(str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__(None, None, None)

    def check(self) -> None:
        """Refuses a path that cannot be a job's folder or holds other things that might be overwritten; writes nothing.

        Raises:
            FolderError: it is a file, its parent does not exist, it holds other files and no job, or its job has
                lost the index.
        """
        if not self.path.parent.is_dir():
            raise FolderError(f"the folder {self.path.parent} does not exist; create it first")
        if (self.path / _JOB).exists():
            if not self._index.exists():
                raise FolderError(
                    f"{self.path} has lost {_INDEX}, which tells what is finished: restore it, or choose another folder"
                )
            return
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise FolderError(f"{self.path} is a file, not a folder")
        others = [found.name for found in self.path.iterdir() if not _of_no_job(found)]
        if others:
            raise FolderError(f"{self.path} holds no job but other files, such as {min(others)}: choose a new folder")

    def settled(self) -> dict[str, Settled]:
        """Finished items by id, without those that an earlier release of this package made."""
        job = batch_settings.read(self.path / _JOB)
        if job is None:
            return {}
        return {
            name: Settled(job["items"][name], job["sources"][name])
            for name in self.read_index()
            if name in job["items"] and name in job["sources"]
        }

    def begin(
        self,
        settings: Mapping[str, Any],
        tasks: Sequence[Task],
        bad: Iterable[BadLine] = (),
        unchanged: Mapping[str, Settled] | None = None,
    ) -> None:
        """Finds out what is finished, and records what the job is.

        Args:
            settings: all that the sound of every item depends on, for JSON.
            tasks: of the manifest, which may have grown since the job began.
            bad: lines that are skipped.
            unchanged: those of `settled` that are in the manifest as they were, and have no task.

        Raises:
            FolderError: the folder holds a job that has other settings, finished items that differ from the
                manifest's, or an index that cannot be read or lost lines; or it cannot be written. A job that finished
                nothing may become another.
        """
        settings = {**settings, "format": self.audio_format, "codes saved": self.save_codes}
        unchanged, bad = unchanged or {}, list(bad)
        items = {name: item.identity for name, item in unchanged.items()} | {task.id: task.identity for task in tasks}
        sources = {name: item.source for name, item in unchanged.items()} | {task.id: task.source for task in tasks}
        records = self.read_index()
        gone = unchanged.keys() - records.keys()
        if gone:
            raise FolderError(f"files of {min(gone)} in {self.path} were removed just now: run this again")
        job = batch_settings.read(self.path / _JOB)
        if job is not None and records:
            batch_settings.require_same(self.path, job["settings"], settings)
            skipped = {line.id: line.reason for line in bad if line.id is not None}
            batch_settings.require_unchanged(self.path, job["items"], items, records, skipped)
        self._others = [{"id": line.id, "line": line.line, "status": "bad", "reason": line.reason} for line in bad]
        leftovers = list(self._leftovers(records, job))
        self.removed = self._unfinished(leftovers, records)
        with self._writing():
            self._index.touch()
            for leftover in leftovers:
                leftover.unlink()
            batch_settings.write(self.path / _JOB, settings, items, sources)
            batch_index.rewrite(self._index, [*records.values(), *self._others])
        self.finished = records
        self._items = items
        if self._sharded:
            self._spooled = [name for name, record in records.items() if record["file"].startswith(f"{_SPOOL}/")]
            shards = {record["file"] for record in records.values() if record["file"].startswith(f"{_SHARDS}/")}
            self._shards = max((int(Path(file).stem.rpartition("-")[2]) + 1 for file in shards), default=0)
            self._pack(self.shard_items)

    def _leftovers(self, records: Mapping[str, Record], job: Mapping[str, Any] | None) -> Iterator[Path]:
        """Files that a killed job left unfinished: this job or, if nothing is finished, another before it."""
        known = {self.path / record[key] for record in records.values() for key in ("file", "codes") if key in record}
        before, was = (job["items"], job["settings"].get("format")) if job else ({}, None)
        # Files outside the folders of shards may be the user's, unless they are in the job's format and named after an
        # item that is not finished.
        shared = {self.path: {f".{was}", f".{self.audio_format}"}, self.path / _CODES: {".npy"}}
        owned = {self.path / _SPOOL: {".flac", ".npy"}, self.path / _SHARDS: {".parquet"}}
        if not (self._sharded or was == "parquet"):
            owned = {}
        for folder, endings in (shared | owned).items():
            for found in folder.iterdir() if folder.is_dir() else ():
                own = folder in owned or (found.stem in before and found.stem not in records)
                if is_partial(found) or (own and found.suffix in endings and found not in known):
                    yield found

    def _unfinished(self, leftovers: Sequence[Path], records: Mapping[str, Record]) -> int:
        """How many items have files but no record; raises a FolderError if that is more than an interruption leaves."""
        files = [found for found in leftovers if not is_partial(found)]
        shards = [found for found in files if found.parent == self.path / _SHARDS]
        items = {found.stem for found in files if found not in shards} - records.keys()
        # Until a shard has its line, its items are still in the spool.
        spooled = any(record["file"].startswith(f"{_SPOOL}/") for record in records.values())
        if len(items) > MOST_WAITING or len(shards) > spooled:
            found = f"{len(shards)} shard{'s' * (len(shards) > 1)}" if shards else f"files of {len(items)} items"
            raise FolderError(
                f"{self.path} holds {found} that {_INDEX} does not list as finished, more than an interruption leaves: "
                "restore what is missing, or choose another folder"
            )
        return len(items)

    def read_index(self) -> dict[str, Record]:
        """The records of finished items as they are on the disk; raises a FolderError if the index cannot be read."""
        try:
            return batch_index.read(self._index)
        except OSError as error:
            raise FolderError(f"{self._index} cannot be read: {error.strerror}") from None

    def add(self, results: Sequence[Result]) -> None:
        """Writes the files of finished items in parallel, then a line in the index for each item, finished or failed.

        The next job tries failed items again.

        Raises:
            FolderError: some cannot be written; the others, and the items before them, stay finished.
        """
        with ThreadPoolExecutor(_WRITERS) as pool:
            written = [pool.submit(self._write, result) for result in results]
        errors = [future.exception() for future in written if future.exception() is not None]
        records = [future.result() for future in written if future.exception() is None]
        with self._writing(self._index):
            batch_index.append(self._index, *records)
        for record in records:
            if record["status"] != "done":
                self._others.append(record)
                continue
            self.finished[record["id"]] = record
            if self._sharded:
                self._spooled.append(record["id"])
        if errors:
            raise errors[0]
        if self._sharded:
            self._pack(self.shard_items)

    def _write(self, result: Result) -> Record:
        """Writes the files of an item; returns its record."""
        name, speech = result.task.id, result.speech
        if speech is None:
            return {"id": name, "status": "failed", "reason": result.reason}
        file = f"{_SPOOL}/{name}.flac" if self._sharded else f"{name}.{self.audio_format}"
        record = {
            "id": name,
            "status": "done",
            "file": file,
            "seconds": round(speech.seconds, 6),
            "frames": len(speech.codes),
            "finish_reason": speech.finish_reason,
            "seed": result.seed,
            "tries": result.tries,
        }
        with self._writing(self.path / file):
            if self.save_codes:
                record["codes"] = f"{_SPOOL if self._sharded else _CODES}/{name}.npy"
                with completed(self.path / record["codes"], sync=True) as temporary, temporary.open("wb") as codes:
                    np.save(codes, speech.codes.astype(np.int16))
            audio.write(self.path / file, speech.samples, speech.sample_rate, sync=True)
        return record

    def finish(self) -> None:
        """Puts what is left into a last shard; raises a FolderError if it cannot be written."""
        if self._sharded:
            self._pack(1)
            with self._writing(self._index):
                batch_index.rewrite(self._index, [*self.finished.values(), *self._others])

    def _pack(self, fewest: int) -> None:
        """Moves finished items into shards as long as at least `fewest` are in the spool."""
        while len(self._spooled) >= fewest:
            names = self._spooled[: self.shard_items]
            file = f"{_SHARDS}/train-{self._shards:05}.parquet"
            with self._writing(self.path / file):
                self._write_shard(self.path / file, names)
                batch_index.append(self._index, {"status": "shard", "file": file, "ids": names})
                for name in names:
                    record = self.finished[name]
                    self.finished[name] = batch_index.moved(record, file)
                    for key in ("file", "codes"):
                        if key in record:
                            (self.path / record[key]).unlink()
            del self._spooled[: self.shard_items]
            self._shards += 1

    def _write_shard(self, path: Path, names: Sequence[str]) -> None:
        from qwen3_tts_jax.batch import shards

        sample_rate = soundfile.info(self.path / self.finished[names[0]]["file"]).samplerate
        with completed(path, sync=True) as temporary:
            shards.write(temporary, map(self._row, names), sample_rate, self.save_codes)

    def _row(self, name: str) -> dict[str, Any]:
        record, item = self.finished[name], self._items[name]
        sound = self.path / record["file"]
        row = {
            **record,
            "audio": {"bytes": sound.read_bytes(), "path": sound.name},
            **{column: item[column] for column in ("text", "language", "speaker", "instruct")},
        }
        if self.save_codes:
            row["codes"] = list(np.load(self.path / record["codes"]))
        return row

    @contextmanager
    def _writing(self, path: Path | None = None) -> Iterator[None]:
        """Turns an error of writing into a FolderError."""
        try:
            yield
        except (OSError, soundfile.SoundFileError) as error:
            reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
            place = f"into the folder {self.path}" if path is None else path
            raise FolderError(f"cannot write {place}: {reason}") from None


def _of_no_job(found: Path) -> bool:
    """Whether a folder without job.json may hold this: what a job leaves if it ends before it writes job.json."""
    if found.name in (_CODES, _SPOOL, _SHARDS):
        return found.is_dir() and not any(found.iterdir())
    return found.name == LOCK or is_partial(found) or (found.name == _INDEX and not found.stat().st_size)
