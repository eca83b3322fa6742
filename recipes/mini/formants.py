"""Sharpens the formants in what a decoder learns to say.

If several sounds fit the same codes, a decoder learns their mean, whose spectra have lower peaks and shallower valleys
than each of them. If recordings are sharpened first, what is learnt is clear again, with less noise in the valleys: the
post-filter of speech coders (Chen and Gersho, "Adaptive postfiltering for quality enhancement of coded speech", 1995),
but learnt, and with spectra from the signal in place of linear prediction.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d
from scipy.signal import istft, stft

_WINDOW, _HOP = 0.0427, 0.0107
"""In seconds."""
_FINE, _COARSE = 300.0, 3_500.0
"""Widths in Hz over which spectra are smoothed: the first keeps formants, the second only the tilt."""
_RAMP = (800.0, 1_400.0)
"""Below these Hz nothing is changed, since harmonics lie too far apart to show an envelope; above, everything is."""
_FLOOR = 1e-5


def _smooth(levels: np.ndarray, width: float, bin_width: float) -> np.ndarray:
    """Means along the first axis, weighted by a Hann window that is `width` Hz wide."""
    weights = np.hanning(max(round(width / bin_width), 1) + 2)[1:-1]
    return convolve1d(levels, weights / weights.sum(), axis=0, mode="nearest")


def sharpen(samples: np.ndarray, rate: int, amount: float) -> np.ndarray:
    """Samples [N] → float32 [N] whose envelope's peaks and valleys are 1 + `amount` times as high and deep, in log
    magnitude and above 1.4 kHz. Phases, and the power of each window above 800 Hz, stay; 0 changes nothing.
    """
    size, hop = 2 * round(rate * _WINDOW / 2), round(rate * _HOP)
    spectra = stft(samples, rate, nperseg=size, noverlap=size - hop)[2]
    levels, bin_width = np.log(np.abs(spectra) + _FLOOR), rate / size
    ramp = np.clip((np.arange(len(levels)) * bin_width - _RAMP[0]) / (_RAMP[1] - _RAMP[0]), 0, 1)[:, None]
    gains = amount * ramp * (_smooth(levels, _FINE, bin_width) - _smooth(levels, _COARSE, bin_width))
    power = np.where(ramp > 0, np.abs(spectra) ** 2, 0)
    louder = 0.5 * np.log((np.sum(power * np.exp(2 * gains), axis=0) + 1e-6) / (np.sum(power, axis=0) + 1e-6))
    sharp = istft(spectra * np.exp(gains - ramp * louder), rate, nperseg=size, noverlap=size - hop)[1]
    return sharp[: len(samples)].astype(np.float32)
