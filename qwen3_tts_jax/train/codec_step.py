"""One step of training a codec: encoder, codebooks and decoder together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax.codec.encoder import encode_latents
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.train.codec_loss import mel_loss, spectral_loss
from qwen3_tts_jax.train.codec_quantizer import (
    Quantized,
    dropped_codebooks,
    learn_codebooks,
    perplexity,
    quantize_residuals,
    share_codebooks,
)
from qwen3_tts_jax.train.soft_codes import decode_latents
from qwen3_tts_jax.train.step import OptimizerConfig

_CODEBOOKS = ("embedding_sum", "cluster_usage", "initialized")
_KINDS = ("semantic", "acoustic")


@dataclass(frozen=True)
class CodecRecipe:
    """What the compiled step must know; hashable.

    Attributes:
        codec: encoder and decoder with equal `codebook_dim`, `codebook_size` and semantic codebooks.
        optimizer: of all weights but the codebooks.
        mel, spectral, waveform, commitment: weights of the losses.
        decay, dead_below: see `codec_quantizer.learn_codebooks`.
        dropout: part of rows that use fewer codebooks.
    """

    codec: CodecConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mel: float = 15.0
    spectral: float = 1.0
    waveform: float = 0.1
    commitment: float = 0.25
    decay: float = 0.99
    dead_below: float = 0.1
    dropout: float = 0.25

    def __post_init__(self) -> None:
        encoder, decoder = self.codec.encoder, self.codec.decoder
        for name in ("codebook_dim", "codebook_size", "num_semantic_codebooks"):
            ours, theirs = getattr(encoder, name), getattr(decoder, name)
            if ours != theirs:
                raise ConfigError(f"a codec that is trained shares its codebooks: {name} is {ours} and {theirs}")


@flax.struct.dataclass
class CodecState:
    """What a step changes: {path: leaf} of encoder/… and decoder/…, the encoder's codebooks, optax's state."""

    step: jax.Array
    trained: dict[str, jax.Array]
    codebooks: dict[str, dict[str, jax.Array]]
    optimizer: optax.OptState


def start_codec(params: Mapping[str, Any], recipe: CodecRecipe, *, fresh: bool = True) -> CodecState:
    """The state before the first step.

    Args:
        params: the trees encoder and decoder.
        recipe: see there.
        fresh: forget the codebooks; the first batch then fills them.
    """
    leaves = flatten_dict({part: params[part] for part in ("encoder", "decoder")}, sep="/")
    trained = {
        path: jnp.array(leaf, jnp.float32) for path, leaf in leaves.items() if path.rsplit("/", 1)[-1] not in _CODEBOOKS
    }
    quantizer, split = params["encoder"]["quantizer"], recipe.codec.encoder.num_semantic_codebooks
    counts = {"semantic": split, "acoustic": recipe.codec.num_codebooks - split}
    codebooks = {
        kind: {name: jnp.array(quantizer[kind][name][:count]) * (not fresh) for name in _CODEBOOKS[:2]}
        for kind, count in counts.items()
    }
    return CodecState(jnp.zeros((), jnp.int32), trained, codebooks, recipe.optimizer.optimizer().init(trained))


def finish_codec(state: CodecState, params: Mapping[str, Any], recipe: CodecRecipe) -> dict[str, Any]:
    """The trees encoder and decoder that `state` stands for; codebooks that the talker does not know are those of
    `params`.
    """
    trees = _with_codebooks(state.trained, params, state.codebooks)
    return share_codebooks(trees, recipe.codec.num_codebooks)


def _with_codebooks(
    trained: Mapping[str, jax.Array], params: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]]
) -> dict[str, Any]:
    leaves = {**flatten_dict({part: params[part] for part in ("encoder", "decoder")}, sep="/"), **trained}
    for kind in _KINDS:
        for name, leaf in codebooks[kind].items():
            path = f"encoder/quantizer/{kind}/{name}"
            leaves[path] = jnp.asarray(leaves[path]).at[: len(leaf)].set(leaf)
    return unflatten_dict(leaves, sep="/")


def reconstruct(
    trees: Mapping[str, Any], codebooks: Mapping[str, Mapping[str, jax.Array]], config: CodecConfig,
    samples: jax.Array, keep: jax.Array,
) -> tuple[jax.Array, dict[str, Quantized]]:  # fmt: skip
    """Samples [B, N], N whole frames → what the decoder makes of their codes [B, N], and the quantizers' results.

    `keep` int32 [B] is the number of codebooks that a row uses.
    """
    latents = encode_latents(trees["encoder"], config.encoder, samples)
    split = config.encoder.num_semantic_codebooks
    quantizer, kept = trees["encoder"]["quantizer"], {"semantic": jnp.minimum(keep, split), "acoustic": keep - split}
    results = {
        kind: quantize_residuals(codebooks[kind], latents @ quantizer[kind]["input_projection"]["weight"].T, kept[kind])
        for kind in _KINDS
    }

    def of_decoder(module: SplitResidualQuantizer) -> jax.Array:
        halves = [getattr(module, kind).output_projection(results[kind].vectors) for kind in _KINDS]
        return halves[0] + halves[1]

    shape = (*latents.shape[:2], config.num_codebooks)
    return decode_latents(trees["decoder"], config.decoder, shape, of_decoder), results


@partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def codec_step(
    state: CodecState, params: Mapping[str, Any], samples: jax.Array, key: jax.Array, recipe: CodecRecipe
) -> tuple[CodecState, dict[str, jax.Array]]:
    """One step of the optimizer and of the codebooks.

    Args:
        state: given away.
        params: what `start_codec` was given.
        samples: [B, N] in ±1 at the codec's rate, N whole frames and at least 2,048.
        key: of dropout and revival.
        recipe: static.

    Returns:
        The next state, and loss, mel, spectral, commitment [] and perplexity [Q].
    """
    codec = recipe.codec
    drop_key, *kind_keys = jax.random.split(key, 3)
    split = codec.encoder.num_semantic_codebooks
    keep = dropped_codebooks(drop_key, len(samples), codec.num_codebooks, split, recipe.dropout)

    def value(trained: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple]:
        trees = _with_codebooks(trained, params, state.codebooks)
        made, results = reconstruct(trees, state.codebooks, codec, samples, keep)
        losses = {
            "mel": mel_loss(made, samples, codec.sample_rate),
            "spectral": spectral_loss(made, samples),
            "waveform": jnp.mean(jnp.abs(made - samples)),
            "commitment": sum(result.commitment for result in results.values()),
        }
        return sum(getattr(recipe, name) * loss for name, loss in losses.items()), (losses, results)

    (total, (losses, results)), gradient = jax.value_and_grad(value, has_aux=True)(state.trained)
    updates, optimizer = recipe.optimizer.optimizer().update(gradient, state.optimizer, state.trained)
    codebooks = {
        kind: learn_codebooks(state.codebooks[kind], results[kind], one, recipe.decay, recipe.dead_below)
        for kind, one in zip(_KINDS, kind_keys, strict=True)
    }
    size = codec.encoder.codebook_size
    metrics = {"loss": total, **losses}
    metrics["perplexity"] = jnp.concatenate([perplexity(results[kind].codes, size) for kind in _KINDS])
    return CodecState(state.step + 1, optax.apply_updates(state.trained, updates), codebooks, optimizer), metrics
