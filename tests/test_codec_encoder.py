"""The codec's encoder without the official package: streaming, causality, gradients, definitions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec.encoder import CodecEncoder, encode, encode_latents, encode_step, initial_state
from qwen3_tts_jax.codec.quantizer import ResidualQuantizer, SplitResidualQuantizer
from qwen3_tts_jax.convert.rules import codec_rules, tree_shapes
from tests import golden_codec_encoder as golden
from tests.drawn_tree import drawn_tree
from tests.golden_codec_encoder import noise
from tests.shapes import SMALL

# 24 samples a frame, two units a stage, windows of 4.5 frames; and the published 1,920 samples.
TINY = golden.MODEL.codec
DILATED = replace(TINY, encoder=replace(TINY.encoder, num_residual_layers=2, dilation_growth=3))
PUBLISHED_RATES = SMALL["0.6B-Base"].codec
FRAME = TINY.frame_samples

step = jax.jit(encode_step, static_argnums=1)
whole = jax.jit(encode, static_argnums=(1, 4, 5))
latents_of = jax.jit(encode_latents, static_argnums=(1, 3))


def _rules(codec):
    return [rule for rule in codec_rules(codec) if rule.part == "codec/encoder"]


@cache
def _params(codec):
    return jax.tree.map(jnp.asarray, drawn_tree(_rules(codec))["codec"]["encoder"])


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("codec", [DILATED, PUBLISHED_RATES], ids=["dilated", "published_rates"])
def test_initialisation_makes_the_tree_of_the_rules(codec):
    config = codec.encoder
    samples, state = noise(1, 2 * codec.frame_samples), initial_state(config, 1)
    encoder = CodecEncoder(config)
    tree = jax.eval_shape(lambda: encoder.init(jax.random.key(0), samples, state, 3))["params"]
    assert tree == tree_shapes(_rules(codec))["codec"]["encoder"]


@pytest.mark.parametrize(("window", "prefix"), [(False, ""), (True, "windowed_")])
def test_golden_file(window, prefix):
    params, samples = _params(TINY), golden.golden_samples()
    codes, latents = (f(params, c, samples, *rest) for f, c, rest in (
        (whole, TINY, (None, None, window)), (latents_of, TINY.encoder, (window,))
    ))  # fmt: skip
    assert codes.dtype == jnp.int32
    with np.load(golden.PATH) as stored:
        np.testing.assert_array_equal(codes, stored[f"{prefix}codes"])
        np.testing.assert_allclose(latents, stored[f"{prefix}latents"], rtol=0, atol=1e-5)


# Whole frames, and ends within a frame on either side of every stride; 9 positions of window are 4.5 frames.
LENGTHS = np.array([6 * FRAME - 1, 1, 5 * FRAME + 13, 2 * FRAME, 0, 2 * FRAME + 1], np.int32)


def _alone(samples, window):
    """Codes of each row of `LENGTHS` without padding."""
    rows = [(row[None, :length], length) for row, length in zip(samples, LENGTHS, strict=True)]
    empty = np.zeros((0, DILATED.num_codebooks), np.int32)
    params = _params(DILATED)
    return [whole(params, DILATED, row, None, None, window)[0] if length else empty for row, length in rows]


def _check_rows(codes, expected):
    for row, alone in zip(np.asarray(codes), expected, strict=True):
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert np.all(row[len(alone) :] == -1)


@pytest.mark.parametrize("window", [True, False])
def test_rows_of_any_lengths_are_what_they_are_alone(window):
    params, samples = _params(DILATED), noise(len(LENGTHS), 6 * FRAME + 5)
    expected = _alone(samples, window)
    _check_rows(whole(params, DILATED, samples, LENGTHS, None, window), expected)
    programs = whole._cache_size()
    others = whole(params, DILATED, np.roll(samples, 3, axis=0), np.roll(LENGTHS, 3), None, window)
    _check_rows(np.roll(others, -3, axis=0), expected)

    assert whole._cache_size() == programs

    size = 2 * FRAME
    state, codes = initial_state(DILATED.encoder, len(LENGTHS), None if window else 4 * 4), []
    programs = step._cache_size()
    for start in range(0, 4 * size, size):
        part = np.full((len(LENGTHS), size), 0.7, np.float32)
        here = samples[:, start : start + size]
        part[:, : here.shape[1]] = here
        state, new = step(params, DILATED, state, part, np.clip(LENGTHS - start, 0, size))
        codes.append(new)
    _check_rows(np.concatenate(codes, axis=1), expected)
    assert step._cache_size() == programs + 1


def test_one_length_per_row():
    with pytest.raises(ValueError, match=r"lengths must be \[2\], one per row, got \[3\]"):
        encode(_params(TINY), TINY, noise(2, FRAME), np.ones(3, np.int32))


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("frames", [(1, 1, 6, 1, 1, 2.3)])
def test_a_stream_in_any_steps_equals_the_whole(frames, window):
    sizes = [round(part * FRAME) for part in frames]
    samples, params = noise(2, sum(sizes)), _params(DILATED)
    positions = -(-sum(sizes) // (FRAME // 2))
    state = initial_state(DILATED.encoder, 2, None if window else positions)
    codes, contexts = [], jax.tree.structure(state)
    for part in np.split(samples, np.cumsum(sizes)[:-1], axis=1):
        state, new = step(params, DILATED, state, part)
        assert jax.tree.structure(state) == contexts
        codes.append(new)
    expected = np.asarray(whole(params, DILATED, samples, None, None, window))
    assert expected.shape == (2, -(-sum(sizes) // FRAME), DILATED.num_codebooks)
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), expected)


def test_the_future_cannot_change_the_past_nor_a_row_another():
    params, samples = _params(DILATED), noise(3, 11 * FRAME)
    changed = samples.copy()
    changed[1, 6 * FRAME :] += 0.5
    before, after = (np.asarray(latents_of(params, DILATED.encoder, x, True)) for x in (samples, changed))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1, :6], before[1, :6])
    assert np.all(np.abs(after[1] - before[1])[6:].max(axis=1) > 1e-3)


def test_padding_on_the_right_leaves_whole_frames_and_companions_alone():
    params, config = _params(DILATED), DILATED.encoder
    samples = noise(3, 9 * FRAME)
    samples[1, 5 * FRAME :] = 0
    batch = np.asarray(latents_of(params, config, samples, True))
    alone = latents_of(params, config, samples[1:2, : 5 * FRAME], True)
    np.testing.assert_allclose(batch[1:2, :5], alone, rtol=0, atol=1e-5)

    # Within a frame the strided convolutions are padded, not the samples.
    samples[1, 4 * FRAME + 3 :] = 0
    batch = np.asarray(latents_of(params, config, samples, True))
    alone = np.asarray(latents_of(params, config, samples[1:2, : 4 * FRAME + 3], True))
    np.testing.assert_allclose(batch[1:2, :4], alone[:, :4], rtol=0, atol=1e-5)
    assert np.abs(batch[1, 4] - alone[0, 4]).max() > 1e-3


def test_the_window_bounds_how_far_back_a_frame_looks():
    params, samples = _params(TINY), noise(1, 40 * FRAME)
    changed = samples.copy()
    changed[:, :FRAME] += 0.5

    def difference(window):
        before, after = (np.asarray(latents_of(params, TINY.encoder, x, window)) for x in (samples, changed))
        return np.abs(after - before)[0].max(axis=1)

    # The convolutions up to the transformer reach position 6, its two layers 8 more each, and frame t begins at
    # position 2 t − 2.
    limited = difference(True)
    assert np.all(limited[:13] > 0)
    assert np.all(limited[13:] == 0)
    assert difference(False)[-1] > 1e-6


def test_gradients_reach_every_sample_and_parameter_before_the_quantizer():
    params, samples = _params(TINY), noise(1, 3 * FRAME)
    weights = _random(3, TINY.encoder.transformer.width)

    def loss(params, samples):
        return jnp.sum(encode_latents(params, TINY.encoder, samples) * weights)

    gradients, of_samples = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, samples)
    assert np.all(np.isfinite(of_samples))
    assert np.all(np.asarray(of_samples) != 0)
    quantizer = gradients.pop("quantizer")
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(quantizer))

    direction = _random(1, 3 * FRAME, seed=1)
    ends = [loss(params, samples + sign * 1e-2 * direction) for sign in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-2, np.sum(of_samples * direction), rtol=2e-2)


def test_bfloat16_stays_near_float32():
    params, samples = _params(TINY), noise(2, 5 * FRAME)
    config = TINY.encoder
    half = replace(config, transformer=replace(config.transformer, dtype="bfloat16"))
    latents = latents_of(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), half, samples, True)
    assert latents.dtype == jnp.bfloat16
    latents, expected = np.float32(latents), np.asarray(latents_of(params, config, samples, True))
    assert np.abs(latents - expected).max() > 1e-4  # it did compute in bfloat16
    assert np.corrcoef(np.ravel(latents), np.ravel(expected))[0, 1] > 0.99


def test_fewer_codebooks_are_the_first_ones():
    params, samples = _params(TINY), noise(1, 5 * FRAME)
    every = np.asarray(whole(params, TINY, samples, None, TINY.encoder.num_codebooks, True))
    assert every.shape[-1] == TINY.num_codebooks + 2
    for count in (None, 1, 3):
        codes = whole(params, TINY, samples, None, count, True)
        np.testing.assert_array_equal(codes, every[..., : count or TINY.num_codebooks])


@pytest.mark.parametrize("count", [0, 8])
def test_codebooks_that_are_not_in_the_file(count):
    with pytest.raises(ValueError, match=rf"num_codebooks must be in 1 … 7, got {count}"):
        encode(_params(TINY), TINY, noise(1, FRAME), None, count)


@pytest.mark.parametrize("shape", [(2, 0), (FRAME,), (1, FRAME, 1)])
def test_samples_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"samples must be \[B, N\] with N > 0, got \["):
        encode(_params(TINY), TINY, np.zeros(shape, np.float32))


def test_without_a_window_the_cache_needs_a_capacity():
    config = replace(TINY.encoder, transformer=replace(TINY.encoder.transformer, sliding_window=None))
    with pytest.raises(ValueError, match="give the capacity"):
        initial_state(config, 1)
    samples = noise(1, 7 * FRAME)
    unlimited = latents_of(_params(TINY), config, samples, True)
    np.testing.assert_array_equal(unlimited, latents_of(_params(TINY), TINY.encoder, samples, False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantizer_takes_the_nearest_entry_of_what_is_left(dtype):
    sums, usage = jnp.asarray(_random(4, 11, 3), dtype), jnp.asarray(_random(4, 11, seed=1) ** 2 + 0.1, dtype)
    usage = usage.at[1, 5].set(0).at[2, 7].set(3e-6)
    sums = sums.at[1, 5].mul(1e-5).at[2, 7].mul(1e-5)
    projection, x = _random(3, 6, seed=2), _random(2, 40, 6, seed=3)
    quantizer = ResidualQuantizer(num_codebooks=4, codebook_size=11, codebook_dim=3, width=6)
    params = {"embedding_sum": sums, "cluster_usage": usage, "input_projection": {"weight": projection}}
    codes = quantizer.apply({"params": params}, x, 3, method=quantizer.encode)

    table = np.float64(sums) / np.maximum(np.float64(usage), 1e-5)[..., None]
    residual = np.float64(x) @ np.float64(projection).T
    for q in range(3):
        distances = np.linalg.norm(residual[:, :, None] - table[q], axis=-1)
        np.testing.assert_array_equal(codes[..., q], np.argmin(distances, axis=-1))
        residual -= table[q, codes[..., q]]
    assert codes.shape == (2, 40, 3)
    assert np.any(codes[..., 1] == 5)
    assert np.any(codes[..., 2] == 7)


def test_of_equal_entries_the_first_is_taken():
    entries = jnp.broadcast_to(jnp.asarray(_random(1, 4)), (1, 5, 4))
    params = {"embedding_sum": entries, "cluster_usage": jnp.ones((1, 5)), "input_projection": {"weight": jnp.eye(4)}}
    quantizer = ResidualQuantizer(num_codebooks=1, codebook_size=5, codebook_dim=4, width=4)
    codes = quantizer.apply({"params": params}, _random(1, 9, 4, seed=1), 1, method=quantizer.encode)
    np.testing.assert_array_equal(codes, np.zeros((1, 9, 1)))


def test_both_quantizers_start_from_the_latents():
    params, x = _params(TINY)["quantizer"], _random(1, 30, TINY.encoder.transformer.width)
    split = SplitResidualQuantizer(TINY.encoder)
    codes = split.apply({"params": params}, x, 4, method=split.encode)
    shapes = (TINY.encoder.codebook_size, TINY.encoder.codebook_dim, TINY.encoder.transformer.width, "float32", True)
    for name, total, part in (("semantic", 1, codes[..., :1]), ("acoustic", 6, codes[..., 1:])):
        quantizer = ResidualQuantizer(total, *shapes)
        alone = quantizer.apply({"params": params[name]}, x, part.shape[-1], method=quantizer.encode)
        np.testing.assert_array_equal(part, alone)
