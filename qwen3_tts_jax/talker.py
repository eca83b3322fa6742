"""The talker: a Qwen3 language model that reads text and frames and predicts code 0 of the next frame."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.cache import Cache
from qwen3_tts_jax.config import TalkerConfig
from qwen3_tts_jax.layers import Embedding, Linear
from qwen3_tts_jax.transformer import Transformer


class TextProjection(nn.Module):
    """fc2(silu(fc1(x))): text embeddings [..., text_width] → [..., `width`]."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(Linear(x.shape[-1], use_bias=True, dtype=self.dtype, name="fc1")(x))
        return Linear(self.width, use_bias=True, dtype=self.dtype, name="fc2")(x)


class Talker(nn.Module):
    """Text track and codec track are embedded separately, summed by the caller, and run through one stack."""

    config: TalkerConfig

    def setup(self) -> None:
        config, stack = self.config, self.config.transformer
        self.text_embedding = Embedding(config.text_vocab_size, config.text_width, dtype=stack.dtype)
        self.text_projection = TextProjection(stack.width, dtype=stack.dtype)
        self.codec_embedding = Embedding(config.codec_vocab_size, stack.width, dtype=stack.dtype)
        self.transformer = Transformer(stack)
        self.codec_head = Linear(config.codec_vocab_size, dtype=stack.dtype)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Embeddings [B, T, D] of the next T positions → hidden states [B, T, D] and the cache."""
        return self.transformer(x, cache)

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Text ids [...] → projected embeddings [..., D]."""
        return self.text_projection(self.text_embedding(ids))

    def embed_code(self, ids: jax.Array) -> jax.Array:
        """Ids of the codec vocabulary [...] → embeddings [..., D] in the table's dtype."""
        return self.codec_embedding(ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] → logits of the next code 0, float32 [..., V].

        In bfloat16 models the products are rounded to bfloat16, and then widened.
        """
        return self.codec_head(hidden).astype(jnp.float32)
