"""The command `convert`: a checkpoint in the published layout → an Orbax checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refuse, refusing
from qwen3_tts_jax.cli.model import Source, folder_bytes, parts_of, read_config
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.files import require_absent

EXAMPLES = examples(
    "qwen3-tts-jax convert 0.6B-CustomVoice ./custom-voice --dtype bfloat16",
)


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, repository or short name.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist.")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="To store the talker in; auto is the file's own.")
    ] = "auto",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Convert a published checkpoint to an Orbax checkpoint.

    `export` goes the other way.
    """
    with refusing(OSError):
        require_absent(destination)
    from qwen3_tts_jax.convert import CheckpointError, load_params
    from qwen3_tts_jax.convert.check import check_folder, is_converted

    folder = Source(source, revision, cache_dir, offline, verify).folder(quiet)
    if is_converted(folder):
        refuse(f"{folder} is converted already")
    config = read_config(folder)
    with plain_messages(), refusing(CheckpointError):
        stored = check_folder(folder, config)
        if dtype == "auto":
            talker = {tensor.dtype for name, tensor in stored.items() if name.startswith("talker.")}
            dtype = "bfloat16" if talker == {"BF16"} else "float32"
        config = config.with_dtypes(dtype)
        parts = parts_of(config)
        with ProgressLine(1 / config.codec.frame_rate, quiet) as progress:
            params = load_params(folder, config, parts, partial(progress, "load"))
            progress("save", 0, 1)
            quiet_orbax()
            from qwen3_tts_jax.convert import orbax_checkpoint

            with refusing(OSError):
                orbax_checkpoint.save(destination, params, config, folder)
    typer.echo(f"{destination}: {folder_bytes(destination) / 1e6:,.1f} MB, {', '.join(parts)}; talker in {dtype}")
