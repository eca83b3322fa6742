"""A recording, and what each implementation computes from it: mel spectrogram, x-vector, latents and codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax import audio
from qwen3_tts_jax.codec.encoder import encode_latents
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.compare import Quantization
from qwen3_tts_jax.convert.reference import MAX_FRAMES, quiet, to_numpy
from qwen3_tts_jax.mel import mel_spectrogram
from qwen3_tts_jax.speech_tokenizer import encode_recordings
from qwen3_tts_jax.voices import padded_x_vectors

SYNTHETIC_TEXT = "Nobody says this; it stands in for a recording."
_SYNTHETIC_SECONDS = 3.0


@dataclass(frozen=True, eq=False)
class Recording:
    """What both implementations hear.

    Attributes:
        samples: float32 [N] in ±1.
        rate: in Hz.
        text: what it says; None clones its x-vector alone.
        name: for the report.
    """

    samples: np.ndarray
    rate: int
    text: str | None
    name: str

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, eq=False)
class Hearing:
    """What an implementation hears in one recording.

    Attributes:
        latents: [T, D], what the codec's quantizer is given.
        codes: int [T, Q].
        mel: magnitudes [Tm, mel_bins], not their logarithms; None if the model has no speaker encoder.
        x_vector: float32 [D]; None likewise.
        quantizations: how each quantizer chose its codes; of the reference only.
    """

    latents: np.ndarray
    codes: np.ndarray
    mel: np.ndarray | None
    x_vector: np.ndarray | None
    quantizations: tuple[Quantization, ...] = ()


def synthetic_recording(config: ModelConfig) -> tuple[np.ndarray, int]:
    """Three seconds of a voice-like sound, always the same: samples [N] and their rate.

    Harmonics of a pitch with vibrato, in the rhythm of syllables, and some noise. A codec with shorter
    frames than the published one's hears less of it, so that speech can follow within `MAX_FRAMES`.
    """
    rate = config.codec.sample_rate
    count = min(round(_SYNTHETIC_SECONDS * rate), MAX_FRAMES // 2 * config.codec.frame_samples)
    random, seconds = np.random.RandomState(0), np.arange(count) / rate
    phase = 2 * np.pi * np.cumsum(150 + 12 * np.sin(2 * np.pi * 5.5 * seconds)) / rate
    voice = sum(np.sin(k * phase + random.uniform(0, 2 * np.pi)) / k for k in range(1, 25))
    rhythm = 0.6 + 0.4 * np.sin(2 * np.pi * 3.7 * seconds)
    return (0.15 * rhythm * voice + 0.005 * random.standard_normal(count)).astype(np.float32), rate


def hear_official(model: Any, recording: Recording) -> tuple[Hearing, list[Any]]:
    """What the official `Qwen3TTSModel` hears, and the voice prompt that a base model makes of it."""
    import torch

    encoder = model.model.speech_tokenizer.model.encoder
    latents, mels = [], []
    sound = recording.samples, recording.rate
    with quiet(), torch.inference_mode(), _noting_latents(encoder, latents), _noting_mels(model, mels):
        codes = to_numpy(model.model.speech_tokenizer.encode(sound[0], sr=sound[1]).audio_codes[0])
        items = []
        if model.model.tts_model_type == "base":
            items = model.create_voice_clone_prompt(sound, recording.text, recording.text is None)
        quantizations = tuple(_quantizations(encoder.quantizer, latents[0], codes))
    hearing = Hearing(
        latents=to_numpy(latents[0][0].T),
        codes=codes,
        mel=np.exp(to_numpy(mels[0][0].T)) if items else None,
        x_vector=to_numpy(items[0].ref_spk_embedding) if items else None,
        quantizations=quantizations,
    )
    return hearing, items


@contextmanager
def _noting_latents(encoder: Any, latents: list[Any]) -> Iterator[None]:
    # Encoding does not call the quantizer's `forward`, so its input is noted where it is made.
    hook = encoder.downsample.register_forward_hook(lambda module, args, output: latents.append(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _noting_mels(model: Any, mels: list[Any]) -> Iterator[None]:
    module = sys.modules[type(model.model).__module__]
    mel_of = module.mel_spectrogram

    def noting(*args: Any, **kwargs: Any) -> Any:
        mels.append(mel_of(*args, **kwargs))
        return mels[-1]

    module.mel_spectrogram = noting
    try:
        yield
    finally:
        module.mel_spectrogram = mel_of


def _quantizations(quantizer: Any, latents: Any, codes: np.ndarray) -> Iterator[Quantization]:
    """How `codes` [T, Q] were chosen for `latents` [1, D, T], by the semantic quantizer, then the acoustic one."""
    first = 0
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        layers = part.layers[: codes.shape[1] - first]
        entries = np.stack([to_numpy(layer.codebook.embed) for layer in layers])
        residual = to_numpy(part.input_proj(latents)[0].T)
        residuals = []
        for codebook in range(len(layers)):
            residuals.append(residual)
            residual = residual - entries[codebook, codes[:, first + codebook]]
        first += len(layers)
        yield Quantization(np.stack(residuals, axis=1), entries)


def hear(params: dict[str, Any], config: ModelConfig, recording: Recording) -> Hearing:
    """What this package hears, through the functions that make voices.

    The codec's encoder attends to everything before, as the official package does on a CPU.
    """
    samples = audio.resample(recording.samples, recording.rate, config.codec.sample_rate)
    encoder = params["codec"]["encoder"]
    codes = encode_recordings(encoder, config.codec, [samples], sliding_window=False)[0]
    latents = _latents(encoder, config.codec.encoder, samples[None])[0]
    mel = vector = None
    if config.speaker_encoder is not None:
        heard = audio.resample(recording.samples, recording.rate, config.speaker_encoder.sample_rate)[None]
        mel = np.exp(_mel(heard, config.speaker_encoder.mel_bins)[0])
        lengths = np.array(heard.shape[1:], np.int32)
        vector = np.asarray(padded_x_vectors(params["speaker_encoder"], config.speaker_encoder, heard, lengths)[0])
    return Hearing(np.asarray(latents), codes, mel, vector)


_latents = jax.jit(partial(encode_latents, sliding_window=False), static_argnums=1)
_mel = jax.jit(mel_spectrogram, static_argnums=1)
