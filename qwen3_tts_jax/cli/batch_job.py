"""What the command `batch` does: it checks everything, loads, speaks, and writes each item as soon as it is made."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen3_tts_jax.arguments import merge_sampling, part_dtypes
from qwen3_tts_jax.batch import manifest, speak
from qwen3_tts_jax.batch.folder import SHARD_ITEMS, JobFolder
from qwen3_tts_jax.batch.manifest import BadLine
from qwen3_tts_jax.batch.plan import Task, is_same, plan, source_of, weights_digest
from qwen3_tts_jax.batch.settings import FolderError
from qwen3_tts_jax.batch.writer import Writer
from qwen3_tts_jax.cli.console import plain_messages, refuse, refusing
from qwen3_tts_jax.cli.model import Source, read_config, speaking_with_mini
from qwen3_tts_jax.cli.options import SpeechOptions
from qwen3_tts_jax.cli.progress import BatchLine, PlanLine
from qwen3_tts_jax.cli.sampling import sampling_arguments
from qwen3_tts_jax.cli.sigterm import ended_by_sigterm
from qwen3_tts_jax.config import ConfigError, GenerationConfig, ModelConfig
from qwen3_tts_jax.devices import automatic_dtype, default_device, local_devices
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from qwen3_tts_jax.pipeline import Qwen3TTS

_SHOWN_PROBLEMS = 20
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class BatchOptions(SpeechOptions):
    """The options of `batch`, as they were given."""

    manifest: Path
    output: Path
    audio_format: str
    shard_items: int | None
    batch_size: int
    save_codes: bool
    skip_bad: bool
    retry: int
    devices: int | None
    engine: str
    workers: int | None
    split: int | None


def run_batch(options: BatchOptions) -> None:
    """Checks the options, the manifest and the folder, in this order; then loads the weights and speaks."""
    unasked = options.model is None
    options = replace(options, model=MINI if unasked else options.model)
    sampling = sampling_arguments(options)
    _check_options(options)
    job = JobFolder(options.output, options.audio_format, options.save_codes, options.shard_items or SHARD_ITEMS)
    with plain_messages(), ended_by_sigterm(), _downloads() as downloads:
        with refusing(manifest.ManifestError, OSError):
            items, bad = manifest.read(options.manifest)
        with refusing(FolderError):
            # Checked again under the lock; here, before a download.
            job.check()
            settled = job.settled()
        if bad and not options.skip_bad and local_folder(options.model) is None:
            # Refused before a download. With a local model the plan first finds what else is wrong.
            _refuse_bad(bad)
        source = Source(options.model, options.revision, options.cache_dir, options.offline, options.verify)
        folder = source.folder(options.quiet)
        config = read_config(folder)
        with refusing(FileNotFoundError):
            tokenizer = TextTokenizer.from_folder(folder)
        of_items = options.seed, options.max_seconds, options.split
        # What is finished is not read again: its recordings may be gone.
        unchanged = {
            item.id: settled[item.id]
            for item in items
            if item.id in settled and is_same(settled[item.id].source, source_of(item, *of_items))
        }
        with PlanLine(options.quiet, logged=True) as line:
            others = [item for item in items if item.id not in unchanged]
            tasks, unspeakable = plan(others, config, tokenizer, *of_items, downloads, progress=line)
        bad = sorted([*bad, *unspeakable], key=lambda line: line.line)
        total = len(tasks) + len(unchanged)
        if bad and not (options.skip_bad and total):
            _refuse_bad(bad)
        for line in _first(bad):
            typer.echo(f"skipped: {line}", err=True)
        generation, settings = _settings(options, sampling, folder, config)
        with refusing(FolderError), job:
            if unasked:
                speaking_with_mini(None, options.quiet)
            job.begin(settings, tasks, bad, unchanged)
            if job.removed:
                count = f"{job.removed} item{'s' * (job.removed > 1)}"
                typer.echo(f"removed files of {count} that index.jsonl does not list as finished", err=True)
            left = [task for task in tasks if task.id not in job.finished]
            line = BatchLine(total, left, options.quiet)
            failed = _speak(options, folder, generation, settings, job, total, left, line)
            _report(options, job, total, left, failed, bad, line.pace())
    if failed:
        raise typer.Exit(1)


@contextmanager
def _downloads() -> Iterator[Path | None]:
    """A path where a folder for downloads may be created, None where there is no place; it is removed at the end."""
    try:
        folder = Path(tempfile.gettempdir()) / f"qwen3-tts-jax-{uuid.uuid4().hex}"
    except FileNotFoundError:
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_options(options: BatchOptions) -> None:
    """Refuses options that need a missing package, and options for a format or engine that was not chosen."""
    for needed, package, extra in (
        (options.audio_format == "parquet", "pyarrow", "parquet"),
        (options.engine == "ray", "ray", "ray"),
    ):
        if needed and find_spec(package) is None:
            refuse(f'this needs {package}: in the clone of this package, pip install -e ".[{extra}]"')
    if options.shard_items is not None and options.audio_format != "parquet":
        refuse("--shard-items is for --format parquet")
    if options.workers is not None and options.engine != "ray":
        refuse("--workers is for --engine ray")
    if options.devices is not None and options.engine == "ray":
        refuse("--devices is for one machine: with --engine ray each worker has one device")


def _first(bad: Sequence[BadLine]) -> list[str]:
    lines = [" ".join(str(line).split()) for line in bad[:_SHOWN_PROBLEMS]]
    more = len(bad) - len(lines)
    return [*lines, f"and {more} more"] if more else lines


def _refuse_bad(bad: Sequence[BadLine]) -> None:
    """Lists what is wrong with a manifest and ends the command."""
    for line in _first(bad):
        typer.echo(f"error: {line}", err=True)
    count = "1 line" if len(bad) == 1 else f"{len(bad)} lines"
    typer.echo(f"error: {count} cannot be spoken: correct them; --skip-bad speaks the others", err=True)
    raise typer.Exit(2)


def _settings(
    options: BatchOptions, sampling: dict[str, Any], folder: Path, config: ModelConfig
) -> tuple[GenerationConfig, dict[str, Any]]:
    """How codes are drawn, and all that decides the sound besides the items."""
    generation, _ = merge_sampling(config, sampling)
    platform = _platform(options)
    return generation, {
        "model": {"type": config.model_type, "size": config.model_size, "digest": weights_digest(folder)},
        **options.computing,
        "dtype": part_dtypes(options.dtype, automatic_dtype(platform)),
        "platform": platform,
        "devices": _devices(options),
        "sampling": asdict(generation),
        "seed": options.seed,
        "retry": options.retry,
        "batch size": options.batch_size,
    }


def _platform(options: BatchOptions) -> str:
    """The platform that computes, by JAX's name: each rounds in its own way."""
    if options.engine == "ray":
        from qwen3_tts_jax.batch import ray_engine

        # JAX is not asked: it would take GPU memory that a worker needs.
        ray_engine.connect(options.quiet)
        return "gpu" if ray_engine.gpus() else "cpu"
    return default_device().platform


def _devices(options: BatchOptions) -> int:
    """How many devices share a batch, which may change its rounding."""
    if options.engine == "ray":
        return 1
    count = len(local_devices())
    if options.devices is not None and options.devices > count:
        refuse(f"--devices {options.devices}: this machine has {count}")
    return options.devices or count


def _speak(
    options: BatchOptions,
    folder: Path,
    generation: GenerationConfig,
    settings: dict[str, Any],
    job: JobFolder,
    total: int,
    left: Sequence[Task],
    line: BatchLine,
) -> int:
    """Speaks what is left; returns how many items failed."""
    failed = 0
    try:
        with line:
            with Writer(job) as writer:
                for result in _results(options, folder, generation, settings, left, line):
                    writer.put(result)
                    if result.speech is None:
                        failed += 1
                        line.say(f"failed: {result.task.id}: {result.reason}")
                    line.done(result.task, 0.0 if result.speech is None else result.speech.seconds)
            job.finish()
    except KeyboardInterrupt:
        _stopped("interrupted", job, total)
        raise typer.Exit(_INTERRUPTED) from None
    except (FolderError, speak.JobError) as error:
        _stopped(f"error: {error}", job, total)
        raise typer.Exit(1) from None
    return failed


def _results(
    options: BatchOptions,
    folder: Path,
    generation: GenerationConfig,
    settings: dict[str, Any],
    left: Sequence[Task],
    line: BatchLine,
) -> Iterator[speak.Result]:
    if not left:
        return
    dtypes = ",".join(f"{part}={dtype}" for part, dtype in settings["dtype"].items())
    computing = options.computing | {"dtype": dtypes}
    if options.engine == "ray":
        from qwen3_tts_jax.batch import ray_engine

        ray_engine.connect(options.quiet)
        folder = local_folder(options.model)
        name = options.model if folder is None or options.model == MINI else str(folder.absolute())
        source = Source(name, options.revision, options.cache_dir, options.offline)
        load = partial(_load_elsewhere, source, computing, settings["model"]["digest"])
        counts = {"retries": options.retry, "workers": options.workers}
        line("prefill", 0, len(left))
        yield from ray_engine.run(load, left, generation, options.batch_size, **counts)
        return
    from qwen3_tts_jax.convert import CheckpointError

    with refusing(CheckpointError, ConfigError):
        tts = _load(folder, computing, devices=settings["devices"], progress=line)
    yield from speak.run(tts, left, generation, options.batch_size, retries=options.retry, progress=line)


def _load(folder: Path, computing: dict[str, str], *, devices: int = 1, progress: BatchLine | None = None) -> Qwen3TTS:
    from qwen3_tts_jax.compile_cache import keep_compiled
    from qwen3_tts_jax.pipeline import Qwen3TTS
    from qwen3_tts_jax.sharding import make_mesh

    keep_compiled()
    mesh = make_mesh(devices) if devices > 1 else None
    return Qwen3TTS.from_pretrained(folder, **computing, mesh=mesh, progress=progress)


def _load_elsewhere(source: Source, computing: dict[str, str], digest: str) -> Qwen3TTS:
    """Loads the model in a worker, whose machine may hold another model by that name.

    Errors are left for the job's process to report: nobody would read a worker's refusals.
    """
    from qwen3_tts_jax.convert import resolve

    folder = resolve(source.model, source.revision, source.cache_dir, source.offline or None)
    if weights_digest(folder) != digest:
        raise ValueError(f"{folder} of a worker holds another model than where the job was started")
    return _load(folder, computing)


def _stopped(why: str, job: JobFolder, total: int) -> None:
    # Read again: an interrupt may come between an item's line and its count.
    finished = len(job.read_index())
    typer.echo(
        f"{why}; {finished} of {total} items are finished, and the same command resumes from there",
        err=True,
    )


def _report(
    options: BatchOptions,
    job: JobFolder,
    total: int,
    left: Sequence[Task],
    failed: int,
    bad: Sequence[BadLine],
    pace: str | None,
) -> None:
    cut = sum(record["finish_reason"] == "length" for record in job.finished.values())
    seconds = sum(record["seconds"] for record in job.finished.values())
    facts = [f"{len(job.finished)} of {total} items, {seconds:.1f} s of audio"]
    facts += [f"{total - len(left)} were finished before"] * (len(left) < total)
    facts += [f"{cut} cut at their limit"] * (cut > 0)
    facts += [f"{failed} failed"] * (failed > 0)
    facts += [f"{len(bad)} lines skipped"] * bool(bad)
    facts += [] if pace is None else [pace]
    typer.echo(f"{options.output}: {'; '.join(facts)}")
