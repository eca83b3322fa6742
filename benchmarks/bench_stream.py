"""Time until the first sound, and the speed after it, next to the official PyTorch package in the same run.

    python -m tests.parity.random_checkpoint /tmp/random --preset 0.6B-CustomVoice
    python benchmarks/bench_stream.py /tmp/random --output stream.jsonl

These commands made the README's figures (`results/stream_cpu_epyc.jsonl`); two cores take about 5 minutes. The official
package does not stream: its first sound is there when all of the utterance is. Each measurement runs in a fresh
process, ours and theirs in turn, both in float32, and is that of a second call; what the first takes beyond it is
compilation. Any checkpoint of the published speakers or for voice design will do. Needs the extra `parity` and
qwen-tts; `--kinds ours` needs neither.
"""

from __future__ import annotations

import time

import side_by_side

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."


def measure_ours(checkpoint: str, frames: int, _batch: int) -> side_by_side.Figures:
    from qwen3_tts_jax import Qwen3TTS, Request

    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    request = Request(TEXT, "english", max_frames=frames, **side_by_side.voice(model.config.model_type))

    def speak() -> side_by_side.Figures:
        start, first, made = time.perf_counter(), 0.0, 0
        for chunk in model.stream(request):
            first = first or time.perf_counter() - start
            made += len(chunk.codes)
        total = time.perf_counter() - start
        side_by_side.check_lengths([made], frames)
        return {"first": first, "rate": (frames - 1) / (total - first), "total": total}

    first, second = speak(), speak()
    return {"compile": first["total"] - second["total"], **second}


def measure_official(checkpoint: str, frames: int, _batch: int) -> side_by_side.Figures:
    from qwen3_tts_jax.convert.reference import load_official

    model = load_official(checkpoint)
    import torch

    torch.manual_seed(0)
    voice = side_by_side.voice(model.model.tts_model_type)
    speak = model.generate_custom_voice if "speaker" in voice else model.generate_voice_design

    def run() -> side_by_side.Figures:
        start = time.perf_counter()
        (wav,), _ = speak(text=TEXT, language="english", **voice, max_new_tokens=frames + 1)
        total = time.perf_counter() - start
        side_by_side.check_lengths([len(wav)], frames * model.model.speech_tokenizer.get_decode_upsample_rate())
        return {"first": total, "rate": frames / total, "total": total}

    first, second = run(), run()
    return {"compile": first["total"] - second["total"], **second}


_ROWS = [
    ("first", "first sound, s"), ("rate", "frames per second after it (official: of the whole)"),
    ("total", "whole second call, s"), ("compile", "first call beyond the second, s"),
    ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, {"ours": measure_ours, "official": measure_official}, _ROWS)
