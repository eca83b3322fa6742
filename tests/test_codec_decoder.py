"""The codec's decoder without the official package: streaming, causality, gradients, definitions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec import conv
from qwen3_tts_jax.codec.conv import (
    CausalConv,
    CausalTransposedConv,
    DepthwiseCausalConv,
    SnakeBeta,
    context_size,
    sin_squared,
)
from qwen3_tts_jax.codec.decoder import CodecDecoder, decode, decode_chunked, decode_step, initial_state
from qwen3_tts_jax.codec.quantizer import ResidualQuantizer
from qwen3_tts_jax.convert.rules import codec_rules, tree_shapes
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

# 6 samples a frame from one stage (it compiles faster), and the published 1,920; windows of 7 frames.
TINY = SMALL["1.7B-CustomVoice"].codec
TINY = replace(TINY, decoder=replace(TINY.decoder, upsample_rates=(3,)))
PUBLISHED_RATES = SMALL["0.6B-Base"].codec

step = jax.jit(decode_step, static_argnums=1)
whole = jax.jit(decode, static_argnums=1)
chunked = jax.jit(decode_chunked, static_argnums=(1, 3, 4))


def _rules(codec):
    return [rule for rule in codec_rules(codec) if rule.part == "codec/decoder"]


@cache
def _params(codec):
    return jax.tree.map(jnp.asarray, drawn_tree(_rules(codec))["codec"]["decoder"])


def _codes(config, batch, frames, seed=0):
    shape = (batch, frames, config.num_codebooks)
    return np.random.RandomState(seed).randint(0, config.codebook_size, shape).astype(np.int32)


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _stream(params, config, codes, sizes):
    state, samples, start = initial_state(config, codes.shape[0]), [], 0
    for size in sizes:
        state, new = step(params, config, state, codes[:, start : start + size])
        samples.append(new)
        start += size
    assert start == codes.shape[1]
    return np.concatenate(samples, axis=1)


@pytest.mark.parametrize("codec", [TINY, PUBLISHED_RATES], ids=["tiny", "published_rates"])
def test_initialisation_makes_the_tree_of_the_rules(codec):
    config = codec.decoder
    codes, state = _codes(config, 1, 2), initial_state(config, 1)
    tree = jax.eval_shape(lambda: CodecDecoder(config).init(jax.random.key(0), codes, state))["params"]
    assert tree == tree_shapes(_rules(codec))["codec"]["decoder"]


@pytest.mark.parametrize(
    ("codec", "sizes"),
    [(TINY, (1, 1, 9, 2, 1, 9, 2)), (PUBLISHED_RATES, (1, 4, 1, 4))],
    ids=["tiny", "published_rates"],
)
def test_a_stream_in_any_steps_equals_the_whole(codec, sizes):
    config, params = codec.decoder, _params(codec)
    codes = _codes(config, 2, sum(sizes))
    expected = whole(params, config, codes)
    assert expected.shape == (2, sum(sizes) * config.frame_samples)
    assert np.std(expected) > 0.05
    # Products of few rows sum in another order than those of many.
    np.testing.assert_allclose(_stream(params, config, codes, sizes), expected, rtol=0, atol=2e-5)


def test_no_frames_change_nothing():
    config, params = TINY.decoder, _params(TINY)
    state, _ = step(params, config, initial_state(config, 1), _codes(config, 1, 1))
    after, samples = step(params, config, state, _codes(config, 1, 0))
    assert samples.shape == (1, 0)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_future_cannot_change_the_past_nor_a_row_another():
    config, params = TINY.decoder, _params(TINY)
    codes = _codes(config, 3, 21)
    changed = codes.copy()
    changed[1, 13:] = (changed[1, 13:] + 1) % config.codebook_size
    before, after = (np.asarray(whole(params, config, x)) for x in (codes, changed))
    edge = 13 * config.frame_samples
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1, :edge], before[1, :edge])
    assert np.all(np.abs(after[1] - before[1])[edge : edge + 3] > 1e-5)


def test_a_row_does_not_depend_on_right_padding_or_companions():
    config, params = TINY.decoder, _params(TINY)
    codes = _codes(config, 3, 21)
    codes[1, 16:] = -1
    padded = whole(params, config, codes)[1, : 16 * config.frame_samples]
    alone = whole(params, config, codes[1:2, :16])[0]
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)


def test_the_window_bounds_how_far_back_a_frame_looks():
    config, params = TINY.decoder, _params(TINY)
    codes = _codes(config, 1, 60)
    changed = codes.copy()
    changed[:, 0] = (changed[:, 0] + 1) % config.codebook_size

    def difference(window):
        shape = replace(config, transformer=replace(config.transformer, sliding_window=window))
        delta = np.abs(np.asarray(whole(params, shape, codes) - whole(params, shape, changed)))
        return delta.reshape(60, -1).max(axis=1)

    narrow, wide = difference(7), difference(40)
    assert narrow[8] > 1e-5  # two layers of 7 frames, and the convolutions
    # pre_conv 2, layers 2 × 6, then 3 + 3 + 1 at two rows a frame, 6 × (1 + 3 + 9) / 6 and 1: below 45.
    assert narrow[45:].max() == 0
    assert wide[45:].max() > 1e-6


def test_gradients_agree_with_finite_differences():
    config, params = TINY.decoder, _params(TINY)
    codes = _codes(config, 1, 9)
    weights = _random(1, 9 * config.frame_samples)
    assert np.abs(whole(params, config, codes)).max() < 1  # the clamp has no gradient

    @jax.jit
    def loss(params):
        return jnp.vdot(decode(params, config, codes), weights)

    gradients = jax.jit(jax.grad(loss))(params)
    silent = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not np.any(leaf)
    ]
    assert silent == [f"['quantizer']['{name}']['input_projection']['weight']" for name in ("acoustic", "semantic")]

    for path in (
        ("quantizer", "acoustic", "output_projection", "weight"),
        ("quantizer", "semantic", "embedding_sum"),
        ("transformer", "layers_0", "attention", "qkv", "weight"),
        ("latent_upsample_0", "convnext", "depthwise", "kernel"),
        ("upsample_0", "snake", "alpha"),
        ("upsample_0", "transposed_conv", "kernel"),
        ("upsample_0", "residual_2", "conv_1", "kernel"),
    ):
        leaf, gradient = params, gradients
        for key in path:
            leaf, gradient = leaf[key], gradient[key]
        # Along the gradient itself the change is largest, so rounding matters least.
        direction = gradient / jnp.linalg.norm(gradient)
        size = 2e-3 * jnp.linalg.norm(leaf) / np.sqrt(leaf.size)
        ahead, behind = (loss(_replaced(params, path, leaf + sign * size * direction)) for sign in (1, -1))
        np.testing.assert_allclose((ahead - behind) / (2 * size), jnp.linalg.norm(gradient), rtol=2e-2, err_msg=path)


def _replaced(tree, path, leaf):
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}


def test_vmap_equals_a_batch():
    config, params = TINY.decoder, _params(TINY)
    codes = _codes(config, 2, 9)
    mapped = jax.jit(jax.vmap(lambda row: decode(params, config, row[None])[0]))(codes)
    np.testing.assert_allclose(mapped, whole(params, config, codes), rtol=0, atol=1e-5)


def test_chunks_restart_and_drop_their_context():
    config, params = TINY.decoder, _params(TINY)
    codes, samples = _codes(config, 1, 11), config.frame_samples
    got = chunked(params, config, codes, 4, 4)
    assert got.shape == (1, 11 * samples)
    # The second chunk's context begins at frame 0, so it is exact; the third has frames 4 … 7 before it.
    exact = np.asarray(whole(params, config, codes))
    third = whole(params, config, codes[:, 4:])[:, 4 * samples :]
    expected = np.concatenate([exact[:, : 8 * samples], third], axis=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert np.abs(got - exact).max() > 1e-3
    np.testing.assert_allclose(chunked(params, config, codes, 300, 25), exact, rtol=0, atol=1e-5)


def test_bfloat16_stays_near_float32():
    config = TINY.decoder
    params, codes = _params(TINY), _codes(config, 2, 9)
    half = replace(config, transformer=replace(config.transformer, dtype="bfloat16"))
    samples = whole(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), half, codes)
    assert samples.dtype == jnp.float32
    expected = np.asarray(whole(params, config, codes))
    assert np.abs(samples - expected).max() > 1e-4  # it did compute in bfloat16
    assert np.corrcoef(np.ravel(samples), np.ravel(expected))[0, 1] > 0.99


def _correlate(x, kernel, dilation=1, stride=1):
    """The definition, in float64: y[t] = Σ_j x[t·stride + j·dilation − past] · kernel[j]."""
    past = (len(kernel) - 1) * dilation + 1 - stride
    padded = np.concatenate([np.zeros((len(x), past, x.shape[2])), x], axis=1)
    frames = x.shape[1] // stride
    return sum(
        padded[:, j * dilation : j * dilation + (frames - 1) * stride + 1 : stride] @ np.float64(kernel[j])
        for j in range(len(kernel))
    )


def test_three_passes_stay_at_60_db_or_better():
    codec = PUBLISHED_RATES
    params, codes = _params(codec), _codes(codec.decoder, 1, 4)
    exact = np.asarray(whole(params, codec.decoder, codes), np.float64)
    error = np.asarray(whole(params, codec.with_dtype("bfloat16_3x").decoder, codes)) - exact
    assert 0 < np.mean(error**2) < 1e-6 * np.mean(exact**2)


def test_three_passes_multiply_what_bfloat16_holds():
    """Then units that take no more multiply exactly."""
    x, kernel = _random(2, 9, 5), _random(3, 5, 4, seed=1)
    passes = []

    def product(x, kernel, precision):
        assert precision == jax.lax.Precision.DEFAULT
        for operand in (x, kernel):
            np.testing.assert_array_equal(operand.astype(jnp.bfloat16).astype(jnp.float32), operand)
        passes.append((x, kernel))
        return np.einsum("btc,kco->btko", np.float64(x), np.float64(kernel))

    y = conv._in_three_passes(product, jnp.asarray(x), jnp.asarray(kernel))
    assert len(passes) == 3
    np.testing.assert_allclose(y, np.einsum("btc,kco->btko", np.float64(x), np.float64(kernel)), atol=1e-4)
    # One pass is hundreds of times as far off.
    assert np.abs(product(*passes[2], jax.lax.Precision.DEFAULT) - y).max() > 5e-3


@pytest.mark.parametrize(
    ("taps", "dilation", "stride", "outputs"), [(7, 3, 1, 4), (6, 1, 3, 4), (1, 1, 1, 4), (7, 1, 1, 1)]
)
@pytest.mark.parametrize("three_pass", [False, True])
def test_convolutions_for_nvidia_are_one_product_of_windows(taps, dilation, stride, outputs, three_pass):
    x, kernel = jnp.asarray(_random(2, 32, 5)), jnp.asarray(_random(taps, 5, outputs, seed=1))
    expected = conv._convolve(x, kernel, dilation, stride)
    found = conv._convolve_windows(x, kernel, dilation, stride, three_pass)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 40])
def test_transposed_convolutions_in_three_passes(frames):
    """By taps and by phases."""
    x, context = _random(1, frames, 16), jnp.zeros((1, 1, 16))
    params = {"kernel": _random(6, 16, 24, seed=1), "bias": _random(24, seed=2)}
    y, fast = (
        CausalTransposedConv(24, 6, 3, three_pass=three_pass).apply({"params": params}, x, context)[0]
        for three_pass in (False, True)
    )
    assert 1e-7 < np.abs(fast - y).max() < 1e-3


@pytest.mark.parametrize(("kernel_size", "dilation", "stride"), [(7, 1, 1), (5, 3, 1), (1, 1, 1), (6, 1, 3)])
def test_causal_conv(kernel_size, dilation, stride):
    x = _random(2, 15, 5)
    params = {"kernel": _random(kernel_size, 5, 4, seed=1), "bias": _random(4, seed=2)}
    conv = CausalConv(4, kernel_size, dilation, stride)
    context = jnp.zeros((2, context_size(kernel_size, dilation, stride), 5))
    parts = []
    for part in np.split(x, [3, 12], axis=1):
        y, context = conv.apply({"params": params}, part, context)
        parts.append(y)
    expected = _correlate(x, params["kernel"], dilation, stride) + params["bias"]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-5)


def test_causal_conv_without_bias():
    x, params = _random(1, 6, 5), {"kernel": _random(3, 5, 4, seed=1)}
    y, _ = CausalConv(4, 3, use_bias=False).apply({"params": params}, x, jnp.zeros((1, 2, 5)))
    np.testing.assert_allclose(y, _correlate(x, params["kernel"]), rtol=0, atol=1e-5)


def test_depthwise_causal_conv():
    x = _random(2, 9, 5)
    params = {"kernel": _random(4, 1, 5, seed=1), "bias": _random(5, seed=2)}
    context, parts = jnp.zeros((2, 3, 5)), []
    for part in np.split(x, [2], axis=1):
        y, context = DepthwiseCausalConv(4).apply({"params": params}, part, context)
        parts.append(y)
    dense = params["kernel"] * np.eye(5)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), _correlate(x, dense) + params["bias"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(6, 3), (2, 2), (6, 2), (3, 1)])
def test_transposed_conv(kernel_size, stride):
    frames, inputs, features = 9, 7, 5
    x = _random(2, frames, inputs)
    kernel, bias = _random(kernel_size, inputs, features, seed=1), _random(features, seed=2)
    full = np.zeros((2, frames * stride + kernel_size, features))
    for t in range(frames):
        for j in range(kernel_size):
            full[:, t * stride + j] += x[:, t] @ kernel[j]
    expected = full[:, : frames * stride] + bias

    conv = CausalTransposedConv(features, kernel_size, stride)
    context, parts = jnp.zeros((2, kernel_size // stride - 1, inputs)), []
    for part in np.split(x, [1, 7], axis=1):  # 1 and 2 frames go by taps, 6 by phases
        y, context = conv.apply({"params": {"kernel": kernel, "bias": bias}}, part, context)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-5)


def _angles():
    """Every size from 1e-6 to 25,000, and the neighbourhood of the first multiples of π/4."""
    random = np.random.RandomState(0)
    sizes = np.exp(random.uniform(np.log(1e-6), np.log(25_000), 400_000))
    quarters = np.arange(2000)[:, None] * (np.pi / 4) + random.uniform(-1e-3, 1e-3, (2000, 20))
    x = np.concatenate([sizes, quarters.ravel()]).astype(np.float32)
    return np.concatenate([x, -x])


def test_sin_squared():
    x = _angles()
    y = np.asarray(jax.jit(sin_squared)(x))
    np.testing.assert_allclose(y, np.sin(np.float64(x)) ** 2, rtol=0, atol=3e-7)
    small = np.abs(x) < 0.1
    np.testing.assert_allclose(y[small], np.sin(np.float64(x[small])) ** 2, rtol=1e-6, atol=0)


def test_sin_squared_gradient():
    x = _angles()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(sin_squared(x))))(x)
    np.testing.assert_allclose(gradient, np.sin(2 * np.float64(x)), rtol=0, atol=2e-6)


def test_sin_squared_has_derivatives_of_both_kinds():
    x = _angles()
    value, tangent = jax.jit(lambda x: jax.jvp(sin_squared, (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_array_equal(value, jax.jit(sin_squared)(x))
    np.testing.assert_allclose(tangent, np.sin(2 * np.float64(x)), rtol=0, atol=2e-6)
    curvature = jax.jit(jax.vmap(jax.hessian(sin_squared)))(x[np.abs(x) < 100])
    np.testing.assert_allclose(curvature, 2 * np.cos(2 * np.float64(x[np.abs(x) < 100])), rtol=0, atol=1e-4)


def test_sin_squared_of_huge_and_infinite_numbers():
    x = np.logspace(4, 38, 2000).astype(np.float32)
    y = np.asarray(sin_squared(x))
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-6
    assert np.all(np.isnan(sin_squared(np.float32([np.inf, -np.inf, np.nan]))))


def test_snake_beta():
    x, alpha, beta = 5 * _random(2, 30, 6), 2 * _random(6, seed=1), 2 * _random(6, seed=2)
    y = SnakeBeta().apply({"params": {"alpha": alpha, "beta": beta}}, x)
    expected = x + np.sin(x * np.exp(np.float64(alpha))) ** 2 / np.exp(np.float64(beta))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantizer_adds_entries_of_tables_in_any_dtype(dtype):
    sums, usage = jnp.asarray(_random(3, 11, 4), dtype), jnp.asarray(_random(3, 11, seed=1) ** 2, dtype)
    usage = usage.at[1, 5].set(0).at[2, 7].set(3e-6)
    sums = sums.at[1, 5].mul(1e-5).at[2, 7].mul(1e-5)
    projection = _random(6, 4, seed=2)
    codes = np.random.RandomState(3).randint(0, 11, (2, 9, 3)).astype(np.int32)
    codes[0, 0] = (4, 5, 7)
    codes[1, 8] = (-1, 3, -1)
    quantizer = ResidualQuantizer(num_codebooks=3, codebook_size=11, codebook_dim=4, width=6)
    params = {"embedding_sum": sums, "cluster_usage": usage, "output_projection": {"weight": projection}}
    y = quantizer.apply({"params": params}, codes, method=quantizer.decode)

    table = np.float64(sums) / np.maximum(np.float64(usage), 1e-5)[..., None]
    rows = np.maximum(codes, 0)
    expected = sum(table[q, rows[..., q]] for q in range(3)) @ np.float64(projection).T
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
