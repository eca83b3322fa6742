"""The loop that all training shares: it resumes, logs, judges, saves, and stops on patience, NaN or a signal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.interrupts import Signals
from qwen3_tts_jax.train.progress import Log, Schedule, plain

_log = logging.getLogger(__name__)

State = TypeVar("State")
Data = TypeVar("Data")


@dataclass(frozen=True)
class Stepped(Generic[State]):
    """The outcome of one step.

    Attributes:
        state: after it; the one before if the step was not finite.
        metrics: arrays for the log, with "loss", "gradient_norm" and "learning_rate"; and "finite", whether the first
            two are.
        amount: how much data it learnt from.
        program: equal for steps that one compiled program serves.
    """

    state: State
    metrics: dict[str, Any]
    amount: float
    program: Hashable = None


@dataclass(frozen=True)
class Ended(Generic[State]):
    """What a run ends with.

    Attributes:
        state: the best by judgement where there was one, else the last.
        step: steps it has seen.
        value: what that state was judged by, or the metric of the last step.
        early: whether patience ran out.
    """

    state: State
    step: int
    value: float
    early: bool


def run_steps(
    state: State,
    batch_of: Callable[[int], Data],
    advance: Callable[[State, int, Data], Stepped[State]],
    folder: str | Path,
    agreed: Mapping[str, Any],
    last: int,
    *,
    names: Callable[[int], str],
    unit: str,
    metric: str = "loss",
    judge: Callable[[State], tuple[dict[str, Any], float | None]] | None = None,
    speak: Callable[[State, int], None] | None = None,
    schedule: Schedule,
    report: Callable[[dict[str, Any]], None] | None,
    phase: str | None = None,
) -> Ended[State]:
    """Takes steps up to the `last`, resuming where a run in `folder` was interrupted.

    Numbers go to `folder`/log.jsonl, one JSON object per line; checkpoints to `folder`/checkpoints, always including
    the last step's. In the log, "seconds" and the amount are of steps for which nothing was compiled, "compiling" the
    seconds of the others; neither includes judging, sampling and saving.

    Args:
        state: before the first step; donated.
        batch_of: batch_of(steps done) gives what the next step learns from, determined by the steps done alone. Called
            in a thread, for one step while the one before it is computed.
        advance: advance(state, steps done, batch) takes a step, whose randomness is determined by the steps done alone.
        folder: of the run.
        agreed: JSON values that a checkpoint must agree with.
        last: the number of steps of the whole run.
        names: names(steps done) names the data of the next step, for messages.
        unit: of `Stepped.amount`, in the log.
        metric: the one that gives `Ended.value` where nothing is judged.
        judge: judge(state) gives numbers for the log and the value to judge by, lower is better; None judges nothing.
        speak: speak(state, steps done) writes samples.
        schedule: what happens when.
        report: called with every line of the log.
        phase: name for the log, where this is one of several runs.

    Raises:
        DivergedError: the loss or its gradient is not finite. The last good state is saved first.
        interrupts.Interrupted: a signal, in the main thread, whose handler is Python's own. The state is saved first;
            a second signal ends the process at once.
        state_files.RunError: `folder` holds a run with other settings.
    """
    checkpoints = Checkpoints(folder, agreed)
    state = checkpoints.resume(state)
    step, early = int(state.step), checkpoints.out_of_patience(schedule)
    log = Log(Path(folder) / "log.jsonl", step, report)
    told = {} if phase is None else {"phase": phase}
    pace = _Pace(unit)
    with Signals() as signals, ThreadPoolExecutor(1) as maker:
        if step < last and not early:
            signals.stop(f"after step {step}" if step else "before step 1")
            _log.info("compiling step %d of %d", step + 1, last)
            coming = maker.submit(batch_of, step)
        while step < last and not early:
            began = time.perf_counter()
            stepped = advance(state, step, coming.result())
            # An error in making the next batch is raised when its step comes, after all that this step writes.
            if step + 1 < last:
                coming = maker.submit(batch_of, step + 1)
            state, metrics = stepped.state, jax.device_get(stepped.metrics)
            pace.add(stepped, time.perf_counter() - began)
            if not metrics.pop("finite"):
                raise checkpoints.diverged(state, step, metrics, names(step))
            step += 1
            checkpoints.value = float(metrics[metric])
            if schedule.due("log", step, last):
                log.write({**told, "step": step, **plain(metrics), **pace.take()})
            if judge is not None and schedule.due("evaluate", step, last):
                numbers, value = judge(state)
                log.write({**told, "step": step, **numbers})
                if value is not None:
                    checkpoints.judge(state, value)
                    early = checkpoints.out_of_patience(schedule)
            if speak is not None and schedule.due("sample", step, last):
                speak(state, step)
            save = schedule.due("save", step, last) or early or step == last
            if save:
                checkpoints.save(state, step)
            if signals.number is not None:
                if not save:
                    checkpoints.save(state, step)
                signals.stop(f"after step {step}")
    value = checkpoints.value
    if judge is not None and (best := checkpoints.best_state(state)) is not None:
        state, value = best, checkpoints.best
    return Ended(state, int(state.step), value, early)


class _Pace:
    """Seconds and amounts of steps since they were last taken; steps that compiled a program are kept apart."""

    def __init__(self, unit: str):
        self._unit, self._compiled = unit, set[Hashable]()
        self._seconds = self._amount = self._compiling = 0

    def add(self, stepped: Stepped, seconds: float) -> None:
        if stepped.program in self._compiled:
            self._seconds += seconds
            self._amount += stepped.amount
        else:
            self._compiling += seconds
        self._compiled.add(stepped.program)

    def take(self) -> dict[str, float]:
        taken = {"seconds": self._seconds, self._unit: self._amount}
        if self._compiling:
            taken["compiling"] = self._compiling
        self._seconds = self._amount = self._compiling = 0
        return taken
