"""The golden voice file of the official demo: what `torch.save` wrote into it, and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "golden" / "voices.pt"
"""Written by tests/parity/make_voice_golden.py."""


def items() -> list[dict[str, Any]]:
    """The fields of two official VoiceClonePromptItem: the first in context, the second of the x-vector alone.

    In the file, the first's codes lie transposed within a larger storage and its x-vector is bfloat16; the
    second's is every other element of its storage.
    """
    random = np.random.RandomState(3)
    # Multiples of 1/8 up to 8 are bfloat16 numbers.
    bfloat16 = random.randint(-64, 65, 6).astype(np.float32) / 8
    return [
        {
            "ref_code": random.randint(0, 37, (7, 5)).astype(np.int64),
            "ref_spk_embedding": bfloat16,
            "x_vector_only_mode": False,
            "icl_mode": True,
            "ref_text": "Grüß Gott, 你好.",
        },
        {
            "ref_code": None,
            "ref_spk_embedding": random.standard_normal(6).astype(np.float32),
            "x_vector_only_mode": True,
            "icl_mode": False,
            "ref_text": None,
        },
    ]
