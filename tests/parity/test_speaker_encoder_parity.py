"""The mel spectrogram and the speaker encoder against the official ones, part by part and whole, in float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.convert.rules import model_rules, select
from qwen3_tts_jax.mel import mel_filterbank, mel_spectrogram
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.speaker_encoder import (
    AttentiveStatisticsPooling,
    SameConv,
    SERes2NetBlock,
    SqueezeExcitation,
    min_frames,
    x_vector,
)
from tests.drawn_tree import drawn_tree
from tests.golden_x_vector import PATH, speech_like
from tests.parity.make_x_vector_golden import official_arrays, official_encoder, official_mel, official_module
from tests.shapes import SMALL

# Kernels of even sizes are padded more at the end; the others are of SMALL and of the published sizes.
EVEN = replace(
    SMALL["1.7B-Base"],
    speaker_encoder=replace(
        SMALL["1.7B-Base"].speaker_encoder, kernel_sizes=(4, 2, 5, 4, 2), dilations=(1, 3, 1, 3, 1)
    ),
)
MODELS = {
    "small 0.6B-Base": SMALL["0.6B-Base"],
    "small 1.7B-Base": SMALL["1.7B-Base"],
    "even kernels": EVEN,
    "0.6B-Base": preset("0.6B-Base"),
    "1.7B-Base": preset("1.7B-Base"),
}
encode = jax.jit(x_vector, static_argnums=1)


@cache
def _official(name):
    return official_encoder(MODELS[name])


@cache
def _params(name):
    rules = select(model_rules(MODELS[name]), MODELS[name], ["speaker_encoder"])
    return jax.tree.map(jnp.asarray, drawn_tree(rules)["speaker_encoder"])


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _channels_first(module, x):
    """Runs a module of [B, C, T] on x [B, T, C]."""
    import torch

    return module(torch.from_numpy(np.array(x)).transpose(1, 2)).transpose(1, 2).numpy()


def _whole(name, mel):
    import torch

    return _official(name)(torch.from_numpy(mel)).numpy()


def _close(got, expected, atol=1e-5):
    assert np.std(expected) > 0.03
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)


@pytest.fixture(params=["small 0.6B-Base", "small 1.7B-Base", "even kernels"])
def name(request):
    return request.param


def _config(name):
    return MODELS[name].speaker_encoder


def test_first_and_last_convolutions(name):
    config, params, official = _config(name), _params(name), _official(name)
    x = _random(2, 13, config.mel_bins)
    conv = SameConv(config.channels[0], config.kernel_sizes[0], config.dilations[0])
    _close(conv.apply({"params": params["blocks_0"]}, x), _channels_first(official.blocks[0].conv, x))
    x = _random(2, 13, config.channels[-1])
    conv = SameConv(config.channels[-1], config.kernel_sizes[-1], config.dilations[-1])
    _close(conv.apply({"params": params["mfa"]}, x), _channels_first(official.mfa.conv, x))
    x = _random(2, 1, 2 * config.channels[-1])
    _close(SameConv(config.x_vector_width).apply({"params": params["fc"]}, x), _channels_first(official.fc, x))


@pytest.mark.parametrize("frames", [6, 31])
def test_se_res2net_blocks(name, frames):
    config = _config(name)
    for i in (1, 2, 3):
        x = _random(2, frames, config.channels[i], seed=i)
        block = SERes2NetBlock(
            config.channels[i], config.kernel_sizes[i], config.dilations[i], config.res2net_scale, config.se_channels
        )
        params = {"params": _params(name)[f"blocks_{i}"]}
        _close(jax.jit(block.apply)(params, x), _channels_first(_official(name).blocks[i], x))


def test_squeeze_excitation(name):
    config = _config(name)
    x = _random(2, 13, config.channels[2])
    params = {"params": _params(name)["blocks_2"]["se"]}
    _close(
        SqueezeExcitation(config.se_channels).apply(params, x),
        _channels_first(_official(name).blocks[2].se_block, x),
    )


@pytest.mark.parametrize("frames", [1, 31])
def test_pooling(name, frames):
    config = _config(name)
    x = _random(2, frames, config.channels[-1])
    params = {"params": _params(name)["pooling"]}
    _close(
        AttentiveStatisticsPooling(config.attention_channels).apply(params, x), _channels_first(_official(name).asp, x)
    )


@pytest.mark.parametrize("frames", [None, 57])
def test_whole(name, frames):
    config = _config(name)
    mel = 2 * _random(3, frames or min_frames(config), config.mel_bins) - 4
    _close(encode(_params(name), config, mel), _whole(name, mel))


def test_the_official_encoder_refuses_fewer_frames_too(name):
    config = _config(name)
    with pytest.raises(RuntimeError, match=r"[Pp]adding size"):
        _whole(name, _random(1, min_frames(config) - 1, config.mel_bins))


@pytest.mark.parametrize("name", ["0.6B-Base", "1.7B-Base"])
def test_published_sizes(name):
    """With a recording from samples to x-vector: the errors of the mel spectrogram count too."""
    samples = np.stack([speech_like(20_001, seed) for seed in (0, 1)])
    _close(encode(_params(name), _config(name), mel_spectrogram(samples)), _whole(name, official_mel(samples)))


def test_filterbank_is_that_of_librosa():
    librosa_filters = official_module().librosa_mel_fn
    for rate, size, bins in ((24_000, 1024, 128), (16_000, 512, 41), (22_050, 1024, 80)):
        expected = librosa_filters(sr=rate, n_fft=size, n_mels=bins)
        np.testing.assert_allclose(mel_filterbank(rate, size, bins), expected, rtol=1e-5, atol=1e-9)


def _signal(kind, length):
    if kind == "noise":
        return (0.3 * _random(length)).astype(np.float32)
    if kind == "silence":
        return np.zeros(length, np.float32)
    if kind == "sine":
        return (0.7 * np.sin(2 * np.pi * 437.3 * np.arange(length) / 24_000)).astype(np.float32)
    return speech_like(length)


@pytest.mark.parametrize("length", [385, 511, 512, 7_777, 24_000])
@pytest.mark.parametrize("kind", ["noise", "sine", "speech", "silence"])
def test_mel(kind, length):
    samples = _signal(kind, length)
    expected = official_mel(samples[None])[0]
    assert expected.shape == (length // 256, 128)
    got = np.asarray(mel_spectrogram(samples))
    np.testing.assert_allclose(np.exp(got), np.exp(expected), rtol=0, atol=1e-6 * np.exp(expected).max())
    # Between the lobes of a pure tone both packages' logarithms show float32's rounding (off by up to 0.01
    # from float64, both of them): a tone is compared within 60 dB of each frame's loudest bin.
    heard = expected > expected.max(axis=1, keepdims=True) - (np.log(1000) if kind == "sine" else np.inf)
    assert heard.mean() > 0.1
    np.testing.assert_allclose(got[heard], expected[heard], rtol=0, atol=5e-5)
    assert kind == "silence" or np.ptp(expected) > 0.5


def test_the_golden_file_is_what_the_official_package_says():
    with np.load(PATH) as golden:
        arrays = official_arrays()
        assert set(golden.files) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_allclose(golden[key], array, rtol=1e-5, atol=1e-5, err_msg=key)
