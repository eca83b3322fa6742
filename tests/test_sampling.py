"""Every step of the sampler, and the distribution that comes out of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.config import ConfigError, SamplingConfig
from qwen3_tts_jax.sampling import draw, process_logits

LOGITS = jnp.array([[2.0, -1.0, 0.5, 1.5, -3.0]])
PLAIN = SamplingConfig(temperature=1.0, top_k=0)


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_codes():
    seen = jnp.array([[True, True, False, False, False]])
    config = SamplingConfig(temperature=1.0, top_k=0, repetition_penalty=1.25)
    np.testing.assert_allclose(process_logits(LOGITS, config, seen), [[1.6, -1.25, 0.5, 1.5, -3.0]])


def test_penalty_needs_a_history():
    config = SamplingConfig(temperature=1.0, top_k=0, repetition_penalty=1.25)
    np.testing.assert_array_equal(process_logits(LOGITS, config), LOGITS)


def test_greedy_keeps_the_penalty_and_the_forbidden_codes_but_no_temperature():
    config = SamplingConfig(do_sample=False, temperature=0.1, top_k=1, repetition_penalty=2.0)
    seen = jnp.array([[True, False, False, False, False]])
    allowed = jnp.array([True, True, True, False, True])
    logits = process_logits(LOGITS, config, seen, allowed)
    np.testing.assert_allclose(logits, [[1.0, -1.0, 0.5, -np.inf, -3.0]])
    keys = jax.random.split(jax.random.key(0), 1)
    assert draw(LOGITS, keys, config, seen, allowed)[0].tolist() == [0]
    assert draw(LOGITS, keys, config, jnp.full((1, 5), True), allowed)[0].tolist() == [0]
    assert draw(LOGITS, keys, config, seen, jnp.array([False, True, True, True, True]))[0].tolist() == [3]


def test_top_k_keeps_the_k_largest_and_ties():
    config = SamplingConfig(temperature=1.0, top_k=2)
    np.testing.assert_array_equal(process_logits(LOGITS, config), [[2.0, -np.inf, -np.inf, 1.5, -np.inf]])
    tied = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    assert np.isfinite(process_logits(tied, config)).sum() == 3


def test_forbidden_codes_do_not_count_among_the_k_largest():
    config = SamplingConfig(temperature=1.0, top_k=2)
    allowed = jnp.array([False, True, True, True, True])
    kept = np.isfinite(process_logits(LOGITS, config, allowed=allowed))
    assert kept.tolist() == [[False, False, True, True, False]]


@pytest.mark.parametrize(("top_p", "kept"), [(0.2, 1), (0.65, 2), (0.85, 3), (0.999, 5)])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p, kept):
    probabilities = np.array([[0.05, 0.4, 0.1, 0.3, 0.15]])
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=top_p)
    logits = np.asarray(process_logits(jnp.log(probabilities), config))
    expected = np.argsort(-probabilities[0])[:kept]
    assert sorted(np.flatnonzero(np.isfinite(logits[0]))) == sorted(expected)


def test_temperature_comes_before_top_p():
    probabilities = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    cold = SamplingConfig(temperature=0.25, top_k=0, top_p=0.9)
    warm = SamplingConfig(temperature=4.0, top_k=0, top_p=0.9)
    assert np.isfinite(process_logits(probabilities, cold)).sum() == 1
    assert np.isfinite(process_logits(probabilities, warm)).sum() == 3


def test_one_program_serves_all_numbers():
    """Numbers of one program each, as constants, and all of them through one give the same."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 300)).astype(np.float32) * 4)
    seen = jnp.asarray(rng.random((4, 300)) < 0.3)
    traced = jax.jit(partial(process_logits))
    for number, config in enumerate(
        [
            SamplingConfig(temperature=0.9, top_k=50, top_p=0.8, repetition_penalty=1.05),
            SamplingConfig(temperature=1, top_k=1, top_p=0.3, repetition_penalty=2),
            SamplingConfig(temperature=np.float64(3.7), top_k=np.int64(64), top_p=0.5, repetition_penalty=0.5),
        ]
    ):
        expected = process_logits(logits, config, seen)
        np.testing.assert_allclose(traced(logits, config, seen), expected, rtol=1e-6)
        kept = np.isfinite(expected).sum(axis=1)
        assert (kept >= 1).all()
        assert (kept <= config.top_k).all()
        assert traced._cache_size() == 1, number


@pytest.mark.parametrize(
    "other",
    [{"do_sample": False}, {"top_k": 0}, {"top_k": 65}, {"top_p": 0.9}, {"repetition_penalty": 1.1}],
)
def test_what_a_program_does_is_part_of_it(other):
    traced = jax.jit(partial(process_logits))
    seen = jnp.full((1, 5), True)
    for config in (SamplingConfig(), SamplingConfig(**other), SamplingConfig(**other)):
        np.testing.assert_allclose(traced(LOGITS, config, seen), process_logits(LOGITS, config, seen), rtol=1e-6)
    assert traced._cache_size() == 2


@pytest.mark.parametrize("top_k", [5, 6, 64, 1000])
def test_top_k_of_all_and_more_keeps_all(top_k):
    assert np.isfinite(process_logits(LOGITS, SamplingConfig(top_k=top_k))).all()
    assert np.isfinite(jax.jit(process_logits)(LOGITS, SamplingConfig(top_k=top_k))).all()


def test_draws_follow_the_distribution():
    """Pearson's chi-square over 20,000 draws; 4 degrees of freedom exceed 23.5 once in 10,000 runs."""
    config = SamplingConfig(temperature=0.7, top_k=0)
    expected = np.asarray(jax.nn.softmax(LOGITS[0] / 0.7))
    draws = 20_000
    keys = jax.random.split(jax.random.key(7), draws)
    codes = np.asarray(draw(jnp.tile(LOGITS, (draws, 1)), keys, config)[0])
    counts = np.bincount(codes, minlength=5)
    assert ((counts - draws * expected) ** 2 / (draws * expected)).sum() < 23.5


def test_a_row_draws_by_its_own_key():
    logits = jnp.tile(jnp.zeros((1, 50)), (8, 1))
    keys = jax.random.split(jax.random.key(3), 8)
    together = draw(logits, keys, PLAIN)[0]
    alone = jnp.concatenate([draw(logits[:1], keys[i : i + 1], PLAIN)[0] for i in range(8)])
    np.testing.assert_array_equal(together, alone)
    assert len(set(together.tolist())) > 4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 0.0}, "temperature must be from 1e-6 to 1e6, got 0.0"),
        ({"temperature": 1e-40}, "temperature must be from 1e-6 to 1e6"),
        ({"temperature": np.inf}, "temperature must be from 1e-6 to 1e6"),
        ({"temperature": np.nan}, "temperature must be from 1e-6 to 1e6"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": -0.1}, r"top_p must be in \[0, 1\], got -0.1"),
        ({"top_p": 1.1}, r"top_p must be in \[0, 1\], got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 1e-6 to 1e6"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty must be from 1e-6 to 1e6"),
    ],
)
def test_impossible_values_are_refused_by_name(option, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**option)


def test_filters_at_their_ends():
    """Without any mass the most likely code is left, and a top-k beyond the vocabulary takes nothing away."""
    one = np.asarray(process_logits(LOGITS, SamplingConfig(temperature=1.0, top_k=0, top_p=0.0)))
    assert np.isfinite(one).tolist() == [[index == int(jnp.argmax(LOGITS[0])) for index in range(LOGITS.shape[1])]]
    for top_k in (LOGITS.shape[1], 2**31, 2**40):
        found = jax.jit(process_logits)(LOGITS, SamplingConfig(temperature=1.0, top_k=top_k))
        np.testing.assert_array_equal(found, LOGITS)
