"""Split residual vector quantizer: one codebook for what is said, the others for how it sounds."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import CodecDecoderConfig
from qwen3_tts_jax.layers import Linear

# Rows that hardly any training frame fell on are divided by this, as in the reference.
_MIN_USAGE = 1e-5


class ResidualQuantizer(nn.Module):
    """`num_codebooks` codebooks whose entries are added up, between two projections.

    An entry is the sum of the vectors that fell on it in training over their number; both are kept.
    """

    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    width: int
    dtype: str = "float32"

    def setup(self) -> None:
        entries = (self.num_codebooks, self.codebook_size)
        self.embedding_sum = self.param(
            "embedding_sum", nn.initializers.normal(1.0), (*entries, self.codebook_dim), jnp.float32
        )
        self.cluster_usage = self.param("cluster_usage", nn.initializers.ones, entries, jnp.float32)
        self.input_projection = Linear(self.codebook_dim, dtype=self.dtype)
        self.output_projection = Linear(self.width, dtype=self.dtype)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [B, T, Q] of these codebooks → [B, T, width]; negative codes count as 0."""
        if self.is_initializing():  # decoding needs no input projection, but the files hold one
            self.input_projection(jnp.zeros((self.width,), self.dtype))
        codes = jnp.maximum(codes, 0)
        codebooks = jnp.arange(self.num_codebooks)
        # Gathered before the cast and the division: the tables are far larger than T rows of them.
        entries = self.embedding_sum[codebooks, codes].astype(jnp.float32)
        usage = self.cluster_usage[codebooks, codes].astype(jnp.float32)
        entries = entries / jnp.maximum(usage, _MIN_USAGE)[..., None]
        # One after the other, as the reference does.
        quantized = entries[:, :, 0]
        for codebook in range(1, self.num_codebooks):
            quantized = quantized + entries[:, :, codebook]
        return self.output_projection(quantized)


class SplitResidualQuantizer(nn.Module):
    """The sum of a semantic quantizer over the first codebooks and an acoustic one over the rest."""

    config: CodecDecoderConfig

    def setup(self) -> None:
        config = self.config
        shapes = (config.codebook_size, config.codebook_dim, config.quantizer_width, config.transformer.dtype)
        self.semantic = ResidualQuantizer(config.num_semantic_codebooks, *shapes)
        self.acoustic = ResidualQuantizer(config.num_codebooks - config.num_semantic_codebooks, *shapes)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [B, T, Q] → [B, T, quantizer_width]; negative codes count as 0."""
        split = self.config.num_semantic_codebooks
        return self.semantic.decode(codes[..., :split]) + self.acoustic.decode(codes[..., split:])
