"""The loop of teaching a codec to say spectra: steps, numbers, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.codec_data import Clips
from qwen3_tts_jax.train.codec_run import Crops, used_codes
from qwen3_tts_jax.train.codec_spectral import (
    SpectralRecipe,
    SpectralState,
    judge_spectra,
    spectral_step,
    start_spectra,
)
from qwen3_tts_jax.train.codec_teacher import Features
from qwen3_tts_jax.train.progress import Log, Schedule, plain

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
    """Trains to the end of `recipe.optimizer.steps`, or goes on where a run in `folder` was interrupted.

    Files, arguments and errors are those of `codec_run.fit_codec`. Lines of the log have "phase", what the encoder
    hears. Nothing ends early: `validation` is looked at with all codebooks and with the first half of them. `taught` is
    the last state of the encoder of spectra, for an encoder of samples. A run that was finished gives its state again.
    """
    last = recipe.optimizer.steps
    state = start_spectra(params, recipe, taught, crops.seed)
    checkpoints = Checkpoints(folder, describe_spectra(recipe, crops) | dict(settings or {}))
    state = checkpoints.resume(state)
    log = Log(Path(folder) / "log.jsonl", int(state.step), report)
    key, step = jax.random.key(crops.seed), int(state.step)
    teaching = None if taught is None else taught.trained
    clock, steps, frame_samples = time.perf_counter(), 0, recipe.codec.frame_samples
    while step < last:
        places = data.places(step, crops.rows, crops.samples, crops.seed, crops.starts)
        targets = None
        if features is not None:
            targets = features.targets(places, crops.samples // frame_samples, data.sample_rate, frame_samples)
        samples = data.cut(places, crops.samples)
        state, metrics = spectral_step(
            state, params, samples, jax.random.fold_in(key, step), recipe, taught=teaching,
            targets=targets, alone=step < recipe.alone,
        )  # fmt: skip
        metrics = jax.device_get(metrics)
        if not metrics.pop("finite"):
            raise checkpoints.diverged(state, step, metrics, data.names(places))
        step, steps = step + 1, steps + 1
        if schedule.due("log", step, last):
            seconds, audio = time.perf_counter() - clock, steps * crops.rows * crops.samples / data.sample_rate
            log.write(
                {"phase": recipe.hears, "step": step, **plain(metrics), "seconds": seconds, "audio_seconds": audio}
            )
            clock, steps = time.perf_counter(), 0
        began = time.perf_counter()
        if validation is not None and schedule.due("evaluate", step, last):
            numbers = evaluate_spectra(state, params, recipe, validation, crops)
            log.write({"phase": recipe.hears, "step": step, **{f"validation_{name}": n for name, n in numbers.items()}})
        if schedule.due("save", step, last) or step == last:
            checkpoints.save(state, step)
        # The log's seconds are those of steps.
        clock += time.perf_counter() - began
    return state


def evaluate_spectra(
    state: SpectralState, params: Mapping[str, Any], recipe: SpectralRecipe, clips: Clips, crops: Crops
) -> dict[str, Any]:
    """Mean distance of mel bands in nats, mel, of a crop from the middle of each recording, with half of the codebooks
    half_mel; and perplexity of each codebook.
    """
    places, count = clips.middles(crops.samples), recipe.codec.num_codebooks
    mels: dict[int, list[np.ndarray]] = {count: [], count // 2: []}
    codes = []
    for first in range(0, len(places), crops.rows):
        some = places[first : first + crops.rows]
        # The last batch is filled up to the compiled shape.
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
