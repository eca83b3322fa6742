"""Losses that help the talker find which part of the text a frame says: a CTC readout and a guided attention head.

Connectionist temporal classification (Graves et al. 2006): a middle layer's states at the frames, each of which has
seen the text and the speech so far, must spell out the text in order. The talker learns this far sooner than it would
learn to attend to the text from predicting the next frame alone, and the one leads to the other. The readout is no part
of the model.

Guided attention in one head (after Tachibana et al. 2018, arXiv:1710.08969): speech goes through its text from start
to end at a nearly even pace, so a frame should attend to the ids around the same fraction of the text or, where an
aligner gave the ids' durations, around the id that it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.layers import PRECISION, apply_rope, rope_tables
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.train.loss import Batch

_WEIGHT, _BIAS = "alignment/weight", "alignment/bias"
_LARGEST_VOCABULARY = 4096
# Half the width of a guided head's window: this many ids plus this part of the text, or the last where the id that a
# frame says is known.
_IDS, _PART, _KNOWN_IDS = 3.0, 0.1, 1.0


@dataclass(frozen=True)
class AlignmentConfig:
    """The auxiliary losses.

    Attributes:
        weight: of the CTC loss, a mean over the text's ids in nats.
        layer: of the talker, from 0, whose output is read; None takes `num_layers // 2`.
        steps: how many steps have these losses, from the first on.
        outputs: CTC outputs per frame; a text has to fit into those of all its frames.
        guide: weight of the guided attention of the layer's first head; 0 is without.
    """

    weight: float = 0.2
    layer: int | None = None
    steps: int = 10_000
    outputs: int = 2
    guide: float = 0.0

    def check(self, model: ModelConfig) -> None:
        """Refuses what does not fit the model.

        Raises:
            ConfigError: no such layer, a text vocabulary too large to be read off every frame, or impossible weights.
        """
        if not 0 <= self.layer_of(model) < model.talker.transformer.num_layers:
            raise ConfigError(
                f"the alignment is read off layer {self.layer}, the talker has {model.talker.transformer.num_layers}"
            )
        if model.talker.text_vocab_size > _LARGEST_VOCABULARY:
            raise ConfigError(
                f"the alignment's loss is for text vocabularies of up to {_LARGEST_VOCABULARY}, such as bytes; the "
                f"model's has {model.talker.text_vocab_size}"
            )
        if not 0 <= self.guide < float("inf"):
            raise ConfigError(f"the guide of attention needs a weight of 0 or more, got {self.guide}")
        if self.outputs < 1 or not 0 < self.weight < float("inf"):
            raise ConfigError(f"the alignment needs a weight and outputs above 0, got {self.weight} and {self.outputs}")

    def layer_of(self, model: ModelConfig) -> int:
        """The layer that is read."""
        return model.talker.transformer.num_layers // 2 if self.layer is None else self.layer

    def path(self, model: ModelConfig) -> str:
        """Path of the activation that is read; see `score.teacher_force`."""
        return f"talker/transformer/layers_{self.layer_of(model)}"

    def paths(self, model: ModelConfig) -> tuple[str, ...]:
        """Paths of all activations that the losses need."""
        return (self.path(model), *((f"{self.path(model)}/attention/qk_norm",) if self.guide else ()))


def init_readout(key: jax.Array, model: ModelConfig, config: AlignmentConfig) -> dict[str, jax.Array]:
    """The readout's {path: leaf}, to be trained with the rest."""
    rows = config.outputs * (model.talker.text_vocab_size + 1)
    weight = 0.02 * jax.random.normal(key, (rows, model.talker.transformer.width), jnp.float32)
    return {_WEIGHT: weight, _BIAS: jnp.zeros(rows, jnp.float32)}


def spoken_ids(model: ModelConfig, prompts: PromptBatch) -> tuple[jax.Array, jax.Array]:
    """The ids of the texts to be said, int32 [B, P] padded with 0, and how many they are, int32 [B].

    For prompts with the text all at once: it lies over codec_pad, between tts_bos and tts_eos.
    """
    ids = prompts.text_ids
    is_text = _is_text(model, prompts)
    first = jnp.argsort(~is_text, axis=1, stable=True)
    counts = jnp.sum(is_text, axis=1)
    there = jnp.arange(ids.shape[1]) < counts[:, None]
    return jnp.where(there, jnp.take_along_axis(ids, first, axis=1), 0), counts


def _is_text(model: ModelConfig, prompts: PromptBatch) -> jax.Array:
    ids = jnp.asarray(prompts.text_ids)
    is_text = (prompts.codes[..., 0] == model.prompt.codec_pad) & (ids != model.prompt.tts_bos)
    return is_text & (ids != model.prompt.tts_eos)


def guide_loss(model: ModelConfig, batch: Batch, queries_key: jax.Array) -> jax.Array:
    """Mean −log of the attention that a head gives to a frame's window of the text, in nats, float32 [].

    Args:
        model: static under jit.
        batch: with the text all at once.
        queries_key: [B, S, K, G + 1, H], query heads and their key before RoPE, over each row's prompt and then its
            frames; head 0 is guided.
    """
    stack, prompts = model.talker.transformer, batch.prompts
    slots, frames = queries_key.shape[1], batch.codes.shape[1]
    rope = rope_tables(jnp.arange(slots)[None], stack.head_dim, stack.rope_theta)
    turned = apply_rope(queries_key[:, :, 0].astype(jnp.float32), rope)
    queries, keys = turned[:, :, 0], turned[:, :, -1]
    lengths = jnp.asarray(prompts.lengths)
    # The state before a frame predicts it.
    positions = jnp.minimum(lengths[:, None] - 1 + jnp.arange(frames), slots - 1)
    queries = jnp.take_along_axis(queries, positions[..., None], axis=1)
    scores = jnp.einsum("bth,bsh->bts", queries, keys, precision=PRECISION) * stack.head_dim**-0.5
    seen = jnp.arange(slots) <= positions[..., None]

    is_text = jnp.pad(_is_text(model, prompts), ((0, 0), (0, slots - prompts.text_ids.shape[1])))
    number = jnp.cumsum(is_text, axis=1) - 0.5
    counts = jnp.sum(is_text, axis=1)
    there = batch.codes[..., 0] >= 0
    way = (jnp.arange(frames) + 0.5) / jnp.maximum(jnp.sum(there, axis=1), 1)[:, None]
    width = (_IDS + _PART * counts)[:, None, None]
    middle, width = (way * counts[:, None])[..., None], jnp.broadcast_to(width, (*there.shape, 1))
    if batch.places is not None:
        known = (jnp.asarray(batch.places) >= 0)[..., None]
        middle = jnp.where(known, batch.places[..., None] + 0.5, middle)
        width = jnp.where(known, _KNOWN_IDS, width)
    near = is_text[:, None] & (jnp.abs(number[:, None] - middle) <= width)

    lowest = np.finfo(np.float32).min
    everything = jax.nn.logsumexp(jnp.where(seen, scores, lowest), axis=-1)
    around = jax.nn.logsumexp(jnp.where(near & seen, scores, lowest), axis=-1)
    counted = there & jnp.any(near, axis=-1)
    return jnp.sum(jnp.where(counted, everything - around, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def alignment_loss(
    readout: Mapping[str, jax.Array], model: ModelConfig, config: AlignmentConfig, batch: Batch, states: jax.Array
) -> jax.Array:
    """Mean negative log-probability in nats per text id, float32 [].

    Args:
        readout: with the leaves of `init_readout`.
        model: static under jit.
        config: static under jit.
        batch: with the text all at once. Texts with more ids than their frames have outputs do not count.
        states: [B, S, D], over each row's prompt and then its frames.
    """
    rows, frames = batch.codes.shape[:2]
    positions = jnp.asarray(batch.prompts.lengths)[:, None] + jnp.arange(frames)
    positions = jnp.minimum(positions, states.shape[1] - 1)
    states = jnp.take_along_axis(states, positions[..., None], axis=1).astype(jnp.float32)
    # The scale of the residual stream is free to grow; the readout's input is not.
    states = states * jax.lax.rsqrt(jnp.mean(states * states, axis=-1, keepdims=True) + 1e-6)
    logits = jnp.matmul(states.reshape(rows * frames, -1), readout[_WEIGHT].T, precision=PRECISION) + readout[_BIAS]
    logits = logits.reshape(rows, frames * config.outputs, model.talker.text_vocab_size + 1)
    ids, counts = spoken_ids(model, batch.prompts)
    label_paddings = (jnp.arange(ids.shape[1]) >= counts[:, None]).astype(jnp.float32)
    there = jnp.repeat(batch.codes[..., 0] >= 0, config.outputs, axis=1)
    # `ctc_loss` picks log-probabilities by products with one-hot rows, which are to be exact.
    with jax.default_matmul_precision("highest"):
        losses = optax.ctc_loss(logits, 1.0 - there, ids + 1, label_paddings)
    # Equal ids in a row need a blank between them.
    repeated = jnp.sum((ids[:, 1:] == ids[:, :-1]) * (1 - label_paddings[:, 1:]), axis=1)
    fits = (counts + repeated <= jnp.sum(there, axis=1)) & (counts > 0)
    return jnp.sum(jnp.where(fits, losses, 0.0)) / jnp.maximum(jnp.sum(jnp.where(fits, counts, 0)), 1)
