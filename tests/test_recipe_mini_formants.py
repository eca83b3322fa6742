"""The recipe's formants: what is sharpened, and what stays."""

import numpy as np
import pytest
from scipy.signal import firwin, lfilter, stft, welch

from qwen3_tts_jax.train.codec.data import Clips
from recipes.mini import crops
from recipes.mini.formants import sharpen

RATE = 24_000


def vowel(seconds=2.0, rate=RATE):
    """Noise whose envelope has a peak at every whole kHz, and valleys that are 1 neper lower."""
    noise = np.fft.rfft(np.random.default_rng(0).standard_normal(round(seconds * rate)))
    hertz = np.fft.rfftfreq(round(seconds * rate), 1 / rate)
    samples = np.fft.irfft(noise * np.exp(0.5 * np.cos(2 * np.pi * hertz / 1_000)))
    return (0.05 * samples).astype(np.float32)


def height(samples, low, high, rate=RATE):
    """Of peaks above valleys, in nepers."""
    hertz, power = welch(samples, rate, nperseg=rate // 20)
    band = (hertz >= low) & (hertz < high)
    return 2 * np.mean(np.log(power[band]) * np.cos(2 * np.pi * hertz[band] / 1_000))


@pytest.mark.parametrize("rate", [RATE, 16_000])
def test_peaks_and_valleys(rate):
    samples = vowel(rate=rate)
    sharp = sharpen(samples, rate, 1.0)
    assert sharp.shape == samples.shape
    assert height(samples, 2_000, 6_000, rate) == pytest.approx(1, abs=0.05)
    # Smoothing over 300 Hz leaves 0.93 of such a wave, over 3.5 kHz nothing.
    assert height(sharp, 2_000, 6_000, rate) == pytest.approx(1.93, abs=0.1)
    below = firwin(301, 750, fs=rate)
    np.testing.assert_allclose(lfilter(below, 1, sharp), lfilter(below, 1, samples), atol=4e-3)
    np.testing.assert_allclose(sharpen(samples, rate, 0.0), samples, atol=1e-6)


def test_phases_and_power_stay():
    samples = vowel()
    x, y = (stft(s, RATE, nperseg=2_048)[2][:, 4:-4] for s in (samples, sharpen(samples, RATE, 1.0)))
    loud = np.abs(x) > np.median(np.abs(x))
    assert np.mean(np.cos(np.angle(x[loud] / y[loud]))) > 0.97
    above = slice(round(800 / RATE * 2_048), None)
    power = [np.sum(np.abs(s[above]) ** 2) for s in (x, y)]
    assert power[1] == pytest.approx(power[0], rel=0.05)


@pytest.mark.parametrize("first", [0, 6_000, 18_000])
def test_crops_are_cut_from_what_is_sharpened(first):
    whole = sharpen(vowel(), RATE, crops._SHARPEN)
    clips = Clips((), ((vowel() * 32_767).astype(np.int16),), RATE, frame_samples=1_200)
    # Places count from the silence before a recording.
    crop = crops.cut_sharpened(clips, [(0, crops.AHEAD * 1_200 + first)], 6_000)
    assert crop.shape == (1, 6_000)
    # Windows begin elsewhere.
    assert np.linalg.norm(crop[0] - whole[first : first + 6_000]) < 0.2 * np.linalg.norm(crop)
    assert np.linalg.norm(crop[0] - vowel()[first : first + 6_000]) > 0.3 * np.linalg.norm(crop)
