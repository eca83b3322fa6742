"""The report of a comparison: tables for people, and a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from qwen3_tts_jax.convert.compare import Stage
from qwen3_tts_jax.files import completed

_COLUMNS = ("stage", "shape", "max abs", "max rel", "cosine", "tokens", "first", "tolerance", "")

# A logarithmic axis has no zero.
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Report:
    """All stages of a comparison and the settings that it ran with."""

    settings: dict[str, str]
    rows: list[Stage]

    @property
    def passed(self) -> bool:
        """Whether every stage keeps its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line: passed, or how many stages failed and which was the first."""
        failed = [row for row in self.rows if not row.passed]
        if not failed:
            return f"passed: all {len(self.rows)} stages keep their tolerances"
        first = "" if failed[0].first_difference is None else f" (first at {failed[0].first_difference})"
        return f"FAILED: {len(failed)} of {len(self.rows)} stages, the first is {failed[0].name}{first}"

    def to_table(self) -> Table:
        """The stages, for the terminal."""
        table = Table(*_COLUMNS, title=f"{self.settings.get('model', '')} in {self.settings.get('dtype', '')}")
        for row in self.rows:
            table.add_row(*_cells(row), style=None if row.passed else "bold red")
        return table

    def to_markdown(self) -> str:
        """Settings, verdict and stages as a Markdown document."""
        lines = ["# Parity with the official PyTorch package", "", f"**{self.verdict}**", ""]
        lines += [f"- {name}: {value}" for name, value in self.settings.items()]
        lines += ["", _line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        lines += [_line(_cells(row)) for row in self.rows]
        notes = ["Relative errors are over the largest magnitude of the reference; cosines are the lowest of"]
        notes += ["a frame; 'first' is the first frame (or prompt position) beyond the tolerance. The error of an"]
        notes += ["encoder code that differs is how far the latent is from where the reference would have chosen it."]
        return "\n".join([*lines, "", *notes, ""])

    def write(self, path: Path) -> None:
        """Writes the Markdown and, if matplotlib is installed, the plot beside it, `path` with .png.

        Without matplotlib a line of the document says that there is no plot.
        """
        text = self.to_markdown()
        if importlib.util.find_spec("matplotlib") is None:
            text += "\nNo plot: matplotlib is not installed (`pip install matplotlib`).\n"
        else:
            plot = path.with_suffix(".png")
            plot_errors(self.rows, plot)
            text += f"\n![errors over frames]({plot.name})\n"
        with completed(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _cells(row: Stage) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.name,
        row.shape,
        number(row.max_abs, ".2e"),
        number(row.max_rel, ".2e"),
        number(row.cosine, ".7f"),
        number(row.agreement, ".2%"),
        number(row.first_difference, "d"),
        "none" if row.tolerance is None else str(row.tolerance),
        "ok" if row.passed else "FAILED",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot_errors(rows: Sequence[Stage], path: Path) -> None:
    """Writes a PNG of the largest error in each frame: logits above, samples below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, kinds, label in zip(
        panels, (("logits",), ("samples", "speech")), ("relative error", "absolute error"), strict=True
    ):
        for row in rows:
            if row.kind in kinds:
                panel.semilogy(np.maximum(row.errors, _SMALLEST), marker=".", label=row.name)
        panel.set_ylabel(f"largest {label}")
        if panel.lines:
            panel.legend()
    panels[-1].set_xlabel("frame")
    with completed(path) as temporary:
        figure.savefig(temporary, format="png")
