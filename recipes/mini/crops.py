"""Crops of recordings behind the silence that the talker begins with, their formants made clearer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwen3_tts_jax.train.codec_data import Clips
from recipes.mini.durations import AHEAD
from recipes.mini.formants import sharpen

_SHARPEN, _MARGIN = 1.6, 0.1
"""By how much formants are made clearer, more than learning blurs them, and seconds about a crop sharpened with it."""


def behind_silence(clips: Clips, silence: np.ndarray) -> Clips:
    """The clips with codes of silence [`AHEAD`, Q] before their own, as the talker begins; samples stay.

    Else a decoder has never heard what a speech's first word comes after.
    """
    return replace(clips, codes=tuple(np.concatenate([silence, codes]) for codes in clips.codes))


def cut_behind_silence(clips: Clips, places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Crops as those of `clips.cut`, float32 [B, length], at places that count from the silence before a recording."""
    silent = AHEAD * clips.frame_samples
    crops = clips.cut([(which, max(first - silent, 0)) for which, first in places], length)
    for row, (_, first) in enumerate(places):
        late = min(max(silent - first, 0), length)
        crops[row] = np.pad(crops[row, : length - late], (late, 0))
    return crops


def cut_sharpened(clips: Clips, places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """The same with clearer formants."""
    margin = round(_MARGIN * clips.sample_rate)
    begins = [(which, max(first - margin, 0)) for which, first in places]
    wide = cut_behind_silence(clips, begins, length + 2 * margin)
    crops = np.empty((len(places), length), np.float32)
    for row, ((_, first), (_, begin)) in enumerate(zip(places, begins, strict=True)):
        crops[row] = sharpen(wide[row], clips.sample_rate, _SHARPEN)[first - begin :][:length]
    return crops
