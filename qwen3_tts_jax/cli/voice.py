"""The commands `voice save`, `voice show` and `voice blend`, as they are declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.options import APP, DEFAULT_CLONER, examples

voice_app = typer.Typer(name="voice", help="Make, show and blend the voices that `clone` speaks with.", **APP)

Output = Annotated[Path, typer.Option("--output", "-o", help="Voice file to write: .safetensors.")]
Name = Annotated[str | None, typer.Option("--name", help="Of the voice; `voice show` prints it.")]


@voice_app.command(
    epilog=examples(
        'qwen3-tts-jax voice save me.wav --reference-text "What I say in me.wav." -o me.safetensors',
        "qwen3-tts-jax voice save https://example.org/me.wav --x-vector-only --model 1.7B-Base -o me.safetensors",
    )
)
def save(
    recording: Annotated[
        str, typer.Argument(metavar="RECORDING", help="Of one clear voice, 3 to 30 s: a file or a URL.")
    ],
    output: Output,
    text: Annotated[str | None, typer.Option("--reference-text", "--text", "-t", help="What it says.")] = None,
    text_file: Annotated[
        Path | None, typer.Option("--reference-text-file", "--text-file", help="Read that from this UTF-8 file.")
    ] = None,
    x_vector_only: option.XVectorOnly = False,
    name: Name = None,
    model: option.Model = DEFAULT_CLONER,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Make a voice file from a recording.

    It only fits models of the size that made it: voices of 0.6B and 1.7B models differ.
    """
    from qwen3_tts_jax.cli.voices import Reference, save_voice

    reference = Reference(recording=recording, text=text, text_file=text_file, x_vector_only=x_vector_only)
    save_voice(reference, Source(model, revision, cache_dir, offline, verify), output, name, quiet)


@voice_app.command(
    epilog=examples(
        "qwen3-tts-jax voice show me.safetensors",
    )
)
def show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Of `voice save` or `voice blend`, or the official demo's .pt.")
    ],
) -> None:
    """Show what a voice file holds."""
    from qwen3_tts_jax.cli.voices import show_voices

    show_voices(file)


@voice_app.command(
    epilog=examples(
        "qwen3-tts-jax voice blend me.safetensors you.safetensors --weight 0.3 -o us.safetensors",
    )
)
def blend(
    first: Annotated[Path, typer.Argument(metavar="A", help="Voice file, or the official demo's .pt.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of a model of the same size.")],
    output: Output,
    weight: Annotated[float, typer.Option(help="0 is A, 1 is B.")] = 0.5,
    name: Name = None,
) -> None:
    """Make the voice between A and B, of their x-vectors alone."""
    from qwen3_tts_jax.cli.voices import blend_voices

    blend_voices(first, second, weight, output, name)
