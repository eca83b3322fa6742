"""A training step beside one of the official fine-tuning recipe, by turns in one process, on the same small shapes.

    python benchmarks/bench_train_official.py [--rows 8] [--frames 64] [--prompt 64] [--rounds 5] [--output FILE]

The official recipe's step is: embeddings of text and codes summed, talker and code predictor through the official
classes with their own losses (0.3 for the predictor's), backward, gradients clipped to 1, AdamW, all in eager
PyTorch. Its targets are the recipe's own (see the README for what they teach); here its work counts. Ours learns all
parameters too. Both are float32. Prints and keeps wall and CPU seconds of each step and their ratios round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig, TransformerConfig
from qwen3_tts_jax.convert.reference import import_official, quiet
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.prompt import PromptPlan, batch_plans
from qwen3_tts_jax.train.loss import Batch, LossConfig
from qwen3_tts_jax.train.new_model import new_params
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.step import Recipe, start, train_step

_CODEBOOKS, _CODES, _TEXT_IDS = 8, 512, 512


def small_model() -> ModelConfig:
    """8.0 million weights in the talker's layers, 2.3 in the predictor's; 8 codebooks of 512 codes."""
    published = preset("0.6B-CustomVoice")
    talker = TransformerConfig(6, 320, 960, 5, 5, 64, 1e4, 1e-6, qk_norm=True)
    predictor = TransformerConfig(3, 256, 640, 4, 4, 64, 1e4, 1e-6, qk_norm=True)
    shift = _CODES - 2048
    moved = {name: value + shift for name, value in vars(published.prompt).items() if name.startswith("codec_")}
    half = {"num_codebooks": _CODEBOOKS, "codebook_size": _CODES}
    codec = replace(
        published.codec,
        num_codebooks=_CODEBOOKS,
        encoder=replace(published.codec.encoder, **half),
        decoder=replace(published.codec.decoder, **half),
    )
    return replace(
        published,
        talker=replace(
            published.talker, transformer=talker, codec_vocab_size=_CODES + 1024, text_vocab_size=_TEXT_IDS,
            text_width=320, num_codebooks=_CODEBOOKS, max_positions=4096,
        ),
        code_predictor=replace(
            published.code_predictor, transformer=predictor, codebook_size=_CODES, num_codebooks=_CODEBOOKS,
            talker_width=320,
        ),
        prompt=replace(published.prompt, tts_bos=500, tts_eos=501, tts_pad=502, speakers={}, dialects={}, **moved),
        codec=codec,
    )  # fmt: skip


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
    """The same of the official recipe."""
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


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON lines to add to")
    arguments = parser.parse_args()

    config, rng = small_model(), np.random.default_rng(0)
    text = rng.integers(0, 500, (arguments.rows, arguments.prompt)).astype(np.int32)
    codes = rng.integers(0, _CODES, (arguments.rows, arguments.frames, _CODEBOOKS)).astype(np.int32)
    steps = {"ours": our_step(config, text, codes), "official": official_step(config, text, codes)}
    first = {name: timed(step)["wall"] for name, step in steps.items()}
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            figures[name].append(timed(step))
    machine = {
        "cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(),
        "load": os.getloadavg()[0], **{name: version(name) for name in ("jax", "torch", "qwen-tts")},
    }  # fmt: skip
    shape = {"rows": arguments.rows, "prompt": arguments.prompt, "frames": arguments.frames}
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            for name, rounds in figures.items():
                for each in rounds:
                    file.write(json.dumps({"kind": name, **shape, **each, "machine": machine}) + "\n")
    seconds = arguments.rows * arguments.frames / config.codec.frame_rate
    print(f"| {shape}, median (min to max) of {arguments.rounds} | this package | official recipe | official / this |")
    print("|---|---|---|---|")
    for kind in ("wall", "cpu"):
        ours, other = ([each[kind] for each in figures[name]] for name in steps)
        ratios = [b / a for a, b in zip(ours, other, strict=True)]
        print(f"| s per step, {kind} | {spread(ours)} | {spread(other)} | {spread(ratios)} |")
    audio = [[seconds / each["wall"] for each in rounds] for rounds in figures.values()]
    print(f"| s of audio per s | {spread(audio[0])} | {spread(audio[1])} | |")
    print(f"| first step, s | {first['ours']:.3g} | {first['official']:.3g} | |")


if __name__ == "__main__":
    main()
