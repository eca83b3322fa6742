"""Learning the codebooks: straight-through residual quantization, moving averages, revival, dropout.

A codebook's entry is its `embedding_sum` over its `cluster_usage`: exponential moving averages of the sum of the
vectors that fell on it and of their number, so that what is learnt is what the files hold (van den Oord et al. 2017,
arXiv:1711.00937, appendix A.1). Entries on which hardly any vectors fall are moved to vectors of the batch (Zeghidour
et al. 2021, arXiv:2107.03312); unused codebooks start that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.codec.quantizer import entries_of
from qwen3_tts_jax.layers import PRECISION


@flax.struct.dataclass
class Quantized:
    """What one residual quantizer makes of vectors.

    Attributes:
        vectors: [B, T, C], the sum of the entries; its gradient passes straight through to what was quantized.
        codes: int32 [B, T, q].
        commitment: [], mean squared distance from what was quantized to that sum, with a gradient to the former alone;
            rows that use no codebook count 0.
        inputs: [q, B, T, C], what each codebook was given, without a gradient.
        used: bool [q, B], whether a row used a codebook.
    """

    vectors: jax.Array
    codes: jax.Array
    commitment: jax.Array
    inputs: jax.Array
    used: jax.Array


def entries(codebooks: Mapping[str, jax.Array]) -> jax.Array:
    """`embedding_sum` [q, V, C] and `cluster_usage` [q, V] → the entries [q, V, C]."""
    return entries_of(codebooks["embedding_sum"], codebooks["cluster_usage"])


def quantize_residuals(
    codebooks: Mapping[str, jax.Array], vectors: jax.Array, keep: jax.Array, continuous: jax.Array | None = None
) -> Quantized:
    """Quantizes vectors [B, T, C]; each codebook takes what the ones before it left over.

    Args:
        codebooks: embedding_sum [q, V, C] and cluster_usage [q, V].
        vectors: after the input projection.
        keep: int32 [B], how many codebooks a row uses, from the first on.
        continuous: bool [B], rows whose result is the vectors themselves, whatever their codes are.
    """
    fixed = jax.lax.stop_gradient(vectors)
    tables = jax.lax.stop_gradient(entries(codebooks))
    used = jnp.arange(len(tables))[:, None] < keep

    def step(residual: jax.Array, each: tuple[jax.Array, jax.Array]):
        table, row_uses = each
        products = jnp.einsum("btc,vc->btv", residual, table, precision=PRECISION)
        codes = jnp.argmin(jnp.sum(table * table, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)
        return residual - jnp.where(row_uses[:, None, None], table[codes], 0.0), (codes, residual)

    residual, (codes, inputs) = jax.lax.scan(step, fixed, (tables, used))
    total, uses_some = fixed - residual, keep[:, None, None] > 0
    commitment = jnp.mean(jnp.where(uses_some, jnp.square(vectors - total), 0.0))
    through = jnp.where(uses_some, vectors + (total - fixed), 0.0)
    if continuous is not None:
        through = jnp.where(continuous[:, None, None], vectors, through)
    return Quantized(through, jnp.moveaxis(codes, 0, -1), commitment, inputs, used)


def learn_codebooks(
    codebooks: Mapping[str, jax.Array],
    quantized: Quantized,
    key: jax.Array,
    decay: float = 0.99,
    dead_below: float = 0.1,
) -> dict[str, jax.Array]:
    """The codebooks after one batch, of the same shapes.

    Args:
        codebooks: as `quantize_residuals` was given them.
        quantized: what it returned.
        key: draws the vectors that dead entries move to.
        decay: of the moving averages.
        dead_below: vectors per batch, on average, below which an entry is moved.
    """
    count, size, width = codebooks["embedding_sum"].shape

    def learn(total: jax.Array, usage: jax.Array, inputs: jax.Array, codes: jax.Array, used: jax.Array, key: jax.Array):
        flat = inputs.reshape(-1, width)
        weights = jnp.broadcast_to(used[:, None], codes.shape).reshape(-1).astype(jnp.float32)
        fell = jax.nn.one_hot(codes.reshape(-1), size, dtype=jnp.float32) * weights[:, None]
        usage = decay * usage + (1 - decay) * fell.sum(axis=0)
        total = decay * total + (1 - decay) * jnp.einsum("nv,nc->vc", fell, flat, precision=PRECISION)
        chosen = jax.random.choice(key, len(flat), (size,), p=(weights + 1e-9) / jnp.sum(weights + 1e-9))
        # As if it had been used a little, so that it has time to find vectors of its own.
        dead = (usage < dead_below) & jnp.any(used)
        total = jnp.where(dead[:, None], flat[chosen] * 2 * dead_below, total)
        return total, jnp.where(dead, 2 * dead_below, usage)

    total, usage = jax.vmap(learn)(
        codebooks["embedding_sum"],
        codebooks["cluster_usage"],
        quantized.inputs,
        jnp.moveaxis(quantized.codes, -1, 0),
        quantized.used,
        jax.random.split(key, count),
    )
    return {**codebooks, "embedding_sum": total, "cluster_usage": usage}


def dropped_codebooks(key: jax.Array, batch: int, num_codebooks: int, semantic: int, rate: float) -> jax.Array:
    """How many codebooks each row uses, int32 [B]: all or, for a part `rate` of the rows, a uniformly drawn number.

    At least the `semantic` ones are always used (Kumar et al. 2023, arXiv:2306.06546, with `rate` 0.5).
    """
    first, second = jax.random.split(key)
    fewer = jax.random.randint(first, (batch,), semantic, num_codebooks + 1)
    return jnp.where(jax.random.uniform(second, (batch,)) < rate, fewer, num_codebooks)


def perplexity(codes: jax.Array, size: int) -> jax.Array:
    """Exp of the entropy of each codebook's codes, int32 [B, T, q] → [q]; `size` if all are used alike."""
    parts = jnp.mean(jax.nn.one_hot(codes, size), axis=(0, 1))
    return jnp.exp(-jnp.sum(parts * jnp.log(jnp.maximum(parts, 1e-12)), axis=-1))


def share_codebooks(params: Mapping[str, Any], num_codebooks: int) -> dict[str, Any]:
    """A codec's trees encoder and decoder; the decoder gets the encoder's first `num_codebooks` codebooks."""
    encoder, decoder = params["encoder"]["quantizer"], params["decoder"]["quantizer"]
    semantic = len(encoder["semantic"]["cluster_usage"])
    counts = {"semantic": semantic, "acoustic": num_codebooks - semantic}
    shared = {
        kind: decoder[kind] | {name: encoder[kind][name][:n] for name in ("embedding_sum", "cluster_usage")}
        for kind, n in counts.items()
    }
    return {**params, "decoder": {**params["decoder"], "quantizer": shared}}
