"""Time until the first sound, and the speed after it, next to the official PyTorch package in the same run.

    python -m tests.parity.random_checkpoint /tmp/random --preset 0.6B-CustomVoice
    python benchmarks/bench_stream.py /tmp/random --output stream.jsonl
    python benchmarks/bench_stream.py /tmp/random --kinds ours --batches 1 4 8 --output stream_batch.jsonl

These commands made the figures in README.md (`results/stream_cpu_epyc.jsonl`, `results/stream_batch_cpu_avx512.jsonl`)
in about 5 and 10 minutes on two cores. The official package does not stream: its first sound comes with the whole
utterance. For several streams begun together, the first sound is that of the last of them; later, while all but one
stream run, one more joins. Each measurement runs in a fresh process, ours and theirs in turn, both in float32, and is
of a second call; what the first takes beyond it is compilation. Any checkpoint with the published speakers or for voice
design will do. Needs the extra `parity` and qwen-tts; `--kinds ours` needs neither.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import side_by_side

if TYPE_CHECKING:
    from qwen3_tts_jax import Qwen3TTS, Request

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."


def speak_together(model: Qwen3TTS, request: Request, streams: int) -> side_by_side.Figures:
    """Seconds and frames per second of `streams` streams of a request at a time, and of one more that joins later."""
    batch, made = model.stream_batch(batch_size=streams), Counter()

    def step() -> None:
        made.update({number: len(chunk.codes) for number, chunk in batch.step()})

    start = time.perf_counter()
    for seed in range(streams):
        batch.add(request, seed)
    while len(made) < streams:
        step()
    first, by_then = time.perf_counter() - start, made.total()
    while batch:
        step()
    total = time.perf_counter() - start
    side_by_side.check_lengths(made.values(), request.max_frames)
    rate = (made.total() - by_then) / (total - first)
    for seed in range(streams - 1):
        batch.add(request, seed)
    for _ in range(4):
        step()
    start, one_more = time.perf_counter(), batch.add(request, streams)
    while one_more not in made:
        step()
    later = time.perf_counter() - start
    # The device would still be busy with them in the next call.
    while batch:
        step()
    return {"first": first, "rate": rate, "total": total, "later": later}


def measure_ours(checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    from qwen3_tts_jax import Qwen3TTS, Request

    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    request = Request(TEXT, "english", max_frames=frames, **side_by_side.voice(model.config.model_type))

    def speak() -> side_by_side.Figures:
        if batch > 1:
            return speak_together(model, request, batch)
        start, first, made = time.perf_counter(), 0.0, 0
        for chunk in model.stream(request):
            first = first or time.perf_counter() - start
            made += len(chunk.codes)
        total = time.perf_counter() - start
        side_by_side.check_lengths([made], frames)
        return {"first": first, "rate": (frames - 1) / (total - first), "total": total}

    first, second = speak(), speak()
    return {"compile": first["total"] - second["total"], **second}


def measure_official(checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    from qwen3_tts_jax.convert.reference import load_official

    model = load_official(checkpoint)
    import torch

    torch.manual_seed(0)
    voice = side_by_side.voice(model.model.tts_model_type)
    speak = model.generate_custom_voice if "speaker" in voice else model.generate_voice_design

    def run() -> side_by_side.Figures:
        start = time.perf_counter()
        columns = {"language": ["english"] * batch, **{name: [value] * batch for name, value in voice.items()}}
        wavs, _ = speak(text=[TEXT] * batch, **columns, max_new_tokens=frames + 1)
        total = time.perf_counter() - start
        samples = frames * model.model.speech_tokenizer.get_decode_upsample_rate()
        side_by_side.check_lengths(map(len, wavs), samples)
        return {"first": total, "rate": batch * frames / total, "total": total}

    first, second = run(), run()
    return {"compile": first["total"] - second["total"], **second}


_ROWS = [
    ("first", "first sound, s"), ("rate", "frames per second after it (official: of the whole)"),
    ("total", "all of it, s"), ("later", "first sound of one more, s"), ("compile", "first call beyond the second, s"),
    ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, {"ours": measure_ours, "official": measure_official}, _ROWS)
