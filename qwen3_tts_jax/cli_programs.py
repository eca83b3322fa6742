"""The commands `warmup` and `export-programs`. Imported for --help: no JAX here."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwen3_tts_jax import cli_options as option
from qwen3_tts_jax.cli_options import examples
from qwen3_tts_jax.console import ProgressLine, check_output, plain_messages, refuse, refusing

if TYPE_CHECKING:
    from qwen3_tts_jax.config import ModelConfig
    from qwen3_tts_jax.pipeline import Qwen3TTS
    from qwen3_tts_jax.prompt import Request
    from qwen3_tts_jax.warm_up import Warmed

WARMUP_EXAMPLES = examples(
    "qwen3-tts-jax warmup 0.6B-CustomVoice",
    "qwen3-tts-jax warmup ./my-checkpoint --tokens 200 --batch-size 8 --batch-size 32 --no-stream",
    "qwen3-tts-jax warmup 0.6B-Base --voice me.safetensors",
)
EXPORT_EXAMPLES = examples(
    "qwen3-tts-jax export-programs 0.6B-CustomVoice -o programs.zip --rows 8 --seconds 20",
    "qwen3-tts-jax export-programs ./my-checkpoint -o programs.zip --platform cuda --platform tpu --dtype bfloat16",
)

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Tokens = Annotated[int, typer.Option(min=1, help="Of the longest text.")]
Voice = Annotated[
    Path | None, typer.Option("--voice", "-v", help="File of `voice save` (Base models); else an x-vector alone.")
]


def warmup(
    model: option.ModelArgument,
    tokens: Tokens = 64,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Of batch jobs, too; may be given several times.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="For streams, too.")] = True,
    max_seconds: option.MaxSeconds = None,
    text_mode: Annotated[
        Literal["all-at-once", "as-it-comes"] | None,
        typer.Option(help="As for the command that speaks with the model, by default its own."),
    ] = None,
    instruct: Annotated[str | None, typer.Option("--instruct", "-i", help="One as long as those to come.")] = None,
    voice: Voice = None,
    greedy: option.Greedy = False,
    dtype: option.Dtype = "auto",
    codec_dtype: option.CodecDtype = "float32",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Compile what speaking needs, and keep it for later commands.

    Programs depend on the lengths of text and speech in steps, on the batch size, the dtypes and the options
    of sampling. A command of the same kind then compiles nothing that takes long, unless its speech becomes
    unusually long.
    """
    from qwen3_tts_jax.cli_model import Source

    with plain_messages():
        from qwen3_tts_jax.compile_cache import keep_compiled

        folder = Source(model, revision, cache_dir, offline).folder()
        request = _request(folder, max_seconds, text_mode, instruct, voice)
        kept = keep_compiled()
        if kept is None:
            refuse("compiled programs are not kept: see JAX_ENABLE_COMPILATION_CACHE and the folder for caches")
        tts = _load(folder, dtype, codec_dtype, quiet)
        from qwen3_tts_jax.arguments import merge_sampling
        from qwen3_tts_jax.warm_up import warm_up

        sampling = {"do_sample": False, "subtalker_dosample": False} if greedy else {}
        with _Counter(quiet) as counter, refusing(ValueError):
            done = list(
                warm_up(
                    tts,
                    request,
                    tokens=tokens,
                    batch_sizes=batch_size or (),
                    stream=stream,
                    generation=merge_sampling(tts.config, sampling)[0],
                    progress=counter,
                )
            )
    if not quiet:
        _print_table(done)
    compiled, found = sum(way.compiled for way in done), sum(way.found for way in done)
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) / 1e6
    typer.echo(
        f"{compiled} programs compiled in {sum(way.seconds for way in done):.1f} s, {found} were there; "
        f"{kept} holds {size:.1f} MB"
    )


def export_programs(
    model: option.ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .zip.")] = Path("programs.zip"),
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Utterances at a time; may be given several times.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Positions of the longest prompt.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the longest speech.")] = 30.0,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="To run on: cpu, cuda, rocm or tpu; may be given several times; by default this machine's."),
    ] = None,
    dtype: option.Dtype = "auto",
    codec_dtype: option.CodecDtype = "float32",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Write a model's programs into a file that runs without this package (`jax.export`).

    The file holds no weights. `qwen3_tts_jax.ahead_of_time` says what is in it and how it is used.
    """
    from qwen3_tts_jax.cli_model import Source

    check_output(output, ".zip")
    for name in platform or ():
        if name not in _PLATFORMS:
            refuse(f"there is no platform {name!r}; choose from {', '.join(_PLATFORMS)}")
    with plain_messages():
        from qwen3_tts_jax.ahead_of_time import Size, export_programs

        folder = Source(model, revision, cache_dir, offline).folder()
        tts = _load(folder, dtype, codec_dtype, quiet)
        frames = max(1, int(seconds * tts.config.codec.frame_rate))
        sizes = [Size(count, tokens, tokens + frames) for count in rows or [1]]
        with refusing(ValueError, OSError):
            export_programs(output, tts.params, tts.config, sizes, platforms=platform)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {len(sizes)} sizes")


def _request(
    folder: Path, max_seconds: float | None, text_mode: str | None, instruct: str | None, voice: Path | None
) -> Request:
    """What all requests have in common; refuses what the model cannot speak."""
    from qwen3_tts_jax.cli_model import read_config
    from qwen3_tts_jax.prompt import Request, validate

    if max_seconds is not None and not 0 < max_seconds < math.inf:
        refuse(f"--max-seconds must be a number above 0, got {max_seconds:g}")
    config = read_config(folder)
    frames = None if max_seconds is None else max(1, int(max_seconds * config.codec.frame_rate))
    mode = text_mode or ("as-it-comes" if config.model_type == "base" else "all-at-once")
    if config.model_type == "voice_design" and instruct is None:
        instruct = "A calm voice."
    request = Request(
        "one",
        speaker=next(iter(config.prompt.speakers), None),
        instruct=instruct,
        text_mode=mode.replace("-", "_"),
        max_frames=frames,
        voice=_voice(config, voice),
    )
    with refusing(ValueError):
        validate(request, config)
    return request


def _voice(config: ModelConfig, file: Path | None):
    if config.model_type != "base":
        return None if file is None else refuse(f"--voice is for base models; this is a {config.model_type} model")
    import numpy as np

    from qwen3_tts_jax.cli_clone import load_voice
    from qwen3_tts_jax.voice_prompt import VoicePrompt

    if file is not None:
        return load_voice(file)
    return VoicePrompt(np.zeros(config.speaker_encoder.x_vector_width, np.float32))


def _load(folder: Path, dtype: str, codec_dtype: str, quiet: bool) -> Qwen3TTS:
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.pipeline import Qwen3TTS

    with ProgressLine(1.0, quiet) as progress, refusing(CheckpointError):
        return Qwen3TTS.from_pretrained(folder, dtype, codec_dtype, progress=progress)


class _Counter:
    """A line on standard error that says how many programs are done; nothing where that is no terminal."""

    def __init__(self, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("compiling", total=None)

    def __enter__(self) -> _Counter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, description=f"compiling, {done} of {total}", completed=done, total=total)


def _print_table(done: list[Warmed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("for", "seconds", "compiled", "were there", box=None, pad_edge=False)
    for way in done:
        table.add_row(way.name, f"{way.seconds:.1f}", str(way.compiled), str(way.found))
    Console(width=None if sys.stdout.isatty() else 100).print(table)
