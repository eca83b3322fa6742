"""Layers that every part of the model is made of.

Axis legend, used in all docstrings:
    B batch   T time (tokens or frames)   N samples   S cache slots   U text ids of the frames to come
    K key/value heads   G query heads of each   H head dim   D model width   F MLP width   C channels
    Q codebooks   V vocabulary   R rows that are inserted, or frames of a reference

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

# Up to this many rows, XLA's CPU products are 1.2 to 3 times as fast with the rows as columns: W xᵀ.
_FEW_ROWS = 64

# Three base-254 digits resolve a row to 6e-8 of its largest magnitude, float32's own precision.
_DIGITS = 3

weight_init = nn.initializers.normal(0.02)


def multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product x Wᵀ: [..., in] and [*outputs, in] → [..., *outputs]."""

    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.tensordot(x, weight, axes=(-1, -1), precision=PRECISION)

    def on_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
        rows, flat = x.reshape(-1, x.shape[-1]), weight.reshape(-1, weight.shape[-1])
        if 1 < len(rows) <= _FEW_ROWS:
            # Without the barriers XLA turns the product back into the other form.
            columns = jax.lax.optimization_barrier(rows.T)
            y = jax.lax.optimization_barrier(jnp.matmul(flat, columns, precision=PRECISION)).T
        else:
            y = product(rows, flat)
        return y.reshape(*x.shape[:-1], *weight.shape[:-1])

    # XLA's CPU backend copies a weight of several output axes before the product.
    return jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=product)


def multiply_int8(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`multiply` by an int8 weight."""

    def widened(x: jax.Array, weight: jax.Array) -> jax.Array:
        return multiply(x, weight.astype(x.dtype))

    def on_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
        rows, flat = x.reshape(-1, x.shape[-1]), weight.reshape(-1, weight.shape[-1])
        if len(rows) > _FEW_ROWS:
            return widened(x, weight)
        return _in_whole_numbers(rows, flat).astype(x.dtype).reshape(*x.shape[:-1], *weight.shape[:-1])

    return jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=widened)


@jax.custom_jvp
def _in_whole_numbers(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """The product [R, in] and int8 [out, in] → float32 [R, out], from products of int8.

    XLA's CPU backend would first widen the whole weight, which takes ten times as long as a product in float32. So
    each row is written in digits of base 254, one column per digit.
    """
    columns = rows.astype(jnp.float32).T
    step = jnp.maximum(jnp.max(jnp.abs(columns), axis=0) / 127, jnp.finfo(jnp.float32).tiny)
    digits, rest = [], columns / step
    for _ in range(_DIGITS):
        digit = jnp.round(rest)
        digits.append(digit.astype(jnp.int8))
        rest = (rest - digit) * 254
    # Barriers, as in `multiply`.
    digits = jax.lax.optimization_barrier(jnp.concatenate(digits, axis=1))
    sums = jax.lax.optimization_barrier(jax.lax.dot(weight, digits, preferred_element_type=jnp.int32))
    by_digit = jnp.split(sums.astype(jnp.float32), _DIGITS, axis=1)
    return (sum(each * 254.0**-place for place, each in enumerate(by_digit)) * step).T


@_in_whole_numbers.defjvp
def _tangent_in_whole_numbers(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    rows, weight = primals
    return _in_whole_numbers(rows, weight), multiply(tangents[0].astype(jnp.float32), weight.astype(jnp.float32))


def _project(module: nn.Module, x: jax.Array, outputs: tuple[int, ...]) -> jax.Array:
    """Multiplies x by the weight of `module`, [..., in] → [..., *outputs], in its `dtype`.

    After `quantize.quantize` the weight is int8, with a float32 scale for each output.
    """
    x, shape = x.astype(module.dtype), (*outputs, x.shape[-1])
    if not module.has_variable("params", "weight_int8"):
        return multiply(x, module.param("weight", weight_init, shape, module.dtype))
    weight = module.param("weight_int8", nn.initializers.zeros, shape, jnp.int8)
    scale = module.param("scale", nn.initializers.ones, outputs, jnp.float32)
    return (multiply_int8(x, weight) * scale).astype(module.dtype)


class Linear(nn.Module):
    """y = x Wᵀ (+ b), [..., in] → [..., features], computed in `dtype`."""

    features: int
    use_bias: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _project(self, x, (self.features,))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return y


class JointLinear(nn.Module):
    """Linear layers that share an input, as one product, [..., in] → [..., *outputs]; the weight is [*outputs, in]."""

    outputs: tuple[int, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _project(self, x, self.outputs)


class Embedding(nn.Module):
    """A table; its rows are returned in its own dtype, which may be the file's."""

    rows: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", weight_init, (self.rows, self.width), self.dtype)
        return table[ids]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMS norm over the last axis, x / rms(x) · scale, in float32 (Zhang & Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Scale(nn.Module):
    """A norm's learnt scale, [`width`]."""

    width: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.ones, (self.width,), self.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learnt scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype), self.eps)


class QueryKeyNorm(nn.Module):
    """`rms_norm` of query heads and the key after them, [..., G + 1, H]; all queries share a scale.

    Both at once, because that is one kernel on a GPU.
    """

    eps: float

    @nn.compact
    def __call__(self, heads: jax.Array) -> jax.Array:
        count, width = heads.shape[-2:]
        of_queries, of_key = (Scale(width, heads.dtype, name=name)() for name in ("queries", "key"))
        is_query = jnp.arange(count)[:, None] < count - 1
        return rms_norm(heads, jnp.where(is_query, of_queries, of_key), self.eps)


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
        gate_up = JointLinear((2, self.width), dtype=self.dtype, name="gate_up")(x)
        y = nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        return Linear(x.shape[-1], dtype=self.dtype, name="down")(y)


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
    """Rotates the pairs (x[i], x[i + H/2]) of x [B, T, …, H] in float32; `tables` are [B, T, H/2]."""
    cos, sin = (jnp.expand_dims(table, range(2, x.ndim - 1)) for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
