"""What the golden file of the codec's encoder holds.

`tests/parity/codec_encoder_oracle.py` writes it with the official package; `tests/test_codec_encoder.py` needs
no PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.shapes import SMALL

MODEL = SMALL["1.7B-VoiceDesign"]

PATH = Path(__file__).parent / "golden" / "codec_encoder.npz"
"""codes and latents of `golden_samples()`, and those where attention is limited to the config's window."""


def noise(batch: int, count: int, seed: int = 0) -> np.ndarray:
    """Samples float32 [B, N] of which few leave [−1, 1]."""
    return 0.4 * np.random.RandomState(seed).standard_normal((batch, count)).astype(np.float32)


def golden_samples() -> np.ndarray:
    """Two recordings that end within their 14th frame; three windows long."""
    return noise(2, 13 * MODEL.codec.frame_samples + 7)
