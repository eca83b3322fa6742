"""The codec's decoder against the official classes, part by part and whole, in float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.codec.conv import CausalConv, CausalTransposedConv, ConvNeXtBlock, SnakeBeta, context_size
from qwen3_tts_jax.codec.decoder import (
    LatentUpsample,
    ResidualUnit,
    Upsample,
    decode,
    decode_chunked,
    decode_step,
    initial_state,
)
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.convert.rules import codec_rules
from qwen3_tts_jax.convert.transforms import CONV, CONV_TRANSPOSE
from qwen3_tts_jax.layers import Linear
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.transformer import Transformer
from tests.draw import draw
from tests.drawn_tree import drawn_tree
from tests.parity.oracle import import_official, quiet
from tests.shapes import SMALL

# 1,920 samples a frame as published, and 12.
VARIANTS = ("0.6B-Base", "1.7B-CustomVoice")
FRAMES = 23  # more than three windows of 7


def _module():
    import_official()
    with quiet():
        from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2

    return modeling_qwen3_tts_tokenizer_v2


@cache
def _official(model):
    """The official decoder of a model, with drawn weights."""
    import torch

    module = _module()
    _, codec, _ = hf_export.to_hf(model)
    with quiet():
        config = module.Qwen3TTSTokenizerV2DecoderConfig(**codec["decoder_config"])
        with torch.device("meta"):
            names = {name: tuple(x.shape) for name, x in module.Qwen3TTSTokenizerV2Decoder(config).state_dict().items()}
        decoder = module.Qwen3TTSTokenizerV2Decoder(config).eval()
    weights = {name: torch.from_numpy(draw(f"decoder.{name}", shape)) for name, shape in names.items()}
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(False)


@cache
def _params(model):
    rules = [rule for rule in codec_rules(model.codec) if rule.part == "codec/decoder"]
    return jax.tree.map(jnp.asarray, drawn_tree(rules)["codec"]["decoder"])


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return SMALL[request.param]


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _codes(config, batch, frames):
    shape = (batch, frames, config.num_codebooks)
    return np.random.RandomState(0).randint(0, config.codebook_size, shape).astype(np.int32)


def _torch(x):
    import torch

    return torch.from_numpy(np.array(x))


def _channels_first(module, x):
    """Runs a module of [B, C, T] on x [B, T, C]."""
    return module(_torch(x).transpose(1, 2)).transpose(1, 2).numpy()


def _of_codes(function, codes):
    """Runs a function of codes [B, Q, T] that returns [B, …, T]."""
    return function(_torch(codes).long().transpose(1, 2)).transpose(1, 2).numpy()


def _drawn(module, seed=1):
    """The module with every parameter drawn anew, and those parameters."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    module.requires_grad_(False)
    return module, {name: x.numpy() for name, x in module.named_parameters()}


def _close(got, expected, atol=1e-5):
    assert np.std(expected) > 0.03
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 1), (7, 3), (7, 9), (3, 2), (1, 1)])
def test_causal_conv(kernel_size, dilation):
    net, weights = _drawn(_module().Qwen3TTSTokenizerV2CausalConvNet(5, 6, kernel_size, dilation))
    params = {"kernel": CONV.apply(weights["conv.weight"]), "bias": weights["conv.bias"]}
    x = _random(2, 13, 5)
    context = jnp.zeros((2, context_size(kernel_size, dilation), 5))
    y, _ = CausalConv(6, kernel_size, dilation).apply({"params": params}, x, context)
    _close(y, _channels_first(net, x))


def test_strided_causal_conv():
    net, weights = _drawn(_module().Qwen3TTSTokenizerV2CausalConvNet(5, 6, 6, stride=3))
    params = {"kernel": CONV.apply(weights["conv.weight"]), "bias": weights["conv.bias"]}
    x = _random(2, 15, 5)
    y, _ = CausalConv(6, 6, stride=3).apply({"params": params}, x, jnp.zeros((2, context_size(6, 1, 3), 5)))
    _close(y, _channels_first(net, x))


@pytest.mark.parametrize(("kernel_size", "stride"), [(10, 5), (2, 2), (6, 3)])
@pytest.mark.parametrize("frames", [1, 13])
def test_transposed_conv(kernel_size, stride, frames):
    net, weights = _drawn(_module().Qwen3TTSTokenizerV2CausalTransConvNet(5, 6, kernel_size, stride))
    params = {"kernel": CONV_TRANSPOSE.apply(weights["conv.weight"]), "bias": weights["conv.bias"]}
    x = _random(2, frames, 5)
    context = jnp.zeros((2, kernel_size // stride - 1, 5))
    y, _ = CausalTransposedConv(6, kernel_size, stride).apply({"params": params}, x, context)
    _close(y, _channels_first(net, x))


def test_snake_beta():
    net, weights = _drawn(_module().SnakeBeta(7))
    x = 5 * _random(2, 13, 7)
    _close(SnakeBeta().apply({"params": weights}, x), _channels_first(net, x))


def test_convnext_block():
    net, weights = _drawn(_module().Qwen3TTSTokenizerV2ConvNeXtBlock(6))
    params = {
        "depthwise": {"kernel": CONV.apply(weights["dwconv.conv.weight"]), "bias": weights["dwconv.conv.bias"]},
        "norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
        "expand": {"weight": weights["pwconv1.weight"], "bias": weights["pwconv1.bias"]},
        "contract": {"weight": weights["pwconv2.weight"], "bias": weights["pwconv2.bias"]},
        "gamma": weights["gamma"],
    }
    x = _random(2, 13, 6)
    y, _ = ConvNeXtBlock().apply({"params": params}, x, jnp.zeros((2, 6, 6)))
    _close(y, _channels_first(net, x))


def test_quantizer(model):
    config = model.codec.decoder
    codes = _codes(config, 2, FRAMES)
    quantizer = SplitResidualQuantizer(config)
    y = quantizer.apply({"params": _params(model)["quantizer"]}, codes, method=quantizer.decode)
    _close(y, _of_codes(_official(model).quantizer.decode, codes))


def test_transformer_with_its_projections(model):
    config, params = model.codec.decoder, _params(model)
    x = _random(2, FRAMES, config.latent_width)

    def ours(x, state):
        linear = Linear(config.transformer.width, use_bias=True)
        x = linear.apply({"params": params["input_projection"]}, x)
        x, _ = Transformer(config.transformer).apply({"params": params["transformer"]}, x, state.cache)
        linear = Linear(config.latent_width, use_bias=True)
        return linear.apply({"params": params["output_projection"]}, x)

    with quiet():
        expected = _official(model).pre_transformer(inputs_embeds=_torch(x)).last_hidden_state.numpy()
    _close(jax.jit(ours)(x, initial_state(config, 2)), expected)


def test_latent_upsample_stages(model):
    config, state = model.codec.decoder, initial_state(model.codec.decoder, 2)
    for i, rate in enumerate(config.latent_upsample_rates):
        x = _random(2, FRAMES, config.latent_width, seed=i)
        name = f"latent_upsample_{i}"
        stage = LatentUpsample(rate, "float32")
        y, _ = stage.apply({"params": _params(model)[name]}, x, state.contexts[name])
        transposed_conv, convnext = _official(model).upsample[i]
        _close(y, _channels_first(lambda x: convnext(transposed_conv(x)), x))  # noqa: B023


def test_upsample_stages(model):
    config, state = model.codec.decoder, initial_state(model.codec.decoder, 1)
    for i, rate in enumerate(config.upsample_rates):
        x = _random(1, 11, config.decoder_channels // 2**i, seed=i)
        name = f"upsample_{i}"
        stage = Upsample(rate, "float32")
        y, _ = jax.jit(stage.apply)({"params": _params(model)[name]}, x, state.contexts[name])
        _close(y, _channels_first(_official(model).decoder[i + 1], x))


@pytest.mark.parametrize("j", [0, 1, 2])
def test_residual_units(j):
    model = SMALL["1.7B-CustomVoice"]
    x = _random(2, 29, model.codec.decoder.decoder_channels // 2)
    context = initial_state(model.codec.decoder, 2).contexts["upsample_0"][f"residual_{j}"]
    params = _params(model)["upsample_0"][f"residual_{j}"]
    y, _ = ResidualUnit((1, 3, 9)[j], "float32").apply({"params": params}, x, context)
    _close(y, _channels_first(_official(model).decoder[1].block[2 + j], x))


def test_whole_decode(model):
    config = model.codec.decoder
    codes = _codes(config, 2, FRAMES)
    with quiet():
        expected = _official(model)(_torch(codes).long().transpose(1, 2))[:, 0].numpy()
    _close(jax.jit(decode, static_argnums=1)(_params(model), config, codes), expected, atol=3e-5)


@pytest.mark.parametrize(
    ("frames", "chunk_frames", "context_frames"), [(620, 300, 25), (330, 300, 25), (14, 4, 6), (11, 4, 4)]
)
def test_chunked_decode(frames, chunk_frames, context_frames):
    model = SMALL["1.7B-CustomVoice"]
    model = replace(model, codec=replace(model.codec, decoder=replace(model.codec.decoder, upsample_rates=(3,))))
    config = model.codec.decoder
    codes = _codes(config, 1, frames)
    with quiet():
        expected = _official(model).chunked_decode(_torch(codes).long().transpose(1, 2), chunk_frames, context_frames)
    chunked = jax.jit(decode_chunked, static_argnums=(1, 3, 4))
    got = chunked(_params(model), config, codes, chunk_frames, context_frames)
    assert got.shape == (1, frames * config.frame_samples)
    _close(got, expected[:, 0].numpy(), atol=3e-5)


def test_published_shapes():
    """The official decoder computes in float64 here; in float32 it is 3.8e-5 from that itself."""
    model = preset("0.6B-Base")
    config = model.codec.decoder
    codes = _codes(config, 1, 8)
    with quiet():
        official = _official(model).double()
        expected = official(_torch(codes).long().transpose(1, 2))[:, 0].numpy()
        official.float()  # It is shared by the tests.
    assert expected.dtype == np.float64
    step = jax.jit(decode_step, static_argnums=1)
    state, samples = initial_state(config, 1), []
    for frame in range(8):
        state, new = step(_params(model), config, state, codes[:, frame : frame + 1])
        samples.append(new)
    _close(np.concatenate(samples, axis=1), expected, atol=5e-5)
    _close(jax.jit(decode, static_argnums=1)(_params(model), config, codes), expected, atol=5e-5)
