"""What the golden files of speech hold: which requests, on which small checkpoint, and where they lie.

`tests/parity/make_golden.py` writes them with the official package; `tests/test_golden.py` needs no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.shapes import SMALL

GREEDY = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.05}


@dataclass(frozen=True)
class Golden:
    """One call of the official package.

    Attributes:
        variant: key of `tests.shapes.SMALL`.
        method: of `Qwen3TTSModel` and of `Qwen3TTS`.
        arguments: of the call; sampling is greedy with the penalty at 1.05.
        voices: of `generate_voice_clone`; see `voice`.
        eos_boost: of the random checkpoint; above 0, rows end by themselves.
    """

    name: str
    variant: str
    method: str
    arguments: dict[str, Any]
    eos_boost: float = 0.0
    voices: tuple[tuple[int, str | None], ...] = ()

    @property
    def path(self) -> Path:
        """An .npz with codes_{row} int16 [T, Q] and samples_{row} float32 [N] of each text."""
        return Path(__file__).parent / "golden" / f"speech_{self.name}.npz"


def voice(variant: str, row: int, frames: int, text: str | None) -> VoicePrompt:
    """A random voice; without a text, of the x-vector alone."""
    config, rng = SMALL[variant], np.random.RandomState(row)
    x_vector = 0.5 * rng.standard_normal(config.speaker_encoder.x_vector_width).astype(np.float32)
    codes = rng.randint(0, config.code_predictor.codebook_size, (frames, config.talker.num_codebooks)).astype(np.int32)
    return VoicePrompt(x_vector) if text is None else VoicePrompt(x_vector, codes, text)


_TEXTS = ["Good morning!", "今天天气很好，我们去公园散步吧。", "Où est la gare, s'il vous plaît ?"]

GOLDENS = (
    Golden(
        "custom_voice_stops",
        "0.6B-CustomVoice",
        "generate_custom_voice",
        {"text": _TEXTS, "speaker": ["vivian", "dylan", "aiden"], "language": ["english", "auto", "french"],
         "max_new_tokens": 20},
        eos_boost=1.0,
    ),
    Golden(
        "custom_voice_instruct",
        "1.7B-CustomVoice",
        "generate_custom_voice",
        {"text": _TEXTS, "speaker": ["Eric", "sohee", "uncle_fu"], "language": ["chinese", "chinese", "auto"],
         "instruct": ["angrily", "", "in a whisper, slowly"], "non_streaming_mode": False, "max_new_tokens": 60},
    ),
    Golden(
        "voice_design",
        "1.7B-VoiceDesign",
        "generate_voice_design",
        {"text": _TEXTS, "instruct": ["A deep, calm voice.", "年轻的女声，语速很快", ""],
         "language": ["english", "chinese", "french"], "max_new_tokens": 60},
    ),
    Golden(
        "voice_clone",
        "1.7B-Base",
        "generate_voice_clone",
        {"text": _TEXTS, "language": ["english", "auto", "french"], "max_new_tokens": 40},
        eos_boost=1.0,
        voices=((4, "A reference shorter than its text."), (23, "好。"), (0, None)),
    ),
)  # fmt: skip
