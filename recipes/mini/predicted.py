"""Codes as the talker says them, for the decoder to learn from: WORK/codes → recordings-predicted.jsonl.

    python -m recipes.mini.predicted WORK RUN --count 6000 [--temperature 0.1]

RUN is the folder of `train talker`. Its talker says clips anew, with their own codes before each frame, and then once
more with the codes that it said: nearly what it says by itself, in two passes over all frames at once, and as long as
the recordings, since its texts give durations. A decoder that learns from such codes to reproduce the recordings learns
to correct what the talker does, and to leave out what it cannot predict. Pitch and phases stay those of the recording.
Writes WORK/codes/predicted.npz and recordings-predicted.jsonl, in which all these clips come with such codes and every
fourth with its own too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import load_checkpoint
from qwen3_tts_jax.prompt import PromptBatch, Request, batch_plans, plan_prompt
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.saved_run import export_run
from qwen3_tts_jax.train.score import code_logits_of, teacher_force
from recipes.mini.durations import AHEAD

_FRAMES = (48, 80, 112, 160)
"""The lengths of batches; longer clips are left out."""
_BATCH_FRAMES, _PROMPT, _PASSES = 1_200, 16, 2


@partial(jax.jit, static_argnames=("config", "temperature"))
def predict(
    params: Any, config: ModelConfig, prompts: PromptBatch, codes: jax.Array, key: jax.Array, temperature: float
) -> jax.Array:
    """Codes int32 [B, T, Q] drawn anew, each given those before it in its frame and the frames before in `codes`."""
    forced = teacher_force(params, config, prompts, codes)
    hidden = forced.hidden[:, :-1]

    def draw(number: int, logits: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, number), logits / temperature)

    drawn = jnp.maximum(codes, 0)
    drawn = drawn.at[..., 0].set(draw(0, forced.logits[:, :-1, : config.code_predictor.codebook_size]))
    for number in range(1, codes.shape[-1]):
        logits = code_logits_of(params, config, hidden, drawn)[:, :, number - 1]
        drawn = drawn.at[..., number].set(draw(number, logits))
    return jnp.where(codes >= 0, drawn, -1)


def batches(
    chosen: Sequence[int],
    texts: Sequence[Mapping[str, Any]],
    codes: Mapping[str, np.ndarray],
    tokenizer: TextTokenizer,
    config: ModelConfig,
) -> Iterator[tuple[list[int], PromptBatch, np.ndarray]]:
    """The chosen lines in batches of a few shapes: their numbers, B prompts, and codes int32 [B, T, Q].

    Codes are -1 where a row has no frame; rows beyond the numbers have none at all.
    """
    for shorter, frames in pairwise((0, *_FRAMES)):
        some = [i for i in chosen if shorter < len(codes[texts[i]["key"]]) <= frames]
        size = _BATCH_FRAMES // frames
        for first in range(0, len(some), size):
            part = some[first : first + size]
            batch = np.full((size, frames, config.talker.num_codebooks), -1, np.int32)
            plans = []
            for row, i in enumerate(part):
                request = Request(texts[i]["text"], "english", texts[i]["speaker"], text_mode="as_it_comes")
                plans.append(plan_prompt(request, tokenizer, config))
                own = codes[texts[i]["key"]]
                batch[row, : len(own)] = own
            plans += [plans[0]] * (size - len(plans))
            yield part, batch_plans(plans, tts_pad=config.prompt.tts_pad, length=_PROMPT, trailing_length=frames), batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=6000, help="clips")
    parser.add_argument("--temperature", type=float, default=0.1)
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
    codes = np.load(folder / "said.npz")
    chosen = np.random.default_rng(0).permutation(len(texts))[: arguments.count]
    predicted, rows = {}, []
    for first, (part, prompts, batch) in enumerate(batches(chosen, texts, codes, tokenizer, config)):
        result = jnp.asarray(batch)
        for number in range(_PASSES):
            lot = jax.random.fold_in(jax.random.key(first), number)
            result = predict(params, config, prompts, result, lot, arguments.temperature)
        result = np.asarray(result)
        for row, i in enumerate(part):
            key = texts[i]["key"]
            said = result[row, AHEAD : len(codes[key])].astype(np.int16)
            # With other phases, these codes would not describe the recording.
            said[:, -1] = codes[key][AHEAD:, -1]
            predicted[key] = said
            rows.append({**recordings[i], "codes": "predicted.npz"})
            if len(predicted) % 4 == 0:
                rows.append(recordings[i])
        if first % 20 == 0:
            print(f"{len(predicted)} clips", flush=True)
    print(f"{len(predicted)} clips, {len(chosen) - len(predicted)} longer than {_FRAMES[-1]} frames", flush=True)
    np.savez(folder / "predicted.npz", **predicted)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "recordings-predicted.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
