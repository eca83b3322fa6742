"""The codec's decoder: codes → samples, whole or as a stream, with the same result.

Frames go through the quantizer, a causal transformer at the frame rate, ConvNeXt stages that double
the rate, and SnakeBeta stages that bring it to the sample rate. Each causal convolution keeps its
last inputs and the transformer its window, so a step continues exactly where the one before ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.cache import WindowCache
from qwen3_tts_jax.codec import hopper
from qwen3_tts_jax.codec.conv import CausalConv, CausalTransposedConv, Contexts, ConvNeXtBlock, SnakeBeta, context_size
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecDecoderConfig
from qwen3_tts_jax.layers import Linear
from qwen3_tts_jax.transformer import Transformer

# Fixed in the reference's code rather than its config.
_PRE_KERNEL = 3
_KERNEL = 7
_DILATIONS = (1, 3, 9)
_OVERLAP = 2

OFFICIAL_CHUNK_FRAMES, OFFICIAL_CONTEXT_FRAMES = 300, 25
"""The official package decodes this many frames at a time, after this many frames of context."""


@flax.struct.dataclass
class DecoderState:
    """What the decoder remembers of earlier frames.

    Attributes:
        cache: keys and values of the transformer's window.
        contexts: last inputs of the convolutions.
    """

    cache: WindowCache
    contexts: Contexts


def initial_state(config: CodecDecoderConfig, batch: int) -> DecoderState:
    """The state before the first frame of `batch` utterances."""

    def zeros(past: int, channels: int) -> jax.Array:
        return jnp.zeros((batch, past, channels), config.transformer.dtype)

    contexts: Contexts = {"pre_conv": zeros(context_size(_PRE_KERNEL), config.quantizer_width)}
    for i in range(len(config.latent_upsample_rates)):
        contexts[f"latent_upsample_{i}"] = zeros(context_size(_KERNEL), config.latent_width)
    contexts["conv_in"] = zeros(context_size(_KERNEL), config.latent_width)
    channels = config.decoder_channels
    for i in range(len(config.upsample_rates)):
        stage = {"transposed_conv": zeros(_OVERLAP - 1, channels)}
        channels //= 2
        for j, dilation in enumerate(_DILATIONS):
            stage[f"residual_{j}"] = zeros(context_size(_KERNEL, dilation), channels)
        contexts[f"upsample_{i}"] = stage
    contexts["conv_out"] = zeros(context_size(_KERNEL), channels)
    return DecoderState(cache=WindowCache.zeros(config.transformer, batch), contexts=contexts)


class LatentUpsample(nn.Module):
    """[B, T, C] → [B, T·rate, C]: a transposed convolution without overlap and a ConvNeXt block."""

    rate: int
    dtype: str
    three_pass: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`context` is that of the ConvNeXt block."""
        upsample = CausalTransposedConv(
            x.shape[-1], self.rate, self.rate, self.dtype, self.three_pass, name="transposed_conv"
        )
        x, _ = upsample(x, x[:, :0])
        return ConvNeXtBlock(_KERNEL, dtype=self.dtype, name="convnext")(x, context)


class ResidualUnit(nn.Module):
    """x + conv₁(snake(conv₇(snake(x)))), [B, T, C] → [B, T, C]."""

    dilation: int
    dtype: str
    three_pass: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`context` is that of the dilated convolution."""
        conv = partial(CausalConv, x.shape[-1], dtype=self.dtype, three_pass=self.three_pass)
        y = SnakeBeta(name="snake_1")(x)
        y, context = conv(_KERNEL, self.dilation, name="conv_1")(y, context)
        y = SnakeBeta(name="snake_2")(y)
        y, _ = conv(1, name="conv_2")(y, y[:, :0])
        return x + y, context


class Upsample(nn.Module):
    """[B, T, C] → [B, T·rate, C / 2]: SnakeBeta, a transposed convolution and three residual units."""

    rate: int
    dtype: str
    three_pass: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, contexts: Contexts) -> tuple[jax.Array, Contexts]:
        features = x.shape[-1] // 2
        upsample = CausalTransposedConv(
            features, _OVERLAP * self.rate, self.rate, self.dtype, self.three_pass, name="transposed_conv"
        )
        new: Contexts = {}
        x, new["transposed_conv"] = upsample(SnakeBeta(name="snake")(x), contexts["transposed_conv"])
        for j, dilation in enumerate(_DILATIONS):
            name = f"residual_{j}"
            x, new[name] = ResidualUnit(dilation, self.dtype, self.three_pass, name=name)(x, contexts[name])
        return x, new


class CodecDecoder(nn.Module):
    """One step of the decoder, of any number of frames; `decode_step` applies it to parameters."""

    config: CodecDecoderConfig

    @nn.compact
    def __call__(self, codes: jax.Array, state: DecoderState) -> tuple[jax.Array, DecoderState]:
        """Codes [B, T, Q] → samples float32 [B, T·frame_samples] and the state T frames on."""
        config, contexts = self.config, state.contexts
        dtype, three_pass = config.transformer.dtype, config.three_pass
        conv = partial(CausalConv, dtype=dtype, three_pass=three_pass)
        new: Contexts = {}
        x = SplitResidualQuantizer(config, name="quantizer").decode(codes)
        pre_conv = conv(config.latent_width, _PRE_KERNEL, name="pre_conv")
        x, new["pre_conv"] = pre_conv(x, contexts["pre_conv"])

        x = Linear(config.transformer.width, use_bias=True, dtype=dtype, name="input_projection")(x)
        x, cache = Transformer(config.transformer, name="transformer")(x, state.cache)
        x = Linear(config.latent_width, use_bias=True, dtype=dtype, name="output_projection")(x)

        for i, rate in enumerate(config.latent_upsample_rates):
            name = f"latent_upsample_{i}"
            x, new[name] = LatentUpsample(rate, dtype, three_pass, name=name)(x, contexts[name])
        if config.hopper and hopper.fits(config, *x.shape[:2]) and not self.is_initializing():
            samples, ends = hopper.upsample(self.variables["params"], config, x, contexts)
            return jnp.clip(samples, -1, 1), DecoderState(cache=cache, contexts=new | ends)
        conv_in = conv(config.decoder_channels, _KERNEL, name="conv_in")
        x, new["conv_in"] = conv_in(x, contexts["conv_in"])
        for i, rate in enumerate(config.upsample_rates):
            name = f"upsample_{i}"
            x, new[name] = Upsample(rate, dtype, three_pass, name=name)(x, contexts[name])
        x = SnakeBeta(name="snake_out")(x)
        x, new["conv_out"] = conv(1, _KERNEL, name="conv_out")(x, contexts["conv_out"])
        samples = jnp.clip(x[..., 0].astype(jnp.float32), -1, 1)
        return samples, DecoderState(cache=cache, contexts=new)


def decode_step(
    params: Mapping[str, Any], config: CodecDecoderConfig, state: DecoderState, codes: jax.Array
) -> tuple[DecoderState, jax.Array]:
    """Decodes the next frames of a stream.

    Any split of an utterance into steps gives the samples of the whole, up to float rounding.

    Args:
        params: the subtree codec/decoder.
        config: its shapes.
        state: `initial_state`, or what the step before returned.
        codes: [B, T, Q], codes of the next T frames; negative ones count as 0.

    Returns:
        The state T frames on, and samples float32 [B, T·frame_samples] in [−1, 1].
    """
    with jax.named_scope("codec_decoder"):
        samples, state = CodecDecoder(config).apply({"params": params}, codes, state)
    return state, samples


def decode(params: Mapping[str, Any], config: CodecDecoderConfig, codes: jax.Array) -> jax.Array:
    """Decodes whole utterances in one pass, codes [B, T, Q] → samples [B, T·frame_samples].

    Rows may be padded on the right: samples depend on no later frame and on no other row. Activations
    take about 3 MB per frame and row at the published shapes, 8 MB on NVIDIA GPUs; decode long utterances in steps.
    """
    return decode_step(params, config, initial_state(config, codes.shape[0]), codes)[1]


def decode_chunked(
    params: Mapping[str, Any],
    config: CodecDecoderConfig,
    codes: jax.Array,
    chunk_frames: int = OFFICIAL_CHUNK_FRAMES,
    context_frames: int = OFFICIAL_CONTEXT_FRAMES,
) -> jax.Array:
    """Decodes as the official package does, codes [B, T, Q] → samples [B, T·frame_samples].

    Each chunk is decoded from an empty state after some frames of context, whose samples are dropped.
    Beyond `chunk_frames` the result differs from that of `decode`: the transformer's layers together look
    further back, and positions start again in each chunk. Use it to compare with the official package.
    """
    samples = []
    for context, start, end in official_chunks(codes.shape[1], chunk_frames, context_frames):
        chunk = codes[:, start - context : end]
        samples.append(decode(params, config, chunk)[:, context * config.frame_samples :])
    return jnp.concatenate(samples, axis=1)


def official_chunks(
    frames: int, chunk_frames: int = OFFICIAL_CHUNK_FRAMES, context_frames: int = OFFICIAL_CONTEXT_FRAMES
) -> list[tuple[int, int, int]]:
    """The chunks of `decode_chunked`: each one's number of context frames, its first frame, and that after its last."""
    return [
        (context_frames if start > context_frames else start, start, min(start + chunk_frames, frames))
        for start in range(0, frames, chunk_frames)
    ]
