"""Causal convolutions over [B, T, C] that carry their own past.

Every convolution takes the inputs before its own and returns those that the next call needs, so a
whole signal and a stream share one implementation; a context of zeros is the reference's left padding.
Channels come last because XLA's convolutions on CPUs are fastest that way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from qwen3_tts_jax.layers import PRECISION, LayerNorm, Linear

Contexts = dict[str, Any]
"""Past inputs [B, past, C] of every convolution that needs some, named like the modules."""

_kernel_init = nn.initializers.normal(0.02)

# π as a sum whose first two terms have few bits: their products with up to 2^13 half turns are exact
# (Cody & Waite 1980).
_PI_TERMS = (np.float32(3.140625), np.float32(9.67502593994140625e-4), np.float32(1.509957990e-7))
# sin(r) ≈ r + r³ (c₀ + c₁ r² + c₂ r⁴ + c₃ r⁶) on |r| ≤ π/2, minimax: off by 5e-9 before rounding.
_SINE_TERMS = (-1.66666571e-1, 8.33301729e-3, -1.98066152e-4, 2.60005475e-6)
# cos(r) ≈ 1 + r² (c₀ + c₁ r² + … + c₄ r⁸): off by 1e-9 there before rounding.
_COSINE_TERMS = (-0.5, 4.16666344e-2, -1.38883421e-3, 2.47586577e-5, -2.60192536e-7)


def context_size(kernel_size: int, dilation: int = 1, stride: int = 1) -> int:
    """How many past inputs a causal convolution needs."""
    return (kernel_size - 1) * dilation + 1 - stride


def _with_context(x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Past and new inputs [B, past + T, C], and the last `past` of them."""
    x = jnp.concatenate([context.astype(x.dtype), x], axis=1)
    return x, x[:, x.shape[1] - context.shape[1] :]


def _convolve(
    x: jax.Array, kernel: jax.Array, dilation: int = 1, stride: int = 1, three_pass: bool = False
) -> jax.Array:
    """Correlates x [B, T, in] with kernel [k, in, out], without padding."""

    def correlate(x: jax.Array, kernel: jax.Array, precision: jax.lax.Precision) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride,),
            padding="VALID",
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=precision,
        )

    def on_tpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # XLA convolves several rows with the rows next to the channels, and would copy any other layout there and back.
        if x.shape[0] == 1:
            return default(x, kernel)
        layout = Layout((1, 0, 2))
        return with_layout_constraint(default(with_layout_constraint(x, layout), kernel), layout)

    default = partial(_multiply, correlate, three_pass=three_pass)
    on_cuda = partial(_convolve_windows, dilation=dilation, stride=stride, three_pass=three_pass)
    return jax.lax.platform_dependent(x, kernel, cuda=on_cuda, tpu=on_tpu, default=default)


def _convolve_windows(x: jax.Array, kernel: jax.Array, dilation: int, stride: int, three_pass: bool) -> jax.Array:
    """`_convolve` as one product of the kernel with windows of x, laid side by side in memory.

    For convolutions like these XLA spends minutes trying cuDNN algorithms, some of which ask for a terabyte.
    """
    taps, inputs, outputs = kernel.shape
    last = x.shape[1] - (taps - 1) * dilation
    windows = [x[:, tap * dilation : tap * dilation + last : stride] for tap in range(taps)]
    if outputs == 1:
        return sum(jnp.sum(window * kernel[tap, :, 0], axis=-1) for tap, window in enumerate(windows))[..., None]
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3 if three_pass else PRECISION
    windows = jnp.concatenate(windows, axis=-1) if taps > 1 else windows[0]
    return jnp.dot(windows, kernel.reshape(taps * inputs, outputs), precision=precision)


def _multiply(product: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, *, three_pass: bool) -> jax.Array:
    """Applies `product`, which is linear in x and in the kernel, in float32 or in three passes of bfloat16.

    XLA makes these passes within one product, for TPUs as its precision "high", for NVIDIA as an algorithm with a name.
    """
    if not three_pass:
        return product(x, kernel, precision=PRECISION)
    on_tpu = partial(product, precision=jax.lax.Precision.HIGH)
    on_cuda = partial(product, precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3)
    in_turn = partial(_in_three_passes, product)
    return jax.lax.platform_dependent(x, kernel, cuda=on_cuda, tpu=on_tpu, default=in_turn)


def _in_three_passes(product: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Splits each operand into its bfloat16 value and the rest, and adds up all products but rest times rest.

    For other platforms, where the default precision multiplies such values exactly.
    """

    def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return high, jax.lax.reduce_precision(x - high, exponent_bits=8, mantissa_bits=7)

    fast = partial(product, precision=jax.lax.Precision.DEFAULT)
    (x, x_rest), (kernel, kernel_rest) = halves(x), halves(kernel)
    return fast(x_rest, kernel) + fast(x, kernel_rest) + fast(x, kernel)


class CausalConv(nn.Module):
    """A convolution that sees the present and the past, [B, T, in] → [B, T / stride, features]."""

    features: int
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    use_bias: bool = True
    dtype: str = "float32"
    three_pass: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Convolves the next T inputs, T a multiple of the stride.

        Args:
            x: [B, T, in].
            context: the inputs before, [B, context_size(kernel_size, dilation, stride), in]; zeros at
                the start.

        Returns:
            The outputs and the context of the next call.
        """
        x, context = _with_context(x.astype(self.dtype), context)
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape, self.dtype)
        y = _convolve(x, kernel, self.dilation, self.stride, self.three_pass)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return y, context


class DepthwiseCausalConv(nn.Module):
    """A causal convolution of each channel on its own, [B, T, C] → [B, T, C].

    Written as a sum over taps, which XLA fuses; its grouped convolutions are slow on CPUs.
    """

    kernel_size: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Convolves x with the `kernel_size − 1` inputs before it, [B, kernel_size − 1, C]."""
        steps, channels = x.shape[1:]
        x, context = _with_context(x.astype(self.dtype), context)
        kernel = self.param("kernel", _kernel_init, (self.kernel_size, 1, channels), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.dtype)
        y = sum(x[:, tap : tap + steps] * kernel[tap] for tap in range(self.kernel_size))
        return y + bias, context


def phases(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel [k, in, out] of a transposed convolution as that of a plain one: [k / stride, in, stride · out]."""
    size, inputs, outputs = kernel.shape
    kernel = kernel.reshape(size // stride, stride, inputs, outputs)[::-1].swapaxes(1, 2)
    return kernel.reshape(size // stride, inputs, stride * outputs)


class CausalTransposedConv(nn.Module):
    """Upsampling by `stride`: y[t·stride + j] += x[t] · kernel[j], [B, T, in] → [B, T·stride, features].

    `kernel_size` is a multiple of the stride, so each output sums kernel_size / stride inputs: the
    present one and those before it. The tail beyond the last input is never made; the reference makes
    it and cuts it off.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: str = "float32"
    three_pass: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Upsamples x with the `kernel_size / stride − 1` inputs before it; zeros at the start."""
        batch, steps, inputs = x.shape
        x, context = _with_context(x.astype(self.dtype), context)
        kernel = self.param("kernel", _kernel_init, (self.kernel_size, inputs, self.features), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        copied_by_taps = batch * steps * (inputs + self.features)
        upsample = self._by_taps if copied_by_taps < inputs * self.features else self._by_phases
        return upsample(x, kernel).reshape(batch, steps * self.stride, self.features) + bias, context

    def _by_phases(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One convolution that makes all `stride` outputs of each input; copies the kernel to another layout."""
        return _convolve(x, phases(kernel, self.stride), three_pass=self.three_pass)

    def _by_taps(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """One product per tap, then the overlapping outputs are added; copies the activations instead.

        For a few frames of a wide stage the activations are far smaller than the kernel.
        """
        overlap = self.kernel_size // self.stride
        batch, rows, inputs = x.shape
        steps = rows - overlap + 1
        x = jnp.broadcast_to(x.reshape(1, batch * rows, inputs), (self.kernel_size, batch * rows, inputs))
        y = _multiply(partial(jnp.einsum, "kni,kio->kno"), x, kernel, three_pass=self.three_pass)
        y = y.reshape(overlap, self.stride, batch, rows, self.features)
        newest = overlap - 1
        y = sum(y[tap, :, :, newest - tap : newest - tap + steps] for tap in range(overlap))
        return y.transpose(1, 2, 0, 3)


@jax.custom_jvp
def sin_squared(x: jax.Array) -> jax.Array:
    """sin²(x) of float32, within 3e-7 for |x| ≤ 25,000; beyond that still in [0, 1] up to rounding.

    On CPUs several times as fast as XLA's sine, which is most of the codec's time there. The gradient is
    2 sin(x) cos(x) by two such series: differentiating the series itself would keep all its terms in memory.
    """
    sine = _sine(within_half_turn(x))
    return sine * sine


def within_half_turn(x: jax.Array) -> jax.Array:
    """Subtracts the nearest multiple of π from x."""
    half_turns = jnp.round(x * np.float32(1 / np.pi))
    for term in _PI_TERMS:
        x = x - half_turns * term
    # Rounding x/π may leave a little more than π/2, where the series still holds, or, for huge x, anything at all.
    return jnp.clip(x, -1.6, 1.6)


def _sine(x: jax.Array) -> jax.Array:
    square = x * x
    return x + x * square * _series(square, _SINE_TERMS)


def _cosine(x: jax.Array) -> jax.Array:
    square = x * x
    return 1 + square * _series(square, _COSINE_TERMS)


def _series(x: jax.Array, terms: tuple[float, ...]) -> jax.Array:
    total = jnp.zeros_like(x)
    for term in reversed(terms):
        total = total * x + np.float32(term)
    return total


@sin_squared.defjvp
def _sin_squared_tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # A half turn flips the signs of sine and cosine alike, so their product stays.
    x = within_half_turn(primals[0])
    sine = _sine(x)
    return sine * sine, tangents[0] * (2 * sine * _cosine(x))


class SnakeBeta(nn.Module):
    """x + sin²(α x) / β per channel, in float32; the parameters are log α and log β.

    Ziyin et al. 2020 (arXiv:2006.08195), with a separate magnitude as in BigVGAN (arXiv:2206.04658).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        return snake({name: self.param(name, nn.initializers.zeros, shape, x.dtype) for name in ("alpha", "beta")}, x)


def snake(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """`SnakeBeta` of x [..., C] with these parameters [C]."""
    alpha, scale = snake_rates(params)
    y = x.astype(jnp.float32)
    return (y + sin_squared(y * alpha) * scale).astype(x.dtype)


def snake_rates(params: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """α and 1/β, float32 [C]."""
    alpha, beta = (jnp.exp(params[name].astype(jnp.float32)) for name in ("alpha", "beta"))
    return alpha, 1 / (beta + 1e-9)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, a pointwise MLP of four times the width, and a gain, on a residual.

    Liu et al. 2022 (arXiv:2201.03545), made causal.
    """

    kernel_size: int = 7
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, C] → [B, T, C]; `context` is that of the depthwise convolution."""
        channels = x.shape[-1]
        y, context = DepthwiseCausalConv(self.kernel_size, dtype=self.dtype, name="depthwise")(x, context)
        y = LayerNorm(1e-6, name="norm")(y)
        y = Linear(4 * channels, use_bias=True, dtype=self.dtype, name="expand")(y)
        y = nn.gelu(y, approximate=False)
        y = Linear(channels, use_bias=True, dtype=self.dtype, name="contract")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,), self.dtype)
        return x + y * gamma, context
