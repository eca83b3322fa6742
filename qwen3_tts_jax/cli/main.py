"""The command `qwen3-tts-jax`.

JAX, and all that needs it, is imported inside the commands: `--help`, `voices` and most refusals come at once.
Bad input ends with one line on standard error and exit status 2, before any weight is read; a recording that training
cannot use, before any is encoded.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from qwen3_tts_jax.cli import batch, convert, export, info, parity, programs, say
from qwen3_tts_jax.cli.codec import codec_app
from qwen3_tts_jax.cli.console import cannot_write_standard_output
from qwen3_tts_jax.cli.options import APP
from qwen3_tts_jax.cli.train import train_app
from qwen3_tts_jax.cli.voice import voice_app
from qwen3_tts_jax.presets import PRESETS

app = typer.Typer(
    help="Qwen3-TTS in JAX: speech from text.",
    epilog="A MODEL is a folder, a Hugging Face repository (owner/name), or a short name: "
    + ", ".join(["mini (in this package)", *PRESETS]),
    add_completion=False,
    **APP,
)
app.add_typer(voice_app)
app.add_typer(codec_app)
app.add_typer(train_app)


# The exit statuses of commands that a signal ends, as shells have them.
_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def main() -> None:
    """The entry point of the installed command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # A shell can close them (`<&-`), and Python then sets them to None.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    try:
        app(prog_name="qwen3-tts-jax")
    except OSError as error:
        # An error about a file would have its name.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        sys.exit(cannot_write_standard_output(error))
    except SystemExit as end:
        if end.code in _BY_SIGNAL:
            # XLA may be compiling in a thread of its own, which crashes if the interpreter is taken apart meanwhile.
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(end.code)
        raise


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"qwen3-tts-jax {version('qwen3-tts-jax')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(epilog=say.SAY_EXAMPLES)(say.say)
app.command(epilog=say.DESIGN_EXAMPLES)(say.design)
app.command(epilog=say.CLONE_EXAMPLES)(say.clone)
app.command(epilog=batch.EXAMPLES)(batch.batch)
app.command(epilog=info.VOICES_EXAMPLES)(info.voices)
app.command(epilog=info.LANGUAGES_EXAMPLES)(info.languages)
app.command(epilog=info.INFO_EXAMPLES)(info.info)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=parity.EXAMPLES)(parity.parity)
app.command(epilog=programs.WARMUP_EXAMPLES)(programs.warmup)
app.command("export-programs", epilog=programs.EXPORT_PROGRAMS_EXAMPLES)(programs.export_programs)
