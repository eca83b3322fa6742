"""The command `export`: any checkpoint that this package reads → a folder in the published layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refusing
from qwen3_tts_jax.cli.model import Source, folder_bytes, parts_of, read_config, stored_sizes
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.files import require_absent
from qwen3_tts_jax.packaged import MINI

EXAMPLES = examples(
    "qwen3-tts-jax export ./converted -o ./published --dtype bfloat16",
    "qwen3-tts-jax export ./anna -o ./anna-so-far --checkpoint last",
)


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of a model or of a run of `train`, repository, short name.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the talker and the code predictor; auto is that of the source, float32 of a run."),
    ] = "auto",
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option(help="Of a run: the best by validation if there is one, or the last.")
    ] = "best",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Write a model in the published layout.

    The official package loads it, too.

    The source is a model in the published layout, one that `convert` wrote (Orbax), or the folder of a `train sft` or
    `train talker` run, finished or not. `convert` goes the other way, from the published layout to Orbax.
    """
    with refusing(OSError):
        require_absent(output)
    quiet_orbax()
    with plain_messages(), refusing(ValueError, OSError):
        from qwen3_tts_jax.train.saved_run import export_run, is_run

        if source != MINI and is_run(source):
            _, name = export_run(source, output, "float32" if dtype == "auto" else dtype, checkpoint)
            typer.echo(f"{output}: {folder_bytes(output) / 1e6:,.1f} MB, the state of {source} at {name}")
            return

        from qwen3_tts_jax.convert import load_checkpoint
        from qwen3_tts_jax.train.export import export_model

        folder = Source(source, revision, cache_dir, offline, verify).folder(quiet)
        config = read_config(folder)
        if dtype == "auto":
            dtype = "bfloat16" if stored_sizes(folder, config)["talker"][0] == "bfloat16" else "float32"
        config = config.with_dtypes(dtype)
        parts = parts_of(config)
        with ProgressLine(1 / config.codec.frame_rate, quiet) as progress:
            params = load_checkpoint(folder, config, parts, partial(progress, "load"))
            progress("save", 0, 1)
            export_model(output, params, config, folder, dtype)
    typer.echo(f"{output}: {folder_bytes(output) / 1e6:,.1f} MB, {', '.join(parts)}; talker in {dtype}")
