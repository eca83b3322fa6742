"""Drawing one code from its logits, with the official package's order of operations."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.config import Filters, GenerationConfig, SamplingConfig

_NUMBERS = {"temperature": np.float32, "top_k": np.int32, "tail": np.float32, "repetition_penalty": np.float32}


def _flatten(config: SamplingConfig) -> tuple[list[Any], Filters]:
    numbers = {name: getattr(config, name) for name in _NUMBERS}
    if isinstance(config.top_k, Integral):
        # More than any vocabulary has.
        numbers["top_k"] = min(config.top_k, 2**31 - 1)
    # One type for each: 1 and 1.0 must not be two programs.
    return [_NUMBERS[name](n) if isinstance(n, Real) else n for name, n in numbers.items()], config.filters


def _unchecked(kind: type, **attributes: Any) -> Any:
    """A config with numbers that may be traced, which its constructor could not check."""
    config = object.__new__(kind)
    config.__dict__.update(attributes)
    return config


jax.tree_util.register_pytree_node(
    SamplingConfig,
    _flatten,
    lambda filters, numbers: _unchecked(SamplingConfig, filters=filters, **dict(zip(_NUMBERS, numbers, strict=True))),
)
jax.tree_util.register_pytree_node(
    GenerationConfig,
    lambda config: ((config.talker, config.code_predictor), None),
    lambda _, parts: _unchecked(GenerationConfig, talker=parts[0], code_predictor=parts[1]),
)


def process_logits(
    logits: jax.Array,
    config: SamplingConfig,
    seen: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """Logits of the distribution that is drawn from: float32 [B, V], −inf where a code is impossible.

    In order: repetition penalty, forbidden codes and, when sampling, temperature, top-k, top-p.

    Args:
        logits: [B, V].
        config: which of these steps apply, and how strongly.
        seen: bool [B, V], codes that the penalty applies to: positive logits are divided by it and
            negative ones multiplied (Keskar et al. 2019, arXiv:1909.05858). None: no penalty.
        allowed: bool [B, V] or [V]; False forbids a code. None allows all.
    """
    logits, filters = logits.astype(jnp.float32), config.filters
    if seen is not None and filters.penalty:
        penalised = jnp.where(logits < 0, logits * config.repetition_penalty, logits / config.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    if not filters.do_sample:
        return logits
    logits = logits / config.temperature
    if filters.top_k_room:
        floor = _kth_largest(jax.lax.stop_gradient(logits), config.top_k, filters.top_k_room)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if filters.nucleus:
        logits = jnp.where(logits < _nucleus_floor(logits, config.tail), -jnp.inf, logits)
    return logits


def _kth_largest(logits: jax.Array, k: int | jax.Array, most: int) -> jax.Array:
    """The k-th largest of each row, float32 [B, V] → [B, 1], 1 ≤ k ≤ `most`; the least if there are fewer."""
    most = min(most, logits.shape[-1])
    k = jnp.minimum(k, most)

    def by_sorting(logits: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(jax.lax.top_k(logits, most)[0], k - 1, axis=-1)

    def by_bisection(logits: jax.Array, k: jax.Array) -> jax.Array:
        # Floats compare as their bits do, once those of negative ones are flipped: one bit is found per step.
        bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
        ordered = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

        def step(i: jax.Array, floor: jax.Array) -> jax.Array:
            higher = floor + jnp.left_shift(jnp.int32(1), 31 - i)
            return jnp.where(jnp.sum(ordered >= higher, axis=-1, keepdims=True, dtype=k.dtype) >= k, higher, floor)

        lowest = jnp.full((*logits.shape[:-1], 1), jnp.iinfo(jnp.int32).min, jnp.int32)
        found = jax.lax.fori_loop(0, 32, step, lowest)
        return jax.lax.bitcast_convert_type(jnp.where(found < 0, found ^ jnp.int32(0x7FFFFFFF), found), jnp.float32)

    # XLA's CPU top_k sorts the whole row, which takes twenty times as long.
    return jax.lax.platform_dependent(logits, k, cpu=by_bisection, default=by_sorting)


def _nucleus_floor(logits: jax.Array, tail: float | jax.Array) -> jax.Array:
    """The smallest logit [B, 1] of the nucleus: the least likely codes, of mass ≤ `tail` = 1 − top-p, are dropped."""
    ascending = jnp.sort(logits, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    dropped = jnp.sum(mass[..., :-1] <= tail, axis=-1, keepdims=True)
    return jnp.take_along_axis(ascending, dropped, axis=-1)


def draw(
    logits: jax.Array,
    keys: jax.Array,
    config: SamplingConfig,
    seen: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One code per row, int32 [B], and its log-probability in nats under the distribution it is drawn from, [B].

    Arguments as for `process_logits`, and one PRNG key per row, [B].
    """
    logits = process_logits(logits, config, seen, allowed)
    if config.filters.do_sample:
        codes = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    else:
        codes = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, codes[:, None], axis=-1)[:, 0]
    return codes, chosen - jax.nn.logsumexp(logits, axis=-1)
