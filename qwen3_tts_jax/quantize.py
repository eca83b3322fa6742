"""Weight-only int8: a quarter of the bytes of float32, half of bfloat16, for the layers that a frame reads.

Each output of a linear layer has a scale of its own, max |w| / 127, and its weights are rounded to the nearest
multiple of it. Activations and sums stay in the compute dtype; for products on CPUs see `layers.multiply_int8`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

_STACKS = ("talker/transformer/", "code_predictor/transformer/")


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """The tree with int8 weights in the layers of the talker and the code predictor.

    `.../weight` [*outputs, in] becomes `.../weight_int8` and `.../scale` [*outputs] (float32). Embeddings, output
    layers, norms and the codec stay as they are, and so does a tree that is already quantized.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        leaves |= quantize_leaf(path, leaf)
    return unflatten_dict(leaves, sep="/")


def quantize_leaf(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
    """What `quantize` makes of one leaf, by path; a `convert.load.Finish`."""
    if not (path.startswith(_STACKS) and path.endswith("/weight")):
        return {path: leaf}
    values, scale = _quantize_weight(leaf)
    layer = path.removesuffix("/weight")
    return {f"{layer}/weight_int8": values, f"{layer}/scale": scale}


@jax.jit
def _quantize_weight(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    weight = weight.astype(jnp.float32)
    # An output whose weights are all 0 would be divided by 0.
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axis=-1) / 127, jnp.finfo(jnp.float32).tiny)
    return jnp.round(weight / scale[..., None]).astype(jnp.int8), scale
