"""A very small codec for tests of training codecs: 5 codebooks of 32 codes, 8 samples a frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen3_tts_jax.train.codec.codes import with_codes
from qwen3_tts_jax.train.codec.data import Clips, Recording
from tests.shapes import SMALL

BASE = SMALL["1.7B-VoiceDesign"].codec
CODEC = replace(
    BASE,
    encoder=replace(
        BASE.encoder, codebook_dim=6, strides=(4,), transformer=replace(BASE.encoder.transformer, num_layers=1)
    ),
    decoder=replace(
        BASE.decoder, codebook_size=32, upsample_rates=(4,), decoder_channels=16,
        transformer=replace(BASE.decoder.transformer, num_layers=1),
    ),
)  # fmt: skip
FRAME, FRAMES = CODEC.frame_samples, 270


def tones(seed: int, rows: int = 4, frames: int = FRAMES) -> np.ndarray:
    """Samples float32 [rows, frames · 8] of three harmonics each."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / CODEC.sample_rate
    pitch, level = rng.uniform(150, 600, (rows, 1)), rng.uniform(0.1, 0.4, (rows, 1))
    return sum(level / n * np.sin(2 * np.pi * n * pitch * time) for n in (1, 2, 3)).astype(np.float32)


def clips(rows: int = 5, frames: int = 540, seed: int = 0) -> Clips:
    """Recordings of different lengths, the last shorter than 270 frames."""
    samples = np.round(tones(seed, rows, frames) * 32_767).astype(np.int16)
    cut = tuple(row[: len(row) - 78 * FRAME * i + 7 * i] for i, row in enumerate(samples))
    recordings = tuple(Recording(f"data.jsonl line {i + 1}", Path(f"{i}.wav")) for i in range(rows))
    return Clips(recordings, cut, CODEC.sample_rate)


def clips_with_codes(rows: int = 5, seed: int = 0) -> Clips:
    """`clips` with codes drawn at random, of the encoder's number of frames."""
    data, rng = clips(rows, seed=seed), np.random.default_rng(seed)
    codes = [rng.integers(0, 32, (-(-len(one) // FRAME), 5)).astype(np.int32) for one in data.samples]
    return with_codes(data, codes, FRAME)
