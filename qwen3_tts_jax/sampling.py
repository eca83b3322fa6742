"""Drawing one code from its logits, with the official package's order of operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import SamplingConfig


def process_logits(
    logits: jax.Array,
    config: SamplingConfig,
    seen: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """Logits of the distribution that is drawn from: float32 [B, V], −inf where a code is impossible.

    In order: repetition penalty, forbidden codes and, when sampling, temperature, top-k, top-p.

    Args:
        logits: float32 [B, V].
        config: which of them apply and how strongly.
        seen: bool [B, V], codes that the penalty applies to: positive logits are divided by it and
            negative ones multiplied (Keskar et al. 2019, arXiv:1909.05858). None: no penalty.
        allowed: bool [B, V] or [V]; False forbids a code. None allows all.
    """
    if seen is not None and config.repetition_penalty != 1.0:
        penalised = jnp.where(logits < 0, logits * config.repetition_penalty, logits / config.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    if not config.do_sample:
        return logits
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if config.top_p < 1.0:
        logits = jnp.where(logits < _nucleus_floor(logits, config.top_p), -jnp.inf, logits)
    return logits


def _nucleus_floor(logits: jax.Array, top_p: float) -> jax.Array:
    """The smallest logit [B, 1] of the nucleus: codes are dropped while the mass up to them is ≤ 1 − top_p."""
    ascending = jnp.sort(logits, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    dropped = jnp.sum(mass[..., :-1] <= 1.0 - top_p, axis=-1, keepdims=True)
    return jnp.take_along_axis(ascending, dropped, axis=-1)


def sample(
    logits: jax.Array,
    keys: jax.Array,
    config: SamplingConfig,
    seen: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """One code per row, int32 [B]; arguments as `process_logits`, and one PRNG key per row, [B]."""
    logits = process_logits(logits, config, seen, allowed)
    if config.do_sample:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
