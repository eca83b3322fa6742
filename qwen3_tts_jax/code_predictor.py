"""The code predictor: codes 1 … Q−1 of a frame, one after the other, from the talker's hidden state."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.config import CodePredictorConfig
from qwen3_tts_jax.layers import PRECISION, Linear, weight_init
from qwen3_tts_jax.transformer import Transformer


class _EmbeddingTables(nn.Module):
    """Embedding tables of codebooks 1 … Q−1, stacked so that a scan can choose one by a traced index."""

    config: CodePredictorConfig

    @nn.compact
    def __call__(self, codebook: jax.Array, codes: jax.Array) -> jax.Array:
        config = self.config
        shape = (config.num_codebooks - 1, config.codebook_size, config.talker_width)
        tables = self.param("embedding", weight_init, shape, config.transformer.dtype)
        return tables[codebook - 1, codes]


class _Heads(nn.Module):
    """Output layers of codebooks 1 … Q−1, stacked likewise."""

    config: CodePredictorConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, codebook: jax.Array) -> jax.Array:
        config = self.config
        shape = (config.num_codebooks - 1, config.codebook_size, config.transformer.width)
        heads = self.param("weight", weight_init, shape, config.transformer.dtype)
        head = jax.lax.dynamic_index_in_dim(heads, codebook - 1, keepdims=False)
        return jnp.einsum("...d,vd->...v", hidden, head, precision=PRECISION)


class CodePredictor(nn.Module):
    """Position 0 is the talker's hidden state, position 1 the embedding of code 0, position q that of code q − 1.

    The hidden state at position q gives the logits of code q. All inputs have the talker's width and
    are projected where the predictor is narrower.
    """

    config: CodePredictorConfig

    def setup(self) -> None:
        config, stack = self.config, self.config.transformer
        self.codec_embeddings = _EmbeddingTables(config)
        if config.has_projection:
            self.projection = Linear(stack.width, use_bias=True, dtype=stack.dtype)
        self.transformer = Transformer(stack)
        self.codec_heads = _Heads(config)

    def __call__(self, x: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Inputs [B, T, D_talker] of the next T positions → hidden states [B, T, D] and the cache."""
        if self.config.has_projection:
            x = self.projection(x)
        return self.transformer(x, cache)

    def embed_code(self, codebook: jax.Array, codes: jax.Array) -> jax.Array:
        """Codes [...] of codebook 1 ≤ q < Q (an integer or an array that broadcasts) → [..., D_talker]."""
        return self.codec_embeddings(codebook, codes)

    def logits(self, hidden: jax.Array, codebook: jax.Array) -> jax.Array:
        """Hidden states [..., D] → logits of codebook 1 ≤ q < Q (one integer), float32 [..., V].

        In bfloat16 models the products are rounded to bfloat16, and then widened.
        """
        return self.codec_heads(hidden, codebook).astype(jnp.float32)
