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
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qwen3_tts_jax import cli_batch, cli_export, cli_programs
from qwen3_tts_jax import cli_options as option
from qwen3_tts_jax.cli_codec import codec_app
from qwen3_tts_jax.cli_options import APP, DEFAULT_CLONER, DEFAULT_DESIGNER, examples
from qwen3_tts_jax.cli_train import train_app
from qwen3_tts_jax.cli_voice import voice_app
from qwen3_tts_jax.console import cannot_write_standard_output
from qwen3_tts_jax.packaged import MINI
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


@app.command(
    epilog=examples(
        'qwen3-tts-jax say "Good morning." -o morning.wav',
        'qwen3-tts-jax say "Good morning." --speaker henry',
        'qwen3-tts-jax say "Guten Morgen." --model 0.6B-CustomVoice --speaker ryan --language german',
        'qwen3-tts-jax say "I won!" --model 1.7B-CustomVoice --instruct "overjoyed"',
        'echo "Read from a pipe." | qwen3-tts-jax say --model ./my-checkpoint --seed 7',
        "qwen3-tts-jax say --file chapter.txt --model 1.7B-CustomVoice --split 100 -o chapter.flac",
        'qwen3-tts-jax say "Heard at once." --stream | ffplay -nodisp -autoexit -',
        "chatbot | qwen3-tts-jax say --text-mode as-it-comes --stream --raw | aplay -f S16_LE -r 24000",
    )
)
def say(
    text: option.Text = None,
    file: option.TextFile = None,
    output: option.Output = None,
    stream: option.Stream = False,
    raw: option.Raw = False,
    model: option.MiniOrModel = None,
    speaker: option.Speaker = None,
    language: option.Language = "auto",
    instruct: Annotated[
        str | None, typer.Option("--instruct", "-i", help='How to speak, in words ("whispering"); 1.7B models.')
    ] = None,
    max_seconds: option.MaxSeconds = None,
    text_mode: option.Mode = "all-at-once",
    split: option.Split = None,
    seed: option.Seed = 0,
    greedy: option.Greedy = False,
    temperature: option.Temperature = None,
    top_k: option.TopK = None,
    top_p: option.TopP = None,
    repetition_penalty: option.Penalty = None,
    dtype: option.Dtypes = "auto",
    attention: option.Attention = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Speak a text with one of the model's voices (CustomVoice models)."""
    _speak("custom_voice", locals())


@app.command(
    epilog=examples(
        'qwen3-tts-jax design "Once upon a time." --instruct "an old man with a warm, rough voice"',
        'qwen3-tts-jax design --file story.txt --instruct "a cheerful girl" -o story.flac',
    )
)
def design(
    text: option.Text = None,
    file: option.TextFile = None,
    output: option.Output = None,
    stream: option.Stream = False,
    raw: option.Raw = False,
    model: option.Model = DEFAULT_DESIGNER,
    language: option.Language = "auto",
    instruct: Annotated[
        str, typer.Option("--instruct", "-i", help="Who speaks and how, in words.", show_default=False)
    ] = "",
    max_seconds: option.MaxSeconds = None,
    text_mode: option.Mode = "all-at-once",
    split: option.Split = None,
    seed: option.Seed = 0,
    greedy: option.Greedy = False,
    temperature: option.Temperature = None,
    top_k: option.TopK = None,
    top_p: option.TopP = None,
    repetition_penalty: option.Penalty = None,
    dtype: option.Dtypes = "auto",
    attention: option.Attention = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Speak a text with a voice that you describe (VoiceDesign models)."""
    _speak("voice_design", locals())


@app.command(
    epilog=examples(
        'qwen3-tts-jax clone "Good morning." --reference me.wav --reference-text "What I say in me.wav."',
        'qwen3-tts-jax clone "Good morning." --reference https://example.org/me.wav --x-vector-only',
        'qwen3-tts-jax clone "Good morning." --voice me.safetensors --stream | ffplay -nodisp -autoexit -',
    )
)
def clone(
    text: option.Text = None,
    file: option.TextFile = None,
    output: option.Output = None,
    stream: option.Stream = False,
    raw: option.Raw = False,
    model: option.Model = DEFAULT_CLONER,
    reference: Annotated[
        str | None, typer.Option("--reference", "-r", help="Recording of the voice, 3 to 30 s: a file or a URL.")
    ] = None,
    reference_text: Annotated[str | None, typer.Option("--reference-text", "-t", help="What it says.")] = None,
    reference_text_file: Annotated[Path | None, typer.Option(help="Read that from this UTF-8 file.")] = None,
    voice: Annotated[
        Path | None, typer.Option("--voice", "-v", help="File of `voice save`, or the official demo's .pt.")
    ] = None,
    x_vector_only: option.XVectorOnly = False,
    language: option.Language = "auto",
    max_seconds: option.MaxSeconds = None,
    text_mode: option.Mode = "as-it-comes",
    split: option.Split = None,
    seed: option.Seed = 0,
    greedy: option.Greedy = False,
    temperature: option.Temperature = None,
    top_k: option.TopK = None,
    top_p: option.TopP = None,
    repetition_penalty: option.Penalty = None,
    dtype: option.Dtypes = "auto",
    attention: option.Attention = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Speak a text with the voice of a recording (Base models)."""
    _speak("base", locals())


def _speak(model_type: str, options: dict[str, Any]) -> None:
    from qwen3_tts_jax.cli_speak import SpeakOptions, speak

    speak(model_type, SpeakOptions(**options))


app.command(epilog=cli_batch.EXAMPLES)(cli_batch.batch)
app.command(epilog=cli_export.EXAMPLES)(cli_export.export)
app.command(epilog=cli_programs.WARMUP_EXAMPLES)(cli_programs.warmup)
app.command("export-programs", epilog=cli_programs.EXPORT_EXAMPLES)(cli_programs.export_programs)


@app.command(
    epilog=examples(
        "qwen3-tts-jax voices --model ./my-checkpoint",
    )
)
def voices(
    model: option.Model = MINI,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """List a model's voices, with their Chinese dialects."""
    from qwen3_tts_jax.cli_model import Source, print_voices

    print_voices(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=examples(
        "qwen3-tts-jax languages --model 1.7B-Base",
    )
)
def languages(
    model: option.Model = MINI,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """List a model's languages and dialects."""
    from qwen3_tts_jax.cli_model import Source, print_languages

    print_languages(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=examples(
        "qwen3-tts-jax info ./my-checkpoint",
    )
)
def info(
    model: option.ModelArgument,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """Show what a model can do and the sizes of its parts."""
    from qwen3_tts_jax.cli_model import Source, print_info

    print_info(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=examples(
        "qwen3-tts-jax convert 0.6B-CustomVoice ./custom-voice --dtype bfloat16",
    )
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
    """Convert a published checkpoint to an Orbax checkpoint; `export` goes the other way."""
    from qwen3_tts_jax.cli_model import Source, convert_model

    convert_model(Source(source, revision, cache_dir, offline, verify), destination, dtype, quiet)


@app.command(
    epilog=examples(
        "qwen3-tts-jax parity 0.6B-CustomVoice --report parity.md",
        'qwen3-tts-jax parity ./my-checkpoint --dtype bfloat16 --frames 25 --text "One." --text "Two, three."',
        'qwen3-tts-jax parity 0.6B-Base --reference me.wav --reference-text "What I say in me.wav."',
    )
)
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
    quiet: option.Quiet = False,
) -> None:
    """Compare with the official PyTorch package, stage by stage.

    Needs that package (qwen-tts) beside this one. Exit status 1 means that a stage exceeds its tolerance.
    """
    from qwen3_tts_jax.cli_model import Source, compare_with_official

    compare_with_official(
        Source(model, revision, cache_dir, offline),
        text,
        report,
        quiet,
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
    )
