"""Training a talker: from JSON lines of text with codes or audio, a few numbers and a codec to a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import CodecConfig, ConfigError, ModelConfig
from qwen3_tts_jax.convert import load_checkpoint, load_codec
from qwen3_tts_jax.convert.check import CODEC_FOLDER
from qwen3_tts_jax.presets import PRESETS, preset
from qwen3_tts_jax.prompt import TextMode, check_seed
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.alignment import AlignmentConfig
from qwen3_tts_jax.train.buckets import BucketedBatches
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.code_files import read_codes
from qwen3_tts_jax.train.examples import Example, check_lengths, make_examples
from qwen3_tts_jax.train.export import export_model
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.lines import Line, check_speakers, read_lines
from qwen3_tts_jax.train.loss import LossConfig
from qwen3_tts_jax.train.new_model import new_params, read_new_config, with_speakers_of
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Progress, Schedule, check_places
from qwen3_tts_jax.train.regularization import Regularization
from qwen3_tts_jax.train.run import Result, describe, fit
from qwen3_tts_jax.train.saved_run import describe_run
from qwen3_tts_jax.train.sft import CACHE, MODEL, SAMPLES, digest_of, sample_request, sampler
from qwen3_tts_jax.train.shards import placement
from qwen3_tts_jax.train.step import PARTS, Recipe

TOKENIZER = "tokenizer"
_HELD_OUT_BUCKETS = 2  # What is evaluated seldom is not worth many programs.


@dataclass(frozen=True)
class TalkerTraining:
    """A run, from nothing or from another model's weights.

    Attributes:
        optimizer: see there.
        loss: weights of its parts.
        regularization: see there; None is without.
        alignment: see there; None is without.
        average: see `step.Recipe`.
        dtype: that steps compute in; what is trained is kept in float32.
        batch_seconds: of speech in a batch, padding included.
        buckets: the most shapes of batches; each is compiled once.
        accumulate: batches per step.
        text_modes: how the text is read, taken in turn.
        remat: see `step.Recipe`.
        seed: of initial weights, the order of the data and all that is random in a step.
        schedule: what happens when.
        export_dtype: of the model that is written.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    regularization: Regularization | None = None
    alignment: AlignmentConfig | None = None
    average: float = 0.0
    dtype: str = "float32"
    batch_seconds: float = 120.0
    buckets: int = 6
    accumulate: int = 1
    text_modes: tuple[TextMode, ...] = ("all_at_once",)
    remat: bool = False
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    export_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0 < self.batch_seconds < float("inf") or self.accumulate < 1 or self.buckets < 1:
            raise ConfigError(
                f"batches must be above 0 seconds, at least 1 per step and of at least 1 bucket, got "
                f"{self.batch_seconds}, {self.accumulate} and {self.buckets}"
            )
        if self.alignment is not None and self.text_modes != ("all_at_once",):
            raise ConfigError("the alignment's loss is for texts that are read all at once")


@dataclass(frozen=True)
class TalkerJob:
    """A run whose input has been checked; `prepare_talker` makes it.

    Attributes:
        tokenizer_folder: of the text tokenizer.
        codec_folder: of the codec whose codes are learnt.
        start: folder of the model whose weights it starts from; None draws them.
        output: folder of the run.
        cache: folder of encoded recordings.
        config: of the run.
        tokenizer: that of `tokenizer_folder`.
        lines: to learn.
        validation: to judge by; may be empty.
        codes: int32 [T, Q] of the lines that have them.
        recipe: of the steps; its model has the speakers of the lines to learn.
        settings: what checkpoints must agree with.
    """

    tokenizer_folder: Path
    codec_folder: Path
    start: Path | None
    output: Path
    cache: Path
    config: TalkerTraining
    tokenizer: TextTokenizer
    lines: list[Line]
    validation: list[Line]
    codes: dict[Line, np.ndarray]
    recipe: Recipe
    settings: dict[str, Any]


def prepare_talker(
    data: str | Path,
    model: str | Path,
    codec: str | Path,
    output: str | Path,
    config: TalkerTraining,
    *,
    tokenizer: str | Path | None = None,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    cache: str | Path | None = None,
) -> TalkerJob:
    """Checks all that can be checked before any work.

    Args:
        data: JSON lines, see `lines.read_lines`, each with a speaker.
        model: a JSON file, see `new_model.read_new_config`.
        codec: the codec's folder, or that of a model that has it.
        output: folder of the run; one that was interrupted is continued.
        config: of the run.
        tokenizer: the text tokenizer's folder; None writes one of bytes into `output`/tokenizer.
        validation: more JSON lines, to judge by.
        start: folder of a model of these sizes and speakers, whose weights it starts from; None draws them.
        cache: folder of encoded recordings; `output`/cache by default.

    Raises:
        lines.DataError: see `read_lines`, `check_speakers`, `code_files.read_codes` and `check_lengths`.
        ConfigError: see `read_new_config`, `Recipe` and `AlignmentConfig.check`; `start` is another kind of model; or
            recordings without codes where the codec's encoder is not trained.
        FileExistsError: as `progress.check_places`, for `output`/model.
        state_files.RunError: `output` holds a run with other settings or other data.
        OSError: a file that cannot be read.
    """
    output, codec = Path(output), Path(codec)
    cache = output / CACHE if cache is None else Path(cache)
    check_places(output / MODEL, cache)
    codec_folder = codec / CODEC_FOLDER if (codec / CODEC_FOLDER).is_dir() else codec
    codec_config = hf_config.read_codec(codec_folder)
    text_tokenizer, lines, held_out, full = _read(data, model, codec_config, tokenizer, validation)
    recipe = _recipe(full, config, start)
    codes = read_codes([*lines, *held_out], codec_config)
    check_lengths([*lines, *held_out], codes, text_tokenizer, full)
    settings = {"data": digest_of([*lines, *held_out], codes)}
    Checkpoints(output, describe(recipe) | settings).check()
    return TalkerJob(
        write_byte_tokenizer(output / TOKENIZER) if tokenizer is None else Path(tokenizer),
        codec_folder,
        None if start is None else Path(start),
        output,
        cache,
        config,
        text_tokenizer,
        lines,
        held_out,
        codes,
        recipe,
        settings,
    )


def check_without_codec(
    data: str | Path,
    model: str | Path,
    output: str | Path,
    config: TalkerTraining,
    *,
    tokenizer: str | Path | None = None,
    validation: str | Path | None = None,
    start: str | Path | None = None,
    cache: str | Path | None = None,
    codec: CodecConfig | None = None,
) -> None:
    """Those checks of `prepare_talker` that need no codec, which may have to be downloaded first.

    `codec` is its config, if that is known; other arguments and errors are those of `prepare_talker`.
    """
    output = Path(output)
    check_places(output / MODEL, output / CACHE if cache is None else Path(cache))
    # Neither sizes nor lines are checked against the codec: any will do.
    _, _, _, full = _read(data, model, codec or preset(PRESETS[0]).codec, tokenizer, validation)
    if codec is not None:
        _recipe(full, config, start)
    elif start is not None:
        hf_config.read_folder(start)


def _read(
    data: str | Path,
    model: str | Path,
    codec: CodecConfig,
    tokenizer: str | Path | None,
    validation: str | Path | None,
) -> tuple[TextTokenizer, list[Line], list[Line], ModelConfig]:
    """The text tokenizer, lines to learn and to judge by, and the model that is to learn them."""
    with TemporaryDirectory() as folder:
        texts = write_byte_tokenizer(folder) if tokenizer is None else Path(tokenizer)
        new = read_new_config(model, texts, codec)
        # Where the model reads phonemes, the lines' texts are such already.
        text_tokenizer = TextTokenizer.from_folder(texts, phonemize=False)
    lines = read_lines(data, new)
    held_out = [] if validation is None else read_lines(validation, new)
    if any(line.codes is None for line in (*lines, *held_out)):
        codec.require_encoder()
    full = with_speakers_of(new, lines)
    check_speakers(held_out, full)
    return text_tokenizer, lines, held_out, full


def _recipe(model: ModelConfig, config: TalkerTraining, start: str | Path | None) -> Recipe:
    model = model.with_dtypes(config.dtype)
    if start is not None:
        _check_same(Path(start), model, config.dtype)
    return Recipe(
        model,
        config.loss,
        config.optimizer,
        remat=config.remat,
        regularization=config.regularization,
        alignment=config.alignment,
        average=config.average,
        seed=config.seed,
    )


def run_talker(
    job: TalkerJob,
    *,
    encoding: Progress | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Encodes what has no codes, trains, and writes `output`/model.

    Args:
        job: from `prepare_talker`.
        encoding: told how many recordings are encoded.
        report: called with every line of the log.
        mesh: see `run.fit`.

    Raises:
        lines.DataError: a recording that cannot be learnt from.
        progress.DivergedError: the loss or its gradient is not finite.
        convert.CheckpointError: the weights that it starts from do not fit their config.
        state_files.RunError: `output` holds a run with another codec, or one that started from other weights.
    """
    config, model = job.config, job.recipe.model
    codec = load_codec(job.codec_folder, model.codec)
    settings = job.settings | {"codec": fingerprint(codec)}
    if job.start is None:
        params = new_params(model, config.seed, placement(mesh))
    else:
        base = hf_config.read_folder(job.start).with_dtypes("float32")
        params = load_checkpoint(job.start, base, PARTS, placement=placement(mesh))
        settings |= {"base": fingerprint(params)}
    Checkpoints(job.output, settings).check()
    examples = make_examples({"codec": codec}, model, [*job.lines, *job.validation], job.codes, job.cache, encoding)
    learnt, held_out = examples[: len(job.lines)], examples[len(job.lines) :]
    speak = None
    if config.schedule.sample:
        request = sample_request((held_out or learnt)[0], config.text_modes)
        speak = sampler(model, codec["decoder"], job.tokenizer, request, job.output / SAMPLES, config.seed)
    del codec
    describe_run(job.output, job.recipe, source=None, tokenizer=job.tokenizer_folder, codec=job.codec_folder)
    devices = 1 if mesh is None else mesh.shape["data"]
    result = fit(
        params,
        job.recipe,
        _batches(job, learnt, devices, config.buckets),
        job.output,
        validation=_batches(job, held_out, devices, min(config.buckets, _HELD_OUT_BUCKETS)) if held_out else None,
        schedule=config.schedule,
        settings=settings,
        report=report,
        speak=speak,
        mesh=mesh,
        text_gap=True,
    )
    write_model(job.output / MODEL, result.params, model, job.tokenizer_folder, job.codec_folder, config.export_dtype)
    return result


def write_model(
    folder: Path, params: dict[str, Any], model: ModelConfig, tokenizer: Path, codec: Path, dtype: str
) -> None:
    """Writes a folder in the official layout, with these weights, this text tokenizer and this codec."""
    if not list(codec.glob("*.safetensors")):
        params = {**params, "codec": load_codec(codec, model.codec)}
    export_model(folder, params, model, tokenizer, dtype, codec=codec)


def _check_same(start: Path, model: ModelConfig, dtype: str) -> None:
    there = hf_config.read_folder(start).with_dtypes(dtype)
    for part in (*PARTS, "prompt"):
        theirs, ours = (flatten_dict(asdict(getattr(config, part)), sep=".") for config in (there, model))
        for name in (*ours, *theirs):
            if theirs.get(name) != ours.get(name):
                raise ConfigError(
                    f"cannot start from {start}: {part}.{name} is {theirs.get(name)} there and {ours.get(name)} here"
                )


def _batches(job: TalkerJob, examples: list[Example], devices: int, buckets: int) -> BucketedBatches:
    config, model = job.config, job.recipe.model
    frames = max(1, round(config.batch_seconds * model.codec.frame_rate))
    return BucketedBatches(
        examples, job.tokenizer, model, frames, config.accumulate, config.text_modes, config.seed, buckets, devices
    )
