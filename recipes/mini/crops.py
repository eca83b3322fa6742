"""Crops of recordings that follow the silence with which the talker begins, their formants sharpened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwen3_tts_jax.train.codec.data import Clips
from recipes.mini.durations import AHEAD
from recipes.mini.formants import sharpen

_SHARPEN, _MARGIN = 1.6, 0.1
"""How much formants are sharpened, more than learning blurs them; and seconds around a crop sharpened with it."""


def behind_silence(clips: Clips, silence: np.ndarray) -> Clips:
    """The clips with codes of silence [`AHEAD`, Q] before their own, as the talker begins; their samples stay.

    Otherwise a decoder would never have seen what comes before the first word of a speech.
    """
    return replace(clips, codes=tuple(np.concatenate([silence, codes]) for codes in clips.codes))


def cut_behind_silence(clips: Clips, places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Crops like those of `clips.cut`, float32 [B, length], at places counted from the silence before a recording."""
    silent = AHEAD * clips.frame_samples
    crops = clips.cut([(which, max(first - silent, 0)) for which, first in places], length)
    for row, (_, first) in enumerate(places):
        late = min(max(silent - first, 0), length)
        crops[row] = np.pad(crops[row, : length - late], (late, 0))
    return crops


def cut_sharpened(clips: Clips, places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """The same with sharpened formants."""
    margin = round(_MARGIN * clips.sample_rate)
    begins = [(which, max(first - margin, 0)) for which, first in places]
    wide = cut_behind_silence(clips, begins, length + 2 * margin)
    crops = np.empty((len(places), length), np.float32)
    for row, ((_, first), (_, begin)) in enumerate(zip(places, begins, strict=True)):
        crops[row] = sharpen(wide[row], clips.sample_rate, _SHARPEN)[first - begin :][:length]
    return crops
