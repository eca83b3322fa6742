"""Makes another voice from one whose periods are known, by pitch-synchronous overlap and add.

Each period of the result is the source's nearest in time, under a Hann window of two source periods, and stretched,
which moves the formants (Moulines & Charpentier 1990, doi:10.1016/0167-6393(90)90021-Z).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter1d

from recipes.mini.pitch import SAMPLE_RATE, Pitch, periods

_UNVOICED_HOP = 120  # samples
_FARTHEST = 400  # samples between a period and the source's
_MARGIN = 2_000


def changed(samples: np.ndarray, source: Pitch, target: Pitch, formants: float) -> np.ndarray:
    """Samples [N] with the pitch `source` → float32 [N] with `target`, and formants times `formants`."""
    count = len(samples)
    spline = spline_filter1d(np.pad(samples.astype(np.float64), _MARGIN), 3)
    ours, theirs = periods(target), periods(source)
    near = np.zeros(count, bool)
    for at in ours:
        half = int(SAMPLE_RATE / target.frequency[at] / 2)
        near[max(0, at - half) : at + half] = True
    result = np.zeros(count + 2 * _MARGIN)

    def add(at: int, middle: int, half: float) -> None:
        length = int(half / formants)
        offsets = np.arange(-length, length + 1)
        piece = map_coordinates(spline, [middle + _MARGIN + offsets * formants], order=3, prefilter=False)
        result[at + _MARGIN - length : at + _MARGIN + length + 1] += piece * (
            0.5 + 0.5 * np.cos(np.pi * offsets / (length + 1))
        )

    for at in ours:
        nearest = int(theirs[np.abs(theirs - at).argmin()]) if len(theirs) else at
        middle = nearest if abs(nearest - at) <= _FARTHEST else at
        add(at, middle, SAMPLE_RATE / source.frequency[middle])
    for at in range(0, count, _UNVOICED_HOP):
        if not near[at]:
            add(at, at, _UNVOICED_HOP * formants)
    return result[_MARGIN : _MARGIN + count].astype(np.float32)
