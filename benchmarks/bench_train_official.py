"""A training step against the official fine-tuning recipe's, taking turns in one process, on the same small shapes.

    python benchmarks/bench_train_official.py [--rows 8] [--frames 64] [--prompt 64] [--rounds 5] [--output train.jsonl]

The official recipe's step: sum the embeddings of text and codes, run talker and code predictor through the official
classes with their own losses (0.3 for the predictor's), backward, clip gradients to 1, AdamW, all in eager PyTorch. Its
targets are the recipe's own; only its work matters here. Ours trains all parameters, too. Both are float32. Prints and
keeps wall and CPU seconds of each step and their ratios, round by round. The figures in README.md come from the
defaults (`results/train_cpu.jsonl`), which take about a minute on two cores, and from 9 rounds
(`results/train_cpu_avx512.jsonl`). Needs the extra `parity` and qwen-tts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import jax
import numpy as np
from small_model import small_model

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig, TransformerConfig
from qwen3_tts_jax.convert.reference import import_official, quiet
from qwen3_tts_jax.prompt import PromptPlan, batch_plans
from qwen3_tts_jax.train.loss import Batch, LossConfig
from qwen3_tts_jax.train.new_model import new_params
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.step import Recipe, start, train_step

_CODEBOOKS, _CODES = 8, 512
# 8.0 million weights in the layers of the talker, 2.3 million in those of the predictor.
_TALKER = TransformerConfig(6, 320, 960, 5, 5, 64, 1e4, 1e-6, qk_norm=True)
_PREDICTOR = TransformerConfig(3, 256, 640, 4, 4, 64, 1e4, 1e-6, qk_norm=True)


def our_step(config: ModelConfig, text: np.ndarray, codes: np.ndarray) -> Callable[[], float]:
    """A function that makes a step on text ids [B, P] and codes [B, T, Q] and returns the loss."""
    recipe = Recipe(config, LossConfig(codes=0.3), OptimizerConfig(2e-5, 1000, 0), remat=False)
    state, frozen = start(new_params(config), recipe)
    nothing = np.full((text.shape[1], _CODEBOOKS), -1, np.int32)
    plans = [PromptPlan(row, nothing, np.zeros(0, np.int32)) for row in text]
    batch = Batch(batch_plans(plans, tts_pad=config.prompt.tts_pad), codes, np.ones(len(text), bool))
    batches = jax.tree.map(lambda leaf: leaf[None], batch)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, batches, recipe)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def official_step(config: ModelConfig, text: np.ndarray, codes: np.ndarray) -> Callable[[], float]:
    """The same for the official recipe."""
    import_official()
    import torch

    with quiet():
        from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

        model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**hf_export.to_hf(config)[0]))
    model.train()
    talker = model.talker
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    ids, frames = torch.from_numpy(text).long(), torch.from_numpy(codes).long()
    rows, prompt = ids.shape
    length = prompt + frames.shape[1] + 1
    mask = torch.ones(rows, length - 1, dtype=torch.long)
    labels = torch.full((rows, length - 1), -100)
    labels[:, prompt:] = frames[..., 0]
    ends = torch.full((rows, 1), config.prompt.codec_eos)
    pads = torch.full((rows, length - prompt - 1), config.prompt.tts_pad)

    def step() -> float:
        texts = talker.text_projection(talker.model.text_embedding(torch.cat([ids, pads, pads[:, :1]], dim=1)))
        spoken = talker.model.codec_embedding(frames[..., 0])
        for book, table in enumerate(talker.code_predictor.get_input_embeddings(), 1):
            spoken = spoken + table(frames[..., book])
        last = talker.model.codec_embedding(ends)
        nothing = torch.zeros(rows, prompt, spoken.shape[-1])
        inputs = (texts + torch.cat([nothing, spoken, last], dim=1))[:, :-1]
        with quiet():
            output = talker(
                inputs_embeds=inputs, attention_mask=mask, labels=labels, use_cache=False, output_hidden_states=True
            )
        hidden = output.hidden_states[0][-1][:, prompt:].reshape(-1, inputs.shape[-1])
        _, rest = talker.forward_sub_talker_finetune(frames.reshape(-1, _CODEBOOKS), hidden)
        loss = output.loss + 0.3 * rest
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def timed(step: Callable[[], float]) -> dict[str, float]:
    """Wall and CPU seconds of a step, and its loss."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON lines to add to")
    arguments = parser.parse_args()

    config = small_model(_TALKER, _PREDICTOR, codebooks=_CODEBOOKS, codes=_CODES, text_ids=512)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 500, (arguments.rows, arguments.prompt)).astype(np.int32)
    codes = rng.integers(0, _CODES, (arguments.rows, arguments.frames, _CODEBOOKS)).astype(np.int32)
    steps = {"ours": our_step(config, text, codes), "official": official_step(config, text, codes)}
    first = {name: timed(step)["wall"] for name, step in steps.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            found[name].append(timed(step))
    shape = {"rows": arguments.rows, "prompt": arguments.prompt, "frames": arguments.frames}
    machine = figures.machine()
    for name, rounds in found.items():
        for each in rounds:
            figures.append(arguments.output, {"kind": name, **shape, **each, "machine": machine})

    def cell(values: list[float]) -> str:
        return figures.cell(figures.spread(values))

    lines = []
    for kind in ("wall", "cpu"):
        ours, other = ([each[kind] for each in found[name]] for name in steps)
        ratios = [b / a for a, b in zip(ours, other, strict=True)]
        lines.append([f"s per step, {kind}", cell(ours), cell(other), cell(ratios)])
    seconds = arguments.rows * arguments.frames / config.codec.frame_rate
    audio = [[seconds / each["wall"] for each in rounds] for rounds in found.values()]
    lines.append(["s of audio per s", *map(cell, audio), ""])
    lines.append(["first step, s", *(f"{value:.3g}" for value in first.values()), ""])
    head = f"{shape}, median (min to max, number)"
    figures.print_table([head, "this package", "official recipe", "official / this"], lines)


if __name__ == "__main__":
    main()
