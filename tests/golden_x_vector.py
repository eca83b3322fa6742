"""The golden x-vector of the official package: what it is of, and where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

VARIANT = "0.6B-Base"

PATH = Path(__file__).parent / "golden" / "x_vector.npz"
"""samples [N], mel [T, 128] and x_vector [x_vector_width], float32, with the weights of `drawn_tree`."""


def speech_like(num_samples: int, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding pitch under a syllable rhythm, a little noise, and a pause: float32 [N] in ±1."""
    random = np.random.RandomState(seed)
    seconds = np.arange(num_samples) / 24_000
    pitch = 110 + 60 * seed + 30 * np.sin(2 * np.pi * 1.3 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / 24_000
    voice = sum(np.sin(k * phase + random.uniform(0, 6)) / k for k in range(1, 30))
    rhythm = np.maximum(np.sin(2 * np.pi * 4 * seconds + 0.4), 0)
    return (0.2 * rhythm * voice + 0.003 * random.standard_normal(num_samples)).astype(np.float32)
