"""The codec's encoder: samples → codes, whole or as a stream.

It is Mimi's (Défossez et al. 2024, arXiv:2410.00037): strided causal convolutions down to 25 Hz, a
causal transformer, one more strided convolution to the frame rate, and a split residual quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.cache import Cache, KVCache, WindowCache
from qwen3_tts_jax.codec.conv import CausalConv, Contexts, context_size
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig, CodecEncoderConfig
from qwen3_tts_jax.transformer import Transformer

# A strided convolution's kernel spans this many strides; fixed in the reference's code.
_OVERLAP = 2


@flax.struct.dataclass
class EncoderState:
    """What the encoder remembers of earlier samples.

    Attributes:
        cache: keys and values of the transformer, whose kind decides how far back it looks.
        contexts: last inputs of the convolutions.
    """

    cache: Cache
    contexts: Contexts


def initial_state(config: CodecEncoderConfig, batch: int, capacity: int | None = None) -> EncoderState:
    """The state before the first sample of `batch` recordings.

    Args:
        config: shapes.
        batch: B.
        capacity: None for attention within the config's sliding window, over recordings of any length.
            A number for attention to everything before, with room for that many transformer positions
            (`downsample_stride` per frame); a config without a window needs one.

    Raises:
        ValueError: no capacity, though the config has no sliding window.
    """
    if capacity is None and config.transformer.sliding_window is None:
        raise ValueError("the codec's encoder has no sliding window: give the capacity of its cache")

    def zeros(past: int, channels: int) -> jax.Array:
        return jnp.zeros((batch, past, channels), config.transformer.dtype)

    contexts: Contexts = {"conv_in": zeros(context_size(config.kernel_size), 1)}
    channels = config.filters
    for i, stride in enumerate(config.strides):
        stage = {"conv": zeros(context_size(_OVERLAP * stride, stride=stride), channels)}
        for j in range(config.num_residual_layers):
            past = context_size(config.residual_kernel_size, config.dilation_growth**j)
            stage[f"residual_{j}"] = zeros(past, channels)
        contexts[f"stage_{i}"] = stage
        channels *= 2
    contexts["conv_out"] = zeros(context_size(config.last_kernel_size), channels)
    stride = config.downsample_stride
    contexts["downsample"] = zeros(context_size(_OVERLAP * stride, stride=stride), config.transformer.width)
    if capacity is None:
        cache: Cache = WindowCache.zeros(config.transformer, batch)
    else:
        cache = KVCache.zeros(config.transformer, batch, capacity)
    return EncoderState(cache=cache, contexts=contexts)


def _fill_stride(x: jax.Array, stride: int, lengths: jax.Array | None, mode: str = "constant") -> jax.Array:
    """Pads x [B, T, C] on the right to a multiple of the stride, each row from its own length on.

    The reference pads the input of each strided convolution. Padding the samples instead would give
    other codes in the last frame, since the layers before do not turn silence into zeros. Mode
    "constant" pads with zeros, "edge" with copies of a row's last input.
    """
    if lengths is not None:
        beyond = jnp.arange(x.shape[1]) >= lengths[:, None]
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        filling = jnp.take_along_axis(x, last, axis=1) if mode == "edge" else jnp.zeros((), x.dtype)
        x = jnp.where(beyond[..., None], filling, x)
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % stride), (0, 0)), mode=mode)


def _strided(lengths: jax.Array | None, stride: int) -> jax.Array | None:
    """How many outputs a convolution of this stride makes from `lengths` inputs."""
    return None if lengths is None else -(-lengths // stride)


class ResidualUnit(nn.Module):
    """x + conv₁(elu(conv(elu(x)))), [B, T, C] → [B, T, C], through `hidden` channels."""

    hidden: int
    kernel_size: int
    dilation: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`context` is that of the dilated convolution."""
        conv_1 = CausalConv(self.hidden, self.kernel_size, self.dilation, dtype=self.dtype, name="conv_1")
        y, context = conv_1(nn.elu(x), context)
        y = nn.elu(y)
        y, _ = CausalConv(x.shape[-1], 1, dtype=self.dtype, name="conv_2")(y, y[:, :0])
        return x + y, context


class Stage(nn.Module):
    """[B, T, C] → [B, ceil(T / stride), 2 C]: residual units and a strided convolution."""

    config: CodecEncoderConfig
    stride: int

    @nn.compact
    def __call__(
        self, x: jax.Array, contexts: Contexts, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, Contexts]:
        """`lengths` int32 [B] is how many of each row's T inputs are not padding; None for all."""
        config, channels, dtype = self.config, x.shape[-1], self.config.transformer.dtype
        new: Contexts = {}
        for j in range(config.num_residual_layers):
            name, dilation = f"residual_{j}", config.dilation_growth**j
            hidden = channels // config.compress
            unit = ResidualUnit(hidden, config.residual_kernel_size, dilation, dtype, name=name)
            x, new[name] = unit(x, contexts[name])
        conv = CausalConv(2 * channels, _OVERLAP * self.stride, stride=self.stride, dtype=dtype, name="conv")
        x, new["conv"] = conv(_fill_stride(nn.elu(x), self.stride, lengths), contexts["conv"])
        return x, new


class CodecEncoder(nn.Module):
    """One step of the encoder, of any number of samples; `encode_step` applies it to parameters."""

    config: CodecEncoderConfig

    @nn.compact
    def __call__(
        self, samples: jax.Array, state: EncoderState, num_codebooks: int, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, EncoderState]:
        """Samples [B, N] → codes [B, T, Q], latents [B, T, D] and the state N samples on.

        With `lengths` int32 [B], row b ends after its first `lengths[b]` samples: beyond them its codes
        are −1, and its latents and state mean nothing.
        """
        config, contexts = self.config, state.contexts
        width, dtype = config.transformer.width, config.transformer.dtype
        new: Contexts = {}
        conv_in = CausalConv(config.filters, config.kernel_size, dtype=dtype, name="conv_in")
        x, new["conv_in"] = conv_in(samples[..., None], contexts["conv_in"])
        for i, stride in enumerate(config.strides):
            name = f"stage_{i}"
            x, new[name] = Stage(config, stride, name=name)(x, contexts[name], lengths)
            lengths = _strided(lengths, stride)
        conv_out = CausalConv(width, config.last_kernel_size, dtype=dtype, name="conv_out")
        x, new["conv_out"] = conv_out(nn.elu(x), contexts["conv_out"])

        x, cache = Transformer(config.transformer, name="transformer")(x, state.cache)

        stride = config.downsample_stride
        downsample = CausalConv(width, _OVERLAP * stride, stride=stride, use_bias=False, dtype=dtype, name="downsample")
        # This convolution alone is padded with copies of the first and the last input instead of zeros.
        context = jnp.where(state.cache.length[:, None, None] == 0, x[:, :1], contexts["downsample"])
        latents, new["downsample"] = downsample(_fill_stride(x, stride, lengths, mode="edge"), context)
        lengths = _strided(lengths, stride)

        codes = SplitResidualQuantizer(config, name="quantizer").encode(latents, num_codebooks)
        if lengths is not None:
            there = jnp.arange(codes.shape[1]) < lengths[:, None]
            codes = jnp.where(there[..., None], codes, -1)
        return codes, latents, EncoderState(cache=cache, contexts=new)


def _apply(
    params: Mapping[str, Any],
    config: CodecEncoderConfig,
    samples: jax.Array,
    state: EncoderState,
    num_codebooks: int,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, EncoderState]:
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(f"samples must be [B, N] with N > 0, got {list(samples.shape)}")
    if lengths is not None and lengths.shape != samples.shape[:1]:
        raise ValueError(f"lengths must be [{samples.shape[0]}], one per row, got {list(lengths.shape)}")
    with jax.named_scope("codec_encoder"):
        return CodecEncoder(config).apply({"params": params}, samples, state, num_codebooks, lengths)


def encode_step(
    params: Mapping[str, Any],
    config: CodecConfig,
    state: EncoderState,
    samples: jax.Array,
    lengths: jax.Array | None = None,
) -> tuple[EncoderState, jax.Array]:
    """Encodes the next samples of a stream.

    Any split of a recording into steps of whole frames gives the codes of the whole, up to float
    rounding. Only the last step may end within a frame; nothing can follow it. With `lengths`, rows may end
    in different steps, each as if it were alone: `lengths[b]` is N before the step in which row b ends, the
    number of its samples in that step, and 0 afterwards.

    Args:
        params: the subtree codec/encoder.
        config: its shapes, and how many codebooks are used.
        state: `initial_state`, or what the step before returned.
        samples: [B, N] in [−1, 1] at the codec's sample rate.
        lengths: int32 [B] in 0 … N, how many of these samples belong to each row; None for all.

    Returns:
        The state N samples on, and codes int32 [B, ceil(N / frame_samples), Q], −1 in the frames after
        the end of a row.

    Raises:
        ValueError: no samples, or other shapes.
    """
    codes, _, state = _apply(params, config.encoder, samples, state, config.num_codebooks, lengths)
    return state, codes


def _whole_state(config: CodecEncoderConfig, samples: jax.Array, sliding_window: bool) -> EncoderState:
    batch, count = samples.shape[0], samples.shape[-1]
    if sliding_window and config.transformer.sliding_window is not None:
        return initial_state(config, batch)
    return initial_state(config, batch, capacity=-(-count // prod(config.strides)))


def encode(
    params: Mapping[str, Any],
    config: CodecConfig,
    samples: jax.Array,
    lengths: jax.Array | None = None,
    num_codebooks: int | None = None,
    sliding_window: bool = True,
) -> jax.Array:
    """Encodes whole recordings, samples [B, N] → codes int32 [B, ceil(N / frame_samples), Q].

    Rows are padded on the right. With `lengths`, each row gives the same codes as alone, whatever finite
    numbers the padding holds. Without, padding counts as samples: a row of n samples, then zeros, has
    ceil(n / frame_samples) frames of its own, and if n ends within the last, that frame differs from the
    last of the row alone, as it does in the reference.

    Args:
        params: the subtree codec/encoder.
        config: its shapes.
        samples: [B, N] in [−1, 1] at the codec's sample rate.
        lengths: int32 [B] in 0 … N, the samples of each row; its codes after them are −1. None for N each.
        num_codebooks: Q, at most as many as the file has; None for the `config.num_codebooks` that the talker knows.
        sliding_window: whether attention is limited to the config's window (250 positions, 10 s, as
            published), with which the model was trained. The reference limits it only with flash
            attention: with its other kernels, hence on every CPU, transformers 4.57 attends to everything
            before, and gives other codes from the window's length on. False is for parity with that.

    Raises:
        ValueError: no samples, other shapes, or a number of codebooks that the file does not hold.
    """
    count = config.num_codebooks if num_codebooks is None else num_codebooks
    state = _whole_state(config.encoder, samples, sliding_window)
    return _apply(params, config.encoder, samples, state, count, lengths)[0]


def encode_latents(
    params: Mapping[str, Any], config: CodecEncoderConfig, samples: jax.Array, sliding_window: bool = True
) -> jax.Array:
    """What `encode` hands to its quantizer, samples [B, N] → latents [B, ceil(N / frame_samples), D].

    Differentiable, unlike codes.
    """
    state = _whole_state(config, samples, sliding_window)
    return _apply(params, config, samples, state, config.num_semantic_codebooks)[1]
