"""The codec's encoder against the official classes, part by part and whole, in float32."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.cache import KVCache, WindowCache
from qwen3_tts_jax.codec.conv import CausalConv, context_size
from qwen3_tts_jax.codec.encoder import ResidualUnit, Stage, encode, encode_latents, initial_state
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer, dequantize, quantize
from qwen3_tts_jax.convert.rules import codec_rules
from qwen3_tts_jax.convert.transforms import CONV
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.transformer import Transformer
from tests import golden_codec_encoder as golden
from tests.drawn_tree import drawn_tree
from tests.golden_codec_encoder import noise
from tests.parity.codec_encoder_oracle import (
    golden_arrays,
    official_codec,
    official_codes,
    official_latents,
    windowed_attention,
)
from tests.parity.oracle import quiet
from tests.shapes import SMALL

# 1,920 samples a frame as published, and 12.
VARIANTS = ("0.6B-Base", "1.7B-CustomVoice")

codes_of = jax.jit(encode, static_argnums=(1, 4, 5))
latents_of = jax.jit(encode_latents, static_argnums=(1, 3))


def _dilated(model):
    """Two residual units a stage, the second dilated; a third of the channels within them."""
    encoder = replace(model.codec.encoder, num_residual_layers=2, dilation_growth=3, compress=3)
    return replace(model, codec=replace(model.codec, encoder=encoder))


@cache
def _params(model):
    rules = [rule for rule in codec_rules(model.codec) if rule.part == "codec/encoder"]
    return jax.tree.map(jnp.asarray, drawn_tree(rules)["codec"]["encoder"])


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return SMALL[request.param]


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _channels_first(module, x):
    """Runs a module of [B, C, T] on x [B, T, C]."""
    import torch

    return module(torch.from_numpy(np.array(x)).transpose(1, 2)).transpose(1, 2).numpy()


def _close(got, expected, atol=1e-5):
    assert np.std(expected) > 0.03
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("length", [40, 41, 1])
def test_stages(model, length):
    import torch

    model = _dilated(model)
    config, layers = model.codec.encoder, official_codec(model).encoder.encoder.layers
    state = initial_state(config, 2)
    for i, stride in enumerate(config.strides):
        x = _random(2, length, config.filters * 2**i, seed=i)
        name = f"stage_{i}"
        y, _ = jax.jit(Stage(config, stride).apply)({"params": _params(model)[name]}, x, state.contexts[name])
        first = 1 + i * 4
        expected = _channels_first(torch.nn.Sequential(*layers[first : first + 4]), x)
        assert y.shape == (2, -(-length // stride), 2 * x.shape[2])
        _close(y, expected)


@pytest.mark.parametrize(("j", "dilation"), [(0, 1), (1, 3)])
def test_residual_units(j, dilation):
    model = _dilated(SMALL["1.7B-CustomVoice"])
    channels, name = model.codec.encoder.filters, f"residual_{j}"
    x, params = _random(2, 29, channels), _params(model)["stage_0"][name]
    context = initial_state(model.codec.encoder, 2).contexts["stage_0"][name]
    y, _ = ResidualUnit(channels // 3, 3, dilation, "float32").apply({"params": params}, x, context)
    _close(y, _channels_first(official_codec(model).encoder.encoder.layers[1 + j], x))


def test_convolutions_at_both_ends(model):
    config, params = model.codec.encoder, _params(model)
    layers = official_codec(model).encoder.encoder.layers
    last = config.filters * 2 ** len(config.strides)
    for name, layer, inputs, features, kernel in (
        ("conv_in", layers[0], 1, config.filters, config.kernel_size),
        ("conv_out", layers[-1], last, config.transformer.width, config.last_kernel_size),
    ):
        x = _random(2, 23, inputs)
        conv = CausalConv(features, kernel)
        y, _ = conv.apply({"params": params[name]}, x, jnp.zeros((2, context_size(kernel), inputs)))
        np.testing.assert_array_equal(params[name]["kernel"], CONV.apply(layer.conv.weight.numpy()))
        _close(y, _channels_first(layer, x))


@pytest.mark.parametrize("windowed", [False, True])
def test_transformer(model, windowed):
    import torch

    config, steps = model.codec.encoder.transformer, 31
    x = _random(2, steps, config.width)
    cache = WindowCache.zeros(config, 2) if windowed else KVCache.zeros(config, 2, steps)
    y, _ = jax.jit(Transformer(config).apply)({"params": _params(model)["transformer"]}, x, cache)
    with quiet(), windowed_attention() if windowed else nullcontext():
        expected = official_codec(model).encoder.encoder_transformer(torch.from_numpy(x)).last_hidden_state
    _close(y, expected.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_quantizer(model, seed):
    import torch

    config = model.codec.encoder
    x = 2 * _random(2, 50, config.transformer.width, seed=seed)
    quantizer = SplitResidualQuantizer(config)
    for count in (1, model.codec.num_codebooks, config.num_codebooks):
        codes = quantizer.apply({"params": _params(model)["quantizer"]}, x, count, method=quantizer.encode)
        expected = official_codec(model).encoder.quantizer.encode(torch.from_numpy(x).transpose(1, 2), count)
        assert len(np.unique(expected)) > config.codebook_size // 2
        np.testing.assert_array_equal(codes, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("count", [1, 3, None])
def test_quantized_latents(model, count):
    import torch

    config, params = model.codec.encoder, _params(model)["quantizer"]
    latents = 2 * _random(2, 50, config.transformer.width)
    codes, quantized = quantize(params, config, latents, count)
    official = official_codec(model).encoder.quantizer
    expected_codes = official.encode(torch.from_numpy(latents).transpose(1, 2), count)
    np.testing.assert_array_equal(codes, expected_codes.permute(1, 2, 0).numpy())
    expected = official.decode(expected_codes.transpose(0, 1)).transpose(1, 2).numpy()
    _close(quantized, expected)
    _close(dequantize(params, config, codes), expected)


# Whole frames, one sample fewer and more, and less than one frame; 9 positions of window are 4.5 frames.
@pytest.mark.parametrize("extra", [0, -1, 1])
@pytest.mark.parametrize("frames", [1, 3, 14])
def test_whole_encode(frames, extra):
    model = _dilated(SMALL["1.7B-CustomVoice"])
    _check_whole(model, noise(2, frames * model.codec.frame_samples + extra))


@pytest.mark.parametrize("count", [3 * 1920 + 961, 12 * 1920 + 1])
def test_whole_encode_at_the_published_rate(count):
    _check_whole(SMALL["0.6B-Base"], noise(2, count))


def _check_whole(model, samples, atol=1e-5):
    config, params, codec = model.codec, _params(model), official_codec(model)
    positions = -(-samples.shape[1] // np.prod(config.encoder.strides))
    expected_codes, expected = official_codes(codec, samples), official_latents(codec, samples)
    windows = (False, True) if positions <= config.encoder.transformer.sliding_window else (False,)
    for window in windows:
        _close(latents_of(params, config.encoder, samples, window), expected, atol)
        np.testing.assert_array_equal(codes_of(params, config, samples, None, None, window), expected_codes)
    if windows == (False,):
        assert np.abs(latents_of(params, config.encoder, samples, True) - expected).max() > 1e-3
        with windowed_attention():
            expected_codes, expected = official_codes(codec, samples), official_latents(codec, samples)
        _close(latents_of(params, config.encoder, samples, True), expected, atol)
        np.testing.assert_array_equal(codes_of(params, config, samples, None, None, True), expected_codes)


def test_batch_padded_on_the_right(model):
    config, frame = model.codec, model.codec.frame_samples
    lengths = np.array([5 * frame + frame // 2, 2 * frame, 3 * frame - 1])
    samples = noise(3, lengths.max())
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    samples *= mask
    expected = official_codes(official_codec(model), samples, mask)
    codes = codes_of(_params(model), config, samples, None, None, False)
    assert [len(row) for row in expected] == [6, 2, 3]
    for row, length, codes_of_row in zip(codes, lengths, expected, strict=True):
        np.testing.assert_array_equal(row[: -(-length // frame)], codes_of_row)


def test_published_shapes():
    _check_whole(preset("0.6B-Base"), noise(1, 4 * 1920 + 1001), atol=3e-5)


def test_golden_file_is_current():
    with np.load(golden.PATH) as stored:
        expected = golden_arrays()
        assert set(stored) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(stored[name], array, rtol=0, atol=1e-5 if name.endswith("latents") else 0)
