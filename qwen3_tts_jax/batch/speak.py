"""The batch job: tasks → speech, in batches in which no row affects another.

An item draws from its own key, made from its seed and id, and is computed in shapes that depend only on itself and the
batch size: tasks of one size are spoken together, in a batch whose idle rows are filled up. So the same manifest gives
the same codes whatever the order of its lines, and wherever the job was interrupted.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import jax
import numpy as np

from qwen3_tts_jax import voices
from qwen3_tts_jax.batch.plan import Reference, Task, one_line
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.prompt import Request
from qwen3_tts_jax.speech import Progress, Speech
from qwen3_tts_jax.voice_prompt import VoicePrompt

_ROUNDS, _FEWEST = 16, 1024
"""How many tasks are handed to the model at once: the batch size times the first, but at least the second. All their
voices are in memory together, and while the last of them are spoken, rows of the batch are idle. Of recordings that
must be heard before any of these tasks is spoken, there are no more than the batch size times the first."""


class Model(Protocol):
    """What a job needs from `Qwen3TTS`."""

    config: ModelConfig
    params: dict[str, Any]

    def synthesize_each(
        self,
        requests: Sequence[Request],
        sampling: GenerationConfig | None,
        seed: int,
        *,
        batch_size: int,
        utterances: Sequence[int],
        fixed_shapes: bool,
        progress: Progress | None,
    ) -> Iterator[tuple[int, Speech]]: ...


class JobError(Exception):
    """Why a job cannot go on, in one line."""


@dataclass(frozen=True, eq=False)
class Result:
    """What became of a task.

    Attributes:
        task: as it was planned.
        speech: None where there is none.
        reason: why there is none.
        seed: with which the speech was drawn; the task's own on the first try.
        tries: how often the speech was made.
    """

    task: Task
    speech: Speech | None
    reason: str | None
    seed: int
    tries: int


@dataclass(frozen=True, eq=False)
class _Try:
    task: Task
    number: int

    @property
    def seed(self) -> int:
        return retry_seed(self.task.seed, self.number)

    def result(self, speech: Speech | None, reason: str | None = None) -> Result:
        return Result(self.task, speech, reason, self.seed, self.number + 1)


def utterance_number(seed: int, name: str) -> int:
    """The number with which `Qwen3TTS.synthesize(…, seed=0, utterances=[number])` draws the item with this id.

    31 bits of sha256("seed:id"): stable, and independent of all other items.
    """
    return _number(f"{seed}:{name}")


def retry_seed(seed: int, retry: int) -> int:
    """The seed of an item's try after `retry` others: its own at first, then 31 bits of sha256("seed:retry N").

    An item with this seed in its manifest line gives the same speech on its first try.
    """
    return _number(f"{seed}:retry {retry}") if retry else seed


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def schedule(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks grouped by size, the largest first and in each group the longest first: a lack of memory shows at once."""

    def order(task: Task) -> Any:
        return task.size, task.text_tokens, task.id

    return [list(group) for _, group in groupby(sorted(tasks, key=order, reverse=True), key=lambda task: task.size)]


def run(
    model: Model,
    tasks: Iterable[Task],
    generation: GenerationConfig,
    batch_size: int,
    *,
    retries: int = 0,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Speaks tasks and yields each result as soon as it is made.

    A task that fails, such as one whose recording can no longer be read, does not affect the others.

    Args:
        model: of the config that the tasks were planned with.
        tasks: of `plan.plan`.
        generation: how codes are drawn.
        batch_size: the rows of every batch.
        retries: how often a speech that was cut at its limit is made again, with the seeds of `retry_seed`.
        progress: see `speech.Progress`; "encode" counts voices of recordings.

    Raises:
        JobError: the device has not enough memory.
    """
    made: dict[Reference, VoicePrompt] = {}
    most = max(_FEWEST, _ROUNDS * batch_size)
    for group in schedule(tasks):
        waiting = deque(_Try(task, 0) for task in group)
        while waiting:
            part = _next_part(waiting, made, most, _ROUNDS * batch_size)
            again = []
            for tried, result in _speak(model, part, made, generation, batch_size, progress):
                cut = result.speech is not None and result.speech.finish_reason == "length"
                if cut and tried.number < retries:
                    again.append(_Try(tried.task, tried.number + 1))
                else:
                    yield result
            # Tried again next, while their voices are still in `made`; the cut speech is dropped.
            waiting.extendleft(again)
            while len(made) > most:
                del made[next(iter(made))]


def _next_part(waiting: deque[_Try], made: Container[Reference], most: int, most_recordings: int) -> list[_Try]:
    """Takes the first tries, at most so many, and so many of recordings whose voices are not `made` yet."""
    part: list[_Try] = []
    recordings: set[Reference] = set()
    while waiting and len(part) < most:
        reference = waiting[0].task.reference
        if reference is not None and reference not in made:
            if reference not in recordings and len(recordings) == most_recordings:
                break
            recordings.add(reference)
        part.append(waiting.popleft())
    return part


def _speak(
    model: Model,
    part: Sequence[_Try],
    made: dict[Reference, VoicePrompt],
    generation: GenerationConfig,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[_Try, Result]]:
    """Tries and their results; `made` keeps voices."""
    ready: list[tuple[_Try, Request]] = []
    for number, tried in enumerate(part, 1):
        if progress is not None and tried.task.reference is not None:
            progress("encode", number, len(part))
        try:
            ready.append((tried, _with_voice(tried.task, model, made)))
        except (ValueError, OSError) as error:
            yield tried, tried.result(None, one_line(error))
    left = dict(enumerate(ready))
    try:
        for index, speech in _speeches(model, ready, generation, batch_size, progress):
            tried, _ = left.pop(index)
            finite = np.isfinite(speech.samples).all()
            yield tried, tried.result(*((speech,) if finite else (None, "the model made samples that are not finite")))
    except ValueError as error:
        for tried, _ in left.values():
            if len(ready) == 1:
                yield tried, tried.result(None, one_line(error))
            else:
                # Speaking each alone shows which of them it was.
                yield from _speak(model, [tried], made, generation, batch_size, progress)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise JobError(
            f"there is not enough memory for a batch of {batch_size}: choose a smaller --batch-size"
        ) from error


def _speeches(
    model: Model,
    ready: Sequence[tuple[_Try, Request]],
    generation: GenerationConfig,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Speech]]:
    if not ready:
        return iter(())
    return model.synthesize_each(
        [request for _, request in ready],
        generation,
        0,
        batch_size=batch_size,
        utterances=[utterance_number(tried.seed, tried.task.id) for tried, _ in ready],
        fixed_shapes=True,
        progress=progress,
    )


def _with_voice(task: Task, model: Model, made: dict[Reference, VoicePrompt]) -> Request:
    """The request of a task with the voice of its recording."""
    reference = task.reference
    if reference is None:
        return task.request
    if reference not in made:
        (made[reference],) = voices.make_voices(model.params, model.config, [reference.read()], [reference.text])
    return replace(task.request, voice=made[reference])
