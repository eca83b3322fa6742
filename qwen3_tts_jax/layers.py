"""Layers that every part of the model is made of.

Axis legend, used in all docstrings:
    B batch   T time (tokens or frames)   S cache slots   N query heads   K key/value heads   H head dim
    D model width   F MLP width   Q codebooks   C channels   V vocabulary

Linear weights are [out, in], which is PyTorch's orientation and the faster one on CPU and GPU.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# float32 means float32: without this, GPUs use TF32 and TPUs bfloat16 passes, and parity is lost.
# It has no effect on bfloat16 operands.
PRECISION = jax.lax.Precision.HIGHEST

weight_init = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """y = x Wᵀ (+ b), [..., in] → [..., features], computed in `dtype`."""

    features: int
    use_bias: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", weight_init, (self.features, x.shape[-1]), self.dtype)
        y = jnp.einsum("...i,oi->...o", x.astype(self.dtype), weight, precision=PRECISION)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return y


class Embedding(nn.Module):
    """A table whose rows are gathered; returned in the table's own dtype, which may be the file's."""

    rows: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", weight_init, (self.rows, self.width), self.dtype)
        return table[ids]


class RMSNorm(nn.Module):
    """x / rms(x) · scale over the last axis, in float32 (Zhang & Sennrich 2019)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / std · scale + bias over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class LayerScale(nn.Module):
    """A learnt gain per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.constant(0.01), (x.shape[-1],), x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), [..., D] → [..., D] through F = `width` (Shazeer 2020)."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = Linear(self.width, dtype=self.dtype, name="gate")(x)
        up = Linear(self.width, dtype=self.dtype, name="up")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="down")(nn.silu(gate) * up)


class GeluMLP(nn.Module):
    """down(gelu(up(x))), [..., D] → [..., D] through F = `width`, with the exact (erf) GELU."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = Linear(self.width, dtype=self.dtype, name="up")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="down")(nn.gelu(up, approximate=False))


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embeddings (Su et al. 2021) for `positions`, each [..., H/2] float32."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (x[i], x[i + H/2]) of x [B, T, N, H] in float32; `tables` are [B, T, H/2]."""
    cos, sin = (table[..., None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
