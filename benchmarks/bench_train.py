"""Time and memory of a training step: for all weights, without and with rematerialization, and for low-rank adapters.

    python benchmarks/bench_train.py CHECKPOINT [--frames 24] [--batches 8] [--repeats 3] [--output steps.jsonl]

CHECKPOINT is a folder in the published layout; its weights are read, its codec is not. Prompts and codes are random.
Steps compute in float32 on CPUs, else in bfloat16, as `train sft` does. Each kind runs in a fresh process, so that its
peak memory is its own: it compiles, then makes five steps. Needs nothing but this package.
"""

from __future__ import annotations

import time
from functools import partial

import side_by_side

_PROMPT, _STEPS = 64, 5


def measure(remat: bool, lora: bool, checkpoint: str, frames: int, rows: int) -> list[side_by_side.Figures]:
    """The figures of each step after the first, which compiles."""
    import jax
    import numpy as np

    from qwen3_tts_jax import hf_config
    from qwen3_tts_jax.convert import load_checkpoint
    from qwen3_tts_jax.prompt import PromptPlan, batch_plans
    from qwen3_tts_jax.train.lora import LoraConfig
    from qwen3_tts_jax.train.loss import Batch
    from qwen3_tts_jax.train.step import PARTS, Recipe, start, train_step

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config = hf_config.read_folder(checkpoint).with_dtypes(dtype)
    rng, num_codebooks = np.random.default_rng(0), config.talker.num_codebooks
    nothing = np.full((_PROMPT, num_codebooks), -1, np.int32)
    texts = rng.integers(0, 1000, (rows, _PROMPT)).astype(np.int32)
    plans = [PromptPlan(text, nothing, np.zeros(0, np.int32)) for text in texts]
    size = config.code_predictor.codebook_size
    codes = rng.integers(0, size, (rows, frames, num_codebooks)).astype(np.int32)
    batch = Batch(batch_plans(plans, tts_pad=config.prompt.tts_pad), codes, np.ones(rows, bool))
    batches = jax.tree.map(lambda leaf: leaf[None], batch)

    recipe = Recipe(config, remat=remat, lora=LoraConfig() if lora else None)
    state, frozen = start(load_checkpoint(checkpoint, config, PARTS), recipe)
    times = []
    for _ in range(1 + _STEPS):
        began = time.perf_counter()
        state, _ = train_step(state, frozen, batches, recipe)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - began)
    first, *others = times
    steps = [{"step": seconds, "speed": rows * frames / seconds} for seconds in others]
    steps[0]["compile"] = first - others[0]
    memory = jax.devices()[0].memory_stats()  # None on CPUs
    if memory:
        steps[0]["device_gb"] = memory["peak_bytes_in_use"] / 1e9
    return steps


_MEASURES = {
    "full": partial(measure, False, False),
    "full, remat": partial(measure, True, False),
    "LoRA 16, remat": partial(measure, True, True),
}
_ROWS = [
    ("step", "s per step"), ("speed", "frames per s"), ("compile", "first step beyond the second, s"),
    ("device_gb", "peak memory of the device, GB"), ("peak_gb", "peak memory of the process, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, _MEASURES, _ROWS, batches=(8,))
