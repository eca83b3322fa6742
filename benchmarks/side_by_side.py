"""Measures two packages in turn, each time in a fresh process, and prints one table of ratios."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

Figures = dict[str, float]
KINDS = ("ours", "official")


def report_worker(measure: Callable[[], Figures]) -> None:
    """Prints what `measure` gives, and the peak of this process's memory, for `in_turn` to read."""
    figures = measure()
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(figures))


def in_turn(script: str, arguments: Sequence[str], repeats: int) -> dict[str, list[Figures]]:
    """Runs `script arguments --worker KIND` in fresh processes: ours, official, ours, …"""
    results: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats):
        for kind, figures in results.items():
            print(f"run {repeat + 1} of {repeats}: {kind}", file=sys.stderr)
            command = [sys.executable, script, *arguments, "--worker", kind]
            output = subprocess.run(command, capture_output=True, text=True, check=False)
            if output.returncode:
                raise SystemExit(output.stderr)
            figures.append(json.loads(output.stdout.splitlines()[-1]))
    return results


def machine() -> dict[str, str | int | None]:
    """What the figures depend on besides the code."""
    return {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "torch", "qwen-tts")},
    }


def save(path: Path | None, results: Mapping[str, list[Figures]], **settings: object) -> None:
    """Appends each run as a line of JSON."""
    if path is None:
        return
    with path.open("a", encoding="utf-8") as file:
        for kind, figures in results.items():
            for row in figures:
                file.write(json.dumps({"kind": kind, **settings, **row, "machine": machine()}) + "\n")


def print_table(results: Mapping[str, list[Figures]], rows: Sequence[tuple[str, str]]) -> None:
    """A Markdown table of (key, label) rows: medians with their spread, and the quotient where both have it."""
    print(f"\n{json.dumps(machine())}\n")
    print(f"| median (min to max) of {len(results[KINDS[0]])} | ours | official | official / ours |\n|---|---|---|---|")
    for key, label in rows:
        cells, medians = [], []
        for figures in results.values():
            values = [row[key] for row in figures if key in row]
            if values:
                medians.append(statistics.median(values))
                cells.append(f"{medians[-1]:.3g} ({min(values):.3g} to {max(values):.3g})")
            else:
                cells.append("")
        quotient = f"{medians[1] / medians[0]:.2f}" if len(medians) == 2 else ""
        print(f"| {label} | {' | '.join(cells)} | {quotient} |")
