"""Trains the decoder to say what codes say, phases included: WORK/codes → OUT/codec.

    python -m recipes.mini.decoder WORK OUT --start CODEC [--data recordings-predicted.jsonl]

If codes encode phases, waveforms can be compared directly, and harmonics that magnitudes alone leave rough become
clear. But a decoder that was never told phases ignores them for long: whichever way it turns, its error stays as large
as before, and its way out leads through silence. So its front learns first, without the waveform part and in a few
minutes, to give the waveform below 950 Hz as linear read-outs of what it hands the waveform part, and to keep what it
handed over before. Then all of it learns, with the losses of `train codec`, phases below 3.5 kHz, read-outs of its
first stages, mel bands again from 0.8 to 4.5 kHz, where the judges of quality listen most, and mel bands where they
change, since words differ there. Only phases are compared, not complex spectra: the error of those is least if what
cannot be predicted is left out, which made the voice dull. Recordings are sharpened (`formants.py`), since learning
blurs, and follow the silence with which the talker begins.

Both parts write checkpoints to OUT and resume where they were interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.convert import load_codec
from qwen3_tts_jax.layers import PRECISION
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.codec.codes import GivenCodes, cut_codes, read_recording_codes, with_codes
from qwen3_tts_jax.train.codec.data import Clips, check_headers, decode_recordings, find_recordings
from qwen3_tts_jax.train.codec.forward import reconstruct_given
from qwen3_tts_jax.train.codec.job import write_codec
from qwen3_tts_jax.train.codec.loss import mel_loss, spectral_loss
from qwen3_tts_jax.train.codec.quantizer import entries
from qwen3_tts_jax.train.optimizer import OptimizerConfig, moving_average
from qwen3_tts_jax.train.soft_codes import decoder_latents
from recipes.mini.crops import behind_silence, cut_behind_silence, cut_sharpened
from recipes.mini.distances import RATES, distance_at_changes, phase_distances, read_out_target, unexplained
from recipes.mini.durations import AHEAD

_BAND_WEIGHTS = (2.0, 2.0, 1.0, 0.5)
_MEL, _MIDDLE, _CHANGES, _SPECTRAL, _READ_OUTS, _KEPT = 15.0, 10.0, 15.0, 1.0, 2.0, 0.5
_MIDDLE_BANDS, _MIDDLE_SCALES = (800.0, 4500.0), ((256, 40), (512, 80), (1024, 120))
_STAGES = {"upsample_0": "low", "upsample_1": "high", "upsample_2": "high"}
_FRONT_ROWS, _FRONT_FRAMES = 24, 56
_ROWS, _FRAMES, _CONTEXT = 12, 16, 32
_SAVE, _LOG = 200, 50

Leaves = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """What a step changes: the decoder's and the read-outs' leaves, their moving averages, the optimizer's state."""

    step: jax.Array
    trained: Leaves
    average: Leaves
    optimizer: optax.OptState


def steps_of(config: CodecConfig, stage: str) -> int:
    """How many vectors per frame a stage of the waveform part gives."""
    decoder, number = config.decoder, int(stage.removeprefix("upsample_"))
    return prod(decoder.latent_upsample_rates) * prod(decoder.upsample_rates[: number + 1])


def start(config: CodecConfig, decoder: Mapping[str, Any]) -> Leaves:
    """What is trained, before the first step: all of the decoder but its codebooks, and random read-outs."""
    rng = np.random.default_rng(0)
    trained = {
        path: jnp.array(leaf)
        for path, leaf in flatten_dict(decoder, sep="/").items()
        if path.rsplit("/", 1)[-1] not in ("embedding_sum", "cluster_usage")
    }
    per_latent = RATES["low"] // (round(config.frame_rate) * prod(config.decoder.latent_upsample_rates))
    widths = {"latents": (config.decoder.latent_width, per_latent)}
    for number, (stage, target) in enumerate(_STAGES.items()):
        per_step = RATES[target] // (round(config.frame_rate) * steps_of(config, stage))
        widths[stage] = (config.decoder.decoder_channels // 2 ** (number + 1), per_step)
    for name, shape in widths.items():
        trained[f"read_out/{name}"] = jnp.asarray(0.02 * rng.standard_normal(shape, np.float32))
    trained["kept"] = jnp.eye(config.decoder.latent_width)
    return trained


def decoder_of(leaves: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's tree."""
    own = {path: leaf for path, leaf in leaves.items() if path != "kept" and not path.startswith("read_out/")}
    return unflatten_dict({**fixed, **own}, sep="/")


def decode_crops_in_stages(
    decoder: Mapping[str, Any], codebooks: Mapping[str, Any], config: CodecConfig, given: GivenCodes, frames: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Samples of crops, see `reconstruct_given`, and what the stages of the waveform part gave for them."""
    kept: dict[str, jax.Array] = {}

    def catch(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        if context.module.name in _STAGES:
            kept[context.module.name] = result[0]
        return result

    keep = jnp.full(len(given.codes), config.num_codebooks)
    with nn.intercept_methods(catch):
        samples = reconstruct_given({"decoder": decoder}, codebooks, config, given, frames, keep)
    crops = {}
    for stage, x in kept.items():
        count = frames * steps_of(config, stage)
        # The waveform part is given a little of what comes before a crop, as far as there is any.
        before = x.shape[1] // steps_of(config, stage) - frames
        first = jnp.minimum(given.before, before) * steps_of(config, stage)
        crops[stage] = jax.vmap(lambda row, at, count=count: jax.lax.dynamic_slice_in_dim(row, at, count))(x, first)
    return samples, crops


def latents_of(
    decoder: Mapping[str, Any], codebooks: Mapping[str, Any], config: CodecConfig, codes: jax.Array
) -> jax.Array:
    """What the front hands the waveform part for codes [B, T, Q], [B, T·rates, `latent_width`]."""
    tables = [table for kind in ("semantic", "acoustic") for table in entries(codebooks[kind])]
    split = config.decoder.num_semantic_codebooks

    def of_decoder(module: SplitResidualQuantizer) -> jax.Array:
        vectors = [table[codes[..., number]] for number, table in enumerate(tables)]
        first = module.semantic.output_projection(sum(vectors[:split]))
        return first + module.acoustic.output_projection(sum(vectors[split:]))

    return decoder_latents(decoder, config.decoder, codes.shape, of_decoder)


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, weight, precision=PRECISION)


def front_losses(
    trained: Leaves, before: Leaves, rest: Mapping[str, Any], config: CodecConfig, batch: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The front's loss [] and its parts; `batch` is codes [B, T, Q], which frames exist [B, T], and the targets."""
    codes, there = batch["codes"], batch["there"]
    latents = latents_of(decoder_of(trained, rest["fixed"]), rest["codebooks"], config, codes)
    old = latents_of(decoder_of(before, rest["fixed"]), rest["codebooks"], config, codes)
    scale = jnp.std(old, axis=(0, 1)) + 1e-3
    said = _product(latents, trained["read_out/latents"]).reshape(len(codes), -1)
    heard = jnp.repeat(there, said.shape[1] // there.shape[1], axis=1)
    held = jnp.repeat(there, old.shape[1] // there.shape[1], axis=1)[..., None]
    off = ((_product(latents, trained["kept"]) - old) / scale) ** 2 * held
    losses = {"read_outs": unexplained(said * heard, batch["low"] * heard), "kept": jnp.mean(off)}
    return losses["read_outs"] + _KEPT * losses["kept"], losses


def all_losses(
    trained: Leaves, before: Leaves, rest: Mapping[str, Any], config: CodecConfig, batch: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The decoder's loss [] and its parts; `batch` is samples [B, N], their given codes, and the targets."""
    samples, rate = batch["samples"], config.sample_rate
    frames = samples.shape[1] // config.frame_samples
    decoder = decoder_of(trained, rest["fixed"])
    made, stages = decode_crops_in_stages(decoder, rest["codebooks"], config, batch["given"], frames)
    said = {stage: _product(x, trained[f"read_out/{stage}"]).reshape(len(samples), -1) for stage, x in stages.items()}
    losses = {
        "mel": mel_loss(made, samples, rate),
        "middle": mel_loss(made, samples, rate, _MIDDLE_SCALES, _MIDDLE_BANDS),
        "changes": distance_at_changes(made, samples, rate),
        "spectral": spectral_loss(made, samples),
        "phases": phase_distances(made, samples, rate),
        "read_outs": jnp.stack([unexplained(said[stage], batch[target]) for stage, target in _STAGES.items()]),
    }
    total = _MEL * losses["mel"] + _MIDDLE * losses["middle"] + _SPECTRAL * losses["spectral"]
    total += _CHANGES * losses["changes"] + _READ_OUTS * jnp.sum(losses["read_outs"])
    return total + jnp.sum(jnp.array(_BAND_WEIGHTS) * losses["phases"]), losses


@partial(jax.jit, static_argnames=("losses_of", "config", "optimizer", "decay"), donate_argnames="state")
def step(
    state: State, before: Leaves, rest: Mapping[str, Any], batch: Mapping[str, Any], losses_of: Callable,
    config: CodecConfig, optimizer: optax.GradientTransformation, decay: float,
) -> tuple[State, dict[str, jax.Array]]:  # fmt: skip
    """One step; `losses_of` is `front_losses` or `all_losses`."""
    (_, losses), gradient = jax.value_and_grad(losses_of, has_aux=True)(state.trained, before, rest, config, batch)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    average = moving_average(state.average, trained, state.step, decay)
    return State(state.step + 1, trained, average, optimizer_state), losses


@cache
def optimizer_of(front: bool, steps: int, rate: float) -> optax.GradientTransformation:
    """The optimizer, cached so that `step` is compiled once; Muon for matrices and kernels if not `front`."""
    kind, clip = ("adamw", 1.0) if front else ("muon", 1000.0)
    return OptimizerConfig(rate, steps, min(50, steps // 2), 0.1, 1e-3, (0.8, 0.99), clip, kind).optimizer(_is_matrix)


def _is_matrix(path: str, leaf: jax.Array) -> bool:
    return leaf.ndim > 1 and not path.startswith("read_out/") and min(prod(leaf.shape[:-1]), leaf.shape[-1]) > 1


def batch_of(clips: Clips, number: int, front: bool, config: CodecConfig) -> dict[str, Any]:
    """The batch of a step, determined by its number; `clips` are those of `behind_silence`."""
    rows, frames, starts = (_FRONT_ROWS, _FRONT_FRAMES, 0.3) if front else (_ROWS, _FRAMES, 0.25)
    length, silent = frames * config.frame_samples, AHEAD * config.frame_samples
    places = clips.places(number, rows, length, int(front), starts)
    places = [(which, first and first + silent) for which, first in places]
    given = cut_codes(clips, places, frames, 0 if front else _CONTEXT)
    samples = (cut_behind_silence if front else cut_sharpened)(clips, places, length)
    names = ("low",) if front else tuple(RATES)
    targets = {name: read_out_target(samples, config.sample_rate, name) for name in names}
    if front:
        there = (np.arange(frames) < given.ends[:, None]).astype(np.float32)
        return {**targets, "codes": given.codes, "there": there}
    return {**targets, "samples": samples, "given": given}


def train(
    before: Leaves, rest: Mapping[str, Any], clips: Clips, config: CodecConfig, part: str, steps: int, rate: float,
    output: Path, settings: Mapping[str, Any],
) -> State:  # fmt: skip
    """Trains a part, "front" or "all", to `steps`, from its last checkpoint, if there is one; `settings` must agree."""
    front = part == "front"
    optimizer = optimizer_of(front, steps, rate)
    # Copies, since steps donate their state.
    state = jax.tree.map(jnp.copy, State(jnp.zeros((), jnp.int32), before, before, optimizer.init(before)))
    checkpoints = Checkpoints(output / part, {**settings, "steps": steps, "learning_rate": rate})
    state = checkpoints.resume(state)
    began, sums = time.perf_counter(), []
    for number in range(int(state.step), steps):
        batch = batch_of(clips, number, front, config)
        losses_of, decay = (front_losses, 0.0) if front else (all_losses, 0.998)
        state, losses = step(state, before, rest, batch, losses_of, config, optimizer, decay)
        sums.append(jax.device_get(losses))
        if (number + 1) % _LOG == 0 or number + 1 == steps:
            means = jax.tree.map(lambda *values: np.round(np.mean(values, axis=0), 4).tolist(), *sums)
            seconds = round(time.perf_counter() - began, 1)
            print(json.dumps({"part": part, "step": number + 1, **means, "seconds": seconds}), flush=True)
            sums = []
        if (number + 1) % _SAVE == 0 or number + 1 == steps:
            checkpoints.save(state, number + 1)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="a codec's folder")
    parser.add_argument("--data", default="recordings-lines.jsonl", help="in WORK/codes")
    parser.add_argument("--front-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    config, output = hf_config.read_codec(arguments.start), arguments.output
    params = load_codec(arguments.start, config)
    output.mkdir(parents=True, exist_ok=True)
    recordings = find_recordings(arguments.work / "codes" / arguments.data)
    codes = read_recording_codes(recordings, check_headers(recordings), config)
    clips = with_codes(decode_recordings(recordings, output / "cache", config.sample_rate), codes, config.frame_samples)
    said = np.load(arguments.work / "codes" / "said.npz")
    clips = behind_silence(clips, said[said.files[0]][:AHEAD])
    quantizer = params["decoder"]["quantizer"]
    names = ("embedding_sum", "cluster_usage")
    rest = {
        "codebooks": {
            kind: {name: jnp.asarray(quantizer[kind][name]) for name in names} for kind in ("semantic", "acoustic")
        },
        "fixed": {
            path: jnp.asarray(leaf)
            for path, leaf in flatten_dict(params["decoder"], sep="/").items()
            if path.rsplit("/", 1)[-1] in names
        },
    }
    settings = {"start": str(arguments.start.resolve()), "data": arguments.data, "front_steps": arguments.front_steps}
    parts = rest, clips, config
    first = start(config, params["decoder"])
    front = train(first, *parts, "front", arguments.front_steps, 1.5e-3, output, settings)
    state = train(front.trained, *parts, "all", arguments.steps, arguments.learning_rate, output, settings)
    decoder = jax.device_get(decoder_of(state.average, rest["fixed"]))
    write_codec(output / "codec", {**params, "decoder": decoder}, config)


if __name__ == "__main__":
    main()
