"""Codes as the talker says them, for the decoder to learn what to make of: WORK/codes → recordings-predicted.jsonl.

    python -m recipes.mini.predicted WORK RUN --count 6000 [--temperature 0.3]

RUN is the folder of `train talker`. Its talker reads clips with their own codes before each frame; code 0 stays, and
the code predictor draws the others. What no talker can foretell of them is then noise, and a decoder that learns from
such codes what the recordings were learns to leave it out. Writes WORK/codes/predicted.npz and
recordings-predicted.jsonl, in which every clip comes twice: with the codes that it has, and with these.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import load_checkpoint
from qwen3_tts_jax.prompt import PromptBatch, Request, batch_plans, plan_prompt
from qwen3_tts_jax.text import TextTokenizer
from qwen3_tts_jax.train.saved_run import export_run
from qwen3_tts_jax.train.score import code_logits_of, teacher_force

_SHAPES = ((44, 64), (76, 96), (110, 128), (160, 160))
"""Frames, and positions of prompts, of batches; longer clips are left out."""
_BATCH_FRAMES = 1_200


@partial(jax.jit, static_argnames=("config", "temperature"))
def predict(
    params: Any, config: ModelConfig, prompts: PromptBatch, codes: jax.Array, key: jax.Array, temperature: float
) -> jax.Array:
    """Codes int32 [B, T, Q] with codes 1 … Q − 1 drawn anew, each given those before it."""
    hidden = teacher_force(params, config, prompts, codes).hidden[:, :-1]
    drawn = jnp.maximum(codes, 0)
    for number in range(1, codes.shape[-1]):
        logits = code_logits_of(params, config, hidden, drawn)[:, :, number - 1]
        chosen = jax.random.categorical(jax.random.fold_in(key, number), logits / temperature)
        drawn = drawn.at[..., number].set(chosen)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=6000, help="clips")
    parser.add_argument("--temperature", type=float, default=0.3)
    arguments = parser.parse_args()
    folder = arguments.work / "codes"
    with tempfile.TemporaryDirectory() as temporary:
        model, _ = export_run(arguments.run, Path(temporary) / "model", None, "last")
        config = hf_config.read_folder(model)
        params = load_checkpoint(model, config, ("talker", "code_predictor"))
        tokenizer = TextTokenizer.from_folder(model)
    texts, recordings = (
        [json.loads(line) for line in (folder / f"{kind}-lines.jsonl").read_text(encoding="utf-8").splitlines()]
        for kind in ("texts", "recordings")
    )
    codes = np.load(folder / "codes.npz")
    chosen = np.random.default_rng(0).permutation(len(texts))[: arguments.count]
    predicted, rows = {}, []
    for frames, length in _SHAPES:
        shorter = max((each for each, _ in _SHAPES if each < frames), default=0)
        some = []
        for i in chosen:
            if shorter < len(codes[texts[i]["key"]]) <= frames:
                request = Request(texts[i]["text"], "english", texts[i]["speaker"])
                plan = plan_prompt(request, tokenizer, config)
                if len(plan.text_ids) <= length:
                    some.append((i, plan))
        size = _BATCH_FRAMES // frames
        for first in range(0, len(some), size):
            part, plans = zip(*some[first : first + size], strict=True)
            batch = np.full((size, frames, config.talker.num_codebooks), -1, np.int32)
            for row, i in enumerate(part):
                own = codes[texts[i]["key"]]
                batch[row, : len(own)] = own
            padded = [*plans, *[plans[0]] * (size - len(plans))]
            prompts = batch_plans(padded, tts_pad=config.prompt.tts_pad, length=length)
            result = predict(params, config, prompts, batch, jax.random.key(first), arguments.temperature)
            for row, i in enumerate(part):
                key = texts[i]["key"]
                predicted[key] = np.asarray(result[row, : len(codes[key])], np.int16)
                rows += [recordings[i], {**recordings[i], "codes": "predicted.npz"}]
        print(f"{len(predicted)} clips", flush=True)
    np.savez(folder / "predicted.npz", **predicted)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "recordings-predicted.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
