"""How far a decoder's speech is from its target, in the features that hearing and the judges of quality go by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.signal import fftconvolve, firwin, lfilter

from qwen3_tts_jax.train.codec.loss import log_mel, spectra

BANDS = ((50, 500), (500, 1000), (1000, 2000), (2000, 3500))
"""Bands in Hz, in each of which phases are compared."""
RATES = {"low": 2_000, "high": 8_000}
"""Sample rates of what is read out."""
_CHANGE_SCALES, _CHANGE_SPAN, _STEADY = ((128, 20), (256, 40), (512, 80)), 0.01, 0.1


def phase_distances(made: jax.Array, true: jax.Array, rate: int) -> jax.Array:
    """How far complex spectra of samples [B, N] would be off in bands, relative to the true one's norm, if only phases
    were: 0 … 2, [bands]. The gradient turns phases and changes no magnitude.
    """
    total = jnp.zeros(len(BANDS))
    for size in (512, 1024):
        x, y = spectra(made, size) / size**0.5, spectra(true, size) / size**0.5
        frequencies, found = np.arange(size // 2 + 1) * rate / size, []
        for low, high in BANDS:
            bins = slice(*np.searchsorted(frequencies, (low, high)))
            a, b = x[..., bins], y[..., bins]
            loud, energy = jnp.sqrt(a.real**2 + a.imag**2 + 1e-12), b.real**2 + b.imag**2
            # What is 20 dB too quiet hardly has a phase yet.
            along = (a.real * b.real + a.imag * b.imag) / jnp.maximum(loud, 0.1 * jnp.sqrt(energy) + 1e-4)
            off = 2 * jnp.sum(energy - jnp.sqrt(energy) * along)
            found.append(jnp.sqrt(off / (jnp.sum(energy) + 1e-5 * energy.size) + 1e-6))
        total += jnp.stack(found) / 2
    return total


def distance_at_changes(made: jax.Array, true: jax.Array, rate: int) -> jax.Array:
    """The mean distance of log₁₀ mel bands, [], of samples [B, N], weighted by how much more than a steady sound's the
    true ones change within 10 ms before or after: bursts and onsets are few, and words differ by them.
    """
    total = jnp.zeros(())
    for size, bands in _CHANGE_SCALES:
        x, y = (log_mel(samples, rate, size, bands) for samples in (made, true))
        apart = max(1, round(_CHANGE_SPAN * rate / (size // 4)))
        change = jnp.mean(jnp.abs(y[:, apart:] - y[:, :-apart]), axis=-1)
        change = jnp.maximum(jnp.pad(change, ((0, 0), (apart, 0))), jnp.pad(change, ((0, 0), (0, apart))))
        weights = jnp.maximum(change - _STEADY, 0)
        total += jnp.sum(weights * jnp.mean(jnp.abs(x - y), axis=-1)) / (jnp.sum(weights) + 1e-3)
    return total / len(_CHANGE_SCALES)


def unexplained(said: jax.Array, true: jax.Array) -> jax.Array:
    """The norm of the difference, relative to that of `true`."""
    return jnp.sqrt(jnp.sum((said - true) ** 2) / (jnp.sum(true**2) + 1e-3))


def read_out_target(samples: np.ndarray, rate: int, target: str) -> np.ndarray:
    """Samples [B, N] → "low": below 950 Hz at 2 kHz; "high": below 3.6 kHz at 8 kHz, high frequencies raised."""
    taps, cut = {"low": (241, 950), "high": (121, 3600)}[target]
    passed = fftconvolve(samples, firwin(taps, cut, fs=rate)[None], mode="same", axes=1)
    every = rate // RATES[target]
    passed = passed[:, every // 2 :: every]
    return (passed if target == "low" else 2 * lfilter([1, -0.9], 1, passed)).astype(np.float32)
