"""`quantize` and `dequantize` by themselves: definition, gradients, errors."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec.quantizer import dequantize, quantize
from qwen3_tts_jax.convert.rules import codec_rules
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

CODEC = SMALL["1.7B-VoiceDesign"].codec
HALVES = {
    "encoder": (CODEC.encoder, CODEC.encoder.transformer.width),
    "decoder": (CODEC.decoder, CODEC.decoder.quantizer_width),
}


@cache
def _params(half):
    return jax.tree.map(jnp.asarray, drawn_tree(codec_rules(CODEC))["codec"][half]["quantizer"])


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _tables(half, part):
    tree = {name: np.float64(leaf) for name, leaf in _params(half)[part].items() if name[0] in "ce"}
    entries = tree["embedding_sum"] / np.maximum(tree["cluster_usage"], 1e-5)[..., None]
    return entries, np.float64(_params(half)[part]["output_projection"]["weight"])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("count", [None, 1, 3])
def test_codes_stand_for_the_sum_of_their_entries(half, count):
    config, width = HALVES[half]
    latents = 2 * _random(2, 31, width)
    codes, quantized = quantize(_params(half), config, latents, count)
    assert codes.dtype == jnp.int32
    assert codes.shape == (2, 31, count or config.num_codebooks)
    assert len(np.unique(codes)) > 10
    expected = np.zeros_like(latents, np.float64)
    for part, split in (("semantic", np.asarray(codes[..., :1])), ("acoustic", np.asarray(codes[..., 1:]))):
        entries, projection = _tables(half, part)
        for q in range(split.shape[-1]):
            expected += entries[q, split[..., q]] @ projection.T
    np.testing.assert_allclose(quantized, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dequantize(_params(half), config, codes), quantized)


@pytest.mark.parametrize("half", HALVES)
def test_acoustic_codes_are_the_nearest_to_what_is_left_of_the_latents(half):
    config, width = HALVES[half]
    codes, _ = quantize(_params(half), config, _random(1, 64, width))
    entries, _ = _tables(half, "acoustic")
    first = np.float64(_random(1, 64, width)) @ np.float64(_params(half)["acoustic"]["input_projection"]["weight"]).T
    for q in range(2):
        distances = np.linalg.norm(first[:, :, None] - entries[q], axis=-1)
        np.testing.assert_array_equal(codes[..., 1 + q], np.argmin(distances, axis=-1))
        first -= entries[q, codes[..., 1 + q]]


@pytest.mark.parametrize("half", HALVES)
def test_straight_through_passes_gradients_on_to_the_latents_alone(half):
    config, width = HALVES[half]
    latents, weights = _random(2, 9, width), _random(2, 9, width, seed=1)

    def loss(params, latents):
        codes, quantized = quantize(params, config, latents, straight_through=True)
        return jnp.sum(quantized * weights), (codes, quantized)

    of_params, of_latents = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(_params(half), latents)[0]
    np.testing.assert_array_equal(of_latents, weights)
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(of_params))
    plain = quantize(_params(half), config, latents)
    for got, expected in zip(loss(_params(half), latents)[1], plain, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("half", HALVES)
def test_gradients_reach_the_codebooks(half):
    config, width = HALVES[half]
    params, latents, weights = _params(half), _random(2, 9, width), _random(2, 9, width, seed=1)
    codes, _ = quantize(params, config, latents)

    def loss(params, latents):
        return jnp.sum(quantize(params, config, latents)[1] * weights)

    def loss_of_codes(params):
        return jnp.sum(dequantize(params, config, codes) * weights)

    of_params, of_latents = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, latents)
    assert not np.any(of_latents)
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4),
        of_params,
        jax.grad(loss_of_codes)(params),
    )
    for part in ("semantic", "acoustic"):
        sums = np.asarray(of_params[part]["embedding_sum"])
        split = np.asarray(codes[..., :1] if part == "semantic" else codes[..., 1:])
        for q in range(len(sums)):
            rows = np.flatnonzero(np.any(sums[q] != 0, axis=1))
            np.testing.assert_array_equal(rows, np.unique(split[..., q]))

        # Along relative changes of each leaf: entries, their usage and the projection behind them.
        for path in (("embedding_sum",), ("cluster_usage",), ("output_projection", "weight")):
            leaf, gradient = params[part], of_params[part]
            for key in path:
                leaf, gradient = leaf[key], gradient[key]
            change = np.asarray(leaf) * _random(*leaf.shape, seed=2)

            def moved(step, path=path, leaf=leaf, change=change, part=part):
                new = leaf + step * change
                for key in reversed(path[1:]):
                    new = {key: new}
                return {**params, part: {**params[part], path[0]: new}}

            slope = (loss_of_codes(moved(1e-2)) - loss_of_codes(moved(-1e-2))) / 2e-2
            assert abs(slope) > 1e-2
            np.testing.assert_allclose(slope, np.sum(np.float64(gradient) * change), rtol=2e-3)


def test_negative_codes_count_as_0():
    config, _ = HALVES["decoder"]
    codes = np.array([[[3, -1, 5, -7, 0]]])
    got = dequantize(_params("decoder"), config, codes)
    np.testing.assert_array_equal(got, dequantize(_params("decoder"), config, np.maximum(codes, 0)))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("count", [0, 8])
def test_codebooks_that_are_not_in_the_file(half, count):
    config, width = HALVES[half]
    message = rf"num_codebooks must be in 1 … {config.num_codebooks}, got {count}"
    with pytest.raises(ValueError, match=message):
        quantize(_params(half), config, _random(1, 2, width), count)
    with pytest.raises(ValueError, match=message):
        dequantize(_params(half), config, np.zeros((1, 2, count), np.int32))
