"""Voices to clone: made from recordings, blended, saved and loaded (the files are described in `voice_file`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax import audio
from qwen3_tts_jax.buckets import bucket
from qwen3_tts_jax.config import ModelConfig, SpeakerEncoderConfig
from qwen3_tts_jax.mel import HOP, mel_spectrogram
from qwen3_tts_jax.speaker_encoder import x_vector
from qwen3_tts_jax.speech_tokenizer import encode_recordings
from qwen3_tts_jax.voice_file import describe, load, load_all, save
from qwen3_tts_jax.voice_prompt import VoicePrompt

__all__ = ["VoicePrompt", "blend", "describe", "load", "load_all", "make_voices", "save"]

SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 300.0
"""The shortest and the longest recording that a voice can be made from."""

# The lowest peak of a recording, −80 dBFS: a microphone's noise lies well above it.
_SILENCE = 1e-4
# Chinese is spoken at some 4 characters a second and slow English at 8 letters, pauses included.
_FEWEST_LETTERS_PER_SECOND = 1.0
BUCKET_SECONDS = 2


def make_voices(
    params: Mapping[str, Any],
    config: ModelConfig,
    recordings: Sequence[tuple[np.ndarray, int]],
    texts: Sequence[str | None],
    *,
    sliding_window: bool = True,
) -> list[VoicePrompt]:
    """One voice per recording, as the official `create_voice_clone_prompt` makes them.

    All recordings and texts are checked before anything is computed.

    Args:
        params: the whole parameter tree of a base model; its parts speaker_encoder and codec/encoder are used.
        config: the model's.
        recordings: as `audio.read` gives them: mono floats [N] in ±1, and their rate in Hz. From 3 to 30 s
            of one clear voice are best.
        texts: what each recording says; None makes a voice of the x-vector alone.
        sliding_window: see `codec.encoder.encode`.

    Raises:
        ValueError: a model of another type, not one text per recording, a recording that is empty, not finite,
            silent, shorter than 0.5 s or longer than 300 s, or a text without a letter.

    Warns:
        UserWarning: a text has fewer than one letter per second of its recording.
    """
    if config.speaker_encoder is None:
        raise ValueError(f"this {config.model_type} model makes no voices; use a base model")
    if len(recordings) != len(texts):
        raise ValueError(f"{len(recordings)} recordings have {len(texts)} texts; give one for each, or None")
    names = ["the recording" if len(texts) == 1 else f"recording {i} of {len(texts)}" for i in range(1, len(texts) + 1)]
    for name, (samples, rate), text in zip(names, recordings, texts, strict=True):
        check_recording(name, samples, rate)
        check_text(name, text)
    for name, (samples, rate), text in zip(names, recordings, texts, strict=True):
        if text is not None:
            _warn_of_short_text(name, text, len(samples) / rate)

    rate, codec_rate = config.speaker_encoder.sample_rate, config.codec.sample_rate
    heard = [_resampled(recording, rate) for recording in recordings]
    x_vectors = [_x_vector(params["speaker_encoder"], config.speaker_encoder, samples) for samples in heard]
    in_context = [i for i, text in enumerate(texts) if text is not None]
    encoded = encode_recordings(
        params["codec"]["encoder"],
        config.codec,
        # In the published models both rates are the same.
        [heard[i] if rate == codec_rate else _resampled(recordings[i], codec_rate) for i in in_context],
        sliding_window=sliding_window,
    )
    codes = dict(zip(in_context, encoded, strict=True))
    return [VoicePrompt(x_vectors[i], codes.get(i), text) for i, text in enumerate(texts)]


def check_recording(name: str, samples: np.ndarray, rate: int) -> None:
    """Raises a ValueError, with `name` for the recording, if no voice can be made from it; see `make_voices`."""
    problem = audio.samples_problem(samples)
    if problem is None and rate < 1:
        problem = f"has a sample rate of {rate} Hz"
    if problem:
        raise ValueError(f"{name} {problem}")
    seconds = samples.size / rate
    advice = "cut out 3 to 30 s of one clear voice"
    if seconds < SHORTEST_SECONDS:
        raise ValueError(f"{name} is too short: {seconds:.3f} s, at least {SHORTEST_SECONDS} s is needed; {advice}")
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"{name} is too long: {seconds:.1f} s, at most {LONGEST_SECONDS:.0f} s is allowed; {advice}")
    peak = float(np.abs(samples).max())
    if peak < _SILENCE:
        level = f"{20 * math.log10(peak):.0f} dBFS" if peak > 0 else "0"
        raise ValueError(
            f"{name} is silent: its peak is {level}, at least {20 * math.log10(_SILENCE):.0f} dBFS is needed"
        )


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def check_text(name: str, text: str | None) -> None:
    """Refuses a transcript of the recording `name` that says nothing; None, for no transcript, is allowed."""
    if text is not None and _letters(text) == 0:
        raise ValueError(
            f"{name} has a text without a letter, {text!r}; give what the recording says, or no text for a voice of "
            "the x-vector alone"
        )


def _warn_of_short_text(name: str, text: str, seconds: float) -> None:
    if _letters(text) < _FEWEST_LETTERS_PER_SECOND * seconds:
        warnings.warn(
            f"{name} lasts {seconds:.1f} s but its text has only {_letters(text)} letters: check that the text says "
            "all that is heard, and that the recording has no long silence",
            stacklevel=3,
        )


def _resampled(recording: tuple[np.ndarray, int], rate: int) -> np.ndarray:
    samples, own_rate = recording
    return audio.resample(samples.astype(np.float32), own_rate, rate)


@partial(jax.jit, static_argnames="config")
def padded_x_vectors(
    params: Mapping[str, Any], config: SpeakerEncoderConfig, samples: jax.Array, lengths: jax.Array
) -> jax.Array:
    """X-vectors [B, x_vector_width] of samples [B, N] at 24 kHz, of which row b's own are the first lengths[b]."""
    mel = mel_spectrogram(samples, config.mel_bins, lengths)
    return x_vector(params, config, mel, lengths // HOP)


def _x_vector(params: Mapping[str, Any], config: SpeakerEncoderConfig, samples: np.ndarray) -> np.ndarray:
    size = bucket(len(samples), BUCKET_SECONDS * config.sample_rate)
    padded = np.pad(samples, (0, size - len(samples)))
    return np.asarray(padded_x_vectors(params, config, padded[None], np.array([len(samples)], np.int32))[0])


def blend(a: VoicePrompt, b: VoicePrompt, weight: float) -> VoicePrompt:
    """A voice between two others, with an x-vector alone.

    Its direction lies on the great circle from a's to b's (spherical linear interpolation, Shoemake 1985);
    its length is interpolated linearly.

    Args:
        a: x_vector [D].
        b: x_vector [D], made by the same model.
        weight: from 0, which is a, to 1, which is b.

    Raises:
        ValueError: another weight, x-vectors of different widths, one of length 0, or opposite ones, between
            which no path is the shortest.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of a blend must be from 0 (the first voice) to 1 (the second), got {weight}")
    if a.x_vector.shape != b.x_vector.shape:
        raise ValueError(
            f"voices of different models cannot be blended: their x-vectors have widths {a.x_vector.size} and "
            f"{b.x_vector.size}"
        )
    if weight in (0, 1):
        return VoicePrompt((b if weight else a).x_vector)
    x, y = a.x_vector.astype(np.float64), b.x_vector.astype(np.float64)
    x_length, y_length = np.linalg.norm(x), np.linalg.norm(y)
    if min(x_length, y_length) == 0:
        raise ValueError("an x-vector of length 0 has no direction and cannot be blended")
    x, y = x / x_length, y / y_length
    # Accurate at every angle, which the arc cosine of x · y is not near 0 and π (Kahan 2006).
    angle = 2 * math.atan2(np.linalg.norm(x - y), np.linalg.norm(x + y))
    if math.pi - angle < 1e-3:
        raise ValueError("the voices' x-vectors point in opposite directions and cannot be blended")
    if angle < 1e-6:
        direction = (1 - weight) * x + weight * y  # the sines' quotients at angle 0
    else:
        direction = (math.sin((1 - weight) * angle) * x + math.sin(weight * angle) * y) / math.sin(angle)
    length = (1 - weight) * x_length + weight * y_length
    return VoicePrompt((length * direction).astype(np.float32))
