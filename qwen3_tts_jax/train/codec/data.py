"""Recordings to train a codec on: found, checked, decoded once into memory-mapped files, and cut by seed and step."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from qwen3_tts_jax import audio
from qwen3_tts_jax.files import check_folder, completed
from qwen3_tts_jax.train.interrupts import Signals
from qwen3_tts_jax.train.lines import DataError, codes_problem, json_lines, raise_problems
from qwen3_tts_jax.train.progress import Progress

_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
_SHORTEST_SECONDS = 0.5
_SILENCE = 1e-3
_SHARD_SAMPLES = 1 << 25  # 64 MB
_FULL_SCALE = 32_767

Length = tuple[int, int]
"""Samples of a recording, and their rate in Hz."""


@dataclass(frozen=True)
class Recording:
    """A sound file to learn from.

    Attributes:
        where: its path in a folder, or "FILE line N", for messages.
        audio: the file.
        features: a .npy or .npz file of a teacher's features, where there is a teacher.
        codes: a .npy or .npz file of its codes [T, Q], where a decoder learns from given codes.
        key: the name of their array in a .npz file.
    """

    where: str
    audio: Path
    features: Path | None = None
    codes: Path | None = None
    key: str | None = None


def find_recordings(source: str | Path, features: str | Path | None = None) -> list[Recording]:
    """The recordings of a folder and its subfolders, sorted by path, or of a file of JSON lines.

    A line is an object with `audio` and, where needed, `features`, which are a teacher's, or `codes`: a .npy file, or a
    .npz file with the name of the codes' array as `key`. Paths are relative to the file; other fields are ignored.

    Args:
        source: the folder or the file.
        features: a folder of features, named and placed like the recordings (`a/b.wav`: `a/b.npy` or `a/b.npz`).

    Raises:
        DataError: no such folder or file, no recordings, a line that is no such object, or missing files. The first
            ten are named.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} is no folder of recordings and no file of JSON lines")
    folder = source if source.is_dir() else source.parent
    problems: list[str] = []
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        found = [Recording(str(path.relative_to(source)), path) for path in files]
        if not found:
            raise DataError(f"{source} holds no recordings; their names end in {', '.join(_ENDINGS)}")
    else:
        found = _read_lines(source, problems)
    if features is not None:
        found = [_with_features(recording, folder, Path(features), problems) for recording in found]
    raise_problems(problems)
    return found


def _read_lines(path: Path, problems: list[str]) -> list[Recording]:
    found = []
    for where, fields in json_lines(path, problems):
        if not isinstance(fields.get("audio"), str) or not fields["audio"].strip():
            problems.append(f"{where} has no audio")
            continue
        if not isinstance(fields.get("features") or "", str):
            problems.append(f"{where}: features must be a file's name, got {fields['features']!r}")
            continue
        codes = fields.get("codes")
        wrong = codes_problem(codes, fields.get("key"), where) if codes else None
        if wrong is not None:
            problems.append(wrong)
            continue
        paths = {name: path.parent / fields[name] for name in ("audio", "features", "codes") if fields.get(name)}
        missing = [f"{where}: {name} {file} is not there" for name, file in paths.items() if not file.is_file()]
        problems += missing
        if not missing:
            found.append(Recording(where, **paths, key=fields.get("key") if "codes" in paths else None))
    if not found and not problems:
        raise DataError(f"{path} has no lines; give one JSON object per recording, with audio")
    return found


def _with_features(recording: Recording, folder: Path, features: Path, problems: list[str]) -> Recording:
    try:
        place = features / recording.audio.relative_to(folder)
    except ValueError:
        place = features / recording.audio.name
    for ending in (".npy", ".npz"):
        if place.with_suffix(ending).is_file():
            return replace(recording, features=place.with_suffix(ending))
    problems.append(f"{recording.where}: features {place.with_suffix('.npy')} are not there")
    return recording


def check_headers(recordings: Sequence[Recording]) -> list[Length]:
    """Refuses files that hold no sound or too little of it, from their headers alone; returns the lengths of all.

    Raises:
        DataError: the first ten such files.
    """
    problems, lengths = [], []
    for recording in recordings:
        try:
            header = soundfile.info(recording.audio)
        except soundfile.LibsndfileError as error:
            problems.append(f"{recording.where}: {recording.audio} is no sound file: {error.error_string}")
            continue
        seconds = header.frames / header.samplerate
        lengths.append((header.frames, header.samplerate))
        if seconds < _SHORTEST_SECONDS:
            problems.append(
                f"{recording.where}: {recording.audio} is too short: {seconds:.3f} s, at least {_SHORTEST_SECONDS} s "
                "is needed"
            )
    raise_problems(problems)
    return lengths


@dataclass(frozen=True, eq=False)
class Clips:
    """Recordings at one rate, and crops of them.

    Attributes:
        recordings: where the samples are from.
        samples: int16 [N] of each, memory-mapped.
        sample_rate: in Hz.
        codes: int32 [T, Q] of each, where a decoder learns from given codes; see `codes.with_codes`.
        frame_samples: crops begin at multiples of it.
    """

    recordings: tuple[Recording, ...]
    samples: tuple[np.ndarray, ...]
    sample_rate: int
    codes: tuple[np.ndarray, ...] | None = None
    frame_samples: int = 1

    @property
    def seconds(self) -> float:
        """Duration of all recordings together."""
        return sum(map(len, self.samples)) / self.sample_rate

    def places(self, step: int, rows: int, length: int, seed: int, starts: float) -> list[tuple[int, int]]:
        """Recording and first sample of each of a step's crops of `length` samples, determined by seed and step.

        Recordings are drawn in proportion to their length. A part `starts` of the crops begin where their recording
        begins, as speech to be decoded later does; the others anywhere.
        """
        rng = np.random.default_rng([seed, step])
        lengths = np.array([len(one) for one in self.samples])
        chosen = rng.choice(len(lengths), rows, p=lengths / lengths.sum())
        at_start = rng.random(rows) < starts
        latest = np.maximum(lengths[chosen] - length, 0) // self.frame_samples
        first = (rng.random(rows) * (latest + 1)).astype(int) * self.frame_samples
        return list(zip(chosen.tolist(), np.where(at_start, 0, first).tolist(), strict=True))

    def middles(self, length: int) -> list[tuple[int, int]]:
        """One crop of each recording, from its middle."""
        frame = self.frame_samples
        return [(i, max(len(one) - length, 0) // 2 // frame * frame) for i, one in enumerate(self.samples)]

    def cut(self, places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
        """The samples of crops, float32 [B, length] in ±1; zeros where a recording is shorter."""
        crops = np.zeros((len(places), length), np.float32)
        for row, (which, first) in enumerate(places):
            piece = self.samples[which][first : first + length]
            crops[row, : len(piece)] = piece.astype(np.float32) / _FULL_SCALE
        return crops

    def names(self, places: Sequence[tuple[int, int]]) -> str:
        """Where crops are from, for messages."""
        return ", ".join(
            f"{self.recordings[which].where} from {first / self.sample_rate:.2f} s" for which, first in places
        )


def decode_recordings(
    recordings: Sequence[Recording], folder: str | Path, sample_rate: int, progress: Progress | None = None
) -> Clips:
    """Reads and resamples what `folder` does not hold yet, and memory-maps all of it.

    The folder has shards of int16 samples, each with a JSON file that says which files' samples it holds, by
    path, size and modification time. What is there already is not read again, so an interrupted call resumes where
    it stopped; several processes may share the folder.

    Args:
        recordings: from `find_recordings`.
        folder: created if needed.
        sample_rate: to resample to, in Hz.
        progress: told how many recordings are decoded.

    Raises:
        DataError: recordings that are silent, not finite or cannot be decoded, once all others are; the first ten
            are named.
        PermissionError: `folder` does not hold all recordings, and no file can be put into it.
        train.interrupts.Interrupted: a signal, as in `train.loop.run_steps`, once what was decoded is kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [_key(recording.audio, sample_rate) for recording in recordings]
    held, problems = _held(folder), []
    missing = {key: recording for key, recording in zip(keys, recordings, strict=True) if key not in held}
    if missing:
        check_folder(folder)
    pieces: list[tuple[str, np.ndarray]] = []
    with Signals() as signals:
        for done, (key, recording) in enumerate(missing.items(), 1):
            try:
                pieces.append((key, _decode(recording, sample_rate)))
            except (OSError, ValueError) as error:
                problems.append(f"{recording.where}: {error}")
            many, stopping = sum(len(samples) for _, samples in pieces) >= _SHARD_SAMPLES, signals.number is not None
            if pieces and (many or stopping or done == len(missing)):
                _write_shard(folder, pieces)
                pieces = []
            if progress is not None and (done % 100 == 0 or done == len(missing)):
                progress(done, len(missing))
            if stopping:
                signals.stop(f"after {done} of {len(missing)} recordings, which are kept")
    if pieces:
        _write_shard(folder, pieces)
    raise_problems(problems)
    held = _held(folder)
    shards = {shard: np.load(folder / shard, mmap_mode="r") for shard, _, _ in (held[key] for key in keys)}
    samples = tuple(shards[shard][first : first + count] for shard, first, count in (held[key] for key in keys))
    return Clips(tuple(recordings), samples, sample_rate)


def _key(file: Path, sample_rate: int) -> str:
    stat = file.stat()
    return f"{sample_rate} {stat.st_size} {stat.st_mtime_ns} {os.path.abspath(file)}"


def _held(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Shard, first sample and number of samples of each key."""
    held = {}
    for index in sorted(folder.glob("*.json")):
        entries = json.loads(index.read_text(encoding="utf-8"))
        held |= {key: (index.with_suffix(".npy").name, first, count) for key, first, count in entries}
    return held


def _write_shard(folder: Path, pieces: Sequence[tuple[str, np.ndarray]]) -> None:
    name = uuid.uuid4().hex
    ends = np.cumsum([len(samples) for _, samples in pieces]).tolist()
    with completed(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([samples for _, samples in pieces]))
    entries = [[key, end - len(samples), len(samples)] for (key, samples), end in zip(pieces, ends, strict=True)]
    with completed(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")


def _decode(recording: Recording, sample_rate: int) -> np.ndarray:
    samples, rate = audio.read(recording.audio)
    peak = float(np.abs(samples).max())
    if peak < _SILENCE:
        raise ValueError(f"{recording.audio} is silent: its peak is {peak:g}")
    samples = np.clip(audio.resample(samples, rate, sample_rate), -1, 1)
    return np.round(samples * _FULL_SCALE).astype(np.int16)
