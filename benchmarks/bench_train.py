"""Training steps per second, full and with low-rank adapters.

    python benchmarks/bench_train.py CHECKPOINT [--rows 8] [--frames 100] [--prompt 64] [--steps 5] [--dtype bfloat16]

CHECKPOINT is a folder in the published layout; its weights are read, its codec is not. Prompts and codes are
random. Prints a line per kind of run: seconds per step, frames per second, and the peak of the device's memory.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import load_checkpoint
from qwen3_tts_jax.prompt import PromptPlan, batch_plans
from qwen3_tts_jax.train.lora import LoraConfig
from qwen3_tts_jax.train.loss import Batch
from qwen3_tts_jax.train.step import PARTS, Recipe, start, train_step


def random_batch(config: ModelConfig, rows: int, prompt: int, frames: int) -> Batch:
    """One batch [1, B, …] of prompts and codes of equal lengths."""
    rng = np.random.default_rng(0)
    num_codebooks, size = config.talker.num_codebooks, config.code_predictor.codebook_size
    nothing = np.full((prompt, num_codebooks), -1, np.int32)
    plans = [
        PromptPlan(rng.integers(0, 1000, prompt).astype(np.int32), nothing, np.zeros(0, np.int32)) for _ in range(rows)
    ]
    codes = rng.integers(0, size, (rows, frames, num_codebooks)).astype(np.int32)
    batch = Batch(batch_plans(plans, tts_pad=config.prompt.tts_pad), codes, np.ones(rows, bool))
    return jax.tree.map(lambda leaf: leaf[None], batch)


def measure(recipe: Recipe, params: dict, batch: Batch, steps: int) -> float:
    """Seconds per step, the first left out: it compiles."""
    state, frozen = start(params, recipe)
    state, metrics = train_step(state, frozen, batch, recipe)
    jax.block_until_ready(metrics)
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = train_step(state, frozen, batch, recipe)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()

    config = hf_config.read_folder(arguments.checkpoint).with_dtypes(arguments.dtype)
    params = load_checkpoint(arguments.checkpoint, config, PARTS)
    batch = random_batch(config, arguments.rows, arguments.prompt, arguments.frames)
    recipe = Recipe(config)
    print(f"{jax.devices()[0].device_kind}, {arguments.dtype}, {arguments.rows} rows of {arguments.frames} frames")
    print(f"{'run':18}{'s/step':>9}{'frames/s':>11}{'peak GB':>9}")
    kinds = {
        "full": replace(recipe, remat=False),
        "full, remat": recipe,
        "LoRA 16, remat": replace(recipe, lora=LoraConfig()),
    }
    for name, kind in kinds.items():
        seconds = measure(kind, params, batch, arguments.steps)
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
        print(f"{name:18}{seconds:>9.3f}{arguments.rows * arguments.frames / seconds:>11.0f}{memory:>9.1f}")


if __name__ == "__main__":
    main()
