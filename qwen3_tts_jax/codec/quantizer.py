"""Split residual vector quantizer: one codebook for what is said, the others for how it sounds.

`quantize` and `dequantize` apply it to parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import CodecDecoderConfig, CodecEncoderConfig
from qwen3_tts_jax.layers import PRECISION, Linear

# The sum of an entry that hardly any training frame fell on is divided by this, as in the reference.
_MIN_USAGE = 1e-5


def entries_of(embedding_sum: jax.Array, cluster_usage: jax.Array) -> jax.Array:
    """Sums [..., C] and counts [...] of the vectors that fell on each entry → the entries float32 [..., C]."""
    usage = cluster_usage.astype(jnp.float32)
    return embedding_sum.astype(jnp.float32) / jnp.maximum(usage, _MIN_USAGE)[..., None]


class ResidualQuantizer(nn.Module):
    """`num_codebooks` codebooks whose entries are added up, between two projections.

    An entry is the sum of the vectors that fell on it in training, divided by their number; both are kept.
    The encoder's files also hold a flag per codebook, `initialized`, which only its training used.
    """

    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    width: int
    dtype: str = "float32"
    has_initialized: bool = False

    def setup(self) -> None:
        entries = (self.num_codebooks, self.codebook_size)
        self.embedding_sum = self.param(
            "embedding_sum", nn.initializers.normal(1.0), (*entries, self.codebook_dim), jnp.float32
        )
        self.cluster_usage = self.param("cluster_usage", nn.initializers.ones, entries, jnp.float32)
        if self.has_initialized:
            self.param("initialized", nn.initializers.ones, (self.num_codebooks, 1), jnp.float32)
        self.input_projection = Linear(self.codebook_dim, dtype=self.dtype)
        self.output_projection = Linear(self.width, dtype=self.dtype)

    def encode(self, x: jax.Array, num_codebooks: int) -> jax.Array:
        """Latents [B, T, width] → codes int32 [B, T, Q] of the first Q = `num_codebooks` codebooks.

        Each codebook picks its entry nearest to what the ones before it left over; of equally near
        entries, the first.
        """
        if self.is_initializing():  # encoding needs no output projection, but the files hold one
            self.output_projection(jnp.zeros((self.codebook_dim,), self.dtype))

        def nearest(residual: jax.Array, table: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            entries = entries_of(*table)
            # |x − e|² less |x|², which is the same for every entry.
            products = jnp.einsum("btc,vc->btv", residual, entries, precision=PRECISION)
            codes = jnp.argmin(jnp.sum(entries * entries, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)
            return residual - entries[codes], codes

        tables = (self.embedding_sum[:num_codebooks], self.cluster_usage[:num_codebooks])
        _, codes = jax.lax.scan(nearest, self.input_projection(x).astype(jnp.float32), tables)
        return jnp.moveaxis(codes, 0, -1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [B, T, Q] of the first Q codebooks → [B, T, width]; negative codes count as 0."""
        if self.is_initializing():  # decoding needs no input projection, but the files hold one
            self.input_projection(jnp.zeros((self.width,), self.dtype))
        codes = jnp.maximum(codes, 0)
        codebooks = jnp.arange(codes.shape[-1])
        # Gathered before the cast and the division: the tables are far larger than T rows of them.
        entries = entries_of(self.embedding_sum[codebooks, codes], self.cluster_usage[codebooks, codes])
        # One after the other, as the reference does.
        quantized = entries[:, :, 0]
        for codebook in range(1, codes.shape[-1]):
            quantized = quantized + entries[:, :, codebook]
        return self.output_projection(quantized)


class SplitResidualQuantizer(nn.Module):
    """The sum of a semantic quantizer over the first codebooks and an acoustic one over the rest.

    The decoder and the encoder have one each, with tables of their own.
    """

    config: CodecDecoderConfig | CodecEncoderConfig

    def setup(self) -> None:
        config = self.config
        of_encoder = isinstance(config, CodecEncoderConfig)
        width = config.transformer.width if of_encoder else config.quantizer_width
        shapes = (config.codebook_size, config.codebook_dim, width, config.transformer.dtype, of_encoder)
        self.semantic = ResidualQuantizer(config.num_semantic_codebooks, *shapes)
        self.acoustic = ResidualQuantizer(config.num_codebooks - config.num_semantic_codebooks, *shapes)

    def encode(self, x: jax.Array, num_codebooks: int) -> jax.Array:
        """Latents [B, T, width] → codes int32 [B, T, Q] of the first Q = `num_codebooks` codebooks.

        Both quantizers start from the latents: the acoustic one does not see what the semantic one left.

        Raises:
            ValueError: fewer codebooks than the semantic ones, or more than there are.
        """
        semantic = self.config.num_semantic_codebooks
        self._check(num_codebooks)
        codes = [self.semantic.encode(x, semantic), self.acoustic.encode(x, num_codebooks - semantic)]
        return jnp.concatenate(codes, axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [B, T, Q] of the first Q codebooks → latents [B, T, width]; negative codes count as 0.

        Raises:
            ValueError: as `encode`.
        """
        split, count = self.config.num_semantic_codebooks, codes.shape[-1]
        self._check(count)
        quantized = self.semantic.decode(codes[..., :split])
        return quantized if count == split else quantized + self.acoustic.decode(codes[..., split:])

    def _check(self, num_codebooks: int) -> None:
        semantic, total = self.config.num_semantic_codebooks, self.config.num_codebooks
        if not semantic <= num_codebooks <= total:
            raise ValueError(f"num_codebooks must be in {semantic} … {total}, got {num_codebooks}")


def quantize(
    params: Mapping[str, Any],
    config: CodecEncoderConfig | CodecDecoderConfig,
    latents: jax.Array,
    num_codebooks: int | None = None,
    straight_through: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Latents [B, T, D] → codes int32 [B, T, Q] and the latents [B, T, D] that they stand for.

    Codes have no gradient. The gradient of the quantized latents goes to the codebooks and the output
    projections, never to the latents; with `straight_through` it goes to the latents alone, unchanged
    (van den Oord et al. 2017, arXiv:1711.00937), and the values are the same.

    Args:
        params: the subtree codec/encoder/quantizer or codec/decoder/quantizer.
        config: of the same half of the codec. D is the encoder's transformer width or the decoder's
            `quantizer_width`.
        latents: for the encoder, what `encoder.encode_latents` gives.
        num_codebooks: Q; None for all that the file has. The talker knows `CodecConfig.num_codebooks`.
        straight_through: see above.

    Raises:
        ValueError: fewer codebooks than the semantic ones, or more than the file holds.
    """
    count = config.num_codebooks if num_codebooks is None else num_codebooks
    codes = SplitResidualQuantizer(config).apply({"params": params}, latents, count, method="encode")
    quantized = dequantize(params, config, codes)
    if straight_through:
        quantized = jax.lax.stop_gradient(quantized) + (latents - jax.lax.stop_gradient(latents))
    return codes, quantized


def dequantize(
    params: Mapping[str, Any], config: CodecEncoderConfig | CodecDecoderConfig, codes: jax.Array
) -> jax.Array:
    """Codes int [B, T, Q] of the first Q codebooks → the latents [B, T, D] that they stand for.

    Differentiable in `params`. Negative codes count as 0. The other arguments are those of `quantize`.

    Raises:
        ValueError: fewer codebooks than the semantic ones, or more than the file holds.
    """
    return SplitResidualQuantizer(config).apply({"params": params}, codes, method="decode")
