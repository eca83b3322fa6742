"""Gradients against finite differences: to x-vectors and prompts through the talker, to codes through the codec."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.convert.rules import codec_rules
from qwen3_tts_jax.train.loss import Batch, loss
from qwen3_tts_jax.train.soft_codes import decode_soft, one_hot, straight_through
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL
from tests.train_model import BASE, Q, params, prompts, random_codes

CODEC = SMALL["1.7B-CustomVoice"].codec.decoder
CODEC = replace(CODEC, upsample_rates=(3,), transformer=replace(CODEC.transformer, num_layers=1))
CODES = random_codes((4, 2, 3), seed=8)


def directional(function, x, direction, step):
    """(f(x + εd) − f(x − εd)) / 2ε, by Richardson's extrapolation from two steps."""

    def central(size):
        return (float(function(x + size * direction)) - float(function(x - size * direction))) / (2 * size)

    return (4 * central(step / 2) - central(step)) / 3


@pytest.mark.parametrize("what", ["x-vectors", "text embeddings"])
def test_loss_to_prompts(what):
    batch = Batch(prompts("x-vector", "as_it_comes"), CODES, np.array([True, False, True]))
    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    x = batch.prompts.x_vectors if what == "x-vectors" else tree["talker"]["text_embedding"]["embedding"]

    @jax.jit
    def function(x):
        if what == "x-vectors":
            return loss(tree, BASE, batch._replace(prompts=batch.prompts._replace(x_vectors=x)))[0]
        talker = tree["talker"] | {"text_embedding": {"embedding": x}}
        return loss(tree | {"talker": talker}, BASE, batch)[0]

    gradient = jax.jit(jax.grad(function))(jnp.asarray(x))
    direction = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    expected = directional(function, x, direction, 2e-2)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), expected, rtol=2e-2)
    assert abs(expected) > 1e-3
    rows = jnp.abs(gradient).max(axis=1)
    assert (rows > 0).all() if what == "x-vectors" else 0 < (rows > 0).sum() < len(rows)


@cache
def codec_params():
    config = replace(SMALL["1.7B-CustomVoice"].codec, decoder=CODEC)
    rules = [rule for rule in codec_rules(config) if rule.part == "codec/decoder"]
    return jax.tree.map(jnp.asarray, drawn_tree(rules, seed=2)["codec"]["decoder"])


def codec_case():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, CODEC.codebook_size, (2, 3, CODEC.num_codebooks)).astype(np.int32)
    logits = rng.normal(size=(*codes.shape, CODEC.codebook_size)).astype(np.float32)
    target = 0.3 * rng.normal(size=(2, 3 * CODEC.frame_samples)).astype(np.float32)
    return codes, logits, target


decode_soft_compiled = jax.jit(decode_soft, static_argnums=1)


def test_one_hot_weights_decode_as_the_codes_do():
    codes, logits, _ = codec_case()
    expected = jax.jit(decode, static_argnums=1)(codec_params(), CODEC, codes)
    for weights in (one_hot(codes, CODEC.codebook_size), straight_through(logits, codes)):
        np.testing.assert_allclose(decode_soft_compiled(codec_params(), CODEC, weights), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"weights must be \[B, T, 16, 53\]"):
        decode_soft(codec_params(), CODEC, one_hot(codes, 54))


def test_samples_to_soft_codes():
    _, logits, target = codec_case()

    @jax.jit
    def function(logits):
        samples = decode_soft(codec_params(), CODEC, jax.nn.softmax(logits))
        return jnp.sum((samples - target) ** 2)

    gradient = jax.jit(jax.grad(function))(logits)
    direction = np.random.default_rng(4).normal(size=logits.shape).astype(np.float32)
    expected = directional(function, logits, direction, 2e-2)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), expected, rtol=2e-2)
    assert abs(expected) > 1e-3
    assert (jnp.abs(gradient).max(axis=-1) > 0).all()


def test_straight_through_passes_the_decoders_gradient_to_the_softmax():
    codes, logits, target = codec_case()

    def of_weights(weights):
        return jnp.sum((decode_soft(codec_params(), CODEC, weights) - target) ** 2)

    to_weights = jax.jit(jax.grad(of_weights))(one_hot(codes, CODEC.codebook_size))
    expected = jax.vjp(partial(jax.nn.softmax, axis=-1), logits / 0.7)[1](to_weights)[0] / 0.7
    actual = jax.jit(jax.grad(lambda logits: of_weights(straight_through(logits, codes, 0.7))))(logits)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.abs(actual).max() > 1e-3


def test_the_gradient_reaches_every_codebook_before_a_code():
    """Code q of a frame is judged given those before it: its loss has a gradient in their embeddings alone."""
    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    batch = Batch(jax.tree.map(lambda leaf: leaf[:1], prompts()), CODES[:1, :1], np.array([False]))

    def function(tables):
        predictor = tree["code_predictor"] | {"codec_embeddings": {"embedding": tables}}
        return loss(tree | {"code_predictor": predictor}, BASE, batch)[1].codes

    reach = jax.jit(jax.jacrev(function))(tree["code_predictor"]["codec_embeddings"]["embedding"])
    reach = jnp.abs(reach).max(axis=(2, 3)) > 0  # [Q, Q − 1]: loss of code q, table of code q' + 1
    np.testing.assert_array_equal(reach, np.arange(Q)[:, None] > np.arange(1, Q))
