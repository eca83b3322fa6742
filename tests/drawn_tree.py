"""The parameter tree of random weights, without PyTorch: the same weights as a written checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax.convert.rule import Rule
from tests.draw import draw


def drawn_tree(rules: Iterable[Rule], seed: int = 0) -> dict:
    """The float32 tree that conversion makes of the tensors that `draw` draws."""
    leaves = {}
    for rule in rules:
        leaf = leaves[rule.flax] = np.empty(rule.flax_shape, np.float32)
        for (name, shape), view in zip(rule.torch.items(), rule.split(leaf), strict=True):
            view[...] = rule.transform.apply(draw(name, shape, seed)).reshape(view.shape)
    return unflatten_dict(leaves, sep="/")
