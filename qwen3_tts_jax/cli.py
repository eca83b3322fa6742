"""The command `qwen3-tts-jax`.

JAX, and all that needs it, is imported inside the commands: `--help`, `voices` and most refusals come at once.
Bad input ends with one line on standard error and exit status 2, before any weight is read.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qwen3_tts_jax.presets import PRESETS

DEFAULT_VOICES = "0.6B-CustomVoice"
DEFAULT_DESIGNER = "1.7B-VoiceDesign"

_PARITY_TEXTS = ("Good morning! The train leaves at 9:45.", "今天天气很好。")


def _examples(*lines: str) -> str:
    # \b keeps the help formatter from joining the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    help="Qwen3-TTS in JAX: speech from text.",
    epilog="A MODEL is a folder, a Hugging Face repository (owner/name), or a short name: " + ", ".join(PRESETS),
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Text = Annotated[str | None, typer.Argument(help='What to say; "-" or nothing reads standard input.')]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this UTF-8 file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Sound file to write: .wav, .flac or .ogg.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Folder, repository or short name.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, repository or short name.")]
Language = Annotated[str, typer.Option("--language", "-l", help='One of the command `languages`, or "auto".')]
MaxSeconds = Annotated[float | None, typer.Option(help="The longest speech to make; the model's own limit by default.")]
Mode = Annotated[
    Literal["all-at-once", "as-it-comes"],
    typer.Option("--text-mode", help="Show the model the whole text, or one token per frame."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same speech.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the most likely code; needs no seed.")]
Temperature = Annotated[float | None, typer.Option(help="Of the talker; the model's own by default.")]
TopK = Annotated[int | None, typer.Option(help="Of the talker; 0 switches it off.")]
TopP = Annotated[float | None, typer.Option(help="Of the talker; 1 switches it off.")]
Penalty = Annotated[float | None, typer.Option(help="On codes of the talker that came before; 1 is none.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="To compute in; auto is float32 on a CPU, else bfloat16."),
]
CodecDtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="The codec's.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where downloads are kept.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the network.")]
Verify = Annotated[bool, typer.Option("--verify", help="Compare the files' sha256 with the published ones.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error, warnings only.")]


def main() -> None:
    """The entry point of the installed command."""
    app(prog_name="qwen3-tts-jax")


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
    epilog=_examples(
        'qwen3-tts-jax say "Good morning." -o morning.wav',
        'qwen3-tts-jax say "Guten Morgen." --speaker ryan --language german',
        'qwen3-tts-jax say "I won!" --model 1.7B-CustomVoice --instruct "overjoyed"',
        'echo "Read from a pipe." | qwen3-tts-jax say --model ./my-checkpoint --seed 7',
    )
)
def say(
    text: Text = None,
    file: TextFile = None,
    output: Output = Path("speech.wav"),
    model: Model = DEFAULT_VOICES,
    speaker: Annotated[
        str | None, typer.Option("--speaker", "-s", help="One of the command `voices`; the first by default.")
    ] = None,
    language: Language = "auto",
    instruct: Annotated[
        str | None, typer.Option("--instruct", "-i", help='How to speak, in words ("whispering"); 1.7B models.')
    ] = None,
    max_seconds: MaxSeconds = None,
    text_mode: Mode = "all-at-once",
    seed: Seed = 0,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Speak a text with one of the model's voices (CustomVoice models)."""
    _speak("custom_voice", locals())


@app.command(
    epilog=_examples(
        'qwen3-tts-jax design "Once upon a time." --instruct "an old man with a warm, rough voice"',
        'qwen3-tts-jax design --file story.txt --instruct "a cheerful girl" -o story.flac',
    )
)
def design(
    text: Text = None,
    file: TextFile = None,
    output: Output = Path("speech.wav"),
    model: Model = DEFAULT_DESIGNER,
    language: Language = "auto",
    instruct: Annotated[
        str, typer.Option("--instruct", "-i", help="Who speaks and how, in words.", show_default=False)
    ] = "",
    max_seconds: MaxSeconds = None,
    text_mode: Mode = "all-at-once",
    seed: Seed = 0,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Speak a text with a voice that you describe (VoiceDesign models)."""
    _speak("voice_design", locals() | {"speaker": None})


def _speak(model_type: str, options: dict[str, Any]) -> None:
    from qwen3_tts_jax.cli_speak import SpeakOptions, speak

    speak(model_type, SpeakOptions(**options))


@app.command(
    epilog=_examples(
        "qwen3-tts-jax voices --model ./my-checkpoint",
    )
)
def voices(
    model: Model = DEFAULT_VOICES,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
) -> None:
    """List a model's voices, with their Chinese dialects."""
    from qwen3_tts_jax.cli_model import Source, print_voices

    print_voices(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=_examples(
        "qwen3-tts-jax languages --model 1.7B-Base",
    )
)
def languages(
    model: Model = DEFAULT_VOICES,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
) -> None:
    """List a model's languages and dialects."""
    from qwen3_tts_jax.cli_model import Source, print_languages

    print_languages(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=_examples(
        "qwen3-tts-jax info ./my-checkpoint",
    )
)
def info(
    model: ModelArgument,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
) -> None:
    """Show what a model can do and the sizes of its parts."""
    from qwen3_tts_jax.cli_model import Source, print_info

    print_info(Source(model, revision, cache_dir, offline))


@app.command(
    epilog=_examples(
        "qwen3-tts-jax convert 0.6B-CustomVoice ./custom-voice --dtype bfloat16",
    )
)
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, repository or short name.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist.")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="To store the talker in; auto is the file's own.")
    ] = "auto",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Convert a published checkpoint to an Orbax checkpoint."""
    from qwen3_tts_jax.cli_model import Source, convert_model

    convert_model(Source(source, revision, cache_dir, offline, verify), destination, dtype, quiet)


@app.command(
    epilog=_examples(
        "qwen3-tts-jax parity 0.6B-CustomVoice --report parity.md",
        'qwen3-tts-jax parity ./my-checkpoint --dtype bfloat16 --frames 25 --text "One." --text "Two, three."',
    )
)
def parity(
    model: ModelArgument,
    text: Annotated[list[str] | None, typer.Option(help="What both say; may be given several times.")] = None,
    speaker: Annotated[str | None, typer.Option(help="One of the command `voices`.")] = None,
    language: Language = "auto",
    instruct: Annotated[str | None, typer.Option(help="How to speak, or who speaks.")] = None,
    text_mode: Mode = "all-at-once",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Both compute in this.")] = "float32",
    frames: Annotated[int, typer.Option(help="How many frames of 80 ms each makes at most.")] = 12,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer of the talker too.")] = False,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write the numbers into.")] = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Compare with the official PyTorch package, stage by stage.

    Needs that package (qwen-tts) beside this one. Exit status 1 says that a stage is beyond its tolerance.
    """
    from qwen3_tts_jax.cli_model import Source, compare_with_official

    compare_with_official(
        Source(model, revision, cache_dir, offline),
        text or list(_PARITY_TEXTS),
        report,
        quiet,
        dtype=dtype,
        frames=frames,
        speaker=speaker,
        language=language,
        instruct=instruct,
        text_mode=text_mode.replace("-", "_"),
        layers=layers,
    )
