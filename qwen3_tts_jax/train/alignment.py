"""Help to find which words a frame says: the text is read off the talker's states by CTC while it trains.

Connectionist temporal classification (Graves et al. 2006). The states of a middle layer at the frames, each of
which has seen the text and the speech so far, must spell out the text in its order; that is learnt far sooner than
to listen to the text for the sake of the next frame alone, and leads to it. The readout is no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.train.loss import Batch

_WEIGHT, _BIAS = "alignment/weight", "alignment/bias"
_LARGEST_VOCABULARY = 4096


@dataclass(frozen=True)
class AlignmentConfig:
    """The auxiliary loss.

    Attributes:
        weight: of its mean over the text's ids, in nats.
        layer: of the talker, from 0, whose output is read; None takes the one after its middle.
        steps: after which it is left out.
        outputs: read from each frame; the text has to fit into their number.
    """

    weight: float = 0.2
    layer: int | None = None
    steps: int = 10_000
    outputs: int = 2

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
        if self.outputs < 1 or not 0 < self.weight < float("inf"):
            raise ConfigError(f"the alignment needs a weight and outputs above 0, got {self.weight} and {self.outputs}")

    def layer_of(self, model: ModelConfig) -> int:
        """The layer that is read."""
        return model.talker.transformer.num_layers // 2 if self.layer is None else self.layer

    def path(self, model: ModelConfig) -> str:
        """Of the activation that is read, see `score.teacher_force`."""
        return f"talker/transformer/layers_{self.layer_of(model)}"


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
    is_text = (prompts.codes[..., 0] == model.prompt.codec_pad) & (ids != model.prompt.tts_bos)
    is_text &= ids != model.prompt.tts_eos
    first = jnp.argsort(~is_text, axis=1, stable=True)
    counts = jnp.sum(is_text, axis=1)
    there = jnp.arange(ids.shape[1]) < counts[:, None]
    return jnp.where(there, jnp.take_along_axis(ids, first, axis=1), 0), counts


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
    logits = states.reshape(rows * frames, -1) @ readout[_WEIGHT].T + readout[_BIAS]
    logits = logits.reshape(rows, frames * config.outputs, model.talker.text_vocab_size + 1)
    ids, counts = spoken_ids(model, batch.prompts)
    label_paddings = (jnp.arange(ids.shape[1]) >= counts[:, None]).astype(jnp.float32)
    there = jnp.repeat(batch.codes[..., 0] >= 0, config.outputs, axis=1)
    losses = optax.ctc_loss(logits, 1.0 - there, ids + 1, label_paddings)
    # Equal ids in a row need a blank between them.
    repeated = jnp.sum((ids[:, 1:] == ids[:, :-1]) * (1 - label_paddings[:, 1:]), axis=1)
    fits = (counts + repeated <= jnp.sum(there, axis=1)) & (counts > 0)
    return jnp.sum(jnp.where(fits, losses, 0.0)) / jnp.maximum(jnp.sum(jnp.where(fits, counts, 0)), 1)
