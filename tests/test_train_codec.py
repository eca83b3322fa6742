"""Training a codec: codebooks that follow the data, and waveforms that come closer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec import decoder, encoder
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.train.codec.loss import mel_loss, spectral_loss
from qwen3_tts_jax.train.codec.quantizer import (
    dropped_codebooks,
    entries,
    learn_codebooks,
    perplexity,
    quantize_residuals,
)
from qwen3_tts_jax.train.codec.start import random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, codec_step, finish_codec, start_codec
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from tests.train_codec import BASE, CODEC, FRAMES, tones

RECIPE = CodecRecipe(CODEC, OptimizerConfig(3e-3, 60, 5, weight_decay=0.0), dead_below=0.05)


def clusters(seed=0, spread=0.05):
    """Vectors [4, 50, 3] around 8 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(8, 3))
    return (centres[rng.integers(0, 8, (4, 50))] + spread * rng.normal(size=(4, 50, 3))).astype(np.float32), centres


def test_codebooks_start_from_the_data_and_find_its_centres():
    books = {"embedding_sum": jnp.zeros((2, 12, 3)), "cluster_usage": jnp.zeros((2, 12))}
    everything = jnp.full(4, 2)

    @jax.jit
    def learn(books, vectors, key):
        return learn_codebooks(books, quantize_residuals(books, vectors, everything), key, decay=0.9)

    for seed in range(60):
        books = learn(books, clusters(seed)[0], jax.random.key(seed))
    vectors, centres = clusters(99)
    result = quantize_residuals(books, vectors, everything)
    nearest = np.linalg.norm(np.asarray(entries(books))[0][None] - centres[:, None], axis=-1).min(axis=1)
    assert nearest.max() < 0.15
    assert result.commitment < 0.01
    np.testing.assert_allclose(
        result.vectors, vectors - np.asarray(result.inputs[1]) + _second(books, result), atol=1e-5
    )
    assert quantize_residuals(books, vectors, jnp.full(4, 1)).commitment > result.commitment
    assert perplexity(result.codes, 12)[0] > 6


def _second(books, result):
    return np.asarray(entries(books))[1][np.asarray(result.codes)[..., 1]]


def test_averages_are_exponential_and_unused_codebooks_stay():
    rng = np.random.default_rng(1)
    books = {
        "embedding_sum": jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32),
        "cluster_usage": jnp.asarray(rng.uniform(1, 2, (2, 5)), jnp.float32),
    }
    vectors, _ = clusters()
    result = quantize_residuals(books, vectors, jnp.array([2, 1, 1, 0]))
    new = learn_codebooks(books, result, jax.random.key(0), decay=0.8, dead_below=0.0)
    first, codes = vectors[:3].reshape(-1, 3), np.asarray(result.codes)[:3, :, 0].reshape(-1)
    for code in range(5):
        fell = first[codes == code]
        expected = 0.8 * books["embedding_sum"][0, code] + 0.2 * fell.sum(axis=0)
        np.testing.assert_allclose(new["embedding_sum"][0, code], expected, atol=1e-3)
        np.testing.assert_allclose(
            new["cluster_usage"][0, code], 0.8 * books["cluster_usage"][0, code] + 0.2 * len(fell), rtol=1e-5
        )
    counted = (new["cluster_usage"][1] - 0.8 * books["cluster_usage"][1]).sum() / 0.2
    np.testing.assert_allclose(counted, 50, rtol=1e-3)
    np.testing.assert_array_equal(result.vectors[3], 0)


def test_the_gradient_of_quantized_vectors_is_theirs():
    books = {"embedding_sum": jnp.ones((1, 4, 3)), "cluster_usage": jnp.arange(1.0, 5.0)[None]}
    vectors, _ = clusters()
    gradient = jax.grad(lambda v: jnp.sum(quantize_residuals(books, v, jnp.full(4, 1)).vectors * 3))(vectors)
    np.testing.assert_array_equal(gradient, 3.0)


def test_dropout_keeps_the_semantic_codebook():
    keep = np.asarray(dropped_codebooks(jax.random.key(0), 4000, 5, 1, 0.5))
    counts = np.bincount(keep, minlength=6)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:5], 400, atol=80)
    np.testing.assert_allclose(counts[5], 2400, atol=150)


def test_losses_are_zero_for_equals_and_grow_with_noise():
    rng = np.random.default_rng(2)
    a = 0.1 * rng.normal(size=(2, 4000)).astype(np.float32)
    noise = 0.1 * rng.normal(size=a.shape).astype(np.float32)
    for loss in (lambda x: mel_loss(x, a, 24_000), lambda x: spectral_loss(x, a)):
        both = jax.jit(jax.value_and_grad(loss))
        values = [float(both(a + scale * noise)[0]) for scale in (0.0, 0.1, 1.0)]
        assert values[0] < 1e-6 < values[1] < values[2]
        assert np.isfinite(both(jnp.zeros_like(a))[1]).all()


def test_mel_bands_between_two_frequencies():
    times = np.arange(8_000) / 24_000
    silence, low, high = (0.1 * np.sin(2 * np.pi * hertz * times)[None].astype(np.float32) for hertz in (0, 300, 3_000))
    scales = ((512, 80), (1024, 120))
    of_low, of_high = (mel_loss(x, silence, 24_000, scales, (1_000, 4_500)) for x in (low, high))
    assert of_low < 0.02 * of_high
    # All bands that differ are among a third of all.
    assert of_high > 2 * mel_loss(high, silence, 24_000, scales)


def test_what_is_far_weaker_than_speech_does_not_count():
    of_mel = jax.jit(partial(mel_loss, sample_rate=24_000))
    rng = np.random.default_rng(5)
    speech, hiss = (scale * rng.normal(size=(2, 8000)).astype(np.float32) for scale in (0.1, 1e-6))
    silence = np.zeros_like(hiss)
    assert of_mel(hiss, silence) == 0
    # 60 dB louder it does.
    assert of_mel(1000 * hiss, silence) > 0.01
    both = np.concatenate([speech, hiss], axis=1), np.concatenate([speech, silence], axis=1)
    of_spectra = jax.jit(jax.value_and_grad(spectral_loss))
    assert of_spectra(*both)[0] < 0.02
    assert np.isfinite(of_spectra(both[0], both[0])[1]).all()
    gradient = jax.jit(jax.grad(of_mel))(*both)
    assert jnp.linalg.norm(gradient[:, 10_000:]) < 1e-6


def test_a_codec_learns_and_more_codebooks_are_better():
    params = random_codec(CODEC, 4)
    state, losses = start_codec(params, RECIPE), []
    for step in range(60):
        state, metrics = codec_step(state, params, tones(step), jax.random.key(step), RECIPE)
        losses.append(float(metrics["mel"]))
        if step == 0:  # All vectors fell on the first; the others were dead, and count twice what keeps them from it.
            vectors, size = len(tones(0)) * FRAMES, CODEC.encoder.codebook_size
            expected = 2 * RECIPE.dead_below * vectors / size
            np.testing.assert_allclose(state.codebooks["semantic"]["cluster_usage"][:, 1:], expected, rtol=1e-5)
    # The first step has no codebooks yet, and so no sound.
    assert np.mean(losses[-5:]) < 0.4 * losses[1], losses
    assert metrics["perplexity"].shape == (CODEC.num_codebooks,)
    assert (metrics["perplexity"][2:] > 3).all()

    trained, samples = finish_codec(state, params, RECIPE), tones(1000)
    codes = jax.jit(encoder.encode, static_argnums=1)(trained["encoder"], CODEC, samples)
    decode = jax.jit(decoder.decode, static_argnums=1)

    def distance(count):
        return float(mel_loss(decode(trained["decoder"], CODEC.decoder, codes[..., :count]), samples, 24_000))

    assert distance(5) < 0.4 * losses[1]
    assert distance(5) < distance(3) < distance(1)
    for path in ("encoder", "decoder"):
        assert jax.tree.structure(trained[path]) == jax.tree.structure(params[path])
    with pytest.raises(ConfigError, match="codebook_dim is 11 and 6"):
        CodecRecipe(BASE)
