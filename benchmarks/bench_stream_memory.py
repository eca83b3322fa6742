"""Memory of this process while one long stream runs, and over many short ones.

    python benchmarks/bench_stream_memory.py CHECKPOINT [--minutes 10] [--calls 200] [--output memory.jsonl]

Prints a line for every minute of audio and every tenth of the calls: resident memory, what JAX's arrays hold, and how
many programs are compiled. The stream goes on to its limit, whatever the model says. The figures in README.md
(`results/stream_memory_cpu.jsonl`) come from a small talker with the published codec, whose stream took 13 minutes on
two cores. Linux only; needs nothing but this package.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import jax

from qwen3_tts_jax import Qwen3TTS, Request, hf_config
from qwen3_tts_jax.codec_decoding import codec_step
from qwen3_tts_jax.generate import generate_stream, prefill_compiled

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds. "


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def state(**where: float) -> dict[str, float]:
    return {
        **where,
        "resident_mb": round(resident_mb(), 1),
        "arrays_mb": round(sum(array.nbytes for array in jax.live_arrays()) / 1e6, 3),
        "programs": sum(f._cache_size() for f in (prefill_compiled, generate_stream, codec_step)),
    }


def long_stream(model: Qwen3TTS, minutes: float) -> Iterator[dict[str, float]]:
    """One stream that never ends by itself, and whose text keeps arriving."""
    rate = model.config.codec.frame_rate
    frames = int(minutes * 60 * rate)
    request = Request("", "english", speaker="ryan", text_mode="as_it_comes", max_frames=frames)
    made, start = 0, time.perf_counter()
    # More text than there are frames for, word by word.
    pieces = (f"{word} " for _ in range(frames) for word in TEXT.split())
    for chunk in model.stream(request, pieces=pieces, schedule=(1, 2, 4, 8, 16)):
        before, made = made, made + len(chunk.codes)
        if before == 0 or before // (60 * rate) != made // (60 * rate):
            yield state(minutes=round(made / rate / 60, 2), seconds=round(time.perf_counter() - start, 1))


def short_streams(model: Qwen3TTS, calls: int) -> Iterator[dict[str, float]]:
    request = Request(TEXT, "english", speaker="ryan", max_frames=7)
    for call in range(1, calls + 1):
        for _ in model.stream(request, seed=call):
            pass
        if call == 1 or call % max(calls // 10, 1) == 0:
            yield state(calls=call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a custom-voice checkpoint whose speech does not end early")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--output", type=Path, help="append the lines to this file")
    arguments = parser.parse_args()
    model = Qwen3TTS.from_pretrained(arguments.checkpoint, dtype="float32")
    print(json.dumps({"model": hf_config.read_folder(arguments.checkpoint).model_size, **state()}))
    for lines in (long_stream(model, arguments.minutes), short_streams(model, arguments.calls)):
        for line in lines:
            print(json.dumps(line), flush=True)
            figures.append(arguments.output, line)


if __name__ == "__main__":
    main()
