"""Whole utterances, several at a time, next to the official PyTorch package on the same machine in the same run.

    python benchmarks/bench_batch.py CHECKPOINT [--batches 1 8] [--frames 24] [--repeats 5] [--plot speed.png]

Each measurement runs in a fresh process, ours and theirs in turn, so that load, compile and peak memory are
those of a first use. Ours computes in float32; the official package in float32 and, since that is faster on CPUs
with AMX, in bfloat16. Any checkpoint will do, a random one too (tests/parity/random_checkpoint.py). Needs the
extra `parity` and qwen-tts.
"""

from __future__ import annotations

import time
from functools import partial

import side_by_side

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "She sells sea shells by the sea shore, or so we are told.",
    "All happy families are alike; each unhappy one is its own.",
)


def measure_ours(checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """Seconds of each stage of the second call, and what the first call took beyond it."""
    from qwen3_tts_jax import Qwen3TTS, Request

    began = time.perf_counter()
    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    loaded = time.perf_counter() - began
    voice = _voice(model.config.model_type)
    requests = [Request(text, "english", max_frames=frames, **voice) for text in _texts(batch)]

    def speak() -> side_by_side.Figures:
        marks = {"start": time.perf_counter()}

        def mark(stage: str, *_: int) -> None:
            marks[stage] = time.perf_counter()

        speeches = model.synthesize(requests, batch_size=batch, progress=mark)
        if any(len(speech.codes) != frames for speech in speeches):
            raise SystemExit("an utterance ended by itself: choose fewer frames")
        seconds = sum(speech.seconds for speech in speeches)
        return {
            "prefill": marks["prefill"] - marks["start"],
            "frame": (marks["speak"] - marks["prefill"]) / frames,
            "codec": (marks["decode"] - marks["speak"]) / seconds,
            **_speed(marks["decode"] - marks["start"], seconds),
        }

    first, second = speak(), speak()
    return {"load": loaded, "compile": first["total"] - second["total"], **second}


def measure_official(dtype: str, checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """The same for the official package; its prefill cannot be told from its first frame."""
    from qwen3_tts_jax.convert.reference import import_official

    official = import_official()
    import torch

    torch.manual_seed(0)
    began = time.perf_counter()
    model = official.Qwen3TTSModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    loaded = time.perf_counter() - began
    voice = _voice(model.model.tts_model_type)
    speak = model.generate_custom_voice if "speaker" in voice else model.generate_voice_design
    generate, times = model.model.generate, {}

    def timed(**options):
        start = time.perf_counter()
        result = generate(**options)
        times["generate"] = time.perf_counter() - start
        return result

    model.model.generate = timed
    texts = list(_texts(batch))
    named = {name: [value] * batch for name, value in voice.items()}

    def run() -> side_by_side.Figures:
        start = time.perf_counter()
        wavs, rate = speak(text=texts, language=["english"] * batch, **named, max_new_tokens=frames + 1)
        total = time.perf_counter() - start
        seconds = sum(map(len, wavs)) / rate
        return {
            "frame": times["generate"] / frames,
            "codec": (total - times["generate"]) / seconds,
            **_speed(total, seconds),
        }

    first, second = run(), run()
    return {"load": loaded, "compile": first["total"] - second["total"], **second}


def _speed(total: float, seconds: float) -> side_by_side.Figures:
    return {"total": total, "speed": seconds / total}


def _texts(batch: int) -> tuple[str, ...]:
    return tuple(TEXTS[i % len(TEXTS)] for i in range(batch))


def _voice(model_type: str) -> dict[str, str]:
    return {"speaker": "ryan"} if model_type == "custom_voice" else {"instruct": "An old man who speaks slowly."}


_MEASURES = {
    "ours": measure_ours,
    "official": partial(measure_official, "float32"),
    "official bfloat16": partial(measure_official, "bfloat16"),
}
_ROWS = [
    ("load", "load, s"), ("compile", "first call beyond the second, s"), ("prefill", "prefill, s"),
    ("frame", "seconds per frame of the batch"), ("codec", "codec, s per s of audio"), ("total", "second call, s"),
    ("speed", "seconds of audio per second"), ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, _MEASURES, _ROWS, batches=(1, 8), plotted="speed")
