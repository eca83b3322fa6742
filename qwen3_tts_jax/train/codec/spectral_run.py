"""Teaching a codec to say spectra: the steps of `train.loop.run_steps`, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.train.codec.data import Clips
from qwen3_tts_jax.train.codec.run import Crops, used_codes
from qwen3_tts_jax.train.codec.spectral import SpectralRecipe, SpectralState, start_spectra
from qwen3_tts_jax.train.codec.spectral_step import judge_spectra, spectral_step
from qwen3_tts_jax.train.codec.teacher import Features
from qwen3_tts_jax.train.loop import Stepped, run_steps
from qwen3_tts_jax.train.progress import Schedule

_SCHEDULE = Schedule()


def fit_spectra(
    params: Mapping[str, Any],
    recipe: SpectralRecipe,
    data: Clips,
    crops: Crops,
    folder: str | Path,
    *,
    taught: SpectralState | None = None,
    features: Features | None = None,
    validation: Clips | None = None,
    schedule: Schedule = _SCHEDULE,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> SpectralState:
    """Trains for `recipe.optimizer.steps` steps, resuming where a run in `folder` was interrupted.

    Files, arguments and errors are those of `run.fit_codec`. Lines of the log have "phase", what the encoder
    hears. `validation` only adds numbers, with all codebooks and with the first half of them: nothing ends early.
    `taught` is, for an encoder of samples, the last state of the encoder of spectra. A finished run returns its state
    again.
    """
    key, frame_samples = jax.random.key(crops.seed), recipe.codec.frame_samples
    teaching = None if taught is None else taught.trained

    def places(step: int) -> list[tuple[int, int]]:
        return data.places(step, crops.rows, crops.samples, crops.seed, crops.starts)

    def batch_of(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        some, targets = places(step), None
        if features is not None:
            targets = features.targets(some, crops.samples // frame_samples, data.sample_rate, frame_samples)
        return data.cut(some, crops.samples), targets

    def advance(state: SpectralState, step: int, batch: tuple) -> Stepped[SpectralState]:
        (samples, targets), alone = batch, step < recipe.alone
        state, metrics = spectral_step(
            state, params, samples, jax.random.fold_in(key, step), recipe, taught=teaching,
            targets=targets, alone=alone,
        )  # fmt: skip
        return Stepped(state, metrics, crops.rows * crops.samples / data.sample_rate, program=alone)

    def judge(state: SpectralState) -> tuple[dict[str, Any], None]:
        numbers = evaluate_spectra(state, params, recipe, validation, crops)
        return {f"validation_{name}": value for name, value in numbers.items()}, None

    ended = run_steps(
        start_spectra(params, recipe, taught, crops.seed),
        batch_of,
        advance,
        folder,
        describe_spectra(recipe, crops) | dict(settings or {}),
        recipe.optimizer.steps,
        names=lambda step: data.names(places(step)),
        unit="audio_seconds",
        judge=None if validation is None else judge,
        schedule=schedule,
        report=report,
        phase=recipe.hears,
    )
    return ended.state


def evaluate_spectra(
    state: SpectralState, params: Mapping[str, Any], recipe: SpectralRecipe, clips: Clips, crops: Crops
) -> dict[str, Any]:
    """Over a crop from the middle of each recording: mel, the mean distance of mel bands in nats, half_mel, the same
    with half of the codebooks, and each codebook's perplexity.
    """
    places, count = clips.middles(crops.samples), recipe.codec.num_codebooks
    mels: dict[int, list[np.ndarray]] = {count: [], count // 2: []}
    codes = []
    for first in range(0, len(places), crops.rows):
        some = places[first : first + crops.rows]
        # The last batch is padded to the compiled shape.
        samples = clips.cut(some + some[:1] * (crops.rows - len(some)), crops.samples)
        for used, found in mels.items():
            judged = jax.device_get(judge_spectra(state, params, samples, recipe, used))
            found.append(judged["mel"][: len(some)])
        codes.append(judged["codes"][: len(some)].reshape(-1, count))
    means = {used: float(np.concatenate(found).astype(np.float64).mean()) for used, found in mels.items()}
    perplexity = used_codes(np.concatenate(codes), recipe.codec.encoder.codebook_size)
    return {"mel": means[count], "half_mel": means[count // 2], "perplexity": perplexity}


def describe_spectra(recipe: SpectralRecipe, crops: Crops) -> dict[str, Any]:
    """What a checkpoint of a run must agree with, as JSON values."""
    fields = asdict(recipe) | {"codec": repr(recipe.codec)}
    return fields | {"crops": [crops.rows, crops.samples, crops.starts, crops.seed]}
