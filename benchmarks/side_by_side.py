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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Figures = dict[str, float]
Measure = Callable[[str, int, int], Figures | list[Figures]]
"""measure(checkpoint, frames, batch) → the figures of a call, or of several in the same process."""
Results = dict[str, list[Figures]]


def main(
    script: str,
    description: str | None,
    measures: Mapping[str, Measure],
    rows: Sequence[tuple[str, str]],
    *,
    batches: Sequence[int] = (1,),
    plotted: str | None = None,
) -> None:
    """The command of a benchmark: parses its arguments, measures in turn, prints and keeps the figures.

    Args:
        script: its file, which is run again for each measurement.
        description: for --help.
        measures: by kind; each runs in a process of its own. The others are compared with the first.
        rows: see `print_table`.
        batches: utterances at a time, unless --batches says otherwise.
        plotted: the key of the figure that --plot draws over the batch.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout")
    parser.add_argument("--frames", type=int, default=24, help="frames of 80 ms per utterance (default 24)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=batches, help=f"default {' '.join(map(str, batches))}"
    )
    parser.add_argument("--kinds", nargs="+", choices=measures, default=list(measures), help="default all")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind (default 3)")
    parser.add_argument("--output", type=Path, help="append the raw figures to this file of JSON lines")
    if plotted is not None:
        parser.add_argument("--plot", type=Path, help=f"draw {plotted} over the batch into this PNG (needs matplotlib)")
    parser.add_argument("--worker", choices=measures, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        figures = measures[arguments.worker](arguments.checkpoint, arguments.frames, arguments.batches[0])
        calls = figures if isinstance(figures, list) else [figures]
        calls[0]["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(calls))
        return
    results = {}
    for batch in arguments.batches:
        command = [sys.executable, script, arguments.checkpoint, "--frames", str(arguments.frames)]
        results[batch] = in_turn([*command, "--batches", str(batch)], arguments.kinds, arguments.repeats)
        if arguments.output:
            save(arguments.output, results[batch], frames=arguments.frames, batch=batch)
        print_table(results[batch], rows, f"batch {batch}, ")
    if plotted is not None and arguments.plot:
        plot(arguments.plot, results, plotted, dict(rows)[plotted])


def in_turn(command: Sequence[str], kinds: Sequence[str], repeats: int) -> Results:
    """Runs `command --worker KIND` in fresh processes: the first kind, the second, …, the first, …"""
    results: Results = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind, figures in results.items():
            print(f"run {repeat + 1} of {repeats}: {kind}", file=sys.stderr)
            output = subprocess.run([*command, "--worker", kind], capture_output=True, text=True, check=False)
            if output.returncode:
                raise SystemExit(output.stderr)
            figures.extend(json.loads(output.stdout.splitlines()[-1]))
    return results


def voice(model_type: str) -> dict[str, str]:
    """The arguments that say who speaks, for models of the published speakers."""
    return {"speaker": "ryan"} if model_type == "custom_voice" else {"instruct": "An old man who speaks slowly."}


def machine() -> dict[str, str | int | None]:
    """What the figures depend on besides the code."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "torch", "qwen-tts")},
    }


def _cpu() -> str | None:
    """The processor's name where Linux tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(path: Path, results: Mapping[str, list[Figures]], **settings: object) -> None:
    """Appends each run as a line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        for kind, figures in results.items():
            for row in figures:
                file.write(json.dumps({"kind": kind, **settings, **row, "machine": machine()}) + "\n")


def print_table(results: Results, rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """A Markdown table of (key, label) rows: medians with their spread, and how many times the first kind's."""
    first, *others = results
    print(f"\n{json.dumps(machine())}\n")
    heads = [first, *(head for kind in others for head in (kind, f"{kind} / {first}"))]
    most = len(results[first])
    print(f"| {title}median (min to max) of up to {most} | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for key, label in rows:
        values = {kind: [row[key] for row in figures if key in row] for kind, figures in results.items()}
        cells = []
        for kind, found in values.items():
            median = f"{statistics.median(found):.3g} ({min(found):.3g} to {max(found):.3g})" if found else ""
            cells.append(median)
            if kind != first:
                both = found and values[first]
                cells.append(f"{statistics.median(found) / statistics.median(values[first]):.2f}" if both else "")
        print(f"| {label} | {' | '.join(cells)} |")


def plot(path: Path, results: Mapping[int, Results], key: str, label: str) -> None:
    """Medians of `key` over the batch, a line per kind, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in next(iter(results.values())):
        medians = [statistics.median(row[key] for row in figures[kind]) for figures in results.values()]
        axes.plot(list(results), medians, marker="o", label=kind)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="utterances at a time", ylabel=label, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
