"""What the batch job shows while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from qwen3_tts_jax.batch.plan import Task
from qwen3_tts_jax.cli.console import StatusLine


class PlanLine(StatusLine):
    """How much of a manifest has been checked. An instance is the `progress` of `plan.plan`."""

    def __call__(self, number: int, total: int) -> None:
        """Shows which item is being checked, which includes reading or downloading its recording."""
        self._show(f"checking item {number} of {total}", number - 1, total)


class BatchLine(StatusLine):
    """Items done, audio, speed and time left. An instance is a `speech.Progress`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        left: Sequence[Task],
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(quiet, logged=True, clock=clock)
        self._all, self._items = len(tasks), len(tasks) - len(left)
        self._tokens = sum(task.text_tokens for task in left)
        self._tokens_done, self._seconds = 0, 0.0
        self._start: float | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows bytes loaded, or where the batch stands."""
        if stage == "load":
            self._show_loading(done, total)
            return
        if self._start is None:
            self._start = self._clock()
        stages = {"prefill": "reading", "decode": "decoding", "encode": f"voice {done} of {total}"}
        batch = stages.get(stage) or f"frame {done} of at most {total}"
        self._show(f"{self.text()} ({batch})", self._items, self._all)

    def done(self, task: Task, seconds: float) -> None:
        """Counts an item that finished with this many seconds of audio, or failed."""
        self._items += 1
        self._tokens_done += task.text_tokens
        self._seconds += seconds
        self._show(self.text(), self._items, self._all)

    def text(self) -> str:
        """Items done, audio made, its speed, and the time left, estimated from the tokens of the texts."""
        text = f"{self._items} of {self._all} items, {self._seconds:.1f} s of audio"
        if self._start is None or not self._tokens_done:
            return text
        taken = self._taken()
        left = taken * (self._tokens - self._tokens_done) / self._tokens_done
        return f"{text}, {self._seconds / taken:.2f} x real time, {_hours(left)} left"

    def pace(self) -> str | None:
        """How much was made in how much time, loading excluded; None if nothing was begun."""
        if self._start is None:
            return None
        taken = self._taken()
        return f"{self._seconds:.1f} s made in {_hours(taken)}, {self._seconds / taken:.2f} x real time"

    def _taken(self) -> float:
        return max(self._clock() - self._start, 1e-9)


def _hours(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
