"""One utterance, start to end, next to the official PyTorch package on the same machine in the same run.

    python benchmarks/bench_speak.py CHECKPOINT [--frames 24] [--repeats 3]

Each measurement runs in a fresh process, ours and theirs in turn, both in float32, so that load, compile
and peak memory are those of a first use. Any checkpoint will do, a random one too
(tests/parity/random_checkpoint.py). Needs the extra `parity` and qwen-tts.
"""

from __future__ import annotations

import time

import side_by_side

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."


def measure_ours(checkpoint: str, frames: int) -> dict[str, float]:
    """Seconds of each stage of the second call, and what the first call took beyond it."""
    from qwen3_tts_jax import Qwen3TTS, Request

    began = time.perf_counter()
    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    loaded = time.perf_counter() - began
    request = Request(TEXT, "english", max_frames=frames, **_voice(model.config.model_type))

    def speak() -> dict[str, float]:
        marks = {"start": time.perf_counter()}
        speech = model.synthesize([request], progress=lambda stage, *_: marks.update({stage: time.perf_counter()}))[0]
        if len(speech.codes) != frames:
            raise SystemExit(f"the speech ended after {len(speech.codes)} frames: choose fewer")
        return {
            "prefill": marks["prefill"] - marks["start"],
            "frame": (marks["speak"] - marks["prefill"]) / frames,
            "codec": (marks["decode"] - marks["speak"]) / speech.seconds,
            "total": marks["decode"] - marks["start"],
        }

    first, second = speak(), speak()
    return {"load": loaded, "compile": first["total"] - second["total"], **second}


def measure_official(checkpoint: str, frames: int) -> dict[str, float]:
    """The same for the official package; its prefill cannot be told from its first frame."""
    from qwen3_tts_jax.convert.reference import import_official

    official = import_official()
    import torch

    torch.manual_seed(0)
    began = time.perf_counter()
    model = official.Qwen3TTSModel.from_pretrained(checkpoint, dtype=torch.float32)
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

    def run() -> dict[str, float]:
        start = time.perf_counter()
        wavs, rate = speak(text=TEXT, language="english", **voice, max_new_tokens=frames + 1)
        total = time.perf_counter() - start
        seconds = len(wavs[0]) / rate
        return {"frame": times["generate"] / frames, "codec": (total - times["generate"]) / seconds, "total": total}

    first, second = run(), run()
    return {"load": loaded, "compile": first["total"] - second["total"], **second}


def _voice(model_type: str) -> dict[str, str]:
    return {"speaker": "ryan"} if model_type == "custom_voice" else {"instruct": "An old man who speaks slowly."}


_ROWS = [
    ("load", "load, s"), ("compile", "first call beyond the second, s"), ("frame", "seconds per frame"),
    ("codec", "codec, s per s of audio"), ("total", "second call, s"), ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, {"ours": measure_ours, "official": measure_official}, _ROWS)
