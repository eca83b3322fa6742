"""What the training commands share: how they read options, what they say while they work, and how they end."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer

from qwen3_tts_jax.cli.console import fail, refuse, refuse_idle, refusing
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.files import locked_folder


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, without the end that `above` or `below` excludes; NaN is never among them."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        from_low = self.low < number if self.above else self.low <= number
        return from_low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        return f"{'above ' * self.above}{self.low} … {'below ' * self.below}{self.high}"


# Larger values are slips, not choices, which only a full memory or a NaN loss would reveal, and late.
_LARGEST = 1_000_000
STEPS, STEPS_OR_NONE, ROWS = Interval(1, 2**31 - 1), Interval(0, 2**31 - 1), Interval(1, 65_536)
POSITIVE, FROM_ZERO = Interval(0, _LARGEST, above=True), Interval(0, _LARGEST)
SECONDS = Interval(0, 86_400, above=True)
PART, PART_ABOVE, PART_BELOW = Interval(0, 1), Interval(0, 1, above=True), Interval(0, 1, below=True)
NORM = Interval(0, math.inf, above=True)  # infinity clips nothing

EXPORT_LAST = "; `export RUN --checkpoint last` makes a model of that state"


def check_numbers(interval: Interval, **options: float | None) -> None:
    """Refuses options, by their names in Python, whose values are not in `interval`; None is an option not given."""
    for name, value in options.items():
        if value is not None and value not in interval:
            got = f"{value:g}" if isinstance(value, float) else value
            refuse(f"--{name.replace('_', '-')} must be {interval}, got {got}")


def check_run(context: typer.Context) -> None:
    """Refuses what no run can have of the options that all three commands share: seed, steps and when what is done."""
    from qwen3_tts_jax.prompt import check_seed

    given = context.params
    with refusing(ValueError):
        check_seed(given["seed"], "--seed")
    refuse_idle(context, given["patience"] and given["validation"] is None, "without --validation", "patience")
    refuse_idle(context, given["patience"] and not given["evaluate_every"], "with --evaluate-every 0", "patience")
    check_numbers(STEPS, steps=given["steps"])
    check_numbers(Interval(0, given["steps"] - 1), warmup=given["warmup"])
    every = ("log_every", "evaluate_every", "save_every", "sample_every", "patience")
    check_numbers(STEPS_OR_NONE, **{name: given[name] for name in every})


def names(text: str) -> tuple[str, ...]:
    """The comma-separated parts of an option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def warmup_steps(given: int | None, steps: int) -> int:
    """The warm-up of a run of `steps`: as `given`, or a twentieth of them, at most 500."""
    return min(steps // 20, 500) if given is None else given


def text_modes(option: str) -> tuple[Any, ...]:
    """The option's `prompt.TextMode`s, to be taken in turn."""
    return {"both": ("all_at_once", "as_it_comes")}.get(option, (option.replace("-", "_"),))


def counter(quiet: bool, did: str = "encoded") -> Callable[[int, int], None] | None:
    """Shows how many recordings are encoded, or what else `did` says is done with them."""

    def show(done: int, total: int) -> None:
        typer.echo(f"{did} {done} of {total} recordings", err=True)

    return None if quiet else show


@contextmanager
def training(output: Path, quiet: bool, memory: str, advice: str = "") -> Iterator[None]:
    """Where a command trains, alone in its run's folder: says where a run resumes, and turns errors into exits.

    Exit status 2 and one line: data or settings that do not fit. 1 and one line: a loss that is not finite, a file that
    cannot be written, not enough memory. 130 or 143: a signal, once what was done is kept. All else is a bug.

    Args:
        output: folder of the run.
        quiet: tell nothing.
        memory: options that would need less of it.
        advice: what else can be done when the loss is not finite.
    """
    import jax

    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.train.interrupts import Interrupted, Signals
    from qwen3_tts_jax.train.lines import DataError
    from qwen3_tts_jax.train.progress import DivergedError
    from qwen3_tts_jax.train.state_files import RunError

    with ExitStack() as stack:
        with refusing(OSError):
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(output))
        if not quiet:
            stack.enter_context(_progress_messages())
        stack.enter_context(refusing(OSError, end=fail))
        stack.enter_context(refusing(DataError, RunError, ConfigError, CheckpointError))
        try:
            # A signal that comes while the model is written stops nothing: the run is done.
            with Signals():
                yield
        except DivergedError as error:
            fail(f"{error}{advice}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail(f"there is not enough memory: choose {memory}")
        except Interrupted as stopped:
            typer.echo(f"{stopped}; the same command goes on", err=True)
            raise typer.Exit(128 + stopped.number) from None


@contextmanager
def _progress_messages() -> Iterator[None]:
    """Shows what the package's training logs as information; `console.plain_messages` shows warnings."""
    logger, handler = logging.getLogger("qwen3_tts_jax.train"), logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class Steps:
    """Says how far a run of `count` steps is, how fast, and how long it will take at that pace."""

    def __init__(self, count: int):
        self._count = count
        self._first: tuple[int, float] | None = None

    def place(self, numbers: dict[str, Any]) -> str:
        """Where a line of the log is: "step 120 of 1000"."""
        return f"step {numbers['step']} of {self._count}"

    def pace(self, numbers: dict[str, Any], amount: str, unit: str) -> str:
        """For a line of the log with losses: learning rate, `amount` per second in `unit`, and the time left."""
        parts = [f"lr {numbers['learning_rate']:.2g}"]
        if numbers["seconds"]:
            parts.append(f"{numbers[amount] / numbers['seconds']:,.1f} {unit}")
        else:
            parts.append(f"compiled in {numbers['compiling']:.0f} s")
        now, step = time.monotonic(), numbers["step"]
        if self._first is None:
            self._first = step, now
        elif step < self._count:
            first, then = self._first
            left = (self._count - step) * (now - then) / (step - first)
            parts.append(f"{timedelta(seconds=round(left))} left")
        return ", ".join(parts)


def reporter(
    quiet: bool, write_scalars: Callable[[dict[str, Any]], None] | None, count: int
) -> Callable[[dict[str, Any]], None]:
    """Shows lines of the log of a run of `count` steps, and hands them on."""
    steps = Steps(count)

    def show(numbers: dict[str, Any]) -> None:
        if write_scalars is not None:
            write_scalars(numbers)
        if quiet:
            return
        if "validation_loss" in numbers:
            gap = f", other texts +{numbers['text_gap']:.4f}" if "text_gap" in numbers else ""
            typer.echo(f"{steps.place(numbers)}: validation loss {numbers['validation_loss']:.4f}{gap}", err=True)
        else:
            codes = numbers["codes"]
            rest = sum(codes[1:]) / len(codes[1:])
            typer.echo(
                f"{steps.place(numbers)}: loss {numbers['loss']:.4f} (code 0 {codes[0]:.3f}, others {rest:.3f}, end "
                f"{numbers['end']:.3f}), {steps.pace(numbers, 'frames', 'frames/s')}",
                err=True,
            )

    return show


def check_tensorboard() -> None:
    """Refuses where tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        refuse(
            "--tensorboard needs tensorboardX, and log.jsonl has the same numbers: in the clone of this package, "
            'pip install -e ".[tensorboard]"'
        )


@contextmanager
def tensorboard_writer(output: Path, wanted: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Writes lines of the log for TensorBoard, into `output`/tensorboard; None where that is not `wanted`."""
    if not wanted:
        yield None
        return

    from tensorboardX import SummaryWriter

    def write(numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            values = {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
            for tag, each in values.items():
                writer.add_scalar(tag, each, numbers["step"])
        writer.flush()

    with closing(SummaryWriter(str(output / "tensorboard"))) as writer:
        yield write
