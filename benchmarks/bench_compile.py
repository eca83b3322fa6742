"""Cold starts: what compiling costs, and how much of that is left when compiled programs are kept.

    python benchmarks/bench_compile.py CHECKPOINT [--batches 1 8] [--repeats 3] [--plot start.png]

Each measurement is a fresh process that imports the package, loads the checkpoint and speaks twice: "cold"
with an empty cache, "warm" with what the cold one before it kept, "official" with the official PyTorch
package, which compiles nothing. All compute in float32; with 0.6B shapes on two cores a process takes about a minute
at batch 1. CHECKPOINT is as for bench_batch.py. Needs the extra `parity` and qwen-tts; `--kinds cold warm` needs
neither.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import bench_batch
import side_by_side

CACHE = Path(tempfile.gettempdir()) / "qwen3_tts_jax_bench_compile"


def measure_ours(keep: bool, checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """Seconds until the first speech, and what was compiled for it; `keep` leaves the cache as it is."""
    began = time.perf_counter()
    if not keep:
        shutil.rmtree(CACHE, ignore_errors=True)
    # As the command does, but in a folder of its own.
    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    import jax

    from qwen3_tts_jax import Qwen3TTS, Request, keep_compiled

    count = {"trace": 0.0, "compile": 0.0, "programs": 0, "found": 0}

    def timed(event: str, duration: float, **_: str) -> None:
        if event.endswith("backend_compile_duration"):
            count["compile"] += duration
            count["programs"] += 1
        elif event.endswith(("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration")):
            count["trace"] += duration

    def counted(event: str, **_: str) -> None:
        count["found"] += event.endswith("cache_hits")

    jax.monitoring.register_event_duration_secs_listener(timed)
    jax.monitoring.register_event_listener(counted)
    folder = keep_compiled()
    marks = [time.perf_counter()]
    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    marks.append(time.perf_counter())
    voice = side_by_side.voice(model.config.model_type)
    texts = [bench_batch.TEXTS[row % len(bench_batch.TEXTS)] for row in range(batch)]
    requests = [Request(text, "english", max_frames=frames, **voice) for text in texts]
    model.synthesize(requests, batch_size=batch)
    marks.append(time.perf_counter())
    first = dict(count)
    model.synthesize(requests, batch_size=batch)
    marks.append(time.perf_counter())
    kept = list(folder.rglob("*-cache"))
    return {
        "import": marks[0] - began,
        "load": marks[1] - marks[0],
        "first": marks[2] - marks[1],
        "second": marks[3] - marks[2],
        "start": marks[2] - began,
        "trace": first["trace"],
        "compile": first["compile"],
        "programs": first["programs"],
        "missed": first["programs"] - first["found"],
        "compiled_again": count["programs"] - first["programs"],
        "kept": len(kept),
        "kept_mb": sum(file.stat().st_size for file in kept) / 1e6,
    }


def measure_official(checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """Its first and its second call."""
    began = time.perf_counter()
    calls = bench_batch.measure_official("float32", checkpoint, frames, batch)
    figures = calls[0]
    first = figures["total"] + figures["compile"]
    start = time.perf_counter() - began - sum(call["total"] for call in calls)
    return {
        "import": start - figures["load"] - first,
        "load": figures["load"],
        "first": first,
        "second": figures["total"],
        "start": start,
    }


_MEASURES = {
    "cold": partial(measure_ours, False),
    "warm": partial(measure_ours, True),
    "official": measure_official,
}
_ROWS = [
    ("import", "import, s"), ("load", "load, s"), ("first", "first call, s"), ("second", "second call, s"),
    ("start", "start to first speech, s"), ("trace", "of these traced, s"), ("compile", "compiled or fetched, s"),
    ("programs", "programs"), ("missed", "of these not found in the cache"),
    ("kept", "programs kept on disk"), ("kept_mb", "kept on disk, MB"), ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, _MEASURES, _ROWS, plotted="start")
