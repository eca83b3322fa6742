"""Gradients through codes, which have none of their own: samples as a function of weights over the codes.

A frame's code of codebook q becomes V weights; one-hot weights give what `codec.decoder.decode` gives. There are two
ways to make them from a talker's logits: `straight_through` decodes the codes themselves and passes the gradient to the
softmax (Bengio et al. 2013, arXiv:1308.3432), and the softmax itself decodes a mixture of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.codec.quantizer import ResidualQuantizer, SplitResidualQuantizer, entries_of
from qwen3_tts_jax.config import CodecDecoderConfig
from qwen3_tts_jax.layers import PRECISION


def decode_soft(params: Mapping[str, Any], config: CodecDecoderConfig, weights: jax.Array) -> jax.Array:
    """Weights float32 [B, T, Q, V] over the codes of each frame → samples [B, T·frame_samples].

    Differentiable in `params` and `weights`, except where samples are clipped at ±1. A codebook's weights should sum
    to 1: its entries are averaged with them.

    Args:
        params: the subtree codec/decoder.
        config: its shapes.
        weights: of all codebooks, as `one_hot`, `straight_through` or a softmax makes them.

    Raises:
        ValueError: another number of codebooks or of codes than the codec has.
    """
    expected = (config.num_codebooks, config.codebook_size)
    if weights.shape[2:] != expected:
        raise ValueError(f"weights must be [B, T, {expected[0]}, {expected[1]}], got {list(weights.shape)}")

    def latents(quantizer: SplitResidualQuantizer) -> jax.Array:
        semantic = config.num_semantic_codebooks
        first = _mean_latents(quantizer.semantic, weights[:, :, :semantic])
        return first + _mean_latents(quantizer.acoustic, weights[:, :, semantic:])

    return decode_latents(params, config, weights.shape[:3], latents)


def decode_latents(
    params: Mapping[str, Any],
    config: CodecDecoderConfig,
    shape: tuple[int, int, int],
    latents: Callable[[SplitResidualQuantizer], jax.Array],
) -> jax.Array:
    """`codec.decoder.decode` of codes of `shape` [B, T, Q], with the quantizer's output replaced.

    `latents` is called with the quantizer and returns [B, T, quantizer_width].
    """

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> jax.Array:
        module = context.module
        if isinstance(module, SplitResidualQuantizer) and context.method_name == "decode":
            return latents(module)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        return decoder.decode(params, config, jnp.zeros(shape, jnp.int32))


def decoder_latents(
    params: Mapping[str, Any],
    config: CodecDecoderConfig,
    shape: tuple[int, int, int],
    latents: Callable[[SplitResidualQuantizer], jax.Array],
) -> jax.Array:
    """What the decoder's waveform part is given, [B, T·rates, latent_width].

    The arguments are those of `decode_latents`. Under jit, XLA leaves the waveform part out.
    """
    given: list[jax.Array] = []

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> jax.Array:
        if context.module.name == "conv_in":
            given.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        decode_latents(params, config, shape, latents)
    return given[0]


def _mean_latents(quantizer: ResidualQuantizer, weights: jax.Array) -> jax.Array:
    entries = entries_of(quantizer.embedding_sum, quantizer.cluster_usage)
    return quantizer.output_projection(jnp.einsum("btqv,qvc->btc", weights, entries, precision=PRECISION))


def one_hot(codes: jax.Array, codebook_size: int) -> jax.Array:
    """Codes int [...] → weights float32 [..., V]: all on the code."""
    return jax.nn.one_hot(codes, codebook_size, dtype=jnp.float32)


def straight_through(logits: jax.Array, codes: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Weights [..., V] whose values are those of `codes` [...] and whose gradient is that of softmax(logits / t)."""
    soft = jax.nn.softmax(logits / temperature, axis=-1)
    return one_hot(codes, logits.shape[-1]) + soft - jax.lax.stop_gradient(soft)
