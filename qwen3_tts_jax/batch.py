"""The batch job: the lines of a manifest → speech, in batches whose companions cannot be heard.

An item draws from a key of its own, made of its seed and its id, and is computed in shapes that depend on itself and
on the batch size alone: a batch holds prompts of one bucket and is filled up to its size with idle rows. So the same
manifest gives the same codes whatever the order of its lines, and wherever the job was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen3_tts_jax import audio, voice_file, voices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.manifest import BadLine, Item
from qwen3_tts_jax.prompt import CLOSING_IDS, ROLE_IDS, Request, Tokenizer, plan_prompt
from qwen3_tts_jax.synthesis import PROMPT_BUCKET, Progress, Speech, bucket
from qwen3_tts_jax.voice_prompt import VoicePrompt

BASE_FRAMES, FRAMES_PER_TOKEN = 25, 8
"""The limit of an item without max_seconds: 2 s, and 0.64 s per token of its text, three times what speech takes."""

_KEPT_VOICES = 256


class Model(Protocol):
    """What a job needs of `Qwen3TTS`."""

    config: ModelConfig
    params: dict[str, Any]

    def synthesize(
        self,
        requests: Sequence[Request],
        sampling: GenerationConfig | None,
        seed: int,
        *,
        batch_size: int,
        utterances: Sequence[int],
        fill: bool,
        progress: Progress | None,
    ) -> list[Speech]: ...


@dataclass(frozen=True)
class Reference:
    """A recording whose voice is made when its turn comes.

    Attributes:
        source: a path or URL.
        text: what it says; None for the x-vector alone.
        digest: of its samples as they were when it was checked.
    """

    source: str
    text: str | None
    digest: str


@dataclass(frozen=True, eq=False)
class Task:
    """An item that was checked.

    Attributes:
        id: name of its files.
        seed: its own or the job's.
        request: with a voice of the same size in place of that of `reference`.
        reference: the recording to clone, if it is one.
        text_tokens: of its text.
        shape: of its prompt: bucket of its length, bucket of its trailing text, whether it has a voice.
        identity: all that decides its sound besides the settings of the job, for JSON.
    """

    id: str
    seed: int
    request: Request
    reference: Reference | None
    text_tokens: int
    shape: tuple[int, int, bool]
    identity: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """What became of a task: speech, or the reason why there is none."""

    task: Task
    speech: Speech | None
    reason: str | None = None


def utterance_number(seed: int, name: str) -> int:
    """The number that `Qwen3TTS.synthesize(…, seed=0, utterances=[number])` draws the item with this id from.

    31 bits of sha256("seed:id"): stable, and independent of all other items.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big") >> 1


def plan(
    items: Sequence[Item],
    config: ModelConfig,
    tokenizer: Tokenizer,
    seed: int,
    max_seconds: float | None = None,
) -> tuple[list[Task], list[BadLine]]:
    """Checks items against a model, reading their recordings and voices, and finds out their sizes.

    Args:
        items: of a manifest.
        config: of the model; only the config is needed, not the weights.
        tokenizer: the model's.
        seed: of items without one.
        max_seconds: the longest speech of items without one; by default it grows with the text.

    Returns:
        Tasks and bad lines, each in the order of the items.
    """
    heard: dict[Any, tuple[VoicePrompt, str] | str] = {}
    tasks: list[Task] = []
    bad: list[BadLine] = []
    for item in items:
        try:
            voice, digest = _checked_voice(item, config, heard)
            tasks.append(_task(item, config, tokenizer, voice, digest, seed, max_seconds))
        except (ValueError, OSError) as error:
            bad.append(BadLine(item.line, item.id, " ".join(str(error).split())))
    return tasks, bad


def _task(
    item: Item,
    config: ModelConfig,
    tokenizer: Tokenizer,
    voice: VoicePrompt | None,
    digest: str | None,
    seed: int,
    max_seconds: float | None,
) -> Task:
    if config.model_type == "voice_design" and item.instruct is None:
        raise ValueError("instruct is missing: a voice_design model needs to be told in words who speaks")
    speaker = item.speaker
    if speaker is None and config.prompt.speakers:
        speaker = next(iter(config.prompt.speakers))
    mode = item.text_mode or ("as-it-comes" if config.model_type == "base" else "all-at-once")
    text_tokens = len(tokenizer.assistant(item.text)) - ROLE_IDS - CLOSING_IDS
    seconds = max_seconds if item.max_seconds is None else item.max_seconds
    if seconds is None:
        max_frames = min(BASE_FRAMES + FRAMES_PER_TOKEN * text_tokens, config.max_new_tokens - 1)
    else:
        max_frames = max(1, int(min(seconds * config.codec.frame_rate, config.talker.max_positions)))
    request = Request(
        item.text, item.language or "auto", speaker, item.instruct, mode.replace("-", "_"), max_frames, voice
    )
    prompt = plan_prompt(request, tokenizer, config)
    reference = None
    if item.reference is not None:
        reference = Reference(item.reference, None if item.x_vector_only else item.reference_text, digest)
    own_seed = seed if item.seed is None else item.seed
    return Task(
        id=item.id,
        seed=own_seed,
        request=request,
        reference=reference,
        text_tokens=text_tokens,
        shape=(
            bucket(len(prompt.text_ids), PROMPT_BUCKET),
            bucket(len(prompt.trailing_text_ids), PROMPT_BUCKET),
            voice is not None,
        ),
        identity={
            "text": item.text,
            "language": request.language.lower(),
            "speaker": speaker and speaker.lower(),
            "instruct": item.instruct,
            "text_mode": mode,
            "max_frames": max_frames,
            "seed": own_seed,
            "voice": digest,
            "reference_text": reference and reference.text,
            "x_vector_only": item.x_vector_only,
        },
    )


def _checked_voice(item: Item, config: ModelConfig, heard: dict) -> tuple[VoicePrompt | None, str | None]:
    """The voice of an item, of a recording one of the same size, and a digest; each file is read once."""
    if config.model_type != "base":
        if item.reference is not None or item.voice is not None:
            raise ValueError(f"a {config.model_type} model clones no voices: reference and voice are for base models")
        return None, None
    if item.reference is None and item.voice is None:
        raise ValueError("there is no voice to clone: a base model needs reference (with reference_text) or voice")
    text = None if item.x_vector_only else item.reference_text
    key = (item.reference, text, item.voice, item.x_vector_only)
    if key not in heard:
        try:
            heard[key] = (
                _voice_of_file(item) if item.reference is None else _stand_in(*_read(item.reference), text, config)
            )
        except (ValueError, OSError) as error:
            heard[key] = str(error)
    found = heard[key]
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _voice_of_file(item: Item) -> tuple[VoicePrompt, str]:
    voice = voice_file.load(item.voice)
    if item.x_vector_only:
        voice = replace(voice, codes=None, text=None)
    codes = b"" if voice.codes is None else voice.codes.tobytes() + voice.text.encode()
    return voice, _digest(voice.x_vector.tobytes() + codes)


def _read(source: str) -> tuple[np.ndarray, int]:
    samples, rate = audio.read(source)
    voices.check_recording("the reference", samples, rate)
    return samples, rate


def _stand_in(samples: np.ndarray, rate: int, text: str | None, config: ModelConfig) -> tuple[VoicePrompt, str]:
    voices.check_text("the reference", text)
    x_vector = np.zeros(config.speaker_encoder.x_vector_width, np.float32)
    if text is None:
        return VoicePrompt(x_vector), _recording_digest(samples, rate)
    # As many frames as the codec will make of the recording: both quotients are rounded up.
    resampled = -(-len(samples) * config.codec.sample_rate // rate)
    frames = -(-resampled // config.codec.frame_samples)
    codes = np.zeros((frames, config.codec.num_codebooks), np.int32)
    return VoicePrompt(x_vector, codes, text), _recording_digest(samples, rate)


def _recording_digest(samples: np.ndarray, rate: int) -> str:
    return _digest(rate.to_bytes(8, "big") + samples.tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def schedule(tasks: Sequence[Task], batch_size: int) -> list[list[Task]]:
    """Batches of tasks of one shape and of similar length, the longest first: if memory is short, it shows at once."""
    batches: list[list[Task]] = []
    for task in sorted(tasks, key=lambda task: (task.shape, task.text_tokens, task.id), reverse=True):
        if not batches or len(batches[-1]) == batch_size or batches[-1][0].shape != task.shape:
            batches.append([])
        batches[-1].append(task)
    return batches


def run(
    model: Model,
    tasks: Sequence[Task],
    generation: GenerationConfig,
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Speaks tasks and yields each result as its batch is done.

    A task that fails, such as one whose recording can no longer be read, takes no other with it.

    Args:
        model: of the config that the tasks were planned with.
        tasks: of `plan`.
        generation: how codes are drawn.
        batch_size: the rows of every batch.
        progress: see `synthesis.Progress`.
    """
    made: dict[Reference, VoicePrompt] = {}
    for batch in schedule(tasks, batch_size):
        ready: list[tuple[Task, Request]] = []
        for task in batch:
            try:
                ready.append((task, _with_voice(task, model, made)))
            except (ValueError, OSError) as error:
                yield Result(task, None, " ".join(str(error).split()))
        if ready:
            yield from _speak(model, ready, generation, batch_size, progress)


def _speak(
    model: Model,
    ready: Sequence[tuple[Task, Request]],
    generation: GenerationConfig,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[Result]:
    try:
        speeches = model.synthesize(
            [request for _, request in ready],
            generation,
            0,
            batch_size=batch_size,
            utterances=[utterance_number(task.seed, task.id) for task, _ in ready],
            fill=True,
            progress=progress,
        )
    except ValueError as error:
        if len(ready) == 1:
            yield Result(ready[0][0], None, " ".join(str(error).split()))
            return
        # Which of them it was shows when each is alone.
        for one in ready:
            yield from _speak(model, [one], generation, batch_size, progress)
        return
    for (task, _), speech in zip(ready, speeches, strict=True):
        if np.isfinite(speech.samples).all():
            yield Result(task, speech)
        else:
            yield Result(task, None, "the model made samples that are not finite")


def _with_voice(task: Task, model: Model, made: dict[Reference, VoicePrompt]) -> Request:
    """The request of a task with the voice of its recording; `made` keeps the latest voices."""
    reference = task.reference
    if reference is None:
        return task.request
    if reference not in made:
        samples, rate = _read(reference.source)
        if _recording_digest(samples, rate) != reference.digest:
            raise ValueError(f"{reference.source} has changed since the job began")
        if len(made) == _KEPT_VOICES:
            del made[next(iter(made))]
        (made[reference],) = voices.make_voices(model.params, model.config, [(samples, rate)], [reference.text])
    return replace(task.request, voice=made[reference])


def weights_digest(folder: Path) -> str:
    """Tells apart models without reading all of them: names and sizes of a folder's files, and their ends.

    Args:
        folder: a checkpoint in any layout that `Qwen3TTS.from_pretrained` reads.
    """
    end = 1 << 20
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or path.suffix.lower() == ".md" or any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            found.update(f"{name.as_posix()}\0{size}\0".encode() + file.read(end))
            file.seek(max(end, size - end))
            found.update(file.read(end))
    return found.hexdigest()[:32]
