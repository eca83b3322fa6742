"""Learning from rewards: rollouts, their log-probabilities, and the clipped loss of GRPO.

Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300): several utterances are drawn for each
prompt, an utterance's advantage is its reward minus its group's mean, over the group's standard deviation, and every
code's ratio of new to old probability is clipped as in PPO (Schulman et al. 2017, arXiv:1707.06347).
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import Params, generate, prefill
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.train.score import scores, teacher_force


@flax.struct.dataclass
class Rollout:
    """Utterances that were drawn, and how likely they were.

    Attributes:
        codes: int32 [B, T, Q], −1 after the end of a row.
        ended: bool [B], False where a row was cut off.
        log_probabilities: float32 [B, T, Q], under the distributions that the codes were drawn from.
        end_log_probabilities: float32 [B], of the end of speech; 0 in rows that were cut off.
    """

    codes: jax.Array
    ended: jax.Array
    log_probabilities: jax.Array
    end_log_probabilities: jax.Array


@partial(jax.jit, static_argnames=("config", "num_frames"))
def roll_out(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    prompts: PromptBatch,
    keys: jax.Array,
    num_frames: int,
) -> Rollout:
    """Draws an utterance of at most `num_frames` frames after each prompt.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static.
        generation: how codes are drawn.
        prompts: B prompts, each repeated for every member of its group.
        keys: PRNG keys [B], see `generate.utterance_keys`.
        num_frames: static.
    """
    limit = jnp.full(keys.shape[0], num_frames + 1)
    state = prefill(params, config, prompts, keys, limit, prompts.text_ids.shape[1] + num_frames)
    state, codes = generate(params, config, generation, state, num_frames)
    # Scored in one pass, as `policy_loss` does, and not by `generate_scored`, whose steps round in another order: the
    # ratios are to be 1 before the first update.
    return Rollout(codes, state.ended, *_log_probabilities(params, config, generation, prompts, codes, state.ended))


def _log_probabilities(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    prompts: PromptBatch,
    codes: jax.Array,
    ended: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Those of codes, [B, T, Q], and of the ends, [B]."""
    scored = scores(teacher_force(params, config, prompts, codes), config, codes, generation)
    return scored.codes, jnp.where(ended, scored.end, 0.0)


def group_advantages(rewards: jax.Array, group: int) -> jax.Array:
    """Rewards float32 [B] of utterances in groups of `group` rows → advantages [B], 0 in groups where all are alike."""
    grouped = rewards.reshape(-1, group)
    # The mean of equal numbers may be rounded, that of zeros is not.
    grouped = grouped - grouped[:, :1]
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    return (centred / (grouped.std(axis=1, keepdims=True) + 1e-6)).reshape(-1)


def policy_loss(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    prompts: PromptBatch,
    rollout: Rollout,
    advantages: jax.Array,
    clip: float = 0.2,
) -> jax.Array:
    """The clipped loss, float32 [], a mean over all codes and ends that were drawn.

    Args:
        params: the current ones; the rollout may be of earlier ones.
        config: static under jit.
        generation: of the rollout.
        prompts: of the rollout.
        rollout: from `roll_out`.
        advantages: float32 [B].
        clip: how far a ratio may move from 1 before its gradient vanishes.
    """
    codes = rollout.codes
    now, end = _log_probabilities(params, config, generation, prompts, codes, rollout.ended)
    there = jnp.concatenate([(codes >= 0).reshape(len(codes), -1), rollout.ended[:, None]], axis=1)
    now = jnp.concatenate([now.reshape(len(codes), -1), end[:, None]], axis=1)
    before = rollout.log_probabilities.reshape(len(codes), -1)
    before = jnp.concatenate([before, rollout.end_log_probabilities[:, None]], axis=1)
    # A code outside the current parameters' top-k has no gradient and a ratio without meaning; so has one that rounding
    # in another order moved out of the top-k that it was drawn from.
    counted = there & jnp.isfinite(now) & jnp.isfinite(before)
    ratio = jnp.exp(jnp.where(counted, now - before, 0.0))
    gain = jnp.minimum(ratio * advantages[:, None], jnp.clip(ratio, 1 - clip, 1 + clip) * advantages[:, None])
    return -jnp.sum(jnp.where(counted, gain, 0.0)) / jnp.maximum(jnp.sum(there), 1)
