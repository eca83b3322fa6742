"""The log-mel spectrogram that the speaker encoder hears: 24 kHz, 128 bins, a frame every 256 samples."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.layers import PRECISION

SAMPLE_RATE = 24_000
"""In Hz."""

FFT_SIZE = 1024
"""Samples in a window, and in its Fourier transform."""

HOP = 256
"""Samples from one frame to the next."""

_PADDING = (FFT_SIZE - HOP) // 2
# Keeps the magnitude differentiable at digital silence.
_POWER_FLOOR = 1e-9
_MEL_FLOOR = 1e-5


def mel_spectrogram(samples: jax.Array, mel_bins: int = 128, lengths: jax.Array | None = None) -> jax.Array:
    """Log-mel spectrogram of mono audio; differentiable, in float32.

    Magnitudes of a periodic Hann window's Fourier transform, without centring, over samples that are
    reflected by 384 at each end, as HiFi-GAN computes them (Kong et al. 2020, arXiv:2010.05646); then
    `mel_filterbank` and the natural logarithm.

    Args:
        samples: floats [..., N] in ±1, 24,000 a second.
        mel_bins: how many mel bands between 0 and 12,000 Hz.
        lengths: int32 [...], how many samples of each row are its own, more than 384; they may be traced, and
            are not checked. A row of n samples then has the frames that it would have alone, unpadded, and
            what follows its first n // 256 frames means nothing. None: all N.

    Returns:
        float32 [..., T, mel_bins] with T = N // 256.

    Raises:
        ValueError: `samples` are not floats, or too few to be reflected (384 or fewer: 16 ms), or `lengths`
            has another shape than [...].
    """
    samples = jnp.asarray(samples)
    if samples.ndim < 1 or not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(
            f"samples must be floats of shape [..., N] in ±1, got {samples.dtype} of shape {list(samples.shape)}"
        )
    length = samples.shape[-1]
    if length <= _PADDING:
        raise ValueError(
            f"the audio is too short for a mel spectrogram: {length} samples ({length / SAMPLE_RATE:.3f} s at "
            f"{SAMPLE_RATE} Hz); give more than {_PADDING} samples ({_PADDING / SAMPLE_RATE:.3f} s)"
        )
    with jax.named_scope("mel"):
        padded = reflect_pad(samples.astype(jnp.float32)[..., None], _PADDING, _PADDING, lengths)[..., 0]
        spectrum = jnp.fft.rfft(_windows(padded))
        magnitude = jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + _POWER_FLOOR)
        filters = mel_filterbank(SAMPLE_RATE, FFT_SIZE, mel_bins)
        mel = jnp.einsum("...tf,mf->...tm", magnitude, filters, precision=PRECISION)
        return jnp.log(jnp.maximum(mel, _MEL_FLOOR))


def reflect_pad(x: jax.Array, before: int, after: int, lengths: jax.Array | None = None) -> jax.Array:
    """Continues x over both ends of time by its mirror image, the end itself not repeated.

    Args:
        x: [..., T, C].
        before: how many positions to put in front, fewer than T.
        after: how many to put at the end, fewer than T.
        lengths: int32 [...], where each row ends: it is reflected there, and nothing beyond is read. Each
            must exceed `before` and `after`. None: all rows end at T.

    Returns:
        [..., before + T + after, C]; of a row of length n, the first before + n + after positions are meaningful.

    Raises:
        ValueError: `lengths` has another shape than [...].
    """
    if lengths is None:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)], mode="reflect")
    lengths = jnp.asarray(lengths)
    if lengths.shape != x.shape[:-2]:
        raise ValueError(f"lengths must be of shape {list(x.shape[:-2])}, one per row, got {list(lengths.shape)}")
    positions = jnp.abs(jnp.arange(-before, x.shape[-2] + after))
    last = lengths[..., None] - 1
    sources = jnp.maximum(jnp.where(positions <= last, positions, 2 * last - positions), 0)
    return jnp.take_along_axis(x, sources[..., None], axis=-2)


def _windows(padded: jax.Array) -> jax.Array:
    """Hann windows [..., T, FFT_SIZE] over padded samples: each is FFT_SIZE / HOP hops side by side."""
    hops_per_window = FFT_SIZE // HOP
    num_hops = padded.shape[-1] // HOP
    frames = num_hops - hops_per_window + 1
    hops = padded[..., : num_hops * HOP].reshape(*padded.shape[:-1], num_hops, HOP)
    windows = jnp.concatenate([hops[..., i : i + frames, :] for i in range(hops_per_window)], axis=-1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    return windows * hann.astype(np.float32)


@cache
def mel_filterbank(sample_rate: int, fft_size: int, mel_bins: int) -> np.ndarray:
    """Triangular filters, equally spaced on Slaney's mel scale, each of area 1 over Hz.

    The definition is that of the Auditory Toolbox (Slaney 1998) and of librosa's `filters.mel` with its
    defaults. The triangle of bin m rises from edge m to edge m + 1 and falls to edge m + 2, where the
    mel_bins + 2 edges reach from 0 Hz to sample_rate / 2.

    Args:
        sample_rate: in Hz.
        fft_size: of the Fourier transform that the filters weigh.
        mel_bins: how many filters.

    Returns:
        float32 [mel_bins, fft_size / 2 + 1], read-only.
    """
    nyquist = sample_rate / 2
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(nyquist), mel_bins + 2))
    lower, centre, upper = (edges[i : i + mel_bins, None] for i in range(3))
    hz = np.arange(fft_size // 2 + 1) * sample_rate / fft_size
    triangles = np.minimum((hz - lower) / (centre - lower), (upper - hz) / (upper - centre))
    # A triangle of height 1 has the area (upper − lower) / 2.
    filters = (np.maximum(triangles, 0.0) * 2 / (upper - lower)).astype(np.float32)
    filters.flags.writeable = False
    return filters


# Slaney's scale: 200/3 Hz per mel up to 1,000 Hz (15 mels); above, 27 mels for each factor of 6.4.
_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _KNEE_HZ else _KNEE_MEL + np.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _KNEE_MEL, mel * _HZ_PER_MEL, _KNEE_HZ * np.exp((mel - _KNEE_MEL) * _LOG_STEP))
