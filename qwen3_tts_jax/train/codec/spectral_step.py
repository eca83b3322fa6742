"""One step of learning to say spectra; see `spectral`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax.codec.encoder import encode_latents
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.layers import PRECISION, multiply
from qwen3_tts_jax.train.codec import teacher
from qwen3_tts_jax.train.codec.forward import KINDS, quantize_latents, with_codebooks
from qwen3_tts_jax.train.codec.quantizer import Quantized, dropped_codebooks, learn_codebooks, perplexity
from qwen3_tts_jax.train.codec.spectra import BANDS, BINS, SpectralEncoder, hear, outputs_per_latent, spectra
from qwen3_tts_jax.train.codec.spectral import READOUT, SPECTRAL, SpectralRecipe, SpectralState, is_matrix, of_encoder
from qwen3_tts_jax.train.optimizer import if_finite
from qwen3_tts_jax.train.soft_codes import decoder_latents


def listen(
    trained: Mapping[str, jax.Array], params: Mapping[str, Any], config: CodecConfig, samples: jax.Array
) -> jax.Array:
    """Latents [B, T, D] of samples [B, N], N whole frames, by whichever encoder is in `trained`."""
    paths = {path: leaf for path, leaf in trained.items() if path.startswith(SPECTRAL)}
    if paths:
        encoder = SpectralEncoder(config.encoder.transformer.width)
        params = unflatten_dict(paths, sep="/")[SPECTRAL.rstrip("/")]
        return encoder.apply({"params": params}, hear(samples, config))
    return encode_latents(with_codebooks(trained, params, {})["encoder"], config.encoder, samples)


def quantizer_inputs(trained: Mapping[str, jax.Array], latents: jax.Array) -> dict[str, jax.Array]:
    """Latents [B, T, D] → what each quantizer is given, [B, T, C]."""
    return {kind: multiply(latents, trained[f"encoder/quantizer/{kind}/input_projection/weight"]) for kind in KINDS}


def say_spectra(
    trained: Mapping[str, jax.Array], codebooks: Mapping[str, Mapping[str, jax.Array]], params: Mapping[str, Any],
    config: CodecConfig, latents: jax.Array, keep: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], dict[str, Quantized]]:  # fmt: skip
    """What the read-out says from latents [B, T, D], shaped as `spectra`, and the quantizers' results.

    `keep` is that of `forward.reconstruct`.
    """
    trees = with_codebooks(trained, params, codebooks)
    results, of_decoder = quantize_latents(trees, codebooks, config, latents, keep)
    shape = (*latents.shape[:2], config.num_codebooks)
    decoded = decoder_latents(trees["decoder"], config.decoder, shape, of_decoder)
    said = jnp.matmul(decoded, trained[f"{READOUT}weight"].T, precision=PRECISION) + trained[f"{READOUT}bias"]
    bands = outputs_per_latent(config)[0]
    mel, low = said[..., :bands].reshape(len(latents), -1, BANDS), said[..., bands:].reshape(len(latents), -1, BINS)
    return (mel, low), results


def _distances(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Mean absolute difference of each pair, []."""
    return [jnp.mean(jnp.abs(one - other)) for one, other in zip(a, b, strict=True)]


def _latents_off(
    trained: Mapping[str, jax.Array], taught: Mapping[str, jax.Array], latents: jax.Array, true: jax.Array
) -> jax.Array:
    """Mean squared difference between what the quantizers are given, relative to its variance, []."""
    ours, theirs = quantizer_inputs(trained, latents), quantizer_inputs(taught, true)
    off = [
        jnp.mean(jnp.square(ours[kind] - theirs[kind])) / (jnp.mean(jnp.var(theirs[kind], axis=(0, 1))) + 1e-6)
        for kind in KINDS
    ]
    return sum(off) / len(off)


@partial(jax.jit, static_argnames=("recipe", "alone"), donate_argnames="state")
def spectral_step(
    state: SpectralState, params: Mapping[str, Any], samples: jax.Array, key: jax.Array, recipe: SpectralRecipe,
    taught: Mapping[str, jax.Array] | None = None, targets: jax.Array | None = None, alone: bool = False,
) -> tuple[SpectralState, dict[str, jax.Array]]:  # fmt: skip
    """One step of the optimizer and of the codebooks.

    Args:
        state: donated.
        params: what `start_spectra` was given.
        samples: [B, N] in ±1 at the codec's rate, N whole frames.
        key: for all that is drawn.
        recipe: static.
        taught: for an encoder of samples, the `trained` leaves that the encoder of spectra ended with.
        targets: a teacher's features [B, T, D] of each frame, where the recipe has a teacher.
        alone: static; whether only the encoder of samples learns, from what the other gives the quantizers.

    Returns:
        The next state, and loss and its parts, mel and low in nats, gradient_norm, learning_rate, finite [] and
        perplexity [Q] of the step. If the loss or its gradient is not finite, the state is the old one.
    """
    config = recipe.codec
    drop_key, *kind_keys = jax.random.split(key, 3)
    keep = dropped_codebooks(
        drop_key, len(samples), config.num_codebooks, config.encoder.num_semantic_codebooks, recipe.dropout
    )

    def value(trained: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple]:
        latents = listen(trained, params, config, samples)
        said, results = say_spectra(trained, state.codebooks, params, config, latents, keep)
        losses = dict(zip(("mel", "low"), _distances(said, spectra(samples, config)), strict=True))
        losses["commitment"] = sum(result.commitment for result in results.values())
        total = losses["mel"] + recipe.low * losses["low"] + recipe.commitment * losses["commitment"]
        if recipe.teacher is not None:
            vectors, head = results["semantic"].vectors, trained[teacher.HEAD]
            losses["teacher"] = teacher.distance(vectors, head, targets)
            total += recipe.teacher.weight * losses["teacher"]
        if taught is not None:
            losses["latents"] = _latents_off(trained, taught, latents, listen(taught, params, config, samples))
            total = recipe.latents * losses["latents"] + (0.0 if alone else total)
        return total, (losses, results)

    (total, (losses, results)), gradient = jax.value_and_grad(value, has_aux=True)(state.trained)
    updates, optimizer = recipe.optimizer.optimizer(is_matrix).update(gradient, state.optimizer, state.trained)
    if alone:
        updates = {path: each if of_encoder(path) else jnp.zeros_like(each) for path, each in updates.items()}
    trained, codebooks = optax.apply_updates(state.trained, updates), state.codebooks
    size = config.encoder.codebook_size
    if not alone:
        dead_below = recipe.dead_below * samples.size / config.frame_samples / size
        codebooks = {
            kind: learn_codebooks(codebooks[kind], results[kind], one, recipe.decay, dead_below)
            for kind, one in zip(KINDS, kind_keys, strict=True)
        }
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    rate = recipe.optimizer.schedule()(state.step)
    metrics = {"loss": total, **losses, "gradient_norm": norm, "learning_rate": rate, "finite": finite}
    metrics["perplexity"] = perplexity(jnp.concatenate([results[kind].codes for kind in KINDS], axis=-1), size)
    new = SpectralState(state.step + 1, trained, codebooks, optimizer)
    return if_finite(finite, new, state), metrics


@partial(jax.jit, static_argnames="recipe")
def judge_spectra(
    state: SpectralState, params: Mapping[str, Any], samples: jax.Array, recipe: SpectralRecipe, count: jax.Array
) -> dict[str, jax.Array]:
    """Distances in nats, mel [B] and low [B], and codes int32 [B, T, Q] of samples [B, N], with `count` codebooks."""
    latents, keep = listen(state.trained, params, recipe.codec, samples), jnp.full(len(samples), count)
    said, results = say_spectra(state.trained, state.codebooks, params, recipe.codec, latents, keep)
    mel, low = jax.vmap(_distances)(said, spectra(samples, recipe.codec))
    codes = jnp.concatenate([results[kind].codes for kind in KINDS], axis=-1)
    return {"mel": mel, "low": low, "codes": codes}
