"""The spectra that a codec learns to say before its decoder learns to speak, and an encoder of spectra."""

from __future__ import annotations

from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.layers import PRECISION
from qwen3_tts_jax.mel import mel_filterbank
from qwen3_tts_jax.train.codec.loss import magnitudes

BANDS, BINS = 80, 160
"""Mel bands of each short spectrum, and low bins, which show the pitch, of each spectrum twice as long."""
_ATTACKS = 40  # mel bands of spectra half as long, which only the encoder is given
_SHORTEST_HOP, _LONGEST_HOP = 0.004, 0.015  # seconds
# What is quieter is not worth codes, such as the upper bands of what was recorded at a lower rate.
_MEL_FLOOR, _LOW_FLOOR = 2e-3, 1e-2
_LOW_SCALE = 30.0  # brings magnitudes of long windows to the scale of mel bands


def spectra_per_frame(config: CodecConfig) -> int:
    """Mel spectra per frame: the fewest at most 15 ms apart that are even in number and a multiple of the latents.

    Raises:
        ConfigError: no such number divides a frame's samples, or those spectra are less than 4 ms apart.
    """
    latents, samples = prod(config.decoder.latent_upsample_rates), config.frame_samples
    longest, shortest = _LONGEST_HOP * config.sample_rate, _SHORTEST_HOP * config.sample_rate
    for count in range(latents, samples + 1, latents):
        if count % 2 == 0 and samples % count == 0 and samples / count <= longest:
            if samples / count >= shortest:
                return count
            break
    raise ConfigError(
        f"frames of {samples} samples at {config.sample_rate} Hz with {latents} latents (latent_upsample_rates "
        f"{config.decoder.latent_upsample_rates}) hold no whole spectra, an even number of them 4 to 15 ms apart: such "
        "a codec learns without them (--spectral-steps 0)"
    )


def outputs_per_latent(config: CodecConfig) -> tuple[int, int]:
    """How many mel bands and how many low bins each latent says."""
    per_latent = spectra_per_frame(config) // prod(config.decoder.latent_upsample_rates)
    return per_latent * BANDS, per_latent * BINS // 2


def spectra(samples: jax.Array, config: CodecConfig) -> tuple[jax.Array, jax.Array]:
    """Log-mel bands [B, T·n, 80] and log magnitudes of low bins [B, T·n/2, 160] of samples [B, T·frame_samples].

    n is `spectra_per_frame`. Windows span four hops, and a window's middle is the middle of its hop.
    """
    hop = config.frame_samples // spectra_per_frame(config)

    def around(size: int) -> jax.Array:
        return jnp.pad(samples, ((0, 0), (size * 3 // 8, size * 3 // 8)))

    return _mel(around(4 * hop), config, 4 * hop, BANDS), _low(around(8 * hop), 8 * hop)


def hear(samples: jax.Array, config: CodecConfig) -> jax.Array:
    """`SpectralEncoder`'s input [B, T, D]: such spectra and shorter ones, of windows that end with their hop.

    So it knows no more of each frame than an encoder of samples can know.
    """
    hop = config.frame_samples // spectra_per_frame(config)

    def before(size: int) -> jax.Array:
        return jnp.pad(samples, ((0, 0), (size * 3 // 4, 0)))

    heard = [
        _mel(before(4 * hop), config, 4 * hop, BANDS),
        _low(before(8 * hop), 8 * hop),
        _mel(before(2 * hop), config, 2 * hop, _ATTACKS),
    ]
    frames = samples.shape[1] // config.frame_samples
    # Roughly the mean and the spread of speech.
    return jnp.concatenate([(each + 2.5).reshape(len(samples), frames, -1) * 0.5 for each in heard], axis=-1)


def _mel(samples: jax.Array, config: CodecConfig, size: int, bands: int) -> jax.Array:
    filters = mel_filterbank(config.sample_rate, size, bands)
    return jnp.log(jnp.einsum("btf,mf->btm", magnitudes(samples, size), filters, precision=PRECISION) + _MEL_FLOOR)


def _low(samples: jax.Array, size: int) -> jax.Array:
    return jnp.log(magnitudes(samples, size)[..., 1 : BINS + 1] / _LOW_SCALE + _LOW_FLOOR)


class SpectralEncoder(nn.Module):
    """The output of `hear`, [B, T, D] → latents [B, T, `features`]; causal."""

    features: int
    width: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, precision=PRECISION)
        x = dense(self.width)(x)
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            before = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            x = x + 0.5 * nn.gelu(dense(self.width)(jnp.concatenate([before, y], axis=-1)))
            y = nn.gelu(dense(2 * self.width)(nn.LayerNorm()(x)))
            x = x + 0.3 * dense(self.width)(y)
        return dense(self.features)(nn.LayerNorm()(x))
