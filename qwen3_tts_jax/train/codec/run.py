"""Training a codec: the steps of `train.loop.run_steps` on crops of recordings, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.train.codec.codes import GivenCodes, cut_codes
from qwen3_tts_jax.train.codec.data import Clips
from qwen3_tts_jax.train.codec.step import CodecRecipe, CodecState, codec_step, finish_codec, judge, start_codec
from qwen3_tts_jax.train.codec.teacher import Features
from qwen3_tts_jax.train.loop import Stepped, run_steps
from qwen3_tts_jax.train.progress import Schedule

_SCHEDULE = Schedule()


@dataclass(frozen=True)
class Crops:
    """How steps cut recordings; see `data.Clips.places`.

    Attributes:
        rows: crops per step.
        samples: of each.
        starts: part of them that begin where their recording begins.
        seed: of their places, and of all else that is random.
        context: frames before a crop that the decoder is given too, where codes are given.
    """

    rows: int
    samples: int
    starts: float = 0.1
    seed: int = 0
    context: int = 0


@dataclass(frozen=True)
class CodecResult:
    """What a run ends with.

    Attributes:
        params: the trees encoder and decoder: the best by validation where there was one, else the last.
        state: what they were assembled from.
        step: steps they have seen.
        mel: their mel distance on the validation data, or that of the last training step.
        ended_early: whether patience ran out.
    """

    params: dict[str, Any]
    state: CodecState
    step: int
    mel: float
    ended_early: bool


def fit_codec(
    params: Mapping[str, Any],
    recipe: CodecRecipe,
    data: Clips,
    crops: Crops,
    folder: str | Path,
    *,
    fresh: bool = True,
    features: Features | None = None,
    validation: Clips | None = None,
    schedule: Schedule = _SCHEDULE,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    speak: Callable[[dict[str, Any], int], None] | None = None,
) -> CodecResult:
    """Trains for `recipe.optimizer.steps` steps, resuming where a run in `folder` was interrupted.

    Numbers go to `folder`/log.jsonl, one JSON object per line; checkpoints to `folder`/checkpoints. A resumed run has
    the same parameters, bit for bit, as one that was never interrupted.

    Args:
        params: the trees encoder and decoder to start from.
        recipe: what is trained and how.
        data: to learn from; if it has codes, the decoder alone learns from them.
        crops: how it is cut.
        folder: of the run.
        fresh: forget the codebooks of `params`.
        features: of `data`, where the recipe has a teacher.
        validation: recordings to judge by, a crop from the middle of each; the best state is kept. They have codes
            if `data` has.
        schedule: what happens when.
        settings: more JSON values that a checkpoint must agree with.
        report: called with every line of the log.
        speak: called as speak(params, step) to write samples.

    Raises:
        DivergedError, train.interrupts.Interrupted, train.state_files.RunError: as `train.loop.run_steps`.
    """
    key = jax.random.key(crops.seed)

    def places(step: int) -> list[tuple[int, int]]:
        return data.places(step, crops.rows, crops.samples, crops.seed, crops.starts)

    def batch_of(step: int) -> tuple[np.ndarray, np.ndarray | None, GivenCodes | None]:
        some, targets = places(step), None
        if features is not None:
            frame_samples = recipe.codec.frame_samples
            targets = features.targets(some, crops.samples // frame_samples, data.sample_rate, frame_samples)
        return data.cut(some, crops.samples), targets, _given(data, some, recipe, crops)

    def advance(state: CodecState, step: int, batch: tuple) -> Stepped[CodecState]:
        samples, targets, given = batch
        against = recipe.discriminator is not None and step >= recipe.discriminator.start
        state, metrics = codec_step(
            state, params, samples, jax.random.fold_in(key, step), recipe, targets=targets, against=against, given=given
        )
        return Stepped(state, metrics, crops.rows * crops.samples / data.sample_rate, program=against)

    def judged(state: CodecState) -> tuple[dict[str, Any], float]:
        numbers = evaluate_codec(state, params, recipe, validation, crops)
        return {f"validation_{name}": value for name, value in numbers.items()}, numbers["mel"]

    ended = run_steps(
        start_codec(params, recipe, fresh=fresh, seed=crops.seed),
        batch_of,
        advance,
        folder,
        describe_codec(recipe, crops) | dict(settings or {}),
        recipe.optimizer.steps,
        names=lambda step: data.names(places(step)),
        unit="audio_seconds",
        metric="mel",
        judge=None if validation is None else judged,
        speak=speak and (lambda state, step: speak(finish_codec(state, params, recipe), step)),
        schedule=schedule,
        report=report,
    )
    return CodecResult(finish_codec(ended.state, params, recipe), ended.state, ended.step, ended.value, ended.early)


def _given(clips: Clips, places: list[tuple[int, int]], recipe: CodecRecipe, crops: Crops) -> GivenCodes | None:
    if clips.codes is None:
        return None
    return cut_codes(clips, places, crops.samples // recipe.codec.frame_samples, crops.context)


def evaluate_codec(
    state: CodecState, params: Mapping[str, Any], recipe: CodecRecipe, clips: Clips, crops: Crops
) -> dict[str, Any]:
    """Mean mel distance and each codebook's perplexity, over a crop from the middle of each recording."""
    places = clips.middles(crops.samples)
    mels, codes = [], []
    for first in range(0, len(places), crops.rows):
        some = places[first : first + crops.rows]
        # The last batch is padded to the compiled shape.
        filled = some + some[:1] * (crops.rows - len(some))
        given = _given(clips, filled, recipe, crops)
        judged = jax.device_get(judge(state, params, clips.cut(filled, crops.samples), recipe, given))
        mels.append(judged["mel"][: len(some)])
        codes.append(judged["codes"][: len(some)].reshape(-1, recipe.codec.num_codebooks))
    mel = float(np.concatenate(mels).astype(np.float64).mean())
    return {"mel": mel, "perplexity": used_codes(np.concatenate(codes), recipe.codec.encoder.codebook_size)}


def used_codes(codes: np.ndarray, size: int) -> list[float]:
    """Perplexity of each codebook, of `size` entries, in codes int [N, Q]."""
    found = []
    for counts in (np.bincount(book, minlength=size) for book in codes.T):
        parts = counts[counts > 0] / counts.sum()
        found.append(float(np.exp(-np.sum(parts * np.log(parts)))))
    return found


def describe_codec(recipe: CodecRecipe, crops: Crops) -> dict[str, Any]:
    """What a checkpoint of a run must agree with, as JSON values."""
    fields = asdict(recipe) | {"codec": repr(recipe.codec)}
    # Left out where it is 0, so that runs of versions without it can be resumed.
    context = [crops.context] if crops.context else []
    return fields | {"crops": [crops.rows, crops.samples, crops.starts, crops.seed, *context]}
