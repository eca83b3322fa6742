"""Help to find which words a frame says, while the talker trains: reading the text off its states, and guiding a head.

Connectionist temporal classification (Graves et al. 2006). The states of a middle layer at the frames, each of
which has seen the text and the speech so far, must spell out the text in its order; that is learnt far sooner than
to listen to the text for the sake of the next frame alone, and leads to it. The readout is no part of the model.

A guide for the attention of one head (after Tachibana et al. 2018, arXiv:1710.08969): speech goes through its text
from start to end at about one pace, so a frame's attention belongs to the ids around its own part of the way, or, where
an aligner has told the ids' durations, around the id that it says.
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
# Half the width of what a guided head may attend to: so many ids, and such a part of the text; and where it is known
# which id a frame says.
_IDS, _PART, _KNOWN_IDS = 3.0, 0.1, 1.0


@dataclass(frozen=True)
class AlignmentConfig:
    """The auxiliary loss.

    Attributes:
        weight: of its mean over the text's ids, in nats.
        layer: of the talker, from 0, whose output is read; None takes the one after its middle.
        steps: after which it is left out.
        outputs: read from each frame; the text has to fit into their number.
        guide: weight of the guide of the layer's first head, beside that of CTC; 0 is without.
    """

    weight: float = 0.2
    layer: int | None = None
    steps: int = 10_000
    outputs: int = 2
    guide: float = 0.0

    def check(self, model: ModelConfig) -> None:
        """Refuses what does not fit the model.

        Raises:
            ConfigError: no such layer, or a text vocabulary too large to be read off every frame.
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
        """Of the activation that is read, see `score.teacher_force`."""
        return f"talker/transformer/layers_{self.layer_of(model)}"

    def paths(self, model: ModelConfig) -> tuple[str, ...]:
        """Of all activations that the losses need."""
        return (self.path(model), *((f"{self.path(model)}/attention/qk_norm",) if self.guide else ()))


def init_readout(key: jax.Array, model: ModelConfig, config: AlignmentConfig) -> dict[str, jax.Array]:
    """{path: leaf} of the readout, to be trained with the rest."""
    rows = config.outputs * (model.talker.text_vocab_size + 1)
    weight = 0.02 * jax.random.normal(key, (rows, model.talker.transformer.width), jnp.float32)
    return {_WEIGHT: weight, _BIAS: jnp.zeros(rows)}


def spoken_ids(model: ModelConfig, prompts: PromptBatch) -> tuple[jax.Array, jax.Array]:
    """The ids of the texts that are to be said, int32 [B, P] with 0 behind them, and their number int32 [B].

    Of prompts with the text all at once: they lie over codec_pad, between tts_bos and tts_eos.
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
    """Mean of −log of what a head's attention has around a frame's part of the text, in nats, float32 [].

    Args:
        model: static under jit.
        batch: with the text all at once.
        queries_key: [B, S, K, G + 1, H], query heads and their key before their rotation, each row's prompt and its
            frames right behind; head 0 is guided.
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
        batch: with the text all at once. A text with more ids than its frames have outputs counts nowhere.
        states: [B, S, D], each row's prompt and its frames right behind.
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
    # It picks log-probabilities by a product with one-hot rows.
    with jax.default_matmul_precision("highest"):
        losses = optax.ctc_loss(logits, 1.0 - there, ids + 1, label_paddings)
    # Equal ids in a row need a blank between them.
    repeated = jnp.sum((ids[:, 1:] == ids[:, :-1]) * (1 - label_paddings[:, 1:]), axis=1)
    fits = (counts + repeated <= jnp.sum(there, axis=1)) & (counts > 0)
    return jnp.sum(jnp.where(fits, losses, 0.0)) / jnp.maximum(jnp.sum(jnp.where(fits, counts, 0)), 1)
