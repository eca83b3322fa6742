"""A discriminator that learns to tell recordings from what a codec makes of them, and what it teaches the codec.

It looks at complex short-time Fourier transforms at several scales (Défossez et al. 2022, arXiv:2210.13438, section
3.4), through convolutions over time with frequencies as channels: convolutions over time and frequency, with few
channels, take twenty times as long on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.layers import PRECISION
from qwen3_tts_jax.train.codec.loss import spectra

_DILATIONS = (1, 1, 2, 4)
"""Dilation of each layer but the last."""
_KERNEL = 3
_SLOPE = 0.2

Params = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class Discriminator:
    """Its shape, and how it takes part.

    Attributes:
        samples: length of the piece of each crop that it hears, at least the largest of `fft_sizes`.
        start: the first step, counted from 0, in which it takes part.
        every: it learns in the steps divisible by this.
        kind: of its loss: "hinge", or "least-squares" (Mao et al. 2017, arXiv:1611.04076).
        weight: of the adversarial loss in the codec's.
        features: likewise, of the distance between its activations on recordings and on what is made of them
            (Kumar et al. 2019, arXiv:1910.06711).
        fft_sizes: of the scales, in samples.
        channels: of each layer.
        learning_rate: of its Adam.
    """

    samples: int
    start: int = 0
    every: int = 2
    kind: Literal["hinge", "least-squares"] = "hinge"
    weight: float = 1.0
    features: float = 2.0
    fft_sizes: tuple[int, ...] = (512, 1024, 2048)
    channels: int = 128
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.samples < max(self.fft_sizes):
            raise ConfigError(f"the discriminator must hear at least {max(self.fft_sizes)} samples, got {self.samples}")
        if self.every < 1 or self.start < 0:
            raise ConfigError(
                f"the discriminator must learn in every 1 or more steps, from step 0 or later, got {self.every} and "
                f"{self.start}"
            )

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with the betas that are usual for a discriminator."""
        return optax.adam(self.learning_rate, 0.8, 0.99)


@flax.struct.dataclass
class DiscriminatorState:
    """What it has learnt: {"fft_512/layer_0": {"kernel", "bias"}, …}, and optax's state."""

    params: Params
    optimizer: optax.OptState


def start_discriminator(config: Discriminator, seed: int = 0) -> DiscriminatorState:
    """Random weights."""
    params: Params = {}
    rng = np.random.default_rng(seed)
    for size in config.fft_sizes:
        inputs = 2 * (size // 2 + 1)
        for i in range(len(_DILATIONS) + 1):
            outputs = 1 if i == len(_DILATIONS) else config.channels
            shape = (_KERNEL, inputs, outputs)
            weights = rng.standard_normal(shape, np.float32) * np.float32(prod(shape[:2]) ** -0.5)
            bias = np.zeros(outputs, np.float32)
            params[f"fft_{size}/layer_{i}"] = {"kernel": jnp.asarray(weights), "bias": jnp.asarray(bias)}
            inputs = outputs
    return DiscriminatorState(params, config.optimizer().init(params))


def discriminate(
    params: Mapping[str, Any], config: Discriminator, samples: jax.Array
) -> list[tuple[jax.Array, list[jax.Array]]]:
    """Samples [B, N] → for each scale, logits [B, T] of being a recording, and the hidden layers' activations."""
    results = []
    for size in config.fft_sizes:
        spectrum = spectra(samples, size) / np.float32(np.sqrt(size))
        # Square roots of magnitudes: high frequencies are heard although they are weak.
        scale = jax.lax.rsqrt(jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-8))
        x = 3 * jnp.concatenate([spectrum.real * scale, spectrum.imag * scale], axis=-1)
        activations = []
        for i, dilation in enumerate(_DILATIONS):
            x = jax.nn.leaky_relu(_convolve(params[f"fft_{size}/layer_{i}"], x, dilation), _SLOPE)
            activations.append(x)
        results.append((_convolve(params[f"fft_{size}/layer_{len(_DILATIONS)}"], x)[..., 0], activations))
    return results


def _convolve(layer: Mapping[str, jax.Array], x: jax.Array, dilation: int = 1) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (1,),
        "SAME",
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=PRECISION,
    )
    return y + layer["bias"]


def codec_losses(
    params: Mapping[str, Any], config: Discriminator, made: jax.Array, samples: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What the codec is to minimize, adversarial and features [], and the discriminator's own loss [].

    Args:
        params: the discriminator's.
        config: its shape.
        made: samples [B, N] that the codec made.
        samples: those of the recordings, [B, N].
    """
    real, fake = discriminate(params, config, samples), discriminate(params, config, made)
    real = jax.lax.stop_gradient(real)
    taken, distances, own = [], [], []
    for (real_logits, real_activations), (logits, activations) in zip(real, fake, strict=True):
        miss = 1 - logits
        taken.append(jnp.mean(jax.nn.relu(miss) if config.kind == "hinge" else miss**2))
        own.append(_discriminator_loss(config, real_logits, logits))
        for x, y in zip(real_activations, activations, strict=True):
            distances.append(jnp.mean(jnp.abs(x - y)) / (jnp.mean(jnp.abs(x)) + 1e-6))
    losses = {"adversarial": sum(taken) / len(taken), "features": sum(distances) / len(distances)}
    return losses, jax.lax.stop_gradient(sum(own) / len(own))


def _discriminator_loss(config: Discriminator, real: jax.Array, fake: jax.Array) -> jax.Array:
    if config.kind == "hinge":
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return jnp.mean((1 - real) ** 2) + jnp.mean(fake**2)


def discriminator_step(
    state: DiscriminatorState, config: Discriminator, made: jax.Array, samples: jax.Array
) -> DiscriminatorState:
    """The discriminator after one step on what the codec made and on the recordings, [B, N] each."""

    def value(params: Params) -> jax.Array:
        results = zip(discriminate(params, config, samples), discriminate(params, config, made), strict=True)
        losses = [_discriminator_loss(config, real, fake) for (real, _), (fake, _) in results]
        return sum(losses) / len(losses)

    updates, optimizer = config.optimizer().update(jax.grad(value)(state.params), state.optimizer)
    return DiscriminatorState(optax.apply_updates(state.params, updates), optimizer)
