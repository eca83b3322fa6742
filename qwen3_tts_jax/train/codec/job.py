"""Training a codec: from recordings to a folder that `SpeechTokenizer` and the official package load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax import audio, hf_config, hf_export
from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.convert import export_codec, load_codec, resolve_codec
from qwen3_tts_jax.files import completed_folder
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.codec.codes import read_recording_codes, with_codes
from qwen3_tts_jax.train.codec.data import Clips, Recording, check_headers, decode_recordings, find_recordings
from qwen3_tts_jax.train.codec.run import CodecResult, Crops, describe_codec, fit_codec
from qwen3_tts_jax.train.codec.spectral import SpectralRecipe, finish_spectra
from qwen3_tts_jax.train.codec.spectral_run import describe_spectra, fit_spectra
from qwen3_tts_jax.train.codec.start import random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe
from qwen3_tts_jax.train.codec.teacher import Features, Teacher, read_features
from qwen3_tts_jax.train.codec.training import CodecTraining
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.progress import Progress, check_places

CODEC, CACHE, SAMPLES, PHASES = "codec", "cache", "samples", "spectral"
_SAMPLES, _SAMPLE_SECONDS = 3, 6.0


@dataclass(frozen=True)
class CodecJob:
    """A run whose input has been checked, before any sample is decoded; `prepare_codec` makes it.

    Attributes:
        output: folder of the run.
        cache: folder of decoded recordings.
        training: as it was given.
        recipe: `training`'s, with the teacher where there are no spectra.
        spectral: `training`'s, with the teacher.
        crops: how steps cut recordings.
        features: the teacher's.
        codes: int32 [T, Q] of each of `recordings` and then of `validation`, if they have codes.
        settings: what checkpoints must agree with.
    """

    output: Path
    cache: Path
    training: CodecTraining
    recipe: CodecRecipe
    spectral: tuple[SpectralRecipe, ...]
    crops: Crops
    recordings: list[Recording]
    validation: list[Recording]
    features: Features | None
    codes: tuple[np.ndarray, ...] | None
    settings: dict[str, Any]


def codec_to_start_from(model: str | Path) -> tuple[Path, CodecConfig]:
    """Folder and shape of a codec, named in any way that `SpeechTokenizer.from_pretrained` takes."""
    folder = resolve_codec(model, None, None, None)
    return folder, hf_config.read_codec(folder)


def prepare_codec(
    data: str | Path,
    output: str | Path,
    training: CodecTraining,
    validation: str | Path | None = None,
    features: str | Path | None = None,
    cache: str | Path | None = None,
) -> CodecJob:
    """Checks all that can be checked without decoding.

    Args:
        data: a folder or JSON lines, see `data.find_recordings`.
        output: folder of the run; one that was interrupted is continued.
        training: the run.
        validation: more such recordings, to judge by.
        features: a folder of a teacher's features of `data`; without it, the lines of `data` name them.
        cache: folder of decoded recordings; `output`/cache by default.

    Raises:
        train.lines.DataError: see `data.find_recordings` and `check_headers`, `codes.read_recording_codes`, and
            `teacher.read_features`.
        FileExistsError, PermissionError: as `train.progress.check_places`, for `output`/codec.
        train.state_files.RunError: `output` holds a run with other settings or other data.
        ConfigError: as `CodecTraining.crops`; recordings with codes where more than the decoder learns; or recordings
            without codes where the decoder alone learns and the encoder is not trained.
    """
    output = Path(output)
    cache = output / CACHE if cache is None else Path(cache)
    check_places(output / CODEC, cache)
    recordings = find_recordings(data, features)
    held_out = [] if validation is None else find_recordings(validation)
    everything = [*recordings, *held_out]
    recipe, spectral, taught = training.recipe, training.spectral, None
    if not recipe.decoder_only:
        recipe = replace(recipe, codec=replace(recipe.codec, encoder_trained=True))
    with_them = [recording for recording in everything if recording.codes is not None]
    crops = training.crops(given_codes=bool(with_them))
    if with_them and (spectral or not recipe.decoder_only):
        raise ConfigError(f"{with_them[0].where} has codes: the decoder alone can learn from them (--decoder-only)")
    if recipe.decoder_only and not spectral and not with_them:
        recipe.codec.require_encoder()
    lengths = check_headers(everything)
    codes = read_recording_codes(everything, lengths, recipe.codec)
    if training.feature_rate is not None:
        taught = read_features(recordings, lengths[: len(recordings)], training.feature_rate)
        teacher = Teacher(taught.width, training.teacher_weight)
        if spectral:
            spectral = tuple(replace(one, teacher=teacher) for one in spectral)
        else:
            recipe = replace(recipe, teacher=teacher)
    content = json.dumps([[one.audio.name, one.audio.stat().st_size] for one in everything])
    digest = hashlib.sha256(content.encode())
    for one in codes or ():
        digest.update(one.tobytes())
    settings = {
        "data": digest.hexdigest(),
        "feature_rate": training.feature_rate,
        "spectral": [describe_spectra(one, crops) for one in spectral],
    }
    for one in spectral:
        Checkpoints(output / PHASES / one.hears, describe_spectra(one, crops) | settings).check()
    Checkpoints(output, describe_codec(recipe, crops) | settings).check()
    return CodecJob(output, cache, training, recipe, spectral, crops, recordings, held_out, taught, codes, settings)


def check_without_codec(
    data: str | Path,
    output: str | Path,
    training: CodecTraining | None,
    validation: str | Path | None = None,
    features: str | Path | None = None,
    cache: str | Path | None = None,
) -> None:
    """Those checks of `prepare_codec` that need no codec to start from, which may have to be downloaded first.

    `training` is None where the codec's shape is not known; other arguments and errors are those of `prepare_codec`.
    """
    output = Path(output)
    check_places(output / CODEC, output / CACHE if cache is None else Path(cache))
    recordings = find_recordings(data, features)
    held_out = [] if validation is None else find_recordings(validation)
    check_headers([*recordings, *held_out])
    if training is not None:
        training.crops()


def run_codec(
    job: CodecJob,
    *,
    decoding: Progress | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> CodecResult:
    """Decodes, trains, and writes `output`/codec; spectra come first, as two runs in `output`/spectral.

    Args:
        job: from `prepare_codec`.
        decoding: told how many recordings are decoded.
        report: called with every line of the logs; those of spectra have "phase".

    Raises:
        train.lines.DataError: recordings that cannot be learnt from, see `data.decode_recordings`.
        train.progress.DivergedError: the loss or its gradient is not finite.
        train.state_files.RunError: `output` holds a run that started from another codec.
    """
    training, recipe, settings = job.training, job.recipe, job.settings
    everything = [*job.recordings, *job.validation]
    clips = decode_recordings(everything, job.cache, recipe.codec.sample_rate, decoding)
    if job.codes is not None:
        clips = with_codes(clips, job.codes, recipe.codec.frame_samples)
    data, held_out = _split(clips, len(job.recordings))
    if job.spectral:
        params = _learn_spectra(job, data, held_out, report)
    elif training.start is None:
        params = random_codec(recipe.codec, training.seed)
    else:
        params = load_codec(training.start, recipe.codec)
        settings = settings | {"base": fingerprint(params)}
    result = fit_codec(
        params,
        recipe,
        data,
        job.crops,
        job.output,
        fresh=training.start is None and not job.spectral,
        features=None if recipe.teacher is None else job.features,
        validation=held_out,
        schedule=training.schedule,
        settings=settings,
        report=report,
        speak=_speaker(job, held_out or data) if training.schedule.sample else None,
    )
    write_codec(job.output / CODEC, result.params, recipe.codec)
    return result


def _learn_spectra(
    job: CodecJob, data: Clips, held_out: Clips | None, report: Callable[[dict[str, Any]], None] | None
) -> dict[str, Any]:
    """Trees whose encoder, codebooks and decoder up to the waveform part have learnt to say spectra."""
    params, state = random_codec(job.recipe.codec, job.training.seed), None
    for recipe in job.spectral:
        state = fit_spectra(
            params,
            recipe,
            data,
            job.crops,
            job.output / PHASES / recipe.hears,
            taught=state,
            features=job.features,
            validation=held_out,
            schedule=job.training.schedule,
            settings=job.settings,
            report=report,
        )
    return finish_spectra(state, params, job.spectral[-1])


def _split(clips: Clips, count: int) -> tuple[Clips, Clips | None]:
    def part(which: slice) -> Clips:
        codes = None if clips.codes is None else clips.codes[which]
        return replace(clips, recordings=clips.recordings[which], samples=clips.samples[which], codes=codes)

    rest = part(slice(count, None))
    return part(slice(count)), rest if rest.samples else None


def write_codec(folder: str | Path, params: Mapping[str, Any], config: CodecConfig) -> Path:
    """Writes config.json, preprocessor_config.json and model.safetensors into a new folder.

    Args:
        folder: must not exist.
        params: the trees encoder and decoder.
        config: their shapes.

    Raises:
        FileExistsError: `folder` exists.
        qwen3_tts_jax.convert.CheckpointError: the trees do not fit the config.
    """
    folder = Path(folder)
    with completed_folder(folder) as temporary:
        export_codec(temporary, params, config)
        files = {
            "config.json": hf_export.codec_to_hf(config),
            "preprocessor_config.json": hf_export.codec_preprocessor_to_hf(config),
        }
        for name, content in files.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _speaker(job: CodecJob, clips: Clips) -> Callable[[dict[str, Any], int], None]:
    """speak(params, step), which writes what the codec makes of the first recordings, or of their given codes, into
    `output`/samples, and the recordings themselves once.
    """
    config, folder = job.recipe.codec, job.output / SAMPLES
    longest = round(_SAMPLE_SECONDS * config.sample_rate)
    count = min(_SAMPLES, len(clips.samples))
    recordings = [
        row[: len(one)]
        for row, one in zip(clips.cut([(i, 0) for i in range(count)], longest), clips.samples, strict=False)
    ]

    def write(name: str, recordings: list[Any]) -> None:
        for i, samples in enumerate(recordings):
            audio.write(folder / f"{name}-{i}.wav", samples, config.sample_rate)

    def speak(params: dict[str, Any], step: int) -> None:
        folder.mkdir(exist_ok=True)
        tokenizer = SpeechTokenizer(config, params)
        if clips.codes is None:
            codes = tokenizer.encode(recordings, config.sample_rate)
        else:
            given = zip(clips.codes, recordings, strict=False)
            codes = [one[: -(-len(row) // config.frame_samples)] for one, row in given]
        decoded, _ = tokenizer.decode(codes)
        if not (folder / "recording-0.wav").exists():
            write("recording", recordings)
        write(f"step-{step:06}", decoded)

    return speak
