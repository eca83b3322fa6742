"""Lines on standard error that show how far a command is."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Self

import typer

from qwen3_tts_jax.cli.console import one_line

if TYPE_CHECKING:
    from qwen3_tts_jax.batch.plan import Task

# Seconds; the first is late so that a quick command leaves no line in a log.
_FIRST_LOG, _LOG_EVERY = 10.0, 60.0


class StatusLine:
    """One line on standard error that says what is going on; where that is not a terminal, nothing or a few lines.

    If a Ctrl-C was lost, the next thing shown raises its KeyboardInterrupt.
    """

    def __init__(
        self,
        quiet: bool,
        *,
        elapsed: bool = False,
        logged: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`elapsed` also shows the time since the start; `logged` prints a line where there is no terminal, after 10 s
        and then every minute.
        """
        # rich takes a tenth of a second to import, and --help has no use for it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *[TimeElapsedColumn()] * elapsed]
        terminal = sys.stderr.isatty()
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not terminal)
        self._clock = clock
        self._next_log = clock() + _FIRST_LOG if logged and not quiet and not terminal else math.inf
        self._task = self._progress.add_task("starting", total=None)
        self._interrupted = self._notes_interrupts = False

    def __enter__(self) -> Self:
        self._note_interrupts()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._notes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note_interrupts(self) -> None:
        # JAX runs Python code during garbage collection, and what is raised there, even by a Ctrl-C, is lost.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
            self._notes_interrupts = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._progress.stop()
        typer.echo(one_line(text), err=True)
        self._progress.start()

    def _show(self, text: str, done: int = 0, total: int | None = None) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        # `update` neither clears a total nor, once it was reached, keeps the clock running.
        (task,) = self._progress.tasks
        task.total, task.finished_time = total, None
        self._progress.update(self._task, description=text, completed=done)
        if self._clock() >= self._next_log:
            typer.echo(text, err=True)
            self._next_log = self._clock() + _LOG_EVERY

    def _show_loading(self, done: int, total: int) -> None:
        self._show(f"loading {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)


class CheckLine(StatusLine):
    """How much of a model's files has been compared with the published ones; a `progress` of `resolve`."""

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic):
        super().__init__(quiet, logged=True, clock=clock)

    def __enter__(self) -> Self:
        self._note_interrupts()
        # A download comes first, and shows its own progress.
        return self

    def __call__(self, done: int, total: int) -> None:
        self._progress.start()
        self._show(f"checking {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)


class ProgressLine(StatusLine):
    """The progress of one speech.

    An instance is a `speech.Progress` that knows two more stages: a recording is heard ("listen"), a file is saved
    ("save").

    Attributes:
        until_speech: seconds from the prompt to the first frames, most of which is compilation.
    """

    def __init__(self, frame_seconds: float, quiet: bool, clock: Callable[[], float] = time.monotonic):
        super().__init__(quiet, elapsed=True, logged=True, clock=clock)
        self._frame_seconds = frame_seconds
        self._prompted = self._first_frames = 0.0
        self._part, self._parts = 0, 1
        self._first_count = 0
        self.until_speech = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows bytes loaded, frames spoken or utterances decoded."""
        if stage == "load":
            self._show_loading(done, total)
        elif stage == "prefill":
            if done == 0:
                self._prompted, self._first_frames = self._clock(), 0.0
                self._show("compiling")
            self._part, self._parts = done, total
        elif stage == "speak":
            self._show_spoken(done)
        else:
            self._show({"listen": "listening", "encode": "encoding", "decode": "decoding", "save": "saving"}[stage])

    def _show_spoken(self, frames: int) -> None:
        now = self._clock()
        text = f"speaking {frames * self._frame_seconds:.1f} s of audio"
        if not self._first_frames:
            self._first_frames, self._first_count = now, frames
            self.until_speech = now - self._prompted
        else:
            speed = (frames - self._first_count) * self._frame_seconds / max(now - self._first_frames, 1e-9)
            text += f", {speed:.2f} x real time"
        if self._parts > 1:
            text += f", part {self._part} of {self._parts}"
        self._show(text)


class PlanLine(StatusLine):
    """How much of a manifest has been checked. An instance is the `progress` of `batch.plan.plan`."""

    def __call__(self, number: int, total: int) -> None:
        """Shows which item is being checked, which includes reading or downloading its recording."""
        self._show(f"checking item {number} of {total}", number - 1, total)


class BatchLine(StatusLine):
    """Items done of `total`, audio, speed, and time for those `left`. An instance is a `speech.Progress`."""

    def __init__(
        self,
        total: int,
        left: Sequence[Task],
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(quiet, logged=True, clock=clock)
        self._all, self._items = total, total - len(left)
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
