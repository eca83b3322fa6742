"""A codec that learns from spectra: an encoder of spectra, the codec's quantizers, and its decoder's front.

For training only: of what learns here, the codebooks and the decoder up to its first convolution are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.mel import mel_filterbank
from qwen3_tts_jax.text.phonemes import CONSONANTS, PAUSES, VOWELS
from qwen3_tts_jax.train.codec.loss import magnitudes
from qwen3_tts_jax.train.codec.quantizer import (
    Quantized,
    dropped_codebooks,
    learn_codebooks,
    quantize_residuals,
    share_codebooks,
)
from qwen3_tts_jax.train.codec.spectra import SpectralEncoder
from qwen3_tts_jax.train.soft_codes import decoder_latents

KINDS = ("semantic", "acoustic")
BANDS, BINS = 80, 160
"""Mel bands four times a frame, and bins of 10 Hz up to 1.6 kHz twice a frame, which show the pitch."""
PHONEMES = VOWELS + CONSONANTS + PAUSES
"""What a frame may say: label 1 is the first. Label 0 means that a frame says no second one."""
SAID = 2
"""How many of them may share a frame."""
WAVEFORM = ("conv_in", "upsample_", "snake_out", "conv_out")
"""How paths of the decoder's waveform part begin."""
_LABELS = 0.4


def spectral_encoder(config: CodecConfig) -> SpectralEncoder:
    """The encoder: spectra [B, T, 640] of frames → latents."""
    return SpectralEncoder(config.encoder.transformer.width, width=384, layers=3)


@flax.struct.dataclass
class State:
    """What a step changes: the trained leaves, the codebooks, the optimizer's state."""

    step: jax.Array
    trained: dict[str, jax.Array]
    codebooks: dict[str, dict[str, jax.Array]]
    optimizer: optax.OptState


def spectra(samples: jax.Array, config: CodecConfig) -> tuple[jax.Array, jax.Array]:
    """Log-mel bands [B, 4 T, 80] and log magnitudes of low bins [B, 2 T, 160] of samples [B, T·1200]."""
    windows = config.frame_samples, 2 * config.frame_samples

    def around(size: int) -> jax.Array:
        # A window's middle is the middle of its hop.
        padding = size * 3 // 8
        return magnitudes(jnp.pad(samples, ((0, 0), (padding, padding))), size)

    filters = mel_filterbank(config.sample_rate, windows[0], BANDS)
    # Anything quieter than this is not worth codes.
    mel = jnp.log(jnp.einsum("btf,mf->btm", around(windows[0]), filters) + 2e-3)
    low = jnp.log(around(windows[1])[..., 1 : BINS + 1] / 30 + 1e-2)
    return mel, low


def forward(
    state_trained: Mapping[str, jax.Array],
    codebooks: Mapping[str, Mapping[str, jax.Array]],
    params: Mapping[str, Any],
    config: CodecConfig,
    samples: jax.Array,
    keep: jax.Array,
) -> tuple[dict[str, Quantized], jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """Quantized latents, both spectra as reproduced, logits of labels [B, T, 2, V], and both true spectra."""
    trees = unflatten_dict(flatten_dict({"decoder": params["decoder"]}, sep="/") | dict(state_trained), sep="/")
    mel, low = spectra(samples, config)
    batch, frames = len(samples), samples.shape[1] // config.frame_samples
    heard = jnp.concatenate([(each + 2.5).reshape(batch, frames, -1) * 0.5 for each in (mel, low)], axis=-1)
    latents = spectral_encoder(config).apply({"params": trees["spectral"]}, heard)
    split = config.encoder.num_semantic_codebooks
    kept = {"semantic": jnp.minimum(keep, split), "acoustic": keep - split}
    results = {
        kind: quantize_residuals(codebooks[kind], latents @ trees["input_projection"][kind].T, kept[kind])
        for kind in KINDS
    }

    def of_decoder(module: SplitResidualQuantizer) -> jax.Array:
        return sum(getattr(module, kind).output_projection(results[kind].vectors) for kind in KINDS)

    shape = (batch, frames, config.num_codebooks)
    said = decoder_latents(trees["decoder"], config.decoder, shape, of_decoder)
    said = said @ trees["readout"]["weight"].T + trees["readout"]["bias"]
    said_mel, said_low = said[..., : -_low_outputs(config)], said[..., -_low_outputs(config) :]
    labels = results["semantic"].vectors @ trees["labels"]["weight"].T + trees["labels"]["bias"]
    labels = labels.reshape(batch, frames, SAID, len(PHONEMES) + 1)
    return results, said_mel.reshape(mel.shape), said_low.reshape(low.shape), labels, (mel, low)


def _low_outputs(config: CodecConfig) -> int:
    """How many of each latent's outputs belong to the low bins."""
    return 2 * BINS // prod(config.decoder.latent_upsample_rates)


def start(config: CodecConfig, params: Mapping[str, Any], optimizer: optax.GradientTransformation) -> State:
    """The state before the first step: the decoder up to its waveform part, and what only training needs."""
    fresh, rng = jax.random.key(0), np.random.default_rng(0)
    leaves = flatten_dict({"decoder": params["decoder"]}, sep="/")
    codebook_leaves = ("embedding_sum", "cluster_usage", "initialized")
    trained = {
        path: jnp.array(leaf)
        for path, leaf in leaves.items()
        if not path.removeprefix("decoder/").startswith(WAVEFORM) and path.rsplit("/", 1)[-1] not in codebook_leaves
    }
    spectral = spectral_encoder(config).init(fresh, jnp.zeros((1, 4, 4 * BANDS + 2 * BINS)))
    trained |= flatten_dict({"spectral": spectral["params"]}, sep="/")
    for kind in KINDS:
        trained[f"input_projection/{kind}"] = jnp.array(
            params["encoder"]["quantizer"][kind]["input_projection"]["weight"]
        )
    outputs = 4 * BANDS // prod(config.decoder.latent_upsample_rates) + _low_outputs(config)
    trained["readout/weight"] = jnp.array(
        0.05 * rng.standard_normal((outputs, config.decoder.latent_width)), jnp.float32
    )
    trained["readout/bias"] = jnp.full(outputs, -2.0)
    labels = SAID * (len(PHONEMES) + 1)
    trained["labels/weight"] = jnp.array(0.05 * rng.standard_normal((labels, config.encoder.codebook_dim)), jnp.float32)
    trained["labels/bias"] = jnp.zeros(labels)
    split = config.encoder.num_semantic_codebooks
    shape = (config.encoder.codebook_size, config.encoder.codebook_dim)
    codebooks = {
        kind: {"embedding_sum": jnp.zeros((count, *shape)), "cluster_usage": jnp.zeros((count, shape[0]))}
        for kind, count in (("semantic", split), ("acoustic", config.num_codebooks - split))
    }
    return State(jnp.zeros((), jnp.int32), trained, codebooks, optimizer.init(trained))


@partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnames="state")
def step(
    state: State,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    config: CodecConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[State, dict[str, jax.Array]]:
    """One step; `batch` is samples [B, N], frames [B], labels [B, T, 2]."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.step), 3)
    samples, frames, labels = batch["samples"], batch["frames"], batch["labels"]
    split = config.encoder.num_semantic_codebooks
    keep = dropped_codebooks(keys[0], len(samples), config.num_codebooks, split, 0.5)

    def value(trained: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple]:
        results, mel, low, logits, (true_mel, true_low) = forward(
            trained, state.codebooks, params, config, samples, keep
        )

        def distance(said: jax.Array, true: jax.Array) -> jax.Array:
            per_frame = jnp.mean(jnp.abs(said - true).reshape(*frame_there.shape, -1), axis=-1)
            return jnp.sum(per_frame * frame_there) / jnp.sum(frame_there)

        frame_there = jnp.arange(samples.shape[1] // config.frame_samples) < frames[:, None]
        losses = {"mel": distance(mel, true_mel), "low": distance(low, true_low)}
        losses["commitment"] = sum(result.commitment for result in results.values())
        missed = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        losses["labels"] = jnp.sum(missed.mean(axis=-1) * frame_there) / jnp.sum(frame_there)
        total = losses["mel"] + 0.5 * losses["low"] + 0.25 * losses["commitment"] + _LABELS * losses["labels"]
        return total, (losses, results)

    (_, (losses, results)), gradient = jax.value_and_grad(value, has_aux=True)(state.trained)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
    dead_below = 0.1 * samples.size / config.frame_samples / config.encoder.codebook_size
    codebooks = {
        kind: learn_codebooks(state.codebooks[kind], results[kind], key, 0.99, dead_below)
        for kind, key in zip(KINDS, keys[1:], strict=True)
    }
    trained = optax.apply_updates(state.trained, updates)
    return State(state.step + 1, trained, codebooks, optimizer_state), losses


@partial(jax.jit, static_argnames="config")
def encode(state: State, params: Mapping[str, Any], samples: jax.Array, config: CodecConfig) -> dict[str, jax.Array]:
    """Codes int32 [B, T, Q], how far the spectra that they say are off, and the labels that code 0 says."""
    keep = jnp.full(len(samples), config.num_codebooks)
    results, mel, low, logits, true = forward(state.trained, state.codebooks, params, config, samples, keep)
    codes = jnp.concatenate([results[kind].codes for kind in KINDS], axis=-1)
    off = [
        jnp.mean(jnp.abs(a - b).reshape(len(samples), codes.shape[1], -1), axis=-1)
        for a, b in ((mel, true[0]), (low, true[1]))
    ]
    return {"codes": codes, "labels": jnp.argmax(logits, axis=-1), "mel": off[0], "low": off[1]}


def finished(state: State, params: Mapping[str, Any], config: CodecConfig) -> dict[str, Any]:
    """The trees encoder and decoder with what was learnt."""
    leaves = flatten_dict({part: params[part] for part in ("encoder", "decoder")}, sep="/")
    leaves |= {path: leaf for path, leaf in state.trained.items() if path.startswith("decoder/")}
    for kind in KINDS:
        for name, leaf in state.codebooks[kind].items():
            path = f"encoder/quantizer/{kind}/{name}"
            leaves[path] = jnp.asarray(leaves[path]).at[: len(leaf)].set(leaf)
        leaves[f"encoder/quantizer/{kind}/input_projection/weight"] = state.trained[f"input_projection/{kind}"]
    return share_codebooks(unflatten_dict(leaves, sep="/"), config.num_codebooks)
