"""The loop that all training shares: resumed, counted, judged, saved, and stopped by patience, NaN or a signal."""

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
    """What one step gives.

    Attributes:
        state: after it; the one before if the step was not finite.
        metrics: arrays for the log, with "loss", "gradient_norm" and "learning_rate"; and "finite", whether the first
            two are.
        amount: of data that it learnt from.
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
        value: by which it was judged, or the metric of the last step.
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
    """Takes steps up to the `last`, from where a run in `folder` was interrupted if there is one.

    Numbers go to `folder`/log.jsonl, one JSON object per line; checkpoints to `folder`/checkpoints, that of the last
    step in any case. "seconds" and the amount in the log are of steps for which nothing was compiled, "compiling" the
    seconds of the others; neither has judgements, samples and checkpoints.

    Args:
        state: before the first step; given away.
        batch_of: batch_of(steps done), what the next step learns from; follows from the steps done alone. Called in a
            thread, for one step while the one before it is computed.
        advance: advance(state, steps done, batch) takes a step; what is random follows from the steps done alone.
        folder: of the run.
        agreed: JSON values that a checkpoint must agree with.
        last: the number of steps of the whole run.
        names: names(steps done) of the data of the next step, for messages.
        unit: of `Stepped.amount`, in the log.
        metric: that stands for a state where nothing is judged.
        judge: judge(state), numbers for the log and the value to judge by, lower is better; None judges nothing.
        speak: speak(state, steps done), for samples.
        schedule: what happens when.
        report: called with every line of the log.
        phase: for the log, where it is one of several runs.

    Raises:
        DivergedError: loss or gradient are not finite. The last good state is saved before.
        interrupts.Interrupted: a signal, in the main thread, whose handler is Python's own. The state is saved before;
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
            # An error of the next batch is raised when its step comes, after all that this one leaves.
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
    """Seconds and amounts of steps since they were last taken, without those that compiled a program first."""

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
