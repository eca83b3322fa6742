"""The codec's kernels on a Hopper GPU: how far they are from float64, and how fast, at the published shapes.

    python benchmarks/bench_hopper.py [--rows 32] [--frames 16] [--output kernels.jsonl]

Each of the four stages is measured with what follows its convolutions: SnakeBeta after the wide convolution of a
residual unit, the residual after the narrow one. Prints a line of JSON for each. Exits with 1 if the error of a kernel
against float64 is less than 80 dB down. Each takes 3 to 5 seconds to compile; two of them, timed on an H200, are in
`results/gpu_h200.jsonl`. Needs nothing but this package and the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.codec import hopper

_STAGES = ((768, 32), (384, 160), (192, 640), (96, 1920))
"""Channels, and steps per frame."""
_CHECKED = 256
_CALLS = 10


def measure(channels: int, steps: int, taps: int, dilation: int, batch: int) -> dict[str, Any]:
    """One convolution of `steps` steps in `batch` rows."""
    keys = jax.random.split(jax.random.key(channels + taps), 6)
    past = (taps - 1) * dilation * batch
    rows = jax.random.normal(keys[0], (steps * batch + past, channels))
    kernel = jax.random.normal(keys[1], (taps, channels, channels)) * (taps * channels) ** -0.5
    bias, *rates = (jnp.exp(jax.random.normal(key, (channels,)) / 3) for key in keys[2:5])
    residual = jax.random.normal(keys[5], (steps * batch, channels))
    follows = {"rates": tuple(rates)} if taps > 1 else {"residual": residual}
    shift = dilation * batch if taps > 1 else 0

    def convolve(halves: tuple[jax.Array, jax.Array], kernel: jax.Array, follows: dict[str, Any]) -> Any:
        return hopper.product(*halves, kernel, bias, shift=shift, **follows)

    halves = jax.jit(hopper.halves)(rows)
    began = time.perf_counter()
    program = jax.jit(convolve).lower(halves, kernel, follows).compile()
    compiling = time.perf_counter() - began
    made = program(halves, kernel, follows)
    made = np.asarray(sum(half.astype(jnp.float32) for half in made) if taps > 1 else made)

    # The last rows, whose taps read furthest into `rows`.
    tail = np.asarray(rows[len(rows) - past - _CHECKED :], np.float64)
    expected = sum(tail[tap * shift :][:_CHECKED] @ np.asarray(kernel[tap], np.float64) for tap in range(taps))
    expected = expected + np.asarray(bias, np.float64)
    if taps > 1:
        alpha, scale = (np.asarray(rate, np.float64) for rate in rates)
        expected = expected + np.sin(expected * alpha) ** 2 * scale
    else:
        expected = expected + np.asarray(residual[-_CHECKED:], np.float64)
    error = np.mean((made[-_CHECKED:] - expected) ** 2) / np.mean(expected**2)

    times = []
    for _ in range(_CALLS + 2):
        began = time.perf_counter()
        jax.block_until_ready(program(halves, kernel, follows))
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[2:])
    operations = 3 * 2 * taps * channels**2 * steps * batch
    return {
        "channels": channels, "taps": taps, "decibels": -10 * np.log10(error), "finite": bool(np.isfinite(made).all()),
        "compile_s": compiling, "ms": seconds * 1e3, "tflops_of_bfloat16": operations / seconds / 1e12,
    }  # fmt: skip


def main() -> None:
    """Measures each kernel, prints its line, and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="utterances, a multiple of 8 (default 32)")
    parser.add_argument("--frames", type=int, default=16, help="of 80 ms (default 16)")
    parser.add_argument("--output", type=Path, help="append the lines to this file")
    arguments = parser.parse_args()
    good = True
    for channels, steps in _STAGES:
        for taps, dilation in ((7, 9), (1, 1)):
            row = measure(channels, steps * arguments.frames, taps, dilation, arguments.rows)
            shape = {"rows": arguments.rows, "frames": arguments.frames}
            row = {"what": "kernel", "device": jax.devices()[0].device_kind, **row, **shape}
            good &= row["finite"] and row["decibels"] > 80
            print(json.dumps(row), flush=True)
            figures.append(arguments.output, {**row, "machine": figures.machine()})
    sys.exit(not good)


if __name__ == "__main__":
    main()
