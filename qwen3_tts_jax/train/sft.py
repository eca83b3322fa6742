"""Supervised fine-tuning: from a model's folder and a file of JSON lines to another model's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen3_tts_jax import audio, hf_config
from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.convert import load_checkpoint, model_rules, tree_shapes
from qwen3_tts_jax.convert.check import CODEC_FOLDER
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request, TextMode, check_seed
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.batches import Batches
from qwen3_tts_jax.train.buckets import BucketedBatches
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.code_files import read_codes
from qwen3_tts_jax.train.examples import Example, check_lengths, make_examples, speaker_rows
from qwen3_tts_jax.train.export import export_model
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.lines import Line, add_speakers, check_lines, check_speakers, read_lines
from qwen3_tts_jax.train.lora import LoraConfig, save_adapters
from qwen3_tts_jax.train.loss import LossConfig
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Progress, Schedule, check_places
from qwen3_tts_jax.train.run import Result, describe, fit
from qwen3_tts_jax.train.saved_run import describe_run
from qwen3_tts_jax.train.shards import placement
from qwen3_tts_jax.train.step import PARTS, Recipe, frozen_paths, to_compute

MODEL, ADAPTERS, CACHE, SAMPLES = "model", "lora.safetensors", "cache", "samples"


@dataclass(frozen=True)
class SftConfig:
    """A fine-tuning run.

    Attributes:
        dtype: that steps compute in; what is trained is kept in float32.
        optimizer: see there.
        loss: weights of its parts.
        lora: train adapters; None trains the weights themselves.
        frozen: prefixes of paths that are not trained, without a LoRA.
        batch_size: utterances per batch, over all devices.
        batch_seconds: of speech in a batch, with clips of similar length together, instead of `batch_size`.
        buckets: the most shapes of such batches.
        accumulate: batches per step.
        text_modes: how the text is read, taken in turn; None is both for a model that goes on cloning, since `clone`
            reads it as it comes, and all at once for the others.
        known_speakers: allow speakers that the model already has, and train them further.
        remat: see `step.Recipe`.
        seed: of the order of the data and of adapters.
        schedule: what happens when.
        export_dtype: of the model that is written.
    """

    dtype: str = "float32"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig | None = None
    frozen: tuple[str, ...] = ()
    batch_size: int = 8
    batch_seconds: float | None = None
    buckets: int = 6
    accumulate: int = 1
    text_modes: tuple[TextMode, ...] | None = None
    known_speakers: bool = False
    remat: bool = True
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    export_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.batch_size < 1 or self.accumulate < 1:
            raise ConfigError(f"batches must be at least 1, got {self.batch_size} rows and {self.accumulate} per step")
        if self.batch_seconds is not None and not 0 < self.batch_seconds < float("inf"):
            raise ConfigError(f"the seconds of a batch must be above 0, got {self.batch_seconds}")
        if self.buckets < 1:
            raise ConfigError(f"the number of buckets must be at least 1, got {self.buckets}")


@dataclass(frozen=True)
class Job:
    """A run whose input has been checked, before any weight is read; `prepare` makes it.

    Attributes:
        source: folder of the model to start from.
        output: folder of the run.
        cache: folder of encoded recordings.
        config: of the run.
        base: the model to start from, with the dtypes that steps compute in.
        tokenizer: of the model.
        lines: to learn.
        validation: to judge by; may be empty.
        codes: int32 [T, Q] of the lines that have them.
        rows: of new speakers in the codec embedding, by name.
        recipe: of the steps; its model has those speakers.
        text_modes: how the text is read, taken in turn.
        settings: what checkpoints must agree with.
    """

    source: Path
    output: Path
    cache: Path
    config: SftConfig
    base: ModelConfig
    tokenizer: TextTokenizer
    lines: list[Line]
    validation: list[Line]
    codes: dict[Line, np.ndarray]
    rows: dict[str, int]
    recipe: Recipe
    text_modes: tuple[TextMode, ...]
    settings: dict[str, Any]


def prepare(
    source: str | Path,
    data: str | Path,
    output: str | Path,
    config: SftConfig,
    validation: str | Path | None = None,
    cache: str | Path | None = None,
) -> Job:
    """Checks all that can be checked without weights.

    Args:
        source: folder of the model to start from.
        data: JSON lines, see `lines.read_lines`.
        output: folder of the run; one that was interrupted is continued.
        config: of the run.
        validation: more JSON lines, to judge by.
        cache: folder of encoded recordings; `output`/cache by default.

    Raises:
        lines.DataError: see `read_lines`, `add_speakers`, `check_speakers`, `code_files.read_codes` and
            `check_lengths`.
        FileExistsError, PermissionError: as `progress.check_places`, for `output`/model.
        state_files.RunError: `output` holds a run with other settings or other data.
        ConfigError, lora.LoraError: as `step.frozen_paths`, or a codec whose encoder is not trained.
    """
    source, output = Path(source), Path(output)
    cache = output / CACHE if cache is None else Path(cache)
    check_places(output / MODEL, cache)
    base = hf_config.read_folder(source).with_dtypes(config.dtype)
    lines, held_out, rows, recipe = _read(data, validation, base, config)
    # Where the model reads phonemes, the lines' texts are such already.
    tokenizer = TextTokenizer.from_folder(source, phonemize=False)
    codes = read_codes([*lines, *held_out], recipe.model.codec)
    check_lengths([*lines, *held_out], codes, tokenizer, recipe.model)
    settings = {"data": digest_of([*lines, *held_out], codes)}
    Checkpoints(output, describe(recipe) | settings).check()
    modes = config.text_modes
    if modes is None:
        modes = ("all_at_once", "as_it_comes") if recipe.model.model_type == "base" else ("all_at_once",)
    return Job(source, output, cache, config, base, tokenizer, lines, held_out, codes, rows, recipe, modes, settings)


def check_without_model(
    data: str | Path,
    output: str | Path,
    config: SftConfig,
    validation: str | Path | None = None,
    cache: str | Path | None = None,
    base: ModelConfig | None = None,
) -> None:
    """Those checks of `prepare` that need no model, which may be gigabytes to download first.

    `base` is the model's config, if that is known; other arguments and errors are those of `prepare`.
    """
    output = Path(output)
    check_places(output / MODEL, output / CACHE if cache is None else Path(cache))
    if base is not None:
        _read(data, validation, base.with_dtypes(config.dtype), config)
        return
    check_lines(data)
    if validation is not None:
        check_lines(validation)


def _read(
    data: str | Path, validation: str | Path | None, base: ModelConfig, config: SftConfig
) -> tuple[list[Line], list[Line], dict[str, int], Recipe]:
    """Lines to learn and to judge by, the rows of their new speakers, and the recipe of the model with them."""
    lines = read_lines(data, base)
    held_out = [] if validation is None else read_lines(validation, base)
    if any(line.codes is None for line in (*lines, *held_out)):
        base.codec.require_encoder()
    model, rows = add_speakers(base, lines, known=config.known_speakers)
    check_speakers(held_out, model)
    lora_rows = tuple(rows.values()) if config.lora is not None else ()
    recipe = Recipe(model, config.loss, config.optimizer, config.lora, config.frozen, lora_rows, config.remat)
    frozen_paths(tree_shapes(model_rules(model)), recipe)
    return lines, held_out, rows, recipe


def digest_of(lines: Sequence[Line], codes: Mapping[Line, np.ndarray]) -> str:
    """Tells one run's data from another's; recordings by the names and sizes of their files.

    Args:
        lines: from `read_lines`.
        codes: from `read_codes`.
    """
    content = json.dumps([_fields(line, codes.get(line)) for line in lines])
    return f"{len(lines)} lines, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _fields(line: Line, codes: np.ndarray | None) -> list[Any]:
    """All of a line except where its files lie."""
    spoken = [line.codes.name, line.key, hashlib.sha256(codes.tobytes()).hexdigest()] if line.codes else None
    heard = [[file.name, file.stat().st_size] for file in (line.audio, line.ref_audio) if file is not None]
    told = [line.text, line.ref_text, line.language, line.speaker, line.instruct]
    return [spoken, heard, *told, line.durations]


def _batches(job: Job, examples: list[Example], devices: int) -> Batches | BucketedBatches:
    config, model = job.config, job.recipe.model
    common = {"accumulate": config.accumulate, "text_modes": job.text_modes, "seed": config.seed}
    if config.batch_seconds is None:
        return Batches(examples, job.tokenizer, model, config.batch_size, **common)
    frames = max(1, round(config.batch_seconds * model.codec.frame_rate))
    return BucketedBatches(examples, job.tokenizer, model, frames, **common, count=config.buckets, multiple=devices)


def run(
    job: Job,
    *,
    encoding: Progress | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Encodes, trains, and writes `output`/model and, for a LoRA run, `output`/lora.safetensors.

    Args:
        job: from `prepare`.
        encoding: told how many recordings are encoded.
        report: called with every line of the log.
        mesh: see `run.fit`.

    Raises:
        lines.DataError: a recording that cannot be learnt from.
        progress.DivergedError: the loss or its gradient is not finite.
        state_files.RunError: `output` holds a run that started from another model.
    """
    config, model = job.config, job.recipe.model
    hears = job.base.speaker_encoder is not None
    parts = ["codec/encoder", *(["speaker_encoder"] if hears else [])]
    params = load_checkpoint(job.source, job.base, parts)
    settings = job.settings | {"encoders": fingerprint(params)}
    Checkpoints(job.output, settings).check()
    examples = make_examples(params, job.base, [*job.lines, *job.validation], job.codes, job.cache, encoding)
    learnt, held_out = examples[: len(job.lines)], examples[len(job.lines) :]
    del params

    # Without a LoRA, what is trained is kept in float32 anyway.
    loaded = job.base if config.lora is not None else job.base.with_dtypes("float32")
    params = {part: load_checkpoint(job.source, loaded, [part], None, placement(mesh))[part] for part in PARTS}
    base = fingerprint(params)
    settings |= {"base": base}
    params = with_speakers(params, speaker_rows(params, job.base, learnt, job.rows))
    devices = 1 if mesh is None else mesh.shape["data"]
    batches = _batches(job, learnt, devices)
    # What is refused leaves the run's description as it is.
    Checkpoints(job.output, settings | batches.describe()).check()
    describe_run(job.output, job.recipe, source=job.source, tokenizer=job.source, codec=job.source / CODEC_FOLDER)
    result = fit(
        params,
        job.recipe,
        batches,
        job.output,
        validation=_batches(job, held_out, devices) if held_out else None,
        schedule=config.schedule,
        settings=settings,
        report=report,
        speak=_speaker(job, learnt[0]) if config.schedule.sample else None,
        mesh=mesh,
    )
    if config.lora is not None:
        kept = result.state.kept
        speakers = dict(zip(job.rows, kept["speakers"], strict=True))
        save_adapters(job.output / ADAPTERS, kept["lora"], config.lora, base, speakers)
    trained = dict(result.params)
    if model.model_type == "base":
        trained |= load_checkpoint(job.source, job.base, ["speaker_encoder"])
    if not list((job.source / CODEC_FOLDER).glob("*.safetensors")):
        trained |= load_checkpoint(job.source, job.base, ["codec/encoder", "codec/decoder"])
    export_model(job.output / MODEL, trained, model, job.source, config.export_dtype)
    return result


def with_speakers(params: Params, rows: dict[int, Any]) -> Params:
    """The parameters with these rows in the talker's codec embedding."""
    if not rows:
        return params
    table = params["talker"]["codec_embedding"]["embedding"]
    values = jnp.asarray(list(rows.values()), table.dtype)
    table = jnp.asarray(table).at[jnp.asarray(list(rows))].set(values)
    return {**params, "talker": params["talker"] | {"codec_embedding": {"embedding": table}}}


def _speaker(job: Job, example: Example) -> Callable[[Params, int], None]:
    decoder = load_checkpoint(job.source, job.base, ["codec/decoder"])["codec"]["decoder"]
    request = sample_request(example, job.text_modes)
    return sampler(job.recipe.model, decoder, job.tokenizer, request, job.output / SAMPLES, job.config.seed)


def sample_request(example: Example, text_modes: Sequence[TextMode]) -> Request:
    """Asks for the example's text, read in the first of `text_modes`, in at most about twice its frames."""
    return replace(example.request(text_modes[0]), max_frames=2 * len(example.codes) + 12)


def sampler(
    config: ModelConfig, decoder: Params, tokenizer: TextTokenizer, request: Request, folder: Path, seed: int
) -> Callable[[Params, int], None]:
    """speak(params, step), which writes the speech that the model answers the request with into `folder`."""

    def speak(params: Params, step: int) -> None:
        tree = {**to_compute(params, config), "codec": {"decoder": decoder}}
        speech = Qwen3TTS(config, tree, tokenizer).synthesize([request], seed=seed)[0]
        folder.mkdir(exist_ok=True)
        audio.write(folder / f"step-{step:06}.wav", speech.samples, speech.sample_rate)

    return speak
