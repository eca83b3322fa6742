"""The commands `warmup` and `export-programs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import check_output, plain_messages, refuse, refusing
from qwen3_tts_jax.cli.model import Source, folder_bytes, read_config
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.cli.progress import ProgressLine, StatusLine
from qwen3_tts_jax.config import ConfigError, ModelConfig

if TYPE_CHECKING:
    from qwen3_tts_jax.cli.voices import Recording
    from qwen3_tts_jax.pipeline import Qwen3TTS
    from qwen3_tts_jax.prompt import Request
    from qwen3_tts_jax.voice_prompt import VoicePrompt
    from qwen3_tts_jax.warm_up import Warmed

WARMUP_EXAMPLES = examples(
    "qwen3-tts-jax warmup 0.6B-CustomVoice",
    "qwen3-tts-jax warmup ./my-checkpoint --tokens 200 --batch-size 8 --batch-size 32 --no-stream",
    "qwen3-tts-jax warmup 0.6B-Base --voice me.safetensors",
    'qwen3-tts-jax warmup 0.6B-Base --reference me.wav --reference-text "What I say in me.wav."',
)
EXPORT_PROGRAMS_EXAMPLES = examples(
    "qwen3-tts-jax export-programs 0.6B-CustomVoice -o programs.zip --rows 8 --seconds 20",
    "qwen3-tts-jax export-programs ./my-checkpoint -o programs.zip --platform cuda --platform tpu --dtype bfloat16",
)

_LONGEST_REFERENCE = 30
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Tokens = Annotated[int, typer.Option(min=1, max=4096, help="Of the longest text.")]
Voice = Annotated[
    Path | None, typer.Option("--voice", "-v", help="File of `voice save` (Base models); else an x-vector alone.")
]


def warmup(
    model: option.ModelArgument,
    tokens: Tokens = 64,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Also for batch jobs of this size; may be given several times.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Also for streams.")] = True,
    streams: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Also for so many streams at a time (`Qwen3TTS.stream_batch`); may be given several times."
        ),
    ] = None,
    max_seconds: option.MaxSeconds = None,
    text_mode: Annotated[
        Literal["all-at-once", "as-it-comes"] | None,
        typer.Option(help="As for the command that speaks with the model; by default that of the command."),
    ] = None,
    instruct: Annotated[
        str | None, typer.Option("--instruct", "-i", help="An instruction as long as later ones.")
    ] = None,
    voice: Voice = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", "-r", help="Recording as long as those to come (Base models): a file or a URL."),
    ] = None,
    reference_text: Annotated[str | None, typer.Option("--reference-text", "-t", help="What it says.")] = None,
    greedy: option.Greedy = False,
    dtype: option.Dtypes = "auto",
    attention: option.Attention = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Compile beforehand what speaking needs.

    The programs are kept for later commands.

    Programs depend on the lengths of text, speech and recordings, rounded up to steps, on the batch size, on the
    computing options, and on which ways of sampling are on, but not on their numbers, except for a top-k beyond 64. A
    later command of the same kind compiles nothing that takes long, unless its speech becomes unusually long.
    """
    from qwen3_tts_jax.arguments import merge_sampling, part_dtypes
    from qwen3_tts_jax.cli.sampling import GREEDY, check_max_seconds

    check_max_seconds(max_seconds)
    with refusing(ConfigError):
        part_dtypes(dtype, "auto")
    with plain_messages():
        from qwen3_tts_jax.compile_cache import keep_compiled

        folder = Source(model, revision, cache_dir, offline, verify).folder(quiet)
        config = read_config(folder)
        heard = _heard(config, voice, reference, reference_text)
        request = _request(config, max_seconds, text_mode, instruct, heard)
        kept = keep_compiled()
        if kept is None:
            refuse("compiled programs are not kept: see JAX_ENABLE_COMPILATION_CACHE and the folder for caches")
        tts = _load(folder, quiet, dtype=dtype, attention=attention, weights=weights)
        from qwen3_tts_jax.warm_up import warm_up

        sampling = GREEDY if greedy else {}
        with _Counter(quiet) as counter, refusing(ValueError):
            done = list(
                warm_up(
                    tts,
                    request,
                    tokens=tokens,
                    batch_sizes=batch_size or (),
                    stream=stream,
                    stream_batches=streams or (),
                    recordings=_recordings(heard, config, voice),
                    generation=merge_sampling(tts.config, sampling)[0],
                    progress=counter,
                )
            )
    if not quiet:
        _print_table(done)
    compiled, found = sum(way.compiled for way in done), sum(way.found for way in done)
    typer.echo(
        f"{compiled} programs compiled in {sum(way.seconds for way in done):.1f} s, {found} were there; "
        f"{kept} holds {folder_bytes(kept) / 1e6:.1f} MB"
    )


def export_programs(
    model: option.ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .zip.")] = Path("programs.zip"),
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Utterances at a time, 1 by default; may be given several times.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Positions of the longest prompt.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the longest speech.")] = 30.0,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="To run on: cpu, cuda, rocm or tpu; may be given several times; by default this machine's."),
    ] = None,
    dtype: option.Dtypes = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Write a model's programs into a file.

    It runs without this package (`jax.export`), and holds no weights. `qwen3_tts_jax.ahead_of_time` says what else it
    holds and how to use it.
    """
    check_output(output, ".zip")
    for name in platform or ():
        if name not in _PLATFORMS:
            refuse(f"there is no platform {name!r}; choose from {', '.join(_PLATFORMS)}")
    with plain_messages():
        from qwen3_tts_jax.ahead_of_time import Size, check_sizes, export_programs

        folder = Source(model, revision, cache_dir, offline, verify).folder(quiet)
        config = read_config(folder)
        frames = config.codec.frames_in(seconds)
        sizes = [Size(count, tokens, tokens + frames) for count in rows or [1]]
        with refusing(ValueError):
            check_sizes(sizes, config)
        tts = _load(folder, quiet, dtype=dtype, weights=weights)
        with refusing(ValueError, OSError):
            export_programs(output, tts.params, tts.config, sizes, platforms=platform)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {len(sizes)} sizes")


def _request(
    config: ModelConfig,
    max_seconds: float | None,
    text_mode: str | None,
    instruct: str | None,
    voice: Recording | VoicePrompt | None,
) -> Request:
    """What all requests have in common; refuses what the model cannot speak."""
    from qwen3_tts_jax.cli.voices import Recording
    from qwen3_tts_jax.prompt import Request, validate

    frames = None if max_seconds is None else config.codec.frames_in(max_seconds)
    mode = text_mode or ("as-it-comes" if config.model_type == "base" else "all-at-once")
    if config.model_type == "voice_design" and instruct is None:
        instruct = "A calm voice."
    request = Request(
        "one",
        speaker=next(iter(config.prompt.speakers), None),
        instruct=instruct,
        text_mode=mode.replace("-", "_"),
        max_frames=frames,
        voice=voice.stand_in(config) if isinstance(voice, Recording) else voice,
    )
    with refusing(ValueError):
        validate(request, config)
    return request


def _heard(
    config: ModelConfig, voice: Path | None, reference: str | None, text: str | None
) -> Recording | VoicePrompt | None:
    """The voice that a base model is given; an x-vector alone if none was given."""
    given = {"--voice": voice, "--reference": reference, "--reference-text": text}
    names = [name for name, value in given.items() if value is not None]
    if config.model_type != "base":
        return refuse(f"{names[0]} is for base models; this is a {config.model_type} model") if names else None
    if voice is not None and len(names) > 1:
        refuse(f"--voice takes no {names[1]}: the file has its own")
    if text is not None and reference is None:
        refuse("--reference-text is what a --reference says, and there is none")
    import numpy as np

    from qwen3_tts_jax.cli.voices import Reference, load_voice
    from qwen3_tts_jax.voice_prompt import VoicePrompt

    if voice is not None:
        return load_voice(voice)
    if reference is not None:
        return Reference(recording=reference, text=text, text_file=None, x_vector_only=text is None).read()
    return VoicePrompt(np.zeros(config.speaker_encoder.x_vector_width, np.float32))


def _recordings(heard: Recording | VoicePrompt | None, config: ModelConfig, voice: Path | None) -> Sequence[float]:
    """Seconds of the recordings that voices will be made from: those of the given one, or any up to 30."""
    from qwen3_tts_jax.cli.voices import Recording

    if isinstance(heard, Recording):
        return [heard.seconds]
    return range(1, _LONGEST_REFERENCE + 1) if config.model_type == "base" and voice is None else ()


def _load(folder: Path, quiet: bool, **computing: str) -> Qwen3TTS:
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.pipeline import Qwen3TTS

    with ProgressLine(1.0, quiet) as progress, refusing(CheckpointError, ConfigError):
        return Qwen3TTS.from_pretrained(folder, **computing, progress=progress)


class _Counter(StatusLine):
    """A line that says how many programs are done."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, elapsed=True)

    def __call__(self, done: int, total: int) -> None:
        self._show(f"compiling, {done} of {total}", done, total)


def _print_table(done: list[Warmed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("for", "seconds", "compiled", "were there", box=None, pad_edge=False)
    for way in done:
        table.add_row(way.name, f"{way.seconds:.1f}", str(way.compiled), str(way.found))
    Console(width=None if sys.stdout.isatty() else 100).print(table)
