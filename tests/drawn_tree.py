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
        tensors = [rule.transform.apply(draw(name, rule.shape, seed)) for name in rule.torch]
        leaves[rule.flax] = np.stack(tensors) if rule.stacked else np.ascontiguousarray(tensors[0])
    return unflatten_dict(leaves, sep="/")
