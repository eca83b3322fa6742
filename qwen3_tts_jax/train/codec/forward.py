"""What a codec computes while it is trained: its codebooks, and samples → codes → samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax.codec.encoder import encode_latents
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.layers import multiply
from qwen3_tts_jax.train.codec.codes import GivenCodes, decode_crops
from qwen3_tts_jax.train.codec.quantizer import Quantized, entries, quantize_residuals
from qwen3_tts_jax.train.soft_codes import decode_latents

CODEBOOK_LEAVES = ("embedding_sum", "cluster_usage", "initialized")
KINDS = ("semantic", "acoustic")


def check_shared(config: CodecConfig) -> None:
    """Refuses, with a ConfigError, an encoder and a decoder whose codebooks differ in shape."""
    for name in ("codebook_dim", "codebook_size", "num_semantic_codebooks"):
        ours, theirs = getattr(config.encoder, name), getattr(config.decoder, name)
        if ours != theirs:
            raise ConfigError(f"a codec that is trained shares its codebooks: {name} is {ours} and {theirs}")


def start_codebooks(
    params: Mapping[str, Any], config: CodecConfig, *, fresh: bool = True
) -> dict[str, dict[str, jax.Array]]:
    """The encoder's codebooks that the talker knows, as `CodecState` has them; zeros if they are to be `fresh`."""
    quantizer, split = params["encoder"]["quantizer"], config.encoder.num_semantic_codebooks
    counts = {"semantic": split, "acoustic": config.num_codebooks - split}
    return {
        kind: {name: jnp.array(quantizer[kind][name][:count]) * (not fresh) for name in CODEBOOK_LEAVES[:2]}
        for kind, count in counts.items()
    }


def with_codebooks(
    trained: Mapping[str, jax.Array], params: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]]
) -> dict[str, Any]:
    """The trees encoder and decoder of `params`, with their leaves of `trained` and the encoder's `codebooks`."""
    leaves = flatten_dict({part: params[part] for part in ("encoder", "decoder")}, sep="/")
    leaves |= {path: leaf for path, leaf in trained.items() if path in leaves}
    for kind, books in codebooks.items():
        for name, leaf in books.items():
            path = f"encoder/quantizer/{kind}/{name}"
            leaves[path] = jnp.asarray(leaves[path]).at[: len(leaf)].set(leaf)
    return unflatten_dict(leaves, sep="/")


def reconstruct(
    trees: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]], config: CodecConfig,
    samples: jax.Array, keep: jax.Array, continuous: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Quantized]]:  # fmt: skip
    """Samples [B, N], N whole frames → what the decoder makes of their codes [B, N], and the quantizers' results.

    `keep`, int32 [B], is the number of codebooks that a row uses. In rows that `continuous`, bool [B], marks, the
    decoder is given what the codebooks are given.
    """
    latents = encode_latents(trees["encoder"], config.encoder, samples)
    results, of_decoder = quantize_latents(trees, codebooks, config, latents, keep, continuous)
    shape = (*latents.shape[:2], config.num_codebooks)
    return decode_latents(trees["decoder"], config.decoder, shape, of_decoder), results


def quantize_latents(
    trees: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]], config: CodecConfig,
    latents: jax.Array, keep: jax.Array, continuous: jax.Array | None = None,
) -> tuple[dict[str, Quantized], Callable[[SplitResidualQuantizer], jax.Array]]:  # fmt: skip
    """The quantizers' results for the encoder's latents [B, T, D], and what `decode_latents` in `soft_codes` takes."""
    split = config.encoder.num_semantic_codebooks
    quantizer, kept = trees["encoder"]["quantizer"], {"semantic": jnp.minimum(keep, split), "acoustic": keep - split}
    results = {}
    for kind in KINDS:
        vectors = multiply(latents, quantizer[kind]["input_projection"]["weight"])
        results[kind] = quantize_residuals(codebooks[kind], vectors, kept[kind], continuous)

    def of_decoder(module: SplitResidualQuantizer) -> jax.Array:
        halves = [getattr(module, kind).output_projection(results[kind].vectors) for kind in KINDS]
        return halves[0] + halves[1]

    return results, of_decoder


def reconstruct_given(
    trees: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]], config: CodecConfig,
    given: GivenCodes, frames: int, keep: jax.Array,
) -> jax.Array:  # fmt: skip
    """What the decoder makes of given codes of crops of T = `frames` frames, samples [B, T·frame_samples].

    `keep` is that of `reconstruct`; the encoder is not run.
    """
    tables = {kind: entries(codebooks[kind]) for kind in KINDS}
    split, used = config.encoder.num_semantic_codebooks, jnp.arange(config.num_codebooks) < keep[:, None]
    parts = {"semantic": slice(split), "acoustic": slice(split, None)}

    def of_decoder(module: SplitResidualQuantizer) -> jax.Array:
        halves = []
        for kind, part in parts.items():
            chosen = tables[kind][jnp.arange(len(tables[kind])), given.codes[..., part]]
            vectors = jnp.sum(jnp.where(used[:, None, part, None], chosen, 0.0), axis=2)
            halves.append(getattr(module, kind).output_projection(vectors))
        return halves[0] + halves[1]

    return decode_crops(trees["decoder"], config.decoder, given, frames, of_decoder)
