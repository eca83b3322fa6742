"""Time until the first sound, and the speed after it, next to the official PyTorch package in the same run.

    python benchmarks/bench_stream.py CHECKPOINT [--frames 24] [--repeats 3]

The official package does not stream: its first sound is there when all of the utterance is. Each
measurement runs in a fresh process, ours and theirs in turn, both in float32, and is that of a second call;
what the first takes beyond it is compilation. Any custom-voice or voice-design checkpoint will do, a random
one too (tests/parity/random_checkpoint.py). Needs the extra `parity` and qwen-tts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import side_by_side

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."


def measure_ours(checkpoint: str, frames: int) -> side_by_side.Figures:
    from qwen3_tts_jax import Qwen3TTS, Request

    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    request = Request(TEXT, "english", max_frames=frames, **_voice(model.config.model_type))

    def speak() -> side_by_side.Figures:
        start, first, made = time.perf_counter(), 0.0, 0
        for chunk in model.stream(request):
            first = first or time.perf_counter() - start
            made += len(chunk.codes)
        if made != frames:
            raise SystemExit(f"the speech ended after {made} frames: choose fewer")
        total = time.perf_counter() - start
        return {"first": first, "rate": (frames - 1) / (total - first), "total": total}

    first, second = speak(), speak()
    return {"compile": first["total"] - second["total"], **second}


def measure_official(checkpoint: str, frames: int) -> side_by_side.Figures:
    from qwen3_tts_jax.convert.reference import load_official

    model = load_official(checkpoint)
    import torch

    torch.manual_seed(0)
    voice = _voice(model.model.tts_model_type)
    speak = model.generate_custom_voice if "speaker" in voice else model.generate_voice_design

    def run() -> side_by_side.Figures:
        start = time.perf_counter()
        speak(text=TEXT, language="english", **voice, max_new_tokens=frames + 1)
        total = time.perf_counter() - start
        return {"first": total, "rate": frames / total, "total": total}

    first, second = run(), run()
    return {"compile": first["total"] - second["total"], **second}


def _voice(model_type: str) -> dict[str, str]:
    return {"speaker": "ryan"} if model_type == "custom_voice" else {"instruct": "An old man who speaks slowly."}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout")
    parser.add_argument("--frames", type=int, default=24, help="frames of 80 ms per utterance (default 24)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind (default 3)")
    parser.add_argument("--output", type=Path, help="append the raw figures to this file of JSON lines")
    parser.add_argument("--worker", choices=side_by_side.KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure = measure_ours if arguments.worker == "ours" else measure_official
        side_by_side.report_worker(lambda: measure(arguments.checkpoint, arguments.frames))
        return
    options = [arguments.checkpoint, "--frames", str(arguments.frames)]
    results = side_by_side.in_turn(__file__, options, arguments.repeats)
    side_by_side.save(arguments.output, results, frames=arguments.frames)
    side_by_side.print_table(results, [
        ("first", "first sound, s"), ("rate", "frames per second after it (official: of the whole)"),
        ("total", "whole second call, s"), ("compile", "first call beyond the second, s"),
        ("peak_gb", "peak memory, GB"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
