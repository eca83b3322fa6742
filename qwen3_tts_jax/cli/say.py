"""The commands `say`, `design` and `clone`, as they are declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.options import DEFAULT_CLONER, DEFAULT_DESIGNER, examples

SAY_EXAMPLES = examples(
    'qwen3-tts-jax say "Good morning." -o morning.wav',
    'qwen3-tts-jax say "Good morning." --speaker henry',
    'qwen3-tts-jax say "Guten Morgen." --model 0.6B-CustomVoice --speaker ryan --language german',
    'qwen3-tts-jax say "I won!" --model 1.7B-CustomVoice --instruct "overjoyed"',
    'echo "Read from a pipe." | qwen3-tts-jax say --model ./my-checkpoint --seed 7',
    "qwen3-tts-jax say --file chapter.txt --model 1.7B-CustomVoice --split 100 -o chapter.flac",
    'qwen3-tts-jax say "Heard at once." --stream | ffplay -nodisp -autoexit -',
    "chatbot | qwen3-tts-jax say --text-mode as-it-comes --stream --raw | aplay -f S16_LE -r 24000",
)
DESIGN_EXAMPLES = examples(
    'qwen3-tts-jax design "Once upon a time." --instruct "an old man with a warm, rough voice"',
    'qwen3-tts-jax design --file story.txt --instruct "a cheerful girl" -o story.flac',
)
CLONE_EXAMPLES = examples(
    'qwen3-tts-jax clone "Good morning." --reference me.wav --reference-text "What I say in me.wav."',
    'qwen3-tts-jax clone "Good morning." --reference https://example.org/me.wav --x-vector-only',
    'qwen3-tts-jax clone "Good morning." --voice me.safetensors --stream | ffplay -nodisp -autoexit -',
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
    """Speak a text with one of the model's own voices.

    For CustomVoice models.
    """
    _speak("custom_voice", locals())


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
    """Speak a text with a voice that you describe.

    For VoiceDesign models.
    """
    _speak("voice_design", locals())


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
    """Speak a text with the voice of a recording.

    For Base models.
    """
    _speak("base", locals())


def _speak(model_type: str, options: dict[str, Any]) -> None:
    from qwen3_tts_jax.cli.speak import SpeakOptions, speak

    speak(model_type, SpeakOptions(**options))
