"""Learning from a reward, complete and on a very small model: speech should last as long as wished.

    python benchmarks/grpo_example.py [--updates 40] [--wish 8] [--seed 0]

Group relative policy optimization with the functions of `qwen3_tts_jax.train.rollout`: a group of utterances is drawn
for every prompt, each is rewarded for how near its number of frames is to the wish, and the clipped loss makes those
above the group's mean reward more likely. The model starts from random weights, so it learns from nothing but the
reward. Prints the mean reward and length of every update; takes about a minute on a CPU.

For another reward, write another function of the codes; decode them (`codec.decoder.decode`) to judge the sound.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_model import small_model

from qwen3_tts_jax.config import GenerationConfig, ModelConfig, SamplingConfig, TransformerConfig
from qwen3_tts_jax.generate import Params, utterance_keys
from qwen3_tts_jax.prompt import PromptBatch, PromptPlan, batch_plans
from qwen3_tts_jax.train.new_model import new_params
from qwen3_tts_jax.train.rollout import Rollout, group_advantages, policy_loss, roll_out

CODEBOOKS, CODES, TEXT_IDS = 4, 32, 64
STACK = TransformerConfig(1, 32, 64, 2, 2, 16, rope_theta=1e4, norm_eps=1e-6, qk_norm=True)
"""The stack of the talker and of the code predictor: one layer of width 32."""
PROMPTS, GROUP, FRAMES = 4, 16, 32
SAMPLING = GenerationConfig(
    talker=SamplingConfig(temperature=1.0, top_k=0), code_predictor=SamplingConfig(temperature=1.0, top_k=0)
)


def prompts(config: ModelConfig, seed: int) -> PromptBatch:
    """`PROMPTS` prompts of random text ids, each `GROUP` times."""
    rng, plans = np.random.default_rng(seed), []
    for length in rng.integers(4, 9, PROMPTS):
        text, nothing = rng.integers(0, 60, length).astype(np.int32), np.full((length, CODEBOOKS), -1, np.int32)
        plans += [PromptPlan(text, nothing, np.zeros(0, np.int32))] * GROUP
    return batch_plans(plans, tts_pad=config.prompt.tts_pad, length=8)


def lengths(rollout: Rollout) -> jax.Array:
    """Frames of each utterance, int32 [B]."""
    return jnp.sum(rollout.codes[..., 0] >= 0, axis=1)


def reward(rollout: Rollout, wish: int) -> jax.Array:
    """Minus the distance to the wish in frames, float32 [B], and one less for speech that did not end by itself."""
    distance = jnp.abs(lengths(rollout) - wish)
    return -(distance + ~rollout.ended).astype(jnp.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--wish", type=int, default=8, help="frames")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    config = small_model(STACK, STACK, codebooks=CODEBOOKS, codes=CODES, text_ids=TEXT_IDS)
    params = new_params(config, arguments.seed)
    batch = prompts(config, arguments.seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(arguments.learning_rate))
    state = optimizer.init(params)

    @jax.jit
    def update(
        params: Params, state: optax.OptState, rollout: Rollout, advantages: jax.Array
    ) -> tuple[Params, optax.OptState]:
        loss = partial(policy_loss, config=config, generation=SAMPLING, prompts=batch)
        gradient = jax.grad(loss)(params, rollout=rollout, advantages=advantages)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    print(f"{'update':>6}{'reward':>9}{'frames':>9}{'ended':>7}")
    for number in range(arguments.updates + 1):
        keys = utterance_keys(arguments.seed, jnp.arange(len(batch.lengths)) + number * len(batch.lengths))
        rollout = roll_out(params, config, SAMPLING, batch, keys, FRAMES)
        rewards = reward(rollout, arguments.wish)
        ended, frames = float(rollout.ended.mean()), float(lengths(rollout).mean())
        print(f"{number:>6}{float(rewards.mean()):>9.2f}{frames:>9.2f}{ended:>7.2f}")
        # Two steps on each rollout: the ratio and its clipping only matter in the second.
        for _ in range(2):
            params, state = update(params, state, rollout, group_advantages(rewards, GROUP))


if __name__ == "__main__":
    main()
