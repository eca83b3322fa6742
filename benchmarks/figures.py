"""What the benchmarks share: spreads, lines of JSON, the machine, tables and plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, and the number of values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "of": len(values)}


def cell(found: Mapping[str, float]) -> str:
    """A spread as a table shows it: the median and, for several values, the least, the most and their number."""
    if found["of"] == 1:
        return f"{found['median']:.3g}"
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['most']:.3g}, {found['of']})"


def append(path: Path | None, row: Mapping[str, Any]) -> None:
    """Adds the row to a file of JSON lines, if one is wanted."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def machine() -> dict[str, str | int | float | None]:
    """What the figures depend on besides the code; `load` is of the last minute, including the benchmark's own."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "torch", "qwen-tts")},
    }


def _cpu() -> str | None:
    """The processor's name, if Linux gives it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def plot(path: Path, lines: Mapping[str, Mapping[int, float]], label: str, scale: str = "linear") -> None:
    """Draws figures over the batch, {line: {batch: figure}}, into a PNG; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="utterances at a time", ylabel=label, yscale=scale)
    if scale == "linear":
        axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
