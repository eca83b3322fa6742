"""A cloned voice as a base model reads it. NumPy only, like `prompt`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen3_tts_jax.config import ModelConfig


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A voice to clone; `voices` makes, saves and loads them.

    With codes and their transcript the voice is cloned in context: the model goes on speaking where the
    recording ends. Without, only the x-vector tells it who speaks.

    Attributes:
        x_vector: float32 [D], of the model's speaker encoder.
        codes: int32 [T, Q], the recording's; None for the x-vector alone.
        text: what the recording says; None where there are no codes.

    Raises:
        ValueError: codes without a transcript, or the other way round.
    """

    x_vector: np.ndarray
    codes: np.ndarray | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) != (self.text is None):
            raise ValueError("a voice has codes and their transcript, or neither")


def codes_problem(codes: np.ndarray, count: int, size: int) -> str | None:
    """Why an array cannot be codes, in words that follow its name in a message; None if it can.

    Args:
        codes: int [T, Q], T > 0.
        count: Q.
        size: of each codebook.
    """
    if codes.dtype.kind not in "iu" or codes.ndim != 2 or codes.shape[1] != count or len(codes) == 0:
        return f"must be integers [T, {count}] with T > 0, got {codes.dtype} {list(codes.shape)}"
    outside = np.argwhere((codes < 0) | (codes >= size))
    if len(outside) == 0:
        return None
    frame, codebook = outside[0]
    return f"must be 0 … {size - 1}, got {codes[frame, codebook]} in frame {frame}, codebook {codebook}"


def stand_in(config: ModelConfig, frames: int, text: str | None) -> VoicePrompt:
    """A voice with the shapes that a base model makes of a recording, to plan prompts before there are weights.

    Args:
        config: the model's.
        frames: of the recording's codes, see `speech_tokenizer.encoded_frames`.
        text: what it says; None for the x-vector alone.
    """
    x_vector = np.zeros(config.speaker_encoder.x_vector_width, np.float32)
    codes = None if text is None else np.zeros((frames, config.talker.num_codebooks), np.int32)
    return VoicePrompt(x_vector, codes, text)


def check_voice(voice: VoicePrompt, config: ModelConfig) -> None:
    """Refuses a voice that the model cannot clone.

    Raises:
        TypeError: it is not a `VoicePrompt`.
        ValueError: the model is not a base model, the voice comes from a model of another size, its codes are
            not codes of the model's codec, or its transcript is empty.
    """
    if not isinstance(voice, VoicePrompt):
        raise TypeError(
            f"a voice is a VoicePrompt, of create_voice_clone_prompt or voices.load, got {type(voice).__name__}; "
            "voices.load reads the files of the official demo"
        )
    if config.speaker_encoder is None:
        raise ValueError(f"this {config.model_type} model clones no voices; a base model does")
    shape, width = voice.x_vector.shape, config.speaker_encoder.x_vector_width
    if shape != (width,):
        raise ValueError(
            f"the voice's x-vector has shape {list(shape)}, this model's have [{width}] (1024 in the 0.6B model, 2048 "
            "in the 1.7B model): make the voice again with this model"
        )
    if not np.isfinite(voice.x_vector).all():
        raise ValueError("the voice's x-vector is not finite")
    if voice.codes is None:
        return
    problem = codes_problem(voice.codes, config.talker.num_codebooks, config.code_predictor.codebook_size)
    if problem:
        raise ValueError(f"the voice does not fit this model: its codes {problem}")
    if not voice.text.strip():
        raise ValueError("the voice has codes but an empty transcript; give the text that its recording says")
