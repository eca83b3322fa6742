"""Tells sets of weights apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict


def fingerprint(params: Mapping[str, Any]) -> str:
    """A digest of every leaf's path, shape and first and last 64 numbers.

    The numbers are taken in bfloat16, so that it does not depend on the dtype that the weights are loaded in.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {leaf.shape}\n".encode() + np.asarray(_ends(leaf)).tobytes())
    return digest.hexdigest()[:32]


@jax.jit
def _ends(leaf: jax.Array) -> jax.Array:
    """The first and last 64 numbers; compiled, because `ravel` would otherwise copy all of them."""
    flat = jnp.ravel(leaf)
    return jnp.concatenate([flat[:64], flat[-64:]]).astype(jnp.bfloat16).astype(jnp.float32)
