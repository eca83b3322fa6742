"""Arguments and options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qwen3_tts_jax.packaged import MINI

DEFAULT_CODEC = "0.6B-CustomVoice"
DEFAULT_DESIGNER = "1.7B-VoiceDesign"
DEFAULT_CLONER = "0.6B-Base"

# The settings of each group of commands, and of the whole.
APP: dict[str, Any] = {
    "no_args_is_help": True,
    "context_settings": {"max_content_width": 100},
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


def examples(*lines: str) -> str:
    """The end of a command's help."""
    # \b keeps the help formatter from joining the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


Text = Annotated[str | None, typer.Argument(help='What to say; "-", or no text, reads standard input.')]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this UTF-8 file.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Sound file to write: .wav, .flac or .ogg; speech.wav by default."),
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Speak to standard output while the speech is made, as WAV: | ffplay -")
]
Raw = Annotated[
    bool, typer.Option("--raw", help="With --stream, samples without the header: | aplay -f S16_LE -r 24000")
]
_MODEL = "Folder, repository or short name."
Model = Annotated[str, typer.Option("--model", "-m", help=_MODEL)]
MiniOrModel = Annotated[str | None, typer.Option("--model", "-m", help=_MODEL, show_default=MINI)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
Speaker = Annotated[
    str | None, typer.Option("--speaker", "-s", help="One that the command `voices` lists; the first by default.")
]
XVectorOnly = Annotated[
    bool,
    typer.Option(
        "--x-vector-only",
        help="Take the sound of the voice alone: needs no transcript, but resembles the voice less.",
    ),
]
Language = Annotated[str, typer.Option("--language", "-l", help='One that the command `languages` lists, or "auto".')]
MaxSeconds = Annotated[float | None, typer.Option(help="The longest speech to make; the model's own limit by default.")]
Mode = Annotated[
    Literal["all-at-once", "as-it-comes"],
    typer.Option("--text-mode", help="Show the model the whole text, or one token per frame."),
]
Split = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Approximate maximum length of one utterance, in text tokens (0.2 s each): longer texts are spoken in "
        "parts, side by side; mini always speaks sentence by sentence.",
    ),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same speech.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the most likely code; needs no seed.")]
Temperature = Annotated[float | None, typer.Option(help="Of the talker; the model's own by default.")]
TopK = Annotated[int | None, typer.Option(help="Of the talker; 0 switches it off.")]
TopP = Annotated[float | None, typer.Option(help="Of the talker; 1 switches it off.")]
Penalty = Annotated[float | None, typer.Option(help="On codes that the talker has already made; 1 is none.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="To compute in; auto is float32 on a CPU, else bfloat16."),
]
Dtypes = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="float32, bfloat16 or auto, of talker and code predictor, and by part: codec=bfloat16_3x, …",
        show_default="auto: float32 on a CPU, else bfloat16; the codec float32",
    ),
]
Attention = Annotated[
    Literal["auto", "xla", "cudnn", "pallas"],
    typer.Option(help="For prompts, in bfloat16: a kernel for NVIDIA GPUs (cudnn) or TPUs (pallas), or neither (xla)."),
]
Weights = Annotated[
    Literal["float", "int8"],
    typer.Option(help="int8 keeps the layers in a quarter of the memory, and speaks a little differently."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where downloads are kept.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never access the network.")]
Verify = Annotated[bool, typer.Option("--verify", help="Compare the files' sha256 with the published ones.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error, only warnings.")]


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """The options of all commands that speak, as they were given; a `model` of None means `mini`."""

    model: str | None
    max_seconds: float | None
    seed: int
    greedy: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    dtype: str
    attention: str
    weights: str
    revision: str | None
    cache_dir: Path | None
    offline: bool
    verify: bool
    quiet: bool

    @property
    def computing(self) -> dict[str, str]:
        """The options of `Qwen3TTS.from_pretrained` that decide how it computes, and in what numbers."""
        return {"dtype": self.dtype, "attention": self.attention, "weights": self.weights}
