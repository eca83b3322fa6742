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


def stand_in(config: ModelConfig, frames: int, text: str | None) -> VoicePrompt:
    """A voice of the shapes that a base model makes of a recording, to plan prompts with before there are weights.

    Args:
        config: of the model.
        frames: of the recording's codes, see `speech_tokenizer.encoded_frames`.
        text: what it says; None for the x-vector alone.
    """
    x_vector = np.zeros(config.speaker_encoder.x_vector_width, np.float32)
    codes = None if text is None else np.zeros((frames, config.talker.num_codebooks), np.int32)
    return VoicePrompt(x_vector, codes, text)


def check_voice(voice: VoicePrompt, config: ModelConfig) -> None:
    """Refuses a voice that the model cannot clone.

    Raises:
        ValueError: the model is no base model, the voice is of a model of another size, its codes are no
            codes of the model's codec, or its transcript is empty.
    """
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
    num_codebooks, codebook_size = config.talker.num_codebooks, config.code_predictor.codebook_size
    if voice.codes.ndim != 2 or voice.codes.shape[1] != num_codebooks or len(voice.codes) == 0:
        raise ValueError(
            f"the voice's codes have shape {list(voice.codes.shape)}, this model's have [T, {num_codebooks}]"
        )
    if voice.codes.dtype.kind not in "iu":
        raise ValueError(f"the voice's codes must be integers, got {voice.codes.dtype}")
    lowest, highest = voice.codes.min(), voice.codes.max()
    if lowest < 0 or highest >= codebook_size:
        raise ValueError(f"the voice's codes are {lowest} … {highest}, this model's are 0 … {codebook_size - 1}")
    if not voice.text.strip():
        raise ValueError("the voice has codes but an empty transcript; give the text that its recording says")
