"""The commands `codec encode` and `codec decode`, as they are declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.options import APP, DEFAULT_CODEC, examples

codec_app = typer.Typer(name="codec", help="Sound to codes and back, with the codec alone.", **APP)

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Any model, or a codec's own folder or repository; all published ones have the same."
    ),
]


@codec_app.command(
    epilog=examples(
        "qwen3-tts-jax codec encode hello.wav -o hello.npz",
        "qwen3-tts-jax codec encode recordings/*.flac -o codes.safetensors --model ./my-checkpoint",
    )
)
def encode(
    recordings: Annotated[list[str], typer.Argument(metavar="AUDIO", help="Sound files or URLs.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of codes to write: .npz or .safetensors.")
    ] = Path("codes.npz"),
    model: Model = DEFAULT_CODEC,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Encode recordings.

    The file has an int32 array [frames, codebooks] per recording, named like the sound file without its
    ending, and the codec's sample_rate and frame_rate: two more arrays in .npz, metadata in .safetensors.
    """
    from qwen3_tts_jax.cli.codes import encode_files

    encode_files(recordings, output, Source(model, revision, cache_dir, offline), quiet)


@codec_app.command(
    epilog=examples(
        "qwen3-tts-jax codec decode hello.npz -o hello.wav",
        "qwen3-tts-jax codec decode codes.safetensors -o decoded/",
    )
)
def decode(
    codes: Annotated[Path, typer.Argument(metavar="FILE", help="Codes: .npz, .safetensors, or .npy of `batch`.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Sound file to write, or a folder for a NAME.wav of each recording."),
    ] = Path("speech.wav"),
    model: Model = DEFAULT_CODEC,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Decode codes.

    Several recordings go into a folder, which is created if it does not exist; existing files are never replaced.
    """
    from qwen3_tts_jax.cli.codes import decode_file

    decode_file(codes, output, Source(model, revision, cache_dir, offline), quiet)
