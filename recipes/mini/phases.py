"""Gives a talker a start for following phases from frame to frame: MODEL → OUT, for `train talker --start OUT`.

    python -m recipes.mini.phases WORK WORK/talker/model WORK/phases

The phase at a frame's end is the one before plus the frame's sixths, modulo six (`pitch.py`). A talker that learns the
fifth code like any other does not find that: it must carry the last frame's phase through all its layers, and its
predictor must add modulo six. So both get a start. The fifth code's embeddings say the phase strongly, in directions in
which the talker's last states hardly vary and to which its layers are blind until they learn better, so the phase
passes along the residual stream. A linear probe finds it in the last states and hands it to the predictor in six
directions of its own. There the fifth code's output layer looks for the phase from which each code goes on, and in six
more directions it tells apart the phases at which its codes end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.convert import load_checkpoint
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.export import export_model
from qwen3_tts_jax.train.score import teacher_force
from qwen3_tts_jax.train.step import PARTS
from recipes.mini.pitch import LEVELS, VOICED, parts_of
from recipes.mini.predicted import batches

Observe = Callable[[Params], tuple[np.ndarray, np.ndarray]]
"""Weights → the talker's last states float32 [N, D] before voiced frames, and the phases [N] that they follow."""

_CLIPS, _FRAMES, _HELD_OUT = 60, (80, 112), 0.25
_STRENGTH, _HANDED, _ASKED, _RIDGE = 10.0, 6.0, 0.3, 3.0
_LOUDER = {0: (2.6, 1.8), 1: (1.4, 1.2)}
"""Factors of the first layers' norms, before attention and MLP: what says the phase made their inputs larger."""


def with_phases(params: Params, observe: Observe, seed: int = 0) -> Params:
    """The same talker with a start for phases.

    Args:
        params: the trees talker and code_predictor, float32, of a predictor narrower than the talker; not modified.
        observe: see `Observe`.
        seed: of directions in the predictor.
    """
    params = jax.tree.map(partial(np.array, dtype=np.float32), params)
    stack, predictor = params["talker"]["transformer"], params["code_predictor"]
    sixths, ends = parts_of(VOICED)
    before = (ends - sixths) % LEVELS

    states, _ = observe(params)
    # Eigenvectors of the smallest variance come first; the last norm's scale is not part of the residual stream.
    directions = np.linalg.eigh(np.cov((states / stack["norm"]["scale"]).T))[1][:, : LEVELS + 1].T.astype(np.float32)
    embeddings = predictor["codec_embeddings"]["embedding"][-1]
    embeddings[VOICED] += _STRENGTH * directions[ends]
    embeddings[0] += _STRENGTH * directions[LEVELS]
    for number in range(sum(name.startswith("layers_") for name in stack)):
        layer = stack[f"layers_{number}"]
        for norm, reads in (("attention_norm", layer["attention"]["qkv"]), ("mlp_norm", layer["mlp"]["gate_up"])):
            seen, _ = np.linalg.qr((directions * layer[norm]["scale"]).T)
            reads["weight"] -= (reads["weight"] @ seen) @ seen.T
        for norm, factor in zip(("attention_norm", "mlp_norm"), _LOUDER.get(number, (1, 1)), strict=True):
            layer[norm]["scale"] *= factor

    states, phases = observe(params)
    learnt = round(len(states) * (1 - _HELD_OUT))
    mean = states.mean(axis=0)
    centred, wanted = states - mean, np.eye(LEVELS, dtype=np.float32)[phases] - 1 / LEVELS
    known = centred[:learnt]
    probe = np.linalg.solve(known.T @ known + _RIDGE * np.eye(len(mean)), known.T @ wanted[:learnt]).astype(np.float32)
    right = np.argmax(centred[learnt:] @ probe, axis=1) == phases[learnt:]
    print(f"the probe tells {right.mean():.0%} of phases", flush=True)

    width = predictor["codec_heads"]["weight"].shape[-1]
    asked = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, 2 * LEVELS)))[0].T.astype(np.float32)
    handed = _HANDED * asked[:LEVELS].T @ probe.T
    predictor["projection"]["weight"] += handed
    predictor["projection"]["bias"] -= handed @ mean
    predictor["codec_heads"]["weight"][-1, VOICED] += _ASKED * (asked[before] + asked[LEVELS + ends])
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path, help="of `train talker`")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    folder = arguments.work / "codes"
    config = hf_config.read_folder(arguments.model).with_dtypes("float32")
    tokenizer = TextTokenizer.from_folder(arguments.model)
    texts = [json.loads(line) for line in (folder / "texts-lines.jsonl").read_text(encoding="utf-8").splitlines()]
    codes = np.load(folder / "said.npz")
    shuffled = np.random.default_rng(0).permutation(len(texts))
    fitting = (i for i in shuffled if _FRAMES[0] < len(codes[texts[i]["key"]]) <= _FRAMES[1])
    some = list(batches(list(islice(fitting, _CLIPS)), texts, codes, tokenizer, config))
    force = jax.jit(partial(teacher_force, config=config))

    def observe(params: Any) -> tuple[np.ndarray, np.ndarray]:
        states, phases = [], []
        for _, prompts, batch in some:
            hidden = np.asarray(force(params, prompts=prompts, codes=jnp.asarray(batch)).hidden)[:, 1:-1]
            said = batch[..., -1]
            goes_on = (said[:, 1:] > 0) & (said[:, :-1] > 0)
            states.append(hidden[goes_on])
            phases.append(parts_of(said[:, :-1][goes_on])[1])
        return np.concatenate(states), np.concatenate(phases)

    params = with_phases(load_checkpoint(arguments.model, config, PARTS), observe)
    print(export_model(arguments.output, params, config, arguments.model, "float32"))


if __name__ == "__main__":
    main()
