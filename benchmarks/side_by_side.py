"""Measures two packages in turn, each time in a fresh process, and prints one table of ratios."""

from __future__ import annotations

import argparse
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
Measure = Callable[[str, int], Figures]
KINDS = ("ours", "official")


def main(
    script: str, description: str | None, measures: Mapping[str, Measure], rows: Sequence[tuple[str, str]]
) -> None:
    """The command of a benchmark: parses its arguments, measures in turn, prints and keeps the figures.

    Args:
        script: its file, which is run again for each measurement.
        description: for --help.
        measures: by `KINDS`, measure(checkpoint, frames); each runs in a process of its own.
        rows: see `print_table`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout")
    parser.add_argument("--frames", type=int, default=24, help="frames of 80 ms per utterance (default 24)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind (default 3)")
    parser.add_argument("--output", type=Path, help="append the raw figures to this file of JSON lines")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        figures = measures[arguments.worker](arguments.checkpoint, arguments.frames)
        figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(figures))
        return
    command = [sys.executable, script, arguments.checkpoint, "--frames", str(arguments.frames)]
    results = in_turn(command, arguments.repeats)
    if arguments.output:
        save(arguments.output, results, frames=arguments.frames)
    print_table(results, rows)


def in_turn(command: Sequence[str], repeats: int) -> dict[str, list[Figures]]:
    """Runs `command --worker KIND` in fresh processes: ours, official, ours, …"""
    results: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats):
        for kind, figures in results.items():
            print(f"run {repeat + 1} of {repeats}: {kind}", file=sys.stderr)
            output = subprocess.run([*command, "--worker", kind], capture_output=True, text=True, check=False)
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


def save(path: Path, results: Mapping[str, list[Figures]], **settings: object) -> None:
    """Appends each run as a line of JSON."""
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
