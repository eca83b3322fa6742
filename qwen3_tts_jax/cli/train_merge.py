"""The command `train merge`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refuse, refusing
from qwen3_tts_jax.cli.model import Source, parts_of, read_config
from qwen3_tts_jax.cli.options import DEFAULT_CLONER, examples
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.files import require_absent

EXAMPLES = examples(
    "qwen3-tts-jax train merge anna/lora.safetensors --model 0.6B-Base -o anna-model",
    'qwen3-tts-jax say "Good morning." --model anna-model --speaker anna',
)


def merge(
    lora: Annotated[Path, typer.Argument(metavar="LORA.safetensors", help="Of a run of `train sft --lora`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    model: option.Model = DEFAULT_CLONER,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the talker and the code predictor.")
    ] = "bfloat16",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Add low-rank adapters to the model they were trained on.

    The speakers learnt with them are added, too.

    The result is a model with plain weights in the published layout. Adapters for another model are refused.
    """
    with refusing(OSError):
        require_absent(output)
    if not lora.is_file():
        refuse(f"{lora} is not there")
    quiet_orbax()
    with plain_messages(), refusing(ValueError, OSError):
        from qwen3_tts_jax.train.lora import read_adapters

        # A wrong file is refused before a download.
        read_adapters(lora)
        folder = Source(model, revision, cache_dir, offline).folder()
        config = read_config(folder).with_dtypes("float32")

        from qwen3_tts_jax.convert import load_checkpoint
        from qwen3_tts_jax.train.export import export_model
        from qwen3_tts_jax.train.merge import with_lora

        with ProgressLine(1 / config.codec.frame_rate, quiet) as progress:
            params = load_checkpoint(folder, config, parts_of(config), partial(progress, "load"))
            before = config.prompt.speakers
            params, config = with_lora(lora, params, config)
            progress("save", 0, 1)
            export_model(output, params, config, folder, dtype)
    new = [name for name in config.prompt.speakers if name not in before]
    typer.echo(f"{output}: {model} with {lora}" + (f", speakers {', '.join(new)}" if new else ""))
