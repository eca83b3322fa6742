"""In the place of the model, one whose speech is a function of the utterance's number."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.batch.manifest import Item
from qwen3_tts_jax.batch.plan import Task
from qwen3_tts_jax.batch.speak import Result, utterance_number
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.prompt import Request
from qwen3_tts_jax.speech import Progress, Speech

FRAME_SAMPLES = 12


class StandIn:
    """Speaks as batches with waiting utterances do: what is short overtakes what is long.

    A text with "NaN" has no finite samples, and one with "length" ends at its limit unless the number is a
    multiple of 3. A text `refused` is refused.

    Attributes:
        calls: the texts of each call.
    """

    params = None

    def __init__(
        self,
        folder: Path,
        dtype: str = "",
        attention: str = "auto",
        weights: str = "float",
        mesh: None = None,
        progress: Progress | None = None,
        pause: float = 0.0,
    ):
        self.config, self.pause = hf_config.read_folder(folder), pause
        self.refused: str | None = None
        self.calls: list[list[str]] = []
        if progress is not None:
            progress("load", 1, 1)

    def synthesize_each(
        self,
        requests: Sequence[Request],
        sampling,
        seed: int,
        *,
        batch_size: int,
        utterances: Sequence[int],
        fixed_shapes: bool,
        progress: Progress | None,
    ) -> Iterator[tuple[int, Speech]]:
        assert fixed_shapes
        assert seed == 0
        self.calls.append([request.text for request in requests])
        if self.refused in self.calls[-1]:
            raise ValueError("cannot be\nspoken")
        waiting = list(enumerate(map(speech_of, requests, utterances)))
        rows = [waiting.pop(0) for _ in range(min(batch_size, len(waiting)))]
        while rows:
            time.sleep(self.pause)
            if progress is not None:
                progress("speak", 1, 2)
            shortest = min(rows, key=lambda row: len(row[1].codes))
            rows.remove(shortest)
            rows += [waiting.pop(0)] if waiting else []
            yield shortest


def items(count: int) -> list[Item]:
    """Of a manifest, their texts of four lengths."""
    return [Item(i + 1, f"i{i}", "A word. " * (1 + i % 4), max_seconds=0.5, speaker="ryan") for i in range(count)]


def result_of(task: Task) -> Result:
    """What a job makes of it at its first try."""
    return Result(task, speech_of(task.request, utterance_number(task.seed, task.id)), None, task.seed, 1)


def speech_of(request: Request, number: int) -> Speech:
    draws = np.random.default_rng(number)
    codes = draws.integers(0, 50, (draws.integers(2, 9), 16), np.int32)
    samples = draws.uniform(-1, 1, len(codes) * FRAME_SAMPLES).astype(np.float32)
    samples[0] = np.nan if "NaN" in request.text else 0
    return Speech(samples, 24_000, codes, "length" if "length" in request.text and number % 3 else "stop")


def load_in_worker(source: Source, computing: dict[str, str], digest: str) -> StandIn:
    """In the place of `batch_job._load_elsewhere`; notes its process in the folder that the environment names."""
    Path(os.environ["STAND_IN_WORKERS"], str(os.getpid())).touch()
    return StandIn(source.folder(), **computing, pause=0.05)


class _Deadly(StandIn):
    def synthesize_each(self, *_: object, **__: object) -> Iterator[tuple[int, Speech]]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()


def deadly(source: Source, computing: dict[str, str], digest: str) -> StandIn:
    """In the place of `batch_job._load_elsewhere`; whatever it speaks kills its process."""
    return _Deadly(source.folder(), **computing)
