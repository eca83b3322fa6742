"""Which voices a model can clone."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.voice_prompt import VoicePrompt, check_voice

SMALLER, LARGER = preset("0.6B-Base"), preset("1.7B-Base")


def x_vector(width: int = 1024) -> np.ndarray:
    return np.linspace(-1, 1, width, dtype=np.float32)


def voice(codes: np.ndarray | None = None, text: str = "Hello.") -> VoicePrompt:
    """In context, with codes from the lowest to the highest unless they are given."""
    if codes is None:
        codes = np.linspace(0, 2047, 3 * 16).astype(np.int32).reshape(3, 16)
    return VoicePrompt(x_vector(), codes, text)


def with_code(code: int) -> np.ndarray:
    codes = voice().codes.copy()
    codes[1, 5] = code
    return codes


def not_finite(value: float) -> VoicePrompt:
    vector = x_vector()
    vector[700] = value
    return VoicePrompt(vector)


def test_good_voices_pass():
    check_voice(voice(), SMALLER)
    check_voice(VoicePrompt(x_vector()), SMALLER)
    check_voice(VoicePrompt(x_vector(2048)), LARGER)


def test_what_is_no_voice_is_refused():
    with pytest.raises(TypeError, match=r"a voice is a VoicePrompt, of .*, got dict"):
        check_voice({"ref_spk_embedding": [x_vector()]}, preset("1.7B-Base"))


@pytest.mark.parametrize(
    "fields", [{"codes": voice().codes}, {"text": "Hello."}, {"text": ""}], ids=["codes alone", "text alone", "empty"]
)
def test_codes_and_their_transcript_go_together(fields: dict):
    with pytest.raises(ValueError, match="a voice has codes and their transcript, or neither"):
        VoicePrompt(x_vector(), **fields)


@pytest.mark.parametrize(
    ("bad", "config", "message"),
    [
        (voice(), preset("0.6B-CustomVoice"), "this custom_voice model clones no voices; a base model does"),
        (voice(), preset("1.7B-VoiceDesign"), "this voice_design model clones no voices"),
        (
            voice(),
            LARGER,
            r"the voice's x-vector has shape \[1024\], this model's have \[2048\] .* make the voice again",
        ),
        (VoicePrompt(x_vector()[None]), SMALLER, r"x-vector has shape \[1, 1024\], this model's have \[1024\]"),
        (not_finite(np.nan), SMALLER, "the voice's x-vector is not finite"),
        (not_finite(np.inf), SMALLER, "the voice's x-vector is not finite"),
        (voice(voice().codes[:, :15]), SMALLER, r"codes must be integers \[T, 16\] with T > 0, got int32 \[3, 15\]"),
        (voice(voice().codes[:0]), SMALLER, r"codes must be integers \[T, 16\] with T > 0, got int32 \[0, 16\]"),
        (voice(voice().codes[0]), SMALLER, r"codes must be integers \[T, 16\] with T > 0, got int32 \[16\]"),
        (voice(voice().codes.astype(np.float32)), SMALLER, "codes must be integers .*, got float32"),
        (voice(with_code(2048)), SMALLER, "the voice does not fit this model: its codes must be 0 … 2047, got 2048 in"),
        (voice(with_code(-1)), SMALLER, "its codes must be 0 … 2047, got -1 in frame 1, codebook 5"),
        (voice(text=" \n"), SMALLER, "the voice has codes but an empty transcript"),
    ],
)
def test_voices_that_cannot_be_cloned_are_refused(bad: VoicePrompt, config: ModelConfig, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        check_voice(bad, config)
    assert "\n" not in str(caught.value)
