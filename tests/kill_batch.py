"""Kills a batch job at random moments and compares what it made in the end with an uninterrupted job.

    python -m tests.kill_batch --lines 1000 --kills 10 --format wav
    python -m tests.kill_batch --lines 1000 --kills 10 --format parquet --model

The speech is that of a stand-in, or with --model of a small model with random weights. Prints a line per kill and at
the end the comparison; exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from qwen3_tts_jax.batch import index as batch_index
from tests.command import start, write_model
from tests.jobs import contents, formatted, index, rows, start_stand_in, wait_for_items, write
from tests.tokenizer_files import write_tokenizer_files


def main() -> int:
    """Runs both jobs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--format", choices=("wav", "flac", "parquet"), default="wav")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--model", action="store_true", help="Speak with a model.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return _compare(options)


def _compare(options: argparse.Namespace) -> int:
    model = write_model(Path.cwd(), "1.7B-CustomVoice", write_tokenizer_files(Path("tokenizer")), eos_boost=1.0)
    write(*rows(options.lines, "Item {} is of some length. "))
    arguments = ["--save-codes", "--retry", "1", *formatted(options.format, 64)]
    arguments += ["--batch-size", str(options.batch_size), "--quiet"]

    def job(out: str) -> subprocess.Popen:
        if options.model:
            return start("batch", "m.jsonl", "-o", out, "-m", model, *arguments, env=os.environ)
        return start_stand_in(model, out, *arguments)

    process = job("whole")
    wait_for_items(process, 1, "whole")
    begun = time.monotonic()
    _finish(process)
    seconds = time.monotonic() - begun
    moments = random.Random(options.seed)
    kills, finished = 0, 0
    for target in sorted(moments.sample(range(1, options.lines), options.kills)):
        process = job("out")
        if target > finished:
            wait_for_items(process, target)
            time.sleep(moments.uniform(0, 0.05))
        else:
            # Groups of items are finished at once; so this one is killed while it begins.
            time.sleep(moments.uniform(0, 5))
        if process.poll() is not None:
            print(f"finished after {kills} kills")
            break
        process.kill()
        process.communicate()
        kills += 1
        now = len(batch_index.read(Path("out/index.jsonl")))
        print(f"kill {kills}: {now} of {options.lines} items are finished", flush=True)
        if now < finished:
            print(f"{finished - now} items were lost")
            return 1
        finished = now
    _finish(job("out"))
    made, whole = contents("out"), contents("whole")
    differ = [name for name in made.keys() | whole.keys() if made.get(name) != whole.get(name)]
    again = sum(record["tries"] > 1 for record in index("out").values())
    leftovers = [
        path.name for path in Path("out").rglob("*") if path.suffix == ".partial" or path.parent.name == "spool"
    ]
    print(
        f"{options.lines} lines, {kills} kills: {len(index('out'))} results, {len(differ)} differ from those of the "
        f"uninterrupted job ({seconds:.0f} s), {again} made more than once on request, {len(leftovers)} leftovers"
    )
    return int(
        len(index("out")) != options.lines or index("out").keys() != index("whole").keys() or bool(differ + leftovers)
    )


def _finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the job ended with status {process.returncode}:\n{errors.decode()}")


if __name__ == "__main__":
    raise SystemExit(main())
