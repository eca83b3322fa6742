"""What all training shares: when things happen, the numbers that are logged, the end by NaN, where files go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.files import check_folder, completed, require_absent

Progress = Callable[[int, int], None]
"""progress(recordings done, recordings in all)."""


def check_places(result: Path, cache: Path) -> None:
    """Checks, before long work, that a run can write its result and keep recordings.

    Args:
        result: folder that it is to write.
        cache: folder of recordings. An existing one may be read-only: perhaps it holds all that is needed.

    Raises:
        FileExistsError: `result` exists, or there is a file where a folder is needed.
        PermissionError: nothing can be created where `result` or a new `cache` would be.
    """
    require_absent(result)
    nearest = next(place for place in (cache.absolute(), *cache.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise FileExistsError(f"{nearest} is a file, not a folder")
    if nearest != cache.absolute():
        check_folder(nearest)


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer finite; the message names step and data."""


@dataclass(frozen=True)
class Schedule:
    """How often things happen, in steps; 0 never.

    Attributes:
        log: write numbers.
        evaluate: compute the loss of the validation data.
        save: write a checkpoint; that of the last step is written anyway.
        sample: speak.
        patience: evaluations without improvement after which the run ends.
    """

    log: int = 10
    evaluate: int = 100
    save: int = 100
    sample: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 0:
                raise ConfigError(f"{each.name} must be 0 or a number of steps, got {getattr(self, each.name)}")

    def due(self, name: str, step: int, last: int) -> bool:
        """Whether `name` is to happen after `step`; what happens at all happens after the last step too."""
        every = getattr(self, name)
        return every > 0 and (step % every == 0 or step == last)


def plain(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and arrays as JSON values, under names that begin with `prefix`."""
    return {f"{prefix}{name}": np.asarray(value, np.float64).tolist() for name, value in metrics.items()}


class Log:
    """JSON lines; what an interrupted run wrote beyond its last checkpoint is dropped."""

    def __init__(self, path: Path, step: int, report: Callable[[dict[str, Any]], None] | None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.report = path, report
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # The last line of a killed process may be half written.
                if line.endswith("}") and json.loads(line)["step"] <= step:
                    kept.append(line)
        with completed(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, numbers: dict[str, Any]) -> None:
        """Appends a line, and reports it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
        if self.report is not None:
            self.report(numbers)
