"""Codecs to start from: shapes that a CPU can train, and random weights."""

from __future__ import annotations

from math import prod
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax.config import CodecConfig, CodecDecoderConfig, CodecEncoderConfig, TransformerConfig
from qwen3_tts_jax.convert.rules import codec_rules, tree_shapes

Size = Literal["small", "medium"]

# encoder and decoder transformer width, latent width, decoder channels, codebook width
_WIDTHS: dict[Size, tuple[int, int, int, int]] = {"small": (128, 128, 192, 64), "medium": (192, 192, 256, 96)}
_UPSAMPLE_RATES = (8, 5, 4, 3)


def codec_shape(size: Size) -> CodecConfig:
    """24 kHz, 12.5 frames a second, 8 codebooks of 512 codes (900 bits a second), two layers per transformer.

    "small" has 3.3 M parameters, "medium" 5.7 M; the published one has 16 codebooks of 2,048 codes.
    """
    width, latent, channels, codebook_width = _WIDTHS[size]
    heads = width // 32
    return CodecConfig(
        sample_rate=24_000,
        num_codebooks=8,
        encoder=CodecEncoderConfig(
            TransformerConfig(
                num_layers=2, width=width, mlp_width=2 * width, num_heads=heads, num_kv_heads=heads, head_dim=32,
                rope_theta=1e4, norm_eps=1e-5, norm="layer", mlp="gelu", layer_scale=True, final_norm=False,
                sliding_window=144,
            ),
            filters=16, strides=(4, 5, 6, 8), kernel_size=7, last_kernel_size=3, residual_kernel_size=3,
            num_residual_layers=1, dilation_growth=2, compress=2, downsample_stride=2,
            num_codebooks=8, num_semantic_codebooks=1, codebook_size=512, codebook_dim=codebook_width,
        ),
        decoder=CodecDecoderConfig(
            TransformerConfig(
                num_layers=2, width=width, mlp_width=2 * width, num_heads=heads, num_kv_heads=heads, head_dim=32,
                rope_theta=1e4, norm_eps=1e-5, layer_scale=True, sliding_window=72,
            ),
            num_codebooks=8, num_semantic_codebooks=1, codebook_size=512, codebook_dim=codebook_width,
            quantizer_width=2 * codebook_width, latent_width=latent, decoder_channels=channels,
            upsample_rates=_UPSAMPLE_RATES, latent_upsample_rates=(2, 2),
        ),
    )  # fmt: skip


def random_codec(config: CodecConfig, seed: int = 0) -> dict:
    """The trees encoder and decoder with random weights, NumPy float32; `step.start_codec` fills the codebooks.

    Weights are normal with variance 1 / fan-in, biases 0. Residual branches start small: the gains of the transformers'
    and of ConvNeXt's at 0.1 (Touvron et al. 2021, arXiv:2103.17239, for up to 18 layers), the last convolution of a
    residual unit at a fifth of its scale. The decoder starts quiet.
    """
    rng = np.random.default_rng(seed)
    leaves = flatten_dict(tree_shapes(codec_rules(config)), sep="/")
    return unflatten_dict({path: _draw(path, leaf.shape, rng) for path, leaf in leaves.items()}, sep="/")["codec"]


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    parent, name = path.rsplit("/", 2)[-2:]
    if name in ("alpha", "beta", "bias", "embedding_sum"):
        return np.zeros(shape, np.float32)
    if name in ("cluster_usage", "initialized"):
        return np.ones(shape, np.float32)
    if name == "gamma" or parent.endswith("layer_scale"):
        return np.full(shape, 0.1, np.float32)
    if name == "scale":
        return np.ones(shape, np.float32)
    inputs = shape[-1] if name == "weight" else prod(shape[:-1])
    if parent == "transposed_conv":
        # An output sees one or two positions of the kernel.
        inputs = shape[1] * (1 if "latent_upsample" in path else 2)
    scale = 1.0
    if "/residual_" in path and parent == "conv_2":
        scale = 0.2
    elif path == "codec/decoder/conv_out/kernel":
        # Samples beyond ±1 are clipped, and have no gradient.
        scale = 0.02
    return rng.standard_normal(shape, np.float32) * np.float32(scale / inputs**0.5)
