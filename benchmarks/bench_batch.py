"""Whole utterances, several at a time, next to the official PyTorch package on the same machine in the same run.

    python -m tests.parity.random_checkpoint /tmp/random --preset 0.6B-CustomVoice
    python benchmarks/bench_batch.py /tmp/random --frames 16 --repeats 1 --output batch.jsonl [--plot batch.png]

These commands made the figures in README.md (`results/batch_cpu.jsonl`); they take about 9 minutes on two cores, and
the official package 7 GB. Each kind runs in a fresh process, ours and theirs in turn, so that load, compile and peak
memory are those of a first use; then five more calls are timed. Ours computes in float32; the official package in
float32 and, since that is faster on CPUs with AMX, in bfloat16. Any checkpoint with the published speakers or for voice
design will do. Needs the extra `parity` and qwen-tts; `--kinds ours` needs neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import side_by_side

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "She sells sea shells by the sea shore, or so we are told.",
    "All happy families are alike; each unhappy one is its own.",
)
_CALLS = 5


def measure_ours(checkpoint: str, frames: int, batch: int) -> list[side_by_side.Figures]:
    """Seconds of each stage in the calls after the first, and what the first took beyond the second."""
    import jax

    from qwen3_tts_jax import Qwen3TTS, Request, synthesis

    # Waits for prompts, which ordinary calls do not, to tell their time from that of the frames.
    insert = synthesis.insert_compiled
    synthesis.insert_compiled = lambda *arguments: jax.block_until_ready(insert(*arguments))
    began = time.perf_counter()
    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    loaded = time.perf_counter() - began
    voice = side_by_side.voice(model.config.model_type)
    requests = [Request(text, "english", max_frames=frames, **voice) for text in _texts(batch)]

    def speak() -> side_by_side.Figures:
        marks = {"start": time.perf_counter()}

        def mark(stage: str, *_: int) -> None:
            marks[stage] = time.perf_counter()

        speeches = model.synthesize(requests, batch_size=batch, progress=mark)
        side_by_side.check_lengths((len(speech.codes) for speech in speeches), frames)
        seconds = sum(speech.seconds for speech in speeches)
        return {
            "prefill": marks["prefill"] - marks["start"],
            "frame": (marks["speak"] - marks["prefill"]) / frames,
            "codec": (marks["decode"] - marks["speak"]) / seconds,
            **_speed(marks["decode"] - marks["start"], seconds),
        }

    return _calls(speak, loaded)


def measure_official(dtype: str, checkpoint: str, frames: int, batch: int) -> list[side_by_side.Figures]:
    """The same for the official package; its prefill cannot be told from its first frame."""
    from qwen3_tts_jax.convert.reference import import_official

    official = import_official()
    import torch

    torch.manual_seed(0)
    began = time.perf_counter()
    model = official.Qwen3TTSModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    loaded = time.perf_counter() - began
    voice = side_by_side.voice(model.model.tts_model_type)
    speak = model.generate_custom_voice if "speaker" in voice else model.generate_voice_design
    frame_samples = model.model.speech_tokenizer.get_decode_upsample_rate()
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
        side_by_side.check_lengths(map(len, wavs), frames * frame_samples)
        seconds = sum(map(len, wavs)) / rate
        return {
            "frame": times["generate"] / frames,
            "codec": (total - times["generate"]) / seconds,
            **_speed(total, seconds),
        }

    return _calls(run, loaded)


def _calls(speak: Callable[[], side_by_side.Figures], loaded: float) -> list[side_by_side.Figures]:
    first, *others = (speak() for _ in range(1 + _CALLS))
    once = {"load": loaded, "compile": first["total"] - others[0]["total"]}
    return [once | others[0], *others[1:]]


def _speed(total: float, seconds: float) -> side_by_side.Figures:
    return {"total": total, "speed": seconds / total}


def _texts(batch: int) -> tuple[str, ...]:
    return tuple(TEXTS[i % len(TEXTS)] for i in range(batch))


_MEASURES = {
    "ours": measure_ours,
    "official": partial(measure_official, "float32"),
    "official bfloat16": partial(measure_official, "bfloat16"),
}
_ROWS = [
    ("load", "load, s"), ("compile", "first call beyond the second, s"), ("prefill", "prefill, s"),
    ("frame", "seconds per frame of the batch"), ("codec", "codec, s per s of audio"), ("total", "whole call, s"),
    ("speed", "seconds of audio per second"), ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, _MEASURES, _ROWS, batches=(1, 8), plotted="speed")
