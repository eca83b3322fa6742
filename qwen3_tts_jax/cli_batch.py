"""The command `batch`: a manifest → a folder of speech. Imported for --help: no JAX here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from qwen3_tts_jax import cli_options as option
from qwen3_tts_jax.cli_options import DEFAULT_VOICES, examples

if TYPE_CHECKING:
    from qwen3_tts_jax.batch import Task
    from qwen3_tts_jax.batch_folder import JobFolder
    from qwen3_tts_jax.config import GenerationConfig, ModelConfig
    from qwen3_tts_jax.manifest import BadLine

EXAMPLES = examples(
    "qwen3-tts-jax batch lines.jsonl -o out/",
    "qwen3-tts-jax batch lines.csv -o out/ --model 1.7B-VoiceDesign --format flac --batch-size 16",
    "qwen3-tts-jax batch clones.jsonl -o out/ --model 0.6B-Base --save-codes --skip-bad",
    "",
    'A manifest, as JSON lines or (.csv) as CSV with the same names in its first line; only "text" is needed:',
    '  {"id": "a1", "text": "Good morning.", "speaker": "ryan", "language": "english"}',
    '  {"id": "a2", "text": "It rains.", "instruct": "sadly", "max_seconds": 6, "seed": 3}',
    '  {"id": "b1", "text": "Hello.", "reference": "me.wav", "reference_text": "What I say."}',
    '  {"id": "b2", "text": "Hello.", "voice": "me.safetensors", "text_mode": "all-at-once"}',
)

_SHOWN_PROBLEMS = 20
_INTERRUPTED = 130


def batch(
    manifest: Annotated[Path, typer.Argument(help="JSON lines, or CSV by its ending .csv.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the job; made where it is not there.", show_default=False)
    ],
    model: option.Model = DEFAULT_VOICES,
    audio_format: Annotated[Literal["wav", "flac"], typer.Option("--format", help="Of the sound files.")] = "wav",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Items at a time; all batches are filled up to it, so that none changes another.")
    ] = 8,
    save_codes: Annotated[bool, typer.Option("--save-codes", help="Write codes/ID.npy too, int16 [T, Q].")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip lines that cannot be spoken.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(help="Of items without it; by default 2 s and 0.64 s per token of the text.")
    ] = None,
    seed: option.Seed = 0,
    greedy: option.Greedy = False,
    temperature: option.Temperature = None,
    top_k: option.TopK = None,
    top_p: option.TopP = None,
    repetition_penalty: option.Penalty = None,
    dtype: option.Dtype = "auto",
    codec_dtype: option.CodecDtype = "float32",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Speak a list of texts into a folder, with any model; the same command again goes on where it was interrupted.

    out/ID.wav are written as they are finished, and a line for each in out/index.jsonl. Exit status: 0 when all items
    are finished, 1 when some failed, 2 when the job was refused. The same manifest and seed give the same codes,
    whatever the order of the lines and wherever the job was interrupted.
    """
    run_batch(BatchOptions(**locals()))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The options of `batch`, as they were given."""

    manifest: Path
    output: Path
    model: str
    audio_format: str
    batch_size: int
    save_codes: bool
    skip_bad: bool
    max_seconds: float | None
    seed: int
    greedy: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    dtype: str
    codec_dtype: str
    revision: str | None
    cache_dir: Path | None
    offline: bool
    verify: bool
    quiet: bool


def run_batch(options: BatchOptions) -> None:
    """Checks the options, the manifest and the folder, in this order; then loads the weights and speaks."""
    from qwen3_tts_jax import manifest
    from qwen3_tts_jax.batch import plan
    from qwen3_tts_jax.batch_folder import FolderError, JobFolder
    from qwen3_tts_jax.cli_model import Source, read_config
    from qwen3_tts_jax.console import plain_messages, refusing
    from qwen3_tts_jax.text import TextTokenizer

    sampling = _check_options(options)
    job = JobFolder(options.output, options.audio_format, options.save_codes)
    with plain_messages():
        with refusing(manifest.ManifestError, OSError):
            items, bad = manifest.read(options.manifest)
        with refusing(FolderError):
            # Once more with the lock, but here before a download.
            job.check()
        if bad and not options.skip_bad and not Path(options.model).is_dir():
            # Before a download. A model that is there finds out what else is wrong.
            _refuse_bad(bad)
        folder = Source(options.model, options.revision, options.cache_dir, options.offline, options.verify).folder()
        config = read_config(folder)
        with refusing(FileNotFoundError):
            tokenizer = TextTokenizer.from_folder(folder)
        tasks, unspeakable = plan(items, config, tokenizer, options.seed, options.max_seconds)
        bad = sorted([*bad, *unspeakable], key=lambda line: line.line)
        if bad and not (options.skip_bad and tasks):
            _refuse_bad(bad)
        for line in _first(bad):
            typer.echo(f"skipped: {line}", err=True)
        generation, settings = _settings(options, sampling, folder, config)
        with refusing(FolderError), job:
            job.begin(settings, tasks, bad)
            left = [task for task in tasks if task.id not in job.finished]
            failed = _speak(options, folder, generation, job, tasks, left) if left else 0
            _report(options, job, tasks, left, failed, bad)
    if failed:
        raise typer.Exit(1)


def _check_options(options: BatchOptions) -> dict[str, Any]:
    """Refuses impossible options; returns the sampling arguments of `arguments.merge_sampling`."""
    from qwen3_tts_jax.cli_speak import sampling_arguments
    from qwen3_tts_jax.console import refuse
    from qwen3_tts_jax.manifest import MAX_SEED

    if options.max_seconds is not None and not 0 < options.max_seconds < math.inf:
        refuse(f"--max-seconds must be a number above 0, got {options.max_seconds:g}")
    if not 0 <= options.seed <= MAX_SEED:
        refuse(f"--seed must be 0 … {MAX_SEED}, got {options.seed}")
    return sampling_arguments(options)


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
    import jax

    from qwen3_tts_jax.arguments import merge_sampling
    from qwen3_tts_jax.batch import weights_digest

    generation, _ = merge_sampling(config, sampling)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return generation, {
        "model": {"type": config.model_type, "size": config.model_size, "digest": weights_digest(folder)},
        "dtype": dtype,
        "codec dtype": options.codec_dtype,
        "sampling": asdict(generation),
        "seed": options.seed,
        "batch size": options.batch_size,
    }


def _speak(
    options: BatchOptions,
    folder: Path,
    generation: GenerationConfig,
    job: JobFolder,
    tasks: Sequence[Task],
    left: Sequence[Task],
) -> int:
    """Speaks what is left; returns how many items failed."""
    from qwen3_tts_jax.batch import run
    from qwen3_tts_jax.batch_folder import FolderError
    from qwen3_tts_jax.compile_cache import keep_compiled
    from qwen3_tts_jax.console import refusing
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.pipeline import Qwen3TTS

    keep_compiled()
    failed = 0
    try:
        with BatchLine(tasks, left, options.quiet) as line:
            with refusing(CheckpointError):
                tts = Qwen3TTS.from_pretrained(folder, options.dtype, options.codec_dtype, progress=line)
            for result in run(tts, left, generation, options.batch_size, line):
                if result.speech is None:
                    failed += 1
                    job.add_failure(result.task, result.reason)
                    line.say(f"failed: {result.task.id}: {result.reason}")
                else:
                    job.add(result.task, result.speech)
                line.done(result.task, 0.0 if result.speech is None else result.speech.seconds)
    except KeyboardInterrupt:
        _stopped("interrupted", job, tasks)
        raise typer.Exit(_INTERRUPTED) from None
    except FolderError as error:
        _stopped(f"error: {error}", job, tasks)
        raise typer.Exit(1) from None
    return failed


def _stopped(why: str, job: JobFolder, tasks: Sequence[Task]) -> None:
    # Read again: an interrupt may come between an item's line and its count.
    finished = len(job.read_index())
    typer.echo(
        f"{why}; {finished} of {len(tasks)} items are finished, and the same command goes on from there",
        err=True,
    )


def _report(
    options: BatchOptions,
    job: JobFolder,
    tasks: Sequence[Task],
    left: Sequence[Task],
    failed: int,
    bad: Sequence[BadLine],
) -> None:
    cut = sum(job.finished[task.id]["finish_reason"] == "length" for task in tasks if task.id in job.finished)
    seconds = sum(record["seconds"] for record in job.finished.values())
    facts = [f"{len(job.finished)} of {len(tasks)} items, {seconds:.1f} s of audio"]
    facts += [f"{len(tasks) - len(left)} were finished before"] * (len(left) < len(tasks))
    facts += [f"{cut} cut at their limit"] * (cut > 0)
    facts += [f"{failed} failed"] * (failed > 0)
    facts += [f"{len(bad)} lines skipped"] * bool(bad)
    typer.echo(f"{options.output}: {'; '.join(facts)}")


class BatchLine:
    """One line on standard error: items done, audio, speed and time left; nothing where that is no terminal.

    An instance is a `synthesis.Progress`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        left: Sequence[Task],
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._all, self._items = len(tasks), len(tasks) - len(left)
        self._tokens = sum(task.text_tokens for task in left)
        self._tokens_done, self._seconds = 0, 0.0
        self._clock = clock
        self._start: float | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.stop()
        typer.echo(" ".join(text.split()), err=True)
        self._progress.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows bytes loaded, or where the batch stands."""
        if stage == "load":
            self._show(f"loading {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)
            return
        if self._start is None:
            self._start = self._clock()
        batch = {"prefill": "reading", "decode": "decoding"}.get(stage) or f"frame {done} of at most {total}"
        self._show(f"{self.text()} ({batch})", self._items, self._all)

    def done(self, task: Task, seconds: float) -> None:
        """Counts an item that is finished with so much audio, or has failed."""
        self._items += 1
        self._tokens_done += task.text_tokens
        self._seconds += seconds
        self._show(self.text(), self._items, self._all)

    def text(self) -> str:
        """Items done, audio made, its speed, and the time left, which is judged by the tokens of the texts."""
        text = f"{self._items} of {self._all} items, {self._seconds:.1f} s of audio"
        if self._start is None or not self._tokens_done:
            return text
        taken = max(self._clock() - self._start, 1e-9)
        left = round(taken * (self._tokens - self._tokens_done) / self._tokens_done)
        clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        return f"{text}, {self._seconds / taken:.2f} x real time, {clock} left"

    def _show(self, text: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)
