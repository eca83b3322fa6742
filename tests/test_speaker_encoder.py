"""The mel spectrogram and the speaker encoder without the official package: tree, golden, gradients, errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.convert.rules import model_rules, select, tree_shapes
from qwen3_tts_jax.mel import HOP, mel_filterbank, mel_spectrogram, reflect_pad
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.speaker_encoder import SpeakerEncoder, min_frames, x_vector
from tests.drawn_tree import drawn_tree
from tests.golden_x_vector import PATH, VARIANT, speech_like
from tests.shapes import SMALL

BASES = ("0.6B-Base", "1.7B-Base")  # Res2Net scales of 8 and 4
encode = jax.jit(x_vector, static_argnums=1)


def _rules(model):
    return select(model_rules(model), model, ["speaker_encoder"])


@cache
def _params(name):
    return jax.tree.map(jnp.asarray, drawn_tree(_rules(SMALL[name]))["speaker_encoder"])


def _random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("model", [SMALL["0.6B-Base"], SMALL["1.7B-Base"], preset("0.6B-Base"), preset("1.7B-Base")])
def test_the_tree_is_that_of_the_rules(model):
    config = model.speaker_encoder
    mel = jax.ShapeDtypeStruct((1, 9, config.mel_bins), jnp.float32)
    tree = jax.eval_shape(SpeakerEncoder(config).init, jax.random.key(0), mel)["params"]
    expected = tree_shapes(_rules(model))["speaker_encoder"]
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tree) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_golden():
    with np.load(PATH) as golden:
        mel = mel_spectrogram(golden["samples"])
        np.testing.assert_allclose(mel, golden["mel"], rtol=1e-5, atol=2e-5)
        vectors = encode(_params(VARIANT), SMALL[VARIANT].speaker_encoder, mel[None])
        assert vectors.dtype == jnp.float32
        assert np.std(golden["x_vector"]) > 0.1
        np.testing.assert_allclose(vectors[0], golden["x_vector"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_rows_are_independent(name):
    config, mel = SMALL[name].speaker_encoder, _random(3, 19, 128)
    together = encode(_params(name), config, mel)
    assert together.shape == (3, config.x_vector_width)
    assert np.abs(together[0] - together[1]).max() > 1e-2
    for row in range(3):
        alone = encode(_params(name), config, mel[row : row + 1])[0]
        np.testing.assert_allclose(together[row], alone, atol=1e-6)


def test_vmap_equals_a_batch():
    config, mel = SMALL["1.7B-Base"].speaker_encoder, _random(2, 11, 128)
    rows = jax.jit(jax.vmap(lambda row: x_vector(_params("1.7B-Base"), config, row[None])[0]))(mel)
    np.testing.assert_allclose(rows, encode(_params("1.7B-Base"), config, mel), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kernels"),
    [("0.6B-Base", (5, 3, 3, 3, 1)), ("1.7B-Base", (4, 2, 3, 5, 2)), ("1.7B-Base", (1, 3, 1, 3, 1))],
)
def test_a_row_with_a_length_is_what_it_is_alone(name, kernels):
    """Whatever follows it, in a bucket of any size, from the fewest frames to the whole bucket."""
    config = replace(SMALL[name].speaker_encoder, kernel_sizes=kernels)
    model = replace(SMALL[name], speaker_encoder=config)
    params = jax.tree.map(jnp.asarray, drawn_tree(_rules(model))["speaker_encoder"])
    lengths = [min_frames(config), 16, 23]
    mel = _random(3, 23, 128)
    alone = np.concatenate([encode(params, config, mel[row : row + 1, :n]) for row, n in enumerate(lengths)])
    assert np.abs(encode(params, config, mel)[:2] - alone[:2]).max(axis=1).min() > 1e-2
    for frames, filler in ((23, 0.0), (40, 1e4)):
        padded = np.full((3, frames, 128), filler, np.float32)
        for row, n in enumerate(lengths):
            padded[row, :n] = mel[row, :n]
        np.testing.assert_allclose(encode(params, config, padded, jnp.array(lengths)), alone, atol=2e-6)


def test_samples_with_lengths():
    config, params = SMALL["1.7B-Base"].speaker_encoder, _params("1.7B-Base")
    lengths = [385, 1536, 2000, 3001]
    samples = _random(4, 3333)

    @jax.jit
    def padded_x_vectors(samples, lengths):
        mel = mel_spectrogram(samples, lengths=lengths)
        return mel, x_vector(params, config, mel, lengths // HOP)

    mel, vectors = padded_x_vectors(samples, jnp.array(lengths))
    assert mel.shape == (4, 13, 128)
    for row, n in enumerate(lengths):
        alone = mel_spectrogram(samples[row, :n])
        np.testing.assert_allclose(mel[row, : len(alone)], alone, atol=1e-5)
        if len(alone) >= min_frames(config):
            np.testing.assert_allclose(vectors[row], encode(params, config, alone[None])[0], atol=2e-6)
    others = np.random.RandomState(1).permutation(4)
    shorter = padded_x_vectors(samples[others], jnp.array(lengths)[others] - 100)
    assert padded_x_vectors._cache_size() == 1
    assert np.abs(shorter[1] - vectors[others])[np.array(lengths)[others] > 1500].max(axis=1).min() > 1e-4


def test_gradient_with_lengths_is_that_of_the_row_alone():
    config, params = SMALL["1.7B-Base"].speaker_encoder, _params("1.7B-Base")
    weights = _random(config.x_vector_width, seed=1)
    lengths = np.array([2500, 3001], np.int32)
    samples = np.stack([speech_like(3400, seed) for seed in range(2)])

    def score(samples, lengths=None):
        mel = mel_spectrogram(samples, lengths=lengths)
        return (x_vector(params, config, mel, None if lengths is None else lengths // HOP) @ weights).sum()

    gradient = jax.jit(jax.grad(score))(samples, lengths)
    assert np.isfinite(gradient).all()
    for row, n in enumerate(lengths):
        alone = jax.jit(jax.grad(score))(samples[row : row + 1, :n])[0]
        assert np.abs(alone).max() > 1e-2
        np.testing.assert_allclose(gradient[row, :n], alone, atol=1e-4 * np.abs(alone).max())
        assert (gradient[row, n:] == 0).all()


def test_reflection_at_each_rows_own_end():
    x = np.arange(12.0).reshape(2, 6, 1)
    x[0, 4:] = np.nan
    got = reflect_pad(x, 2, 3, jnp.array([4, 6]))[..., 0]
    np.testing.assert_array_equal(got[0, :9], [2, 1, 0, 1, 2, 3, 2, 1, 0])
    np.testing.assert_array_equal(got[1], [8, 7, 6, 7, 8, 9, 10, 11, 10, 9, 8])
    assert got.shape == (2, 11)
    assert np.isfinite(got).all()  # nothing behind a row's end is read


def test_lengths_of_another_shape():
    config = SMALL["0.6B-Base"].speaker_encoder
    with pytest.raises(ValueError, match=r"lengths must be of shape \[2\], one per row, got \[1\]"):
        x_vector(_params("0.6B-Base"), config, _random(2, 9, 128), jnp.array([9]))
    with pytest.raises(ValueError, match=r"lengths must be of shape \[2\], one per row, got \[\]"):
        mel_spectrogram(_random(2, 900), lengths=jnp.int32(800))


def test_time_reversed_kernels_encode_the_reversed_recording():
    """Reflection and pooling treat both ends alike where kernels are odd."""
    config, mel = SMALL["0.6B-Base"].speaker_encoder, _random(1, 23, 128)
    params = _params("0.6B-Base")
    backwards = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim == 3 else leaf, params)
    expected = encode(params, config, mel)
    np.testing.assert_allclose(encode(backwards, config, mel[:, ::-1]), expected, atol=1e-5)
    assert np.abs(encode(params, config, mel[:, ::-1]) - expected).max() > 1e-2


def test_every_weight_is_heard():
    name = "1.7B-Base"  # the other's groups of two channels are small enough for all to be cut off by a ReLU
    config, mel = SMALL[name].speaker_encoder, 2 * _random(4, 29, 128)
    weights = _random(config.x_vector_width, seed=5)
    gradients = jax.jit(jax.grad(lambda params: (x_vector(params, config, mel) @ weights).sum()))(_params(name))
    # A softmax over time does not see what it adds to every frame's score.
    assert np.abs(gradients["pooling"]["conv"].pop("bias")).max() < 1e-6
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-5, path


def test_gradient_from_x_vector_to_samples():
    config, params = SMALL["1.7B-Base"].speaker_encoder, _params("1.7B-Base")
    weights = _random(config.x_vector_width, seed=1)

    @jax.jit
    def score(samples):
        return x_vector(params, config, mel_spectrogram(samples)) @ weights

    samples = speech_like(3001)[None]
    direction = jax.grad(lambda samples: score(samples).sum())(samples)
    slope = float(jnp.linalg.norm(direction))
    assert slope > 1e-2
    step = 2e-4 * direction / slope
    measured = float((score(samples + step) - score(samples - step))[0]) / 4e-4
    assert measured == pytest.approx(slope, rel=0.02)


def test_gradient_of_a_magnitude_of_zero_is_finite():
    """A click, then silence: the silent frames' magnitudes are exactly 0."""
    samples = np.zeros(2000, np.float32)
    samples[100] = 0.5
    gradient = jax.grad(lambda samples: mel_spectrogram(samples).sum())(samples)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1


def test_mel_frames_and_leading_axes():
    samples = np.stack([speech_like(3 * 256 + 255, seed) for seed in range(4)]).reshape(2, 2, -1)
    mel = mel_spectrogram(samples, mel_bins=40)
    assert mel.shape == (2, 2, 3, 40)
    assert mel.dtype == jnp.float32
    np.testing.assert_allclose(mel[1, 0], mel_spectrogram(samples[1, 0], mel_bins=40), atol=1e-6)
    assert mel_spectrogram(speech_like(4 * 256)).shape == (4, 128)


def test_mel_by_its_definition():
    """One frame in the middle, where no padding is seen: frame t is centred on sample 256 t + 128."""
    samples = speech_like(3000).astype(np.float64)
    start = 5 * 256 + 128 - 512
    n = np.arange(1024)
    window = np.sin(np.pi * n / 1024) ** 2
    spectrum = np.exp(-2j * np.pi * np.outer(np.arange(513), n) / 1024) @ (window * samples[start : start + 1024])
    expected = np.log(np.maximum(mel_filterbank(24_000, 1024, 128) @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5))
    got = mel_spectrogram(samples.astype(np.float32))[5]
    assert np.ptp(expected) > 3
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_mel_of_silence_is_the_floor():
    np.testing.assert_allclose(mel_spectrogram(np.zeros(700, np.float32)), np.full((2, 128), np.log(1e-5)), rtol=1e-6)


def test_a_tone_is_loudest_in_its_bin():
    for hz in (500.0, 2_000.0, 9_000.0):
        tone = np.sin(2 * np.pi * hz * np.arange(4000) / 24_000).astype(np.float32)
        loudest = int(np.argmax(mel_spectrogram(tone)[7]))
        filters = mel_filterbank(24_000, 1024, 128)
        assert abs(loudest - int(np.argmax(filters[:, round(hz * 1024 / 24_000)]))) <= 1


def test_filterbank():
    filters = mel_filterbank(24_000, 1024, 128)
    assert filters.shape == (128, 513)
    assert filters.dtype == np.float32
    assert (filters >= 0).all()
    assert (filters.max(axis=1) > 0).all()
    peaks = filters.argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()
    assert filters[:, 0].max() == 0
    assert filters[-1, -1] == pytest.approx(0, abs=1e-8)
    # Each filter is 0 outside its triangle, of height 2 / base, and of area 1 once the base holds many bins.
    areas = filters.sum(axis=1) * 24_000 / 1024
    np.testing.assert_allclose(areas[60:], 1, atol=0.04)
    # At most two triangles overlap at any frequency.
    assert ((filters > 0).sum(axis=0) <= 2).all()
    # 1,000 Hz is the 15th mel of the linear part: 200 / 3 Hz each.
    mels_at_nyquist = 15 + 27 * np.log(12) / np.log(6.4)
    lowest_edge_after_0 = mels_at_nyquist / 129 * 200 / 3
    assert (filters[0] > 0).sum() == np.floor(2 * lowest_edge_after_0 / (24_000 / 1024))
    with pytest.raises(ValueError, match="read-only"):
        filters[0, 0] = 1


@pytest.mark.parametrize("length", [0, 1, 384])
def test_audio_too_short_to_reflect(length):
    with pytest.raises(ValueError, match=rf"too short .* {length} samples .*more than 384 samples \(0.016 s\)"):
        mel_spectrogram(np.zeros(length, np.float32))


def test_integer_samples_are_refused():
    with pytest.raises(ValueError, match=r"floats .* got int16 of shape \[500\]"):
        mel_spectrogram(np.zeros(500, np.int16))
    with pytest.raises(ValueError, match=r"of shape \[\]"):
        mel_spectrogram(np.float32(0.0))


def test_recordings_too_short_to_encode():
    config = SMALL["0.6B-Base"].speaker_encoder
    assert min_frames(config) == 5
    assert encode(_params("0.6B-Base"), config, _random(1, 5, 128)).shape == (1, 48)
    with pytest.raises(ValueError, match=r"4 mel frames \(0.043 s\); give at least 5 \(0.053 s\)"):
        x_vector(_params("0.6B-Base"), config, _random(1, 4, 128))
    wide = replace(config, kernel_sizes=(5, 4, 3, 3, 1), dilations=(1, 5, 3, 4, 1))
    assert min_frames(wide) == 9


@pytest.mark.parametrize("shape", [(9, 128), (1, 9, 80), (1, 1, 9, 128)])
def test_mel_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"\[B, T, 128\], got \["):
        x_vector(_params("0.6B-Base"), SMALL["0.6B-Base"].speaker_encoder, _random(*shape))
