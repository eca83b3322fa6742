"""The loss of fine-tuning: minus the log-probability of what generation should draw.

It comes from the same pass as `score`: targets are the next frame, the predictor sees the state that predicted
code 0, and the end of speech is a target like any code 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.train.score import Forced, Scores, log_probability, scores, teacher_force


class Batch(NamedTuple):
    """Utterances to learn, a JAX tree.

    Attributes:
        prompts: B prompts.
        codes: int32 [B, T, Q], the speech after them; −1 in the frames that a row does not have. A row without
            frames does not count.
        ended: bool [B], True where the last frame is the end of what the prompt says, so that the end of
            speech is a target too.
        places: int32 [B, T], which id of the text, counted from 0, a frame says; −1 where that is not known. None
            where it is known for no frame.
    """

    prompts: PromptBatch
    codes: np.ndarray
    ended: np.ndarray
    places: np.ndarray | None = None


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the loss.

    Attributes:
        code_0: of the talker's mean cross entropy, over frames and ends.
        codes: of the predictor's, over frames and codes 1 … Q − 1.
        codebooks: relative weights of codes 1 … Q − 1 in that mean; None weighs them alike.
        end: what an end counts for among the talker's targets, where a frame counts 1.
    """

    code_0: float = 1.0
    codes: float = 1.0
    codebooks: tuple[float, ...] | None = None
    end: float = 1.0

    def __post_init__(self) -> None:
        weights = {"code_0": self.code_0, "codes": self.codes, "end": self.end}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"the loss weight {name} must be 0 or positive, got {weight}")
        several = self.codebooks
        if several is not None and not (all(weight >= 0 for weight in several) and 0 < sum(several) < float("inf")):
            raise ConfigError(f"the weights of codebooks must be 0 or positive, and one above 0, got {self.codebooks}")


@flax.struct.dataclass
class LossParts:
    """Sums of cross entropies in nats, and the numbers of their targets; those of several batches may be added.

    Attributes:
        codes: float32 [Q], per codebook, over frames.
        end: float32 [], over ends.
        frames: float32 [], the frames.
        ends: float32 [], the ends.
    """

    codes: jax.Array
    end: jax.Array
    frames: jax.Array
    ends: jax.Array

    def means(self) -> dict[str, jax.Array]:
        """Mean cross entropies: codes [Q], end []."""
        return {"codes": self.codes / jnp.maximum(self.frames, 1), "end": self.end / jnp.maximum(self.ends, 1)}


def loss(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    weights: LossConfig = LossConfig(),
    *,
    remat: bool = False,
) -> tuple[jax.Array, LossParts]:
    """The weighted mean cross entropy in nats, float32 [], and its parts.

    Args:
        params: the trees `talker` and `code_predictor`, in compute dtypes.
        config: static under jit.
        batch: what to learn.
        weights: static under jit.
        remat: see `score.teacher_force`; static under jit.
    """
    parts = loss_parts(params, config, batch, remat=remat)
    return total(parts, parts.frames, parts.ends, weights), parts


def loss_parts(params: Params, config: ModelConfig, batch: Batch, *, remat: bool = False) -> LossParts:
    """The sums that `total` weighs; the arguments are those of `loss`."""
    forced = teacher_force(params, config, batch.prompts, batch.codes, remat=remat)
    return parts_of(scores(forced, config, batch.codes), batch)


def parts_of(scored: Scores, batch: Batch) -> LossParts:
    """Minus the sums of `scored`, the scores of the batch's codes."""
    frames, ends = count_targets(batch)
    return LossParts(
        codes=-jnp.sum(scored.codes, axis=(0, 1)),
        end=-jnp.sum(jnp.where(_has_end(batch), scored.end, 0.0)),
        frames=frames,
        ends=ends,
    )


def parts_of_some(forced: Forced, config: ModelConfig, batch: Batch, chosen: jax.Array) -> LossParts:
    """`parts_of`, where the code predictor worked on the frames `chosen` (int32 [N] of B·T) alone.

    The sums of codes 1 … Q − 1 are extrapolated from these to all frames.
    """
    frames, ends = count_targets(batch)
    there = batch.codes[..., 0] >= 0
    first = log_probability(forced.logits[:, :-1], jnp.maximum(batch.codes[..., 0], 0))
    end_logits = jnp.take_along_axis(forced.logits, jnp.sum(there, axis=1)[:, None, None], axis=1)[:, 0]
    end = log_probability(end_logits, jnp.full(len(end_logits), config.prompt.codec_eos))
    codes = batch.codes.reshape(-1, batch.codes.shape[-1])[chosen]
    counted = codes[:, :1] >= 0
    rest = jnp.where(counted, log_probability(forced.code_logits[0], jnp.maximum(codes[:, 1:], 0)), 0.0)
    rest = jnp.sum(rest, axis=0) * frames / jnp.maximum(jnp.sum(counted), 1)
    return LossParts(
        codes=-jnp.concatenate([jnp.sum(jnp.where(there, first, 0.0))[None], rest]),
        end=-jnp.sum(jnp.where(_has_end(batch), end, 0.0)),
        frames=frames,
        ends=ends,
    )


def count_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The frames and the ends of a batch, float32 [] each."""
    frames = jnp.sum(batch.codes[..., 0] >= 0, dtype=jnp.float32)
    return frames, jnp.sum(_has_end(batch), dtype=jnp.float32)


def _has_end(batch: Batch) -> jax.Array:
    return jnp.asarray(batch.ended) & jnp.any(batch.codes[..., 0] >= 0, axis=1)


def total(parts: LossParts, frames: jax.Array, ends: jax.Array, weights: LossConfig) -> jax.Array:
    """The loss, where `frames` and `ends` are the numbers of targets to divide by.

    They may count more than `parts` covers, so that the losses of a batch's parts add up to its own.
    """
    first = (parts.codes[0] + weights.end * parts.end) / jnp.maximum(frames + weights.end * ends, 1)
    rest = parts.codes[1:]
    shares = np.ones(len(rest)) if weights.codebooks is None else np.asarray(weights.codebooks)
    rest = jnp.sum(rest * jnp.asarray(shares / shares.sum(), jnp.float32)) / jnp.maximum(frames, 1)
    return weights.code_0 * first + weights.codes * rest
