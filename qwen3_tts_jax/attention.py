"""Attention: the portable form, and the fused kernels that accelerators have for many queries at once.

Kernels (Dao et al. 2022, arXiv:2205.14135) keep the scores [T, S] out of memory: cuDNN's on NVIDIA GPUs, and on
TPUs the splash kernel that JAX ships. They serve prompts, scores, training and the codec's transformers, in
bfloat16; one or a few queries take the portable form, which measures as fast or faster. `configure` decides at load.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.cache import Pieces
from qwen3_tts_jax.config import AttentionKernel, ConfigError, ModelConfig, TransformerConfig
from qwen3_tts_jax.devices import default_device, nvidia_capability
from qwen3_tts_jax.layers import PRECISION

Choice = Literal["auto", "xla", "cudnn", "pallas"]

_MASKED = float(jnp.finfo(jnp.float32).min)
# A tile of a kernel has 64 queries or more: fewer leave most of it empty.
_FEWEST_QUERIES = 64
_PLATFORMS = {"cudnn": "cuda", "pallas": "tpu"}


def attend(
    queries: jax.Array,
    keys: jax.Array | Pieces,
    values: jax.Array | Pieces,
    mask: jax.Array,
    *,
    past: int | None = None,
    config: TransformerConfig,
) -> jax.Array:
    """softmax(queries · keys / √H) · values, with the softmax in float32 (Vaswani et al. 2017).

    Args:
        queries: [B, T, K, G, H], the G query heads of each key/value head.
        keys: [B, K, H, S], or pieces of it for a single query.
        values: [B, K, S, H], likewise.
        mask: bool [B or 1, T, S], False where a query may not look.
        past: see `cache.KVCache.past`.
        config: the stack's.

    Returns:
        [B, T, K, G, H].
    """
    # Not in a sliding window: it is short, and the steps of a stream should round as the whole does.
    if queries.shape[1] == 1 and config.sliding_window is None:
        if not isinstance(keys, tuple):
            keys, values = (keys,), (values,)
        return jax.lax.platform_dependent(queries, keys, values, mask, cpu=_single_query_on_cpu, default=_single_query)
    forms: dict[str, Callable] = {"cpu": _on_cpu, "default": portable}
    if config.attention != "xla" and past is not None and queries.shape[1] >= _FEWEST_QUERIES:
        kernel = {"cudnn": cudnn, "pallas": pallas}[config.attention]
        forms[_PLATFORMS[config.attention]] = partial(kernel, past=past)
    return jax.lax.platform_dependent(queries, keys, values, mask, **forms)


def portable(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` as two products and a softmax."""
    scores = jnp.einsum("btkgh,bkhs->bkgts", queries, keys, precision=PRECISION, preferred_element_type=jnp.float32)
    weights = _weights(scores, mask[:, None, None], queries)
    return jnp.einsum("bkgts,bksh->btkgh", weights, values, precision=PRECISION)


def _on_cpu(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """`portable` in float32, because XLA's CPU backend lacks some products of bfloat16."""
    wide = (x.astype(jnp.float32) for x in (queries, keys, values))
    return portable(*wide, mask).astype(queries.dtype)


def _single_query(queries: jax.Array, keys: Pieces, values: Pieces, mask: jax.Array) -> jax.Array:
    """`portable` of one query (T = 1) without that axis: three kernels from XLA for NVIDIA, not five to eight."""
    # Sums of pieces are rounded to the dtype once, as the sum of the whole would be.
    exact = queries.dtype if len(values) == 1 else jnp.float32

    def score(keys: jax.Array) -> jax.Array:
        equation = "bkgh,bkhs->bkgs"
        return jnp.einsum(equation, queries[:, 0], keys, precision=PRECISION, preferred_element_type=jnp.float32)

    def mix(weights: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.einsum("bkgs,bksh->bkgh", weights, values, precision=PRECISION, preferred_element_type=exact)

    weights = _weights(jnp.concatenate([score(piece) for piece in keys], axis=-1), mask[:, None], queries)
    return sum(map(mix, _split(weights, values), values))[:, None].astype(queries.dtype)


def _single_query_on_cpu(queries: jax.Array, keys: Pieces, values: Pieces, mask: jax.Array) -> jax.Array:
    """The same in float32. Where heads share keys it is written as sums, which are faster in large batches.

    Where they do not, XLA's CPU backend makes those sums 10 to 100 times as slow as products.
    """
    if queries.shape[3] == 1:
        wide_keys, wide_values = (tuple(piece.astype(jnp.float32) for piece in pieces) for pieces in (keys, values))
        return _single_query(queries.astype(jnp.float32), wide_keys, wide_values, mask).astype(queries.dtype)
    wide = queries[:, 0].astype(jnp.float32)

    def score(keys: jax.Array) -> jax.Array:
        return jnp.sum(wide[..., None] * keys.astype(jnp.float32)[:, :, None], axis=3)

    def mix(weights: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(weights[..., None] * values.astype(jnp.float32)[:, :, None], axis=3)

    weights = _weights(jnp.concatenate([score(piece) for piece in keys], axis=-1), mask[:, None], wide)
    return sum(map(mix, _split(weights, values), values))[:, None].astype(queries.dtype)


def _split(weights: jax.Array, values: Pieces) -> list[jax.Array]:
    """Cuts weights [..., S] into those for each piece [B, K, S, H] of the values."""
    ends = np.cumsum([piece.shape[2] for piece in values])
    return jnp.split(weights, ends[:-1], axis=-1)


def _weights(scores: jax.Array, mask: jax.Array, queries: jax.Array) -> jax.Array:
    scores = jnp.where(mask, scores * queries.shape[-1] ** -0.5, _MASKED)
    return jax.nn.softmax(scores, axis=-1).astype(queries.dtype)


def cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, *, past: int) -> jax.Array:
    """`attend` by cuDNN. With no past, a causal mask is the only one needed."""
    steps = queries.shape[1]
    queries, keys, values = (
        queries.reshape(*queries.shape[:2], -1, queries.shape[-1]),
        keys.transpose(0, 3, 1, 2),
        values.swapaxes(1, 2),
    )
    fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
    if past == 0:
        y = fused(queries, keys, values, is_causal=True)
    else:
        # Gradients through a mask need even lengths.
        odd = steps % 2, keys.shape[1] % 2
        queries = jnp.pad(queries, ((0, 0), (0, odd[0]), (0, 0), (0, 0)))
        keys, values = (jnp.pad(x, ((0, 0), (0, odd[1]), (0, 0), (0, 0))) for x in (keys, values))
        mask = jnp.pad(mask, ((0, 0), (0, odd[0]), (0, odd[1])))
        y = fused(queries, keys, values, mask=mask[:, None])[:, :steps]
    return y.reshape(*y.shape[:2], keys.shape[2], -1, y.shape[-1])


def pallas(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, *, past: int, interpret: bool = False
) -> jax.Array:
    """`attend` by JAX's splash kernel for TPUs; `interpret` runs it anywhere, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, steps, kv_heads, groups, width = queries.shape
    slots = keys.shape[-1]
    blocks, padded = zip(*(_block(length) for length in (steps, slots)), strict=True)
    queries = (queries * width**-0.5).astype(keys.dtype).reshape(batch, steps, -1, width).swapaxes(1, 2)
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, padded[0] - steps), (0, 0)))
    # The slots added here come after all queries, which only look back.
    keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, padded[1] - slots), (0, 0))) for x in (keys.swapaxes(2, 3), values))
    seen, segments = splash.CausalMask(padded), None
    if past > 0:
        seen = splash.LocalMask(padded, (past, 0), offset=past)
        # A slot in the first query's window that this query may not see was never written.
        written = jnp.broadcast_to(jnp.pad(jnp.any(mask, axis=1), ((0, 0), (0, padded[1] - slots))), (batch, padded[1]))
        segments = splash.SegmentIds(q=jnp.ones((batch, padded[0]), jnp.int32), kv=written.astype(jnp.int32))
    q, kv = blocks
    sizes = splash.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv
    )
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([seen] * (kv_heads * groups)), block_sizes=sizes, interpret=interpret
    )
    y = jax.vmap(kernel)(queries, keys, values, segments)[:, :, :steps]
    return y.swapaxes(1, 2).reshape(batch, steps, kv_heads, groups, width)


def _block(length: int) -> tuple[int, int]:
    """The kernel's block size for a length, and the multiple of it that the length is padded to."""
    block = min(512, -(-length // 128) * 128)
    return block, -(-length // block) * block


def configure(config: ModelConfig, choice: Choice, devices: int = 1) -> ModelConfig:
    """The same model with the attention chosen for this machine.

    Args:
        config: with the dtypes that it computes in. Parts in float32 keep the portable form, whatever the choice.
        choice: "xla" for the portable form, "cudnn" or "pallas" for a kernel, or "auto": the kernel of JAX's
            default device, where it can be used.
        devices: how many share the work. JAX's kernel for TPUs is for one.

    Raises:
        ConfigError: a kernel that this machine does not have, or that no part of the model can use.
    """
    if choice not in ("auto", "xla", *_PLATFORMS):
        raise ConfigError(f'attention must be "auto", "xla", "cudnn" or "pallas", got {choice!r}')
    if choice == "auto":
        here = [kernel for kernel in _PLATFORMS if _lacks(kernel) is None and not (kernel == "pallas" and devices > 1)]
        return config.with_attention(_for_part(here[0]) if here else lambda _: "xla")
    if choice == "xla":
        return config.with_attention(lambda _: "xla")
    lacks = _lacks(choice)
    if lacks is not None:
        raise ConfigError(f'attention={choice!r} needs {lacks}: use "auto"')
    if choice == "pallas" and devices > 1:
        raise ConfigError(f'attention="pallas" is for one chip, and {devices} devices share the work: use "auto"')
    stack = config.talker.transformer
    if _for_part(choice)(stack) == "xla":
        raise ConfigError(
            f"attention={choice!r} computes in bfloat16 with heads of up to 128 in steps of 8; the talker has "
            f'{stack.dtype} and heads of {stack.head_dim}: use "auto" or another dtype'
        )
    return config.with_attention(_for_part(choice))


def _for_part(kernel: AttentionKernel) -> Callable[[TransformerConfig], AttentionKernel]:
    def choose(stack: TransformerConfig) -> AttentionKernel:
        fits = stack.dtype == "bfloat16" and stack.head_dim <= 128 and stack.head_dim % 8 == 0
        return kernel if fits else "xla"

    return choose


def _lacks(kernel: AttentionKernel) -> str | None:
    """What a kernel needs and JAX's default device is not; None where it fits."""
    device = default_device()
    if kernel == "pallas":
        return None if device.platform == "tpu" else f"a TPU, and this is {device.device_kind}"
    new_enough = (nvidia_capability() or 0) >= 8
    return None if new_enough else f"an NVIDIA GPU from Ampere on, and this is {device.device_kind}"
