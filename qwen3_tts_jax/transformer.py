"""The transformer stack shared by the talker, the code predictor and both halves of the codec."""

from __future__ import annotations

import flax.linen as nn
import jax

from qwen3_tts_jax.attention import attend
from qwen3_tts_jax.cache import Cache
from qwen3_tts_jax.config import TransformerConfig
from qwen3_tts_jax.layers import (
    GeluMLP,
    JointLinear,
    LayerNorm,
    LayerScale,
    Linear,
    QueryKeyNorm,
    RMSNorm,
    SwiGLU,
    apply_rope,
    rope_tables,
)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and, for Qwen3, RMSNorm on queries and keys."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        cache: Cache,
        layer: int,
    ) -> tuple[jax.Array, Cache]:
        """[B, T, D] → [B, T, D]; `rope` is two [B, T, H/2], `mask` bool [B, T, S] over the cache."""
        config = self.config
        batch, steps, width = x.shape
        groups = config.num_heads // config.num_kv_heads

        # For each key/value head: its query heads, the key, the value.
        outputs = (config.num_kv_heads, (groups + 2) * config.head_dim)
        heads = JointLinear(outputs, dtype=config.dtype, name="qkv")(x)
        heads = heads.reshape(batch, steps, config.num_kv_heads, groups + 2, config.head_dim)
        queries_key, values = heads[..., :-1, :], heads[..., -1, :]
        if config.qk_norm:
            queries_key = QueryKeyNorm(config.norm_eps, name="qk_norm")(queries_key)
        queries_key = apply_rope(queries_key, rope)
        queries, keys = queries_key[..., :-1, :], queries_key[..., -1, :]
        past = cache.past(steps)
        cache, keys, values = cache.extend(layer, keys, values)
        y = attend(queries, keys, values, mask, past=past, config=config)
        y = y.reshape(batch, steps, config.num_heads * config.head_dim)
        return Linear(width, dtype=config.dtype, name="o")(y), cache


def _norm(config: TransformerConfig, name: str) -> nn.Module:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.norm_eps, name=name)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)), each with an optional gain."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        cache: Cache,
        layer: int,
    ) -> tuple[jax.Array, Cache]:
        config = self.config
        mlp = SwiGLU if config.mlp == "swiglu" else GeluMLP

        y = _norm(config, "attention_norm")(x)
        y, cache = Attention(config, name="attention")(y, rope, mask, cache, layer)
        x = x + (LayerScale(name="attention_layer_scale")(y) if config.layer_scale else y)
        y = _norm(config, "mlp_norm")(x)
        y = mlp(config.mlp_width, dtype=config.dtype, name="mlp")(y)
        return x + (LayerScale(name="mlp_layer_scale")(y) if config.layer_scale else y), cache


class Transformer(nn.Module):
    """`num_layers` blocks, unrolled, and a final norm where the config says so."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Runs the next T positions.

        Args:
            x: [B, T, D], their embeddings.
            cache: what came before; a `KVCache` must have room for T more slots.

        Returns:
            The hidden states [B, T, D] and the cache, T positions further on.
        """
        config, steps = self.config, x.shape[1]
        x = x.astype(config.dtype)
        rope = rope_tables(cache.positions(steps), config.head_dim, config.rope_theta)
        mask = cache.mask(steps)
        for layer in range(config.num_layers):
            x, cache = Block(config, name=f"layers_{layer}")(x, rope, mask, cache, layer)
        if config.final_norm:
            x = _norm(config, "norm")(x)
        return x, cache.advance(steps)
