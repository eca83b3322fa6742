"""The command `parity`: this package beside the official one, stage by stage."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, refusing
from qwen3_tts_jax.cli.model import Source, read_config
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.files import check_place

EXAMPLES = examples(
    "qwen3-tts-jax parity 0.6B-CustomVoice --report parity.md",
    'qwen3-tts-jax parity ./my-checkpoint --dtype bfloat16 --frames 25 --text "One." --text "Two, three."',
    'qwen3-tts-jax parity 0.6B-Base --reference me.wav --reference-text "What I say in me.wav."',
)

_TEXTS = {"english": "Good morning! The train leaves at 9:45.", "chinese": "今天天气很好。"}


def parity(
    model: option.ModelArgument,
    text: Annotated[list[str] | None, typer.Option(help="What both say; may be given several times.")] = None,
    speaker: Annotated[
        str | None, typer.Option(help="One that the command `voices` lists; the first by default.")
    ] = None,
    language: option.Language = "auto",
    instruct: Annotated[str | None, typer.Option(help="How to speak, or who speaks.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Recording for both to hear, and base models to clone; else a synthetic one.")
    ] = None,
    reference_text: Annotated[str | None, typer.Option(help="What it says (base models).")] = None,
    x_vector_only: Annotated[bool, typer.Option("--x-vector-only", help="Clone the x-vector alone.")] = False,
    text_mode: option.Mode = "all-at-once",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Both compute in this.")] = "float32",
    frames: Annotated[
        int, typer.Option(help="How many frames each makes at most, of 80 ms in the published models.")
    ] = 12,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer of the talker too.")] = False,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write the numbers into.")] = None,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Compare with the official PyTorch package.

    Stage by stage, on the same texts and recordings.

    Needs that package (qwen-tts) beside this one. Exit status 1 means that a stage exceeds its tolerance.
    """
    if report is not None:
        with refusing(OSError):
            check_place(report)
    from rich.console import Console

    from qwen3_tts_jax.convert.reference import OracleMissingError
    from qwen3_tts_jax.convert.verify import run_parity

    folder = Source(model, revision, cache_dir, offline, verify).folder(quiet)
    languages = read_config(folder).prompt.languages
    with plain_messages(), refusing(OracleMissingError, ValueError, OSError):
        result = run_parity(
            folder,
            text or [words for name, words in _TEXTS.items() if name in languages],
            dtype=dtype,
            frames=frames,
            speaker=speaker,
            language=language,
            instruct=instruct,
            reference=reference,
            reference_text=reference_text,
            x_vector_only=x_vector_only,
            text_mode=text_mode.replace("-", "_"),
            layers=layers,
            progress=None if quiet else partial(typer.echo, err=True),
        )
    # A pipe has no width, and in 80 columns the table would be squeezed.
    Console(width=None if sys.stdout.isatty() else 140).print(result.to_table())
    typer.echo(result.verdict)
    if report is not None:
        with refusing(OSError):
            result.write(report)
    if not result.passed:
        raise typer.Exit(1)
