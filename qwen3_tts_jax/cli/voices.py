"""Voices to clone: recordings with their text, files of voices, and the commands `voice …`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen3_tts_jax.cli.console import check_output, plain_messages, refuse, refusing
from qwen3_tts_jax.cli.model import Source, check_type, read_config
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.cli.text_input import read_text_file
from qwen3_tts_jax.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np

    from qwen3_tts_jax.voice_prompt import VoicePrompt


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A recording and its text, as they were given.

    Attributes:
        recording: a path or URL.
        text: what it says.
        text_file: a file to read that from instead.
        x_vector_only: whether to leave the text and the codes out.
    """

    recording: str
    text: str | None
    text_file: Path | None
    x_vector_only: bool

    def read(self) -> Recording:
        """Reads both; refuses a recording or text that no voice can be made from."""
        from qwen3_tts_jax import audio, voices

        option, text = "--reference-text", self.text
        if text is not None and self.text_file is not None:
            refuse(f"give what the recording says with {option} or with {option}-file, not both")
        if self.x_vector_only and (text is not None or self.text_file is not None):
            refuse(f"--x-vector-only leaves out what the recording says and takes no {option}")
        if not self.x_vector_only and text is None and self.text_file is None:
            refuse(
                f"{option} is missing: give what the recording says, or --x-vector-only, which resembles the voice less"
            )
        if self.text_file is not None:
            text = read_text_file(self.text_file)
        with refusing(ValueError, OSError):
            samples, rate = audio.read(self.recording)
            voices.check_recording("the recording", samples, rate)
            voices.check_text("the recording", text)
        return Recording(samples, rate, text)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording that a voice can be made from.

    Attributes:
        samples: float32 [N].
        rate: in Hz.
        text: what it says; None for a voice that is an x-vector alone.
    """

    samples: np.ndarray
    rate: int
    text: str | None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def voice(self, params: dict[str, Any], config: ModelConfig) -> VoicePrompt:
        """Its voice; `params` has the parts speaker_encoder and codec/encoder."""
        from qwen3_tts_jax.voices import make_voices

        (voice,) = make_voices(params, config, [(self.samples, self.rate)], [self.text])
        return voice

    def stand_in(self, config: ModelConfig) -> VoicePrompt:
        """A voice of the same size, to check a prompt with before there are weights to make the true one."""
        from qwen3_tts_jax import voice_prompt
        from qwen3_tts_jax.speech_tokenizer import encoded_frames

        return voice_prompt.stand_in(config, encoded_frames(config.codec, len(self.samples), self.rate), self.text)


def load_voice(path: Path) -> VoicePrompt:
    """The voice in a file; refuses a file that holds none or several."""
    from qwen3_tts_jax import voice_file

    with refusing(ValueError, OSError):
        voices = voice_file.load_all(path)
    if len(voices) > 1:
        refuse(f"{path} holds {len(voices)} voices where one is needed")
    return voices[0]


def save_voice(reference: Reference, source: Source, output: Path, name: str | None, quiet: bool) -> None:
    """A recording → a voice file, made with the two parts of a base model that this takes."""
    check_output(output, ".safetensors")
    with plain_messages():
        at_hand = source.config_at_hand()
        if at_hand is not None:
            check_type(source.model, at_hand, "base", "voice save")
        recording = reference.read()
        folder = source.folder(quiet)
        config = read_config(folder)
        check_type(source.model, config, "base", "voice save")

        from qwen3_tts_jax import voice_file
        from qwen3_tts_jax.compile_cache import keep_compiled
        from qwen3_tts_jax.convert import CheckpointError, load_checkpoint

        keep_compiled()
        parts = ("speaker_encoder", "codec/encoder")
        with ProgressLine(1 / config.codec.frame_rate, quiet) as progress:
            with refusing(CheckpointError):
                params = load_checkpoint(folder, config, parts, partial(progress, "load"))
            progress("listen", 0, 1)
            voice = recording.voice(params, config)
        with refusing(OSError):
            voice_file.save(
                voice,
                output,
                name=name,
                model_size=config.model_size,
                model_type=config.model_type,
                seconds=recording.seconds,
            )
    codes = "the x-vector alone" if voice.codes is None else f"an x-vector and {len(voice.codes)} frames"
    typer.echo(f"{output}: {codes} of {recording.seconds:.2f} s, for models of size {config.model_size}")


def show_voices(path: Path) -> None:
    """What is known of each voice in a file, a line per fact."""
    from qwen3_tts_jax import voice_file

    with refusing(ValueError, OSError):
        voices = voice_file.load_all(path)
        # Only a file with a single voice says more about it.
        known = voice_file.describe(path) if len(voices) == 1 else {}
    for number, voice in enumerate(voices, start=1):
        frames = "none: x-vector only" if voice.codes is None else "{} frames of {} codes".format(*voice.codes.shape)
        seconds = known.get("seconds")
        facts = {
            "voice": None if len(voices) == 1 else f"{number} of {len(voices)}",
            "name": known.get("name"),
            "model size": known.get("model_size"),
            "x-vector": f"{voice.x_vector.size} wide",
            "codes": frames,
            "recording": None if seconds is None else f"{seconds:.2f} s",
            "text": voice.text,
            "made by": known.get("tool"),
        }
        for fact, value in facts.items():
            if value is not None:
                # A stranger's file could hold control characters that steer the terminal.
                plain = "".join(letter if letter.isprintable() else " " for letter in value)
                typer.echo(f"{fact:13}{plain}")


def blend_voices(first: Path, second: Path, weight: float, output: Path, name: str | None) -> None:
    """Two voice files → one between them."""
    check_output(output, ".safetensors")
    if output.resolve() in (first.resolve(), second.resolve()):
        refuse(f"{output} is one of the two voices: choose another name")
    a, b = load_voice(first), load_voice(second)

    from qwen3_tts_jax import voice_file, voices

    with refusing(ValueError):
        voice = voices.blend(a, b, weight)
    known = [voice_file.describe(path) for path in (first, second)]
    origin = {key: known[0][key] or known[1][key] for key in ("model_size", "model_type")}
    with refusing(OSError):
        voice_file.save(voice, output, name=name, **origin)
    typer.echo(f"{output}: {1 - weight:g} of {first} and {weight:g} of {second}")
