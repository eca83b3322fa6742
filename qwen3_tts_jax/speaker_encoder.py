"""ECAPA-TDNN (Desplanques et al. 2020, arXiv:2005.07143): a mel spectrogram → an x-vector, the voice's timbre.

It has no batch normalisation and runs in float32. Every convolution reflects its input at both ends and the
pooling spans all of time, so the padding of a batch or a bucket would be heard: `lengths` says where each
recording ends, and each is then encoded as it would be alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import SpeakerEncoderConfig
from qwen3_tts_jax.layers import PRECISION, weight_init
from qwen3_tts_jax.mel import HOP, reflect_pad

# Floor of a variance, so that the deviation of a constant channel has a gradient.
_VARIANCE_FLOOR = 1e-12


def min_frames(config: SpeakerEncoderConfig) -> int:
    """The fewest mel frames that can be encoded: reflection needs one more than it pads."""
    reaches = ((size - 1) * dilation for size, dilation in zip(config.kernel_sizes, config.dilations, strict=True))
    return max(reach - reach // 2 for reach in reaches) + 1


def x_vector(
    params: Mapping[str, Any], config: SpeakerEncoderConfig, mel: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
    """The x-vectors of recordings.

    Args:
        params: the subtree "speaker_encoder" of the parameter tree.
        config: static; of a base model.
        mel: log-mel spectrograms [B, T, mel_bins], as `mel.mel_spectrogram` makes them.
        lengths: int32 [B], how many frames of each row are its own, at least `min_frames(config)`; they may
            be traced, and are not checked. What follows them must be finite, and is not heard. None: all T.

    Returns:
        float32 [B, x_vector_width].

    Raises:
        ValueError: `mel` or `lengths` has another shape, or `mel` has fewer than `min_frames(config)` frames.
    """
    if mel.ndim != 3 or mel.shape[-1] != config.mel_bins:
        raise ValueError(f"mel must be of shape [B, T, {config.mel_bins}], got {list(mel.shape)}")
    frames, needed = mel.shape[1], min_frames(config)
    if frames < needed:
        seconds = HOP / config.sample_rate
        raise ValueError(
            f"the recording is too short for an x-vector: {frames} mel frames ({frames * seconds:.3f} s); "
            f"give at least {needed} ({needed * seconds:.3f} s)"
        )
    return SpeakerEncoder(config).apply({"params": params}, mel, lengths)


class SpeakerEncoder(nn.Module):
    """Mel spectrograms [B, T, mel_bins] of `lengths` [B] → x-vectors [B, x_vector_width]."""

    config: SpeakerEncoderConfig

    @nn.compact
    def __call__(self, mel: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        config = self.config
        channels, kernel_sizes, dilations = config.channels, config.kernel_sizes, config.dilations
        with jax.named_scope("x_vector"):
            x = mel.astype(jnp.float32)
            x = nn.relu(SameConv(channels[0], kernel_sizes[0], dilations[0], name="blocks_0")(x, lengths))
            outputs = []
            for i in range(1, len(channels) - 1):
                block = SERes2NetBlock(
                    channels[i],
                    kernel_sizes[i],
                    dilations[i],
                    config.res2net_scale,
                    config.se_channels,
                    name=f"blocks_{i}",
                )
                x = block(x, lengths)
                outputs.append(x)
            x = jnp.concatenate(outputs, axis=-1)
            x = nn.relu(SameConv(channels[-1], kernel_sizes[-1], dilations[-1], name="mfa")(x, lengths))
            x = AttentiveStatisticsPooling(config.attention_channels, name="pooling")(x, lengths)
            return SameConv(config.x_vector_width, name="fc")(x)[:, 0]


class SERes2NetBlock(nn.Module):
    """Res2Net between two convolutions of one tap, then squeeze-excitation; residual, [B, T, C] → [B, T, C]."""

    channels: int
    kernel_size: int
    dilation: int
    res2net_scale: int
    se_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        y = nn.relu(SameConv(self.channels, name="tdnn_1")(x))
        y = self._res2net(y, lengths)
        y = nn.relu(SameConv(self.channels, name="tdnn_2")(y))
        return x + SqueezeExcitation(self.se_channels, name="se")(y, lengths)

    def _res2net(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """Groups of channels, each convolved after the output of the one before was added (arXiv:1904.01169).

        The first passes unchanged, and the second is convolved alone.
        """
        first, *groups = jnp.split(x, self.res2net_scale, axis=-1)
        outputs = [first]
        for j, group in enumerate(groups):
            group = group if j == 0 else group + outputs[-1]
            width = self.channels // self.res2net_scale
            conv = SameConv(width, self.kernel_size, self.dilation, name=f"res2net_{j}")
            outputs.append(nn.relu(conv(group, lengths)))
        return jnp.concatenate(outputs, axis=-1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that sees all channels' means over time (Hu et al. 2018), [B, T, C] → same."""

    hidden_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        mean = jnp.mean(x, axis=1, keepdims=True, where=_own_frames(x, lengths))
        hidden = nn.relu(SameConv(self.hidden_channels, name="conv_1")(mean))
        return x * nn.sigmoid(SameConv(x.shape[-1], name="conv_2")(hidden))


class AttentiveStatisticsPooling(nn.Module):
    """Mean and deviation over time, weighted per channel by attention: [B, T, C] → [B, 1, 2C].

    The attention sees each frame beside the plain mean and deviation of the recording.
    """

    attention_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        own = _own_frames(x, lengths)
        equal = 1 / x.shape[1] if lengths is None else own / lengths[:, None, None].astype(x.dtype)
        everywhere = jnp.broadcast_to(_statistics(x, equal), (*x.shape[:-1], 2 * x.shape[-1]))
        hidden = SameConv(self.attention_channels, name="tdnn")(jnp.concatenate([x, everywhere], axis=-1))
        scores = SameConv(x.shape[-1], name="conv")(jnp.tanh(nn.relu(hidden)))
        return _statistics(x, nn.softmax(scores, axis=1, where=own))


def _own_frames(x: jax.Array, lengths: jax.Array | None) -> jax.Array | None:
    """Which frames of x [B, T, C] lie before their row's end: bool [B, T, 1], or None where all do."""
    return None if lengths is None else (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]


def _statistics(x: jax.Array, weights: jax.Array | float) -> jax.Array:
    """Weighted mean and deviation of x [B, T, C] over time, side by side [B, 1, 2C]."""
    mean = jnp.sum(weights * x, axis=1, keepdims=True)
    variance = jnp.sum(weights * (x - mean) ** 2, axis=1, keepdims=True)
    return jnp.concatenate([mean, jnp.sqrt(jnp.maximum(variance, _VARIANCE_FLOOR))], axis=-1)


class SameConv(nn.Module):
    """A convolution whose input is reflected at both ends of each row, [B, T, in] → [B, T, features]."""

    features: int
    kernel_size: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        kernel = self.param("kernel", weight_init, (self.kernel_size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        reach = (self.kernel_size - 1) * self.dilation
        if reach > 0:
            # An even kernel pads one more at the end, as PyTorch does.
            x = reflect_pad(x, reach // 2, reach - reach // 2, lengths)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,),
            padding="VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=PRECISION,
        )
        return y + bias
