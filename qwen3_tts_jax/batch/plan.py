"""The plan of a batch job: the items of a manifest, checked against a model → tasks of known sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qwen3_tts_jax import audio, voice_file, voices
from qwen3_tts_jax.batch.manifest import BadLine, Item
from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.check import CODEC_FOLDER, PARAMS
from qwen3_tts_jax.convert.safetensors_file import BrokenFileError, read_header
from qwen3_tts_jax.prompt import PromptPlan, Request, Tokenizer, plan_prompt
from qwen3_tts_jax.speech_tokenizer import encoded_frames
from qwen3_tts_jax.synthesis import frame_limit, shape_step
from qwen3_tts_jax.utterances import expected_frames, spoken_as, text_tokens
from qwen3_tts_jax.voice_prompt import VoicePrompt, stand_in

# Files of a model; others in its folder, such as the job's own, do not count.
_OF_MODEL = (".json", ".txt", ".safetensors")


@dataclass(frozen=True)
class Reference:
    """A recording whose voice is made when its turn comes.

    Attributes:
        source: a path or URL.
        text: what it says; None for the x-vector alone.
        digest: of its samples when it was checked.
        kept: the file of a download, which is read in place of the URL if it exists.
    """

    source: str
    text: str | None
    digest: str
    kept: Path | None = None

    def read(self) -> tuple[np.ndarray, int]:
        """Its samples and their rate; raises a ValueError or OSError if they changed or cannot be read."""
        kept = self.kept is not None and self.kept.is_file()
        samples, rate = audio.read(self.kept if kept else self.source)
        if _recording_digest(samples, rate) != self.digest:
            raise ValueError(f"{self.source} has changed since the job began")
        return samples, rate


@dataclass(frozen=True, eq=False)
class Task:
    """A checked item.

    Attributes:
        id: name of its files.
        seed: its own or the job's.
        request: what to speak; a stand-in of the same size takes the place of the voice of `reference`.
        reference: the recording to clone, if there is one.
        text_tokens: how many its text has.
        size: what decides the shapes of its batch: buckets of the most frames, the longest prompt and the longest
            trailing text among its utterances, and whether there is a voice.
        identity: all that decides its sound besides the job's settings, for JSON.
        source: what it was made of, see `source_of`.
    """

    id: str
    seed: int
    request: Request
    reference: Reference | None
    text_tokens: int
    size: tuple[int, int, int, bool]
    identity: dict[str, Any]
    source: Source


Source = dict[str, Any]
"""What a task is made of besides the model, for JSON: a digest of its line, and the size and time of its file."""


def source_of(item: Item, seed: int, max_seconds: float | None, split: int | None) -> Source:
    """What a task is made of; the arguments are those of `plan`. No file is read."""
    given = asdict(replace(item, line=0)) | {"defaults": [seed, max_seconds, split]}
    source: Source = {"line": _digest(json.dumps(given, sort_keys=True).encode())}
    file = item.reference or item.voice
    # What is not there any more, or behind a URL, has no size and time.
    with suppress(OSError, ValueError):
        if file is not None and audio.is_file_name(file):
            found = Path(file).stat()
            source["file"] = [found.st_size, found.st_mtime_ns]
    return source


def is_same(before: Source, now: Source) -> bool:
    """Whether a task would be what it was: its line is the same, and its file too, if that is still there."""
    return before["line"] == now["line"] and now.get("file") in (None, before.get("file"))


def plan(
    items: Sequence[Item],
    config: ModelConfig,
    tokenizer: Tokenizer,
    seed: int,
    max_seconds: float | None = None,
    split: int | None = None,
    downloads: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Task], list[BadLine]]:
    """Checks items against a model, reads their recordings and voices, and works out their sizes.

    Args:
        items: of a manifest.
        config: of the model; only the config is needed, not the weights.
        tokenizer: the model's.
        seed: of items without one.
        max_seconds: the longest speech of items without one; by default 2 s plus 0.64 s per token of the text;
            less where the model reads phonemes (see `utterances.spoken_as`).
        split: of items without one; see `Request.split`.
        downloads: folder where downloaded recordings are kept, created if there are any; by default they are
            downloaded again when their turn comes.
        progress: called before each item is checked, with its number, from 1, and how many there are.

    Returns:
        Tasks and bad lines, each in the order of the items.
    """
    voices_of = _Voices(config, downloads)
    tasks: list[Task] = []
    bad: list[BadLine] = []
    for number, item in enumerate(items, 1):
        if progress is not None:
            progress(number, len(items))
        try:
            source = source_of(item, seed, max_seconds, split)
            tasks.append(_task(item, source, config, tokenizer, *voices_of(item), seed, max_seconds, split))
        except (ValueError, OSError) as error:
            bad.append(BadLine(item.line, item.id, one_line(error)))
    return tasks, bad


def one_line(error: Exception) -> str:
    """What an exception says."""
    return " ".join(str(error).split())


def _task(
    item: Item,
    source: Source,
    config: ModelConfig,
    tokenizer: Tokenizer,
    voice: VoicePrompt | None,
    reference: Reference | None,
    digest: str | None,
    seed: int,
    max_seconds: float | None,
    split: int | None,
) -> Task:
    if config.model_type == "voice_design" and item.instruct is None:
        raise ValueError("instruct is missing: a voice_design model needs to be told in words who speaks")
    speaker = item.speaker
    if speaker is None and config.prompt.speakers:
        speaker = next(iter(config.prompt.speakers))
    mode = item.text_mode or ("as-it-comes" if config.model_type == "base" else "all-at-once")
    seconds = max_seconds if item.max_seconds is None else item.max_seconds
    limit = None
    if seconds is not None:
        limit = min(config.codec.frames_in(seconds), config.talker.max_positions)
    request = Request(
        item.text,
        item.language or "auto",
        speaker,
        item.instruct,
        mode.replace("-", "_"),
        max_frames=limit,
        voice=voice,
        split=split if item.split is None else item.split,
    )
    parts = spoken_as(request, tokenizer)
    tokens = [text_tokens(part.text, tokenizer) for part in parts]
    parts = [
        replace(part, max_frames=part.max_frames or min(expected_frames(count), config.max_new_tokens - 1))
        for part, count in zip(parts, tokens, strict=True)
    ]
    request = replace(request, max_frames=limit or sum(part.max_frames for part in parts))
    prompts = [plan_prompt(part, tokenizer, config) for part in parts]
    own_seed = seed if item.seed is None else item.seed
    return Task(
        id=item.id,
        seed=own_seed,
        request=request,
        reference=reference,
        text_tokens=sum(tokens),
        size=_size(parts, prompts, config, shape_step(tokenizer)),
        identity={
            "text": item.text,
            "language": request.language.lower(),
            "speaker": speaker and speaker.lower(),
            "instruct": item.instruct,
            "text_mode": mode,
            "max_frames": request.max_frames,
            # If the text is short enough to stay whole, another split does not change the sound.
            "split": request.split if len(parts) > 1 and tokenizer.phonemes is None else None,
            "seed": own_seed,
            "voice": digest,
            "reference_text": reference and reference.text,
            "x_vector_only": item.x_vector_only,
        },
        source=source,
    )


def _size(
    parts: Sequence[Request], prompts: Sequence[PromptPlan], config: ModelConfig, step: int
) -> tuple[int, int, int, bool]:
    return (
        bucket(max(map(frame_limit, parts, prompts, repeat(config))), step),
        bucket(max(len(prompt.text_ids) for prompt in prompts), PROMPT_BUCKET),
        bucket(max(len(prompt.trailing_text_ids) for prompt in prompts), step),
        parts[0].voice is not None,
    )


_Found = tuple[VoicePrompt | None, Reference | None, str | None]
"""A voice (for a recording, a stand-in of the same size), the recording, and a digest of either."""


_Recording = tuple[int, int, str, Path | None]
"""The number of samples of a recording, their rate, a digest of them, and the file of a download."""


class _Voices:
    """Finds the voices of items and reads each file once."""

    def __init__(self, config: ModelConfig, downloads: Path | None):
        self._config, self._downloads = config, downloads
        self._found: dict[Any, _Found | str] = {}
        self._recordings: dict[str, _Recording] = {}

    def __call__(self, item: Item) -> _Found:
        """Finds an item's voice; raises a ValueError that says what is wrong with it."""
        kind = self._config.model_type
        if kind != "base":
            if item.reference is not None or item.voice is not None:
                raise ValueError(f"a {kind} model clones no voices: reference and voice are for base models")
            return None, None, None
        if item.reference is None and item.voice is None:
            raise ValueError("there is no voice to clone: a base model needs reference (with reference_text) or voice")
        key = (item.reference, item.reference_text, item.voice, item.x_vector_only)
        if key not in self._found:
            try:
                self._found[key] = self._of_file(item) if item.reference is None else self._of_recording(item)
            except (ValueError, OSError) as error:
                self._found[key] = str(error)
        found = self._found[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _of_file(self, item: Item) -> _Found:
        voice = voice_file.load(item.voice)
        if item.x_vector_only:
            voice = replace(voice, codes=None, text=None)
        codes = b"" if voice.codes is None else voice.codes.tobytes() + voice.text.encode()
        return voice, None, _digest(voice.x_vector.tobytes() + codes)

    def _read(self, source: str) -> _Recording:
        if source not in self._recordings:
            samples, rate = audio.read(source)
            voices.check_recording("the reference", samples, rate)
            digest = _recording_digest(samples, rate)
            kept = None
            if self._downloads is not None and audio.is_url(source):
                kept = self._downloads / f"{digest}.wav"
                self._keep(kept, samples, rate)
            self._recordings[source] = len(samples), rate, digest, kept
        return self._recordings[source]

    def _keep(self, path: Path, samples: np.ndarray, rate: int) -> None:
        try:
            self._downloads.mkdir(mode=0o700, exist_ok=True)
            soundfile.write(path, samples, rate, subtype="FLOAT")
        except (OSError, soundfile.SoundFileError):
            # A full disk: it is downloaded once more when its turn comes.
            path.unlink(missing_ok=True)

    def _of_recording(self, item: Item) -> _Found:
        count, rate, digest, kept = self._read(item.reference)
        voices.check_text("the reference", item.reference_text)
        reference = Reference(item.reference, item.reference_text, digest, kept)
        frames = encoded_frames(self._config.codec, count, rate)
        return stand_in(self._config, frames, item.reference_text), reference, digest


def _recording_digest(samples: np.ndarray, rate: int) -> str:
    return _digest(rate.to_bytes(8, "big") + samples.tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def weights_digest(folder: Path) -> str:
    """Tells models apart without reading all of them: by the names, sizes and ends of their files and tensors.

    Training that changes a tensor changes its ends too, except in embeddings, where it may change only middle rows.

    Args:
        folder: a checkpoint in any layout that `Qwen3TTS.from_pretrained` reads.
    """
    found = hashlib.sha256()
    # By name, because `rglob` passes over a link to another folder.
    beside = [path for part in (folder, folder / CODEC_FOLDER) for path in part.glob("*") if path.suffix in _OF_MODEL]
    for path in sorted([*beside, *(folder / PARAMS).rglob("*")]):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        found.update(f"{name.as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            for start, stop in _ends(path, size):
                file.seek(start)
                found.update(file.read(stop - start))
    return found.hexdigest()[:32]


def _ends(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """From where to where a file is read: 1 MiB at each of its ends, and 4 KiB at each end of its tensors."""
    of_file, of_tensor = 1 << 20, 1 << 12
    yield 0, min(of_file, size)
    yield max(min(of_file, size), size - of_file), size
    if path.suffix == ".safetensors":
        # A broken file is refused when it is loaded, which tells more.
        with suppress(BrokenFileError):
            for tensor in read_header(path).values():
                stop = tensor.offset + tensor.nbytes
                yield tensor.offset, min(tensor.offset + of_tensor, stop)
                yield max(tensor.offset, stop - of_tensor), stop
