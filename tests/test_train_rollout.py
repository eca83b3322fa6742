"""Rollouts know their log-probabilities, and rewards raise what they reward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwen3_tts_jax.config import GenerationConfig, SamplingConfig
from qwen3_tts_jax.generate import utterance_keys
from qwen3_tts_jax.train.rollout import group_advantages, policy_loss, roll_out
from qwen3_tts_jax.train.score import score
from tests.train_model import BASE, params, prompts

FRAMES, GROUP = 6, 8
SAMPLED = GenerationConfig(talker=SamplingConfig(temperature=1.0, top_k=30), code_predictor=SamplingConfig())
PROMPTS = jax.tree.map(lambda leaf: np.repeat(leaf[:2], GROUP, axis=0), prompts())


def roll(tree, seed):
    return roll_out(tree, BASE, SAMPLED, PROMPTS, utterance_keys(seed, jnp.arange(2 * GROUP)), FRAMES)


def reward(rollout):
    """The part of codes of codebooks 0 and 2 that are even."""
    codes = np.asarray(rollout.codes)[..., [0, 2]]
    return jnp.asarray(np.mean(np.where(codes >= 0, codes % 2 == 0, 0.5), axis=(1, 2)), jnp.float32)


def test_rewards_raise_what_they_reward():
    optimizer = optax.adam(4e-3)
    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    state = optimizer.init(tree)
    gradient_of = jax.jit(jax.grad(partial(policy_loss, config=BASE, generation=SAMPLED, prompts=PROMPTS)))
    first = roll(tree, 0)
    scored = jax.jit(score, static_argnums=(1, 4))(tree, BASE, PROMPTS, first.codes, SAMPLED)
    np.testing.assert_allclose(first.log_probabilities, scored, atol=1e-5)
    rewards = []
    for update in range(6):
        rollout = roll(tree, update)
        rewards.append(float(reward(rollout).mean()))
        advantages = group_advantages(reward(rollout), GROUP)
        for _ in range(2):
            gradient = gradient_of(tree, rollout=rollout, advantages=advantages)
            updates, state = optimizer.update(gradient, state)
            tree = optax.apply_updates(tree, updates)
    assert rewards[0] < 0.6
    assert min(rewards[-2:]) > rewards[0] + 0.1, rewards


def test_advantages_are_within_groups():
    advantages = group_advantages(jnp.array([1.0, 3.0, 5.0, 5.0]), 2)
    np.testing.assert_allclose(advantages, [-1, 1, 0, 0], atol=1e-5)
    alike = jnp.repeat(jnp.array([0.1, 37.3, 1000.1], jnp.float32), 7)
    assert (group_advantages(alike, 7) == 0).all()


def test_the_gradient_of_a_clipped_ratio_vanishes():
    """On the policy itself the ratio is 1; far from it, in the direction of the advantage, nothing is left to gain."""
    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    rollout = roll(tree, 3)
    advantages = jnp.ones(2 * GROUP)
    gradient_of = jax.jit(jax.value_and_grad(partial(policy_loss, config=BASE, generation=SAMPLED, prompts=PROMPTS)))
    value, gradient = gradient_of(tree, rollout=rollout, advantages=advantages)
    np.testing.assert_allclose(value, -1, atol=1e-3)
    assert optax.tree.norm(gradient) > 1e-3
    far = rollout.replace(
        log_probabilities=rollout.log_probabilities - 1, end_log_probabilities=rollout.end_log_probabilities - 1
    )
    value, gradient = gradient_of(tree, rollout=far, advantages=advantages)
    np.testing.assert_allclose(value, -1.2, atol=1e-3)
    assert optax.tree.norm(gradient) < 1e-5


def test_codes_outside_the_top_k_do_not_count():
    """Be they outside as drawn, by rounding in another order, or as the parameters are now."""
    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    rollout = roll(tree, 3)
    drawn = int((np.asarray(rollout.codes) >= 0).sum() + np.asarray(rollout.ended).sum())
    outside = rollout.replace(log_probabilities=rollout.log_probabilities.at[0, 0, :2].set(-jnp.inf))
    narrow = GenerationConfig(talker=SamplingConfig(temperature=1.0, top_k=2), code_predictor=SamplingConfig())
    for generation in (SAMPLED, narrow):
        loss = partial(policy_loss, config=BASE, generation=generation, prompts=PROMPTS, rollout=outside)
        value, gradient = jax.jit(jax.value_and_grad(partial(loss, advantages=jnp.ones(2 * GROUP))))(tree)
        assert np.isfinite(optax.tree.norm(gradient))
        if generation is SAMPLED:
            np.testing.assert_allclose(value, -(drawn - 2) / drawn, atol=1e-4)
        else:
            assert np.isfinite(value)
