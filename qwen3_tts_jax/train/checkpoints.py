"""One run's states on disk: where it resumes, which is the best, and what is left when the loss is NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qwen3_tts_jax.train.progress import DivergedError, Schedule
from qwen3_tts_jax.train.state_files import check_settings, drop_old, latest, load_state, save_state, saved_settings

_log = logging.getLogger(__name__)
CHECKPOINTS, BEST = "checkpoints", "best"
_KEPT = 2

State = TypeVar("State")


class Checkpoints:
    """The checkpoints of the run in a folder.

    Attributes:
        folder: where they lie.
        settings: JSON values that a resumed run must have too.
        best: the lowest value that a state was judged by.
        waited: judgements since then.
        value: the metric of the last step.
    """

    def __init__(self, run: str | Path, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(run) / CHECKPOINTS, dict(settings)
        self.best, self.waited, self.value = float("inf"), 0, float("nan")

    def check(self) -> None:
        """Refuses a folder whose run had other settings.

        Raises:
            state_files.RunError: naming what differs.
        """
        found = self._last()
        if found is not None:
            check_settings(found, self.settings)

    def resume(self, state: State) -> State:
        """The last state of an interrupted run, with its judgements; `state` itself where there is none.

        `state` is donated.

        Raises:
            state_files.RunError: a broken checkpoint, or one of other settings.
        """
        found = self._last()
        if found is None:
            return state
        state = load_state(found, state, self.settings)
        kept = saved_settings(found)
        self.best, self.waited = float(kept["best"]), kept["waited"]
        # Older checkpoints have none.
        self.value = float(kept.get("value", "nan"))
        _log.info("going on after step %d of %s", int(state.step), self.folder.parent)
        return state

    def save(self, state: Any, step: int) -> None:
        """Keeps the state after `step`, and drops old ones."""
        self._write(f"{step:08}", state)
        drop_old(self.folder, _KEPT)

    def judge(self, state: Any, value: float) -> None:
        """Keeps the state as the best if `value` is lower than all before."""
        if value < self.best:
            self.best, self.waited = value, 0
            self._write(BEST, state)
        else:
            self.waited += 1

    def out_of_patience(self, schedule: Schedule) -> bool:
        """Whether the schedule's patience has run out: that many judgements have passed since the best."""
        return 0 < schedule.patience <= self.waited

    def best_state(self, state: State) -> State | None:
        """The state that was judged best, shaped like `state`, which is donated; None where none was judged."""
        path = self.folder / BEST
        return load_state(path, state, self.settings) if path.exists() else None

    def diverged(self, state: Any, step: int, metrics: Mapping[str, Any], data: str) -> DivergedError:
        """Keeps the last good state, the one after `step`, and returns the error to raise.

        Args:
            state: the last good one.
            step: steps it has seen.
            metrics: loss and gradient_norm of the next step.
            data: what the next step read.
        """
        self._write(f"{step:08}", state)
        return DivergedError(
            f"step {step + 1}: the loss is {metrics['loss']} and its gradient's norm "
            f"{metrics['gradient_norm']}; the batch was {data}; the state before it is "
            f"{self.folder / f'{step:08}'}. Look at that data, or start in a new folder with a lower learning rate"
        )

    def _last(self) -> Path | None:
        """The last checkpoint; the best is one, too, where the run was killed before the first with a number."""
        best = self.folder / BEST
        return latest(self.folder) or (best if best.exists() else None)

    def _write(self, name: str, state: Any) -> None:
        judged = {"best": repr(self.best), "waited": self.waited, "value": repr(self.value)}
        save_state(self.folder, name, state, self.settings | judged)
