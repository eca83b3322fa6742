"""The states of one run on disk: where it goes on, which is the best, and what is left when the loss is NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qwen3_tts_jax.train.progress import DivergedError, Schedule
from qwen3_tts_jax.train.state_files import (
    check_settings,
    drop_old,
    latest,
    load_state,
    save_state,
    saved_settings,
)

_log = logging.getLogger(__name__)
CHECKPOINTS, BEST = "checkpoints", "best"
_KEPT = 2

State = TypeVar("State")


class Checkpoints:
    """Those of the run in a folder.

    Attributes:
        folder: that they lie in.
        settings: JSON values that a run which goes on must have too.
        best: the lowest value by which a state was judged.
        waited: judgements since.
        value: what the last step told of its state.
    """

    def __init__(self, run: str | Path, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(run) / CHECKPOINTS, dict(settings)
        self.best, self.waited, self.value = float("inf"), 0, float("nan")

    def check(self) -> None:
        """Refuses a folder whose run had other settings.

        Raises:
            state_files.RunError: naming what differs.
        """
        found = latest(self.folder)
        if found is not None:
            check_settings(found, self.settings)

    def resume(self, state: State) -> State:
        """The last state of a run that was interrupted, with its judgements; `state` itself where there is none.

        `state` is given away.

        Raises:
            state_files.RunError: a broken checkpoint, or one of other settings.
        """
        found = latest(self.folder)
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
        """Keeps the state after `step`, in the place of older ones."""
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
        """Whether as many judgements as the schedule waits for have passed since the best."""
        return 0 < schedule.patience <= self.waited

    def best_state(self, state: State) -> State | None:
        """The state that was judged best, like `state`, which is given away; None where none was."""
        path = self.folder / BEST
        return load_state(path, state, self.settings) if path.exists() else None

    def diverged(self, state: Any, step: int, metrics: Mapping[str, Any], data: str) -> DivergedError:
        """Keeps the last good state, that after `step`, and returns the error to raise.

        Args:
            state: that one.
            step: of it.
            metrics: loss and gradient_norm of the next.
            data: what that has read.
        """
        self._write(f"{step:08}", state)
        return DivergedError(
            f"step {step + 1}: the loss is {metrics['loss']} and its gradient's norm "
            f"{metrics['gradient_norm']}; the batch was {data}; the state before it is "
            f"{self.folder / f'{step:08}'}. Look at that data, or start in a new folder with a lower learning rate"
        )

    def _write(self, name: str, state: Any) -> None:
        judged = {"best": repr(self.best), "waited": self.waited, "value": repr(self.value)}
        save_state(self.folder, name, state, self.settings | judged)
