"""What int8 weights cost and gain: logits under the same codes, bytes of weights, milliseconds per frame.

    python benchmarks/bench_int8.py CHECKPOINT [--dtype float32] [--frames 8] [--batches 1] [--output int8.jsonl]

The checkpoint speaks with its own weights; then both sets of weights score its codes, in one pass each. The agreement
is that of the most likely codes. Random weights, whose logits are close together, agree less than real ones. With
--dtype float32 --frames 8 --batches 1 2 4 8 16 32 and 0.6B shapes this made the figures in README.md
(`results/int8_cpu_avx512.jsonl`), in six minutes on two cores. Needs nothing but this package.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import figures
import jax
import jax.numpy as jnp
import numpy as np
import side_by_side

from qwen3_tts_jax import Qwen3TTS, Request
from qwen3_tts_jax.generate import generate_chunk, prefill_compiled, utterance_keys
from qwen3_tts_jax.prompt import PromptBatch, batch_plans, plan_prompt
from qwen3_tts_jax.quantize import quantize
from qwen3_tts_jax.train.score import teacher_force

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
_CALLS = 5


def main() -> None:
    """Measures, prints one table, and keeps it as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout")
    parser.add_argument("--dtype", default="auto", help="to compute in (default auto)")
    parser.add_argument("--frames", type=int, default=24, help="frames that are scored (default 24)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8), help="of the timed frames (default 1 8)")
    parser.add_argument("--output", type=Path, help="append the figures to this file of JSON lines")
    arguments = parser.parse_args()
    model = Qwen3TTS.from_pretrained(arguments.checkpoint, dtype=arguments.dtype)
    config = model.config
    request = Request(TEXT, "english", max_frames=arguments.frames, **side_by_side.voice(config.model_type))
    (speech,) = model.synthesize([request])
    plan = plan_prompt(request, model.tokenizer, config)
    prompt = batch_plans([plan], tts_pad=config.prompt.tts_pad)

    score = jax.jit(teacher_force, static_argnums=1)
    results, forced = {}, {}
    for name in ("float", "int8"):
        params = model.params if name == "float" else quantize(model.params)
        forced[name] = score(params, config, prompt, jnp.asarray(speech.codes[None]))
        stacks = [params[part]["transformer"] for part in ("talker", "code_predictor")]
        results[name] = {"megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(stacks)) / 1e6}
        for batch in arguments.batches:
            many = batch_plans([plan] * batch, tts_pad=config.prompt.tts_pad)
            results[name][f"ms per frame, batch {batch}"] = _milliseconds(params, model, many)
    for part, logits in (("talker", "logits"), ("predictor", "code_logits")):
        one, other = (np.asarray(getattr(forced[name], logits), np.float64) for name in ("float", "int8"))
        cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
        results["int8"] |= {
            f"{part} cosine, mean": cosine.mean(),
            f"{part} cosine, least": cosine.min(),
            f"{part} agreement": (one.argmax(-1) == other.argmax(-1)).mean(),
        }
    settings = {
        "device": jax.devices()[0].device_kind, "frames": len(speech.codes), "dtype": config.talker.transformer.dtype,
    }  # fmt: skip
    figures.append(arguments.output, {**settings, **results, "machine": figures.machine()})
    lines = [
        [row, *(f"{results[name][row]:.4g}" if row in results[name] else "" for name in results)]
        for row in results["int8"]
    ]
    figures.print_table(["", *results], lines)


def _milliseconds(params: dict, model: Qwen3TTS, prompt: PromptBatch, frames: int = 8) -> float:
    config, batch = model.config, len(prompt.lengths)
    keys, limits = utterance_keys(0, jnp.arange(batch)), jnp.full(batch, 10_000)
    capacity = prompt.text_ids.shape[1] + (_CALLS + 1) * frames
    state = prefill_compiled(params, config, prompt, keys, limits, capacity)
    times = []
    for _ in range(_CALLS + 1):
        began = time.perf_counter()
        state, codes = generate_chunk(params, config, config.generation, state, frames)
        jax.block_until_ready(codes)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / frames * 1e3


if __name__ == "__main__":
    main()
