"""Runs other benchmarks: the kinds of a measurement in turn, each time in a fresh process, and their ratios."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import figures

Figures = dict[str, float]
Measure = Callable[[str, int, int], Figures | list[Figures]]
"""measure(checkpoint, frames, batch) → the figures of one call, or of several in the same process."""
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
        found = measures[arguments.worker](arguments.checkpoint, arguments.frames, arguments.batches[0])
        calls = found if isinstance(found, list) else [found]
        # Linux counts in KiB.
        calls[0]["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(calls))
        return
    print(json.dumps(figures.machine()))
    results = {}
    for batch in arguments.batches:
        command = [sys.executable, script, arguments.checkpoint, "--frames", str(arguments.frames)]
        results[batch] = in_turn([*command, "--batches", str(batch)], arguments.kinds, arguments.repeats)
        for kind, calls in results[batch].items():
            for call in calls:
                row = {"kind": kind, "frames": arguments.frames, "batch": batch, **call, "machine": figures.machine()}
                figures.append(arguments.output, row)
        print_table(results[batch], rows, f"batch {batch}, ")
    if plotted is not None and arguments.plot:
        lines = {
            kind: {batch: statistics.median(call[plotted] for call in found[kind]) for batch, found in results.items()}
            for kind in arguments.kinds
        }
        figures.plot(arguments.plot, lines, dict(rows)[plotted])


def in_turn(command: Sequence[str], kinds: Sequence[str], repeats: int) -> Results:
    """Runs `command --worker KIND` in fresh processes: the first kind, the second, …, the first, …"""
    results: Results = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind, calls in results.items():
            print(f"run {repeat + 1} of {repeats}: {kind}", file=sys.stderr)
            output = subprocess.run([*command, "--worker", kind], capture_output=True, text=True, check=False)
            if output.returncode:
                raise SystemExit(output.stderr)
            calls.extend(json.loads(output.stdout.splitlines()[-1]))
    return results


def voice(model_type: str) -> dict[str, str]:
    """The arguments that say who speaks, for models with the published speakers or for voice design."""
    return {"speaker": "ryan"} if model_type == "custom_voice" else {"instruct": "An old man who speaks slowly."}


def check_lengths(lengths: Iterable[int], expected: int) -> None:
    """Checks that each utterance has all its frames, without which seconds per frame would be wrong.

    Raises:
        SystemExit: one does not.
    """
    if any(length != expected for length in lengths):
        raise SystemExit("an utterance ended by itself: choose fewer frames")


def print_table(results: Results, rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Prints a table of (key, label) rows: medians with their spread, and their ratios to the first kind's."""
    first, *others = results
    heads = [f"{title}median (min to max, number)", first]
    for kind in others:
        heads += [kind, f"{kind} / {first}"]
    lines = []
    for key, label in rows:
        spreads = {
            kind: figures.spread(found)
            for kind, calls in results.items()
            if (found := [c[key] for c in calls if key in c])
        }
        line = [label]
        for kind in results:
            line.append(figures.cell(spreads[kind]) if kind in spreads else "")
            if kind != first:
                both = kind in spreads and first in spreads and spreads[first]["median"]
                line.append(f"{spreads[kind]['median'] / spreads[first]['median']:.2f}" if both else "")
        lines.append(line)
    figures.print_table(heads, lines)
