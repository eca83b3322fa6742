"""Programs of published shapes, lowered without their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Sharding

from qwen3_tts_jax import generate
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.rules import compute_dtype, model_rules, select
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.prompt import PromptBatch

PROMPT_SLOTS = 64

Place = Callable[[str, jax.ShapeDtypeStruct], Sharding]
"""Where a parameter goes, by its path."""
PlaceState = Callable[[tuple, jax.ShapeDtypeStruct], Sharding]
"""Where a leaf of the state goes, by its path in the state."""


def published(size: str, talker_layers: int, predictor_layers: int) -> ModelConfig:
    """A published model ("0.6B", "1.7B") in bfloat16 with fewer layers."""
    config = preset(f"{size}-CustomVoice").with_dtypes("bfloat16")

    def cut(part: Any, layers: int) -> Any:
        return replace(part, transformer=replace(part.transformer, num_layers=layers))

    return replace(
        config,
        talker=cut(config.talker, talker_layers),
        code_predictor=cut(config.code_predictor, predictor_layers),
    )


def abstract_params(config: ModelConfig, place: Place) -> dict[str, Any]:
    """The parameters of talker and code predictor, as shapes."""
    leaves = {}
    for rule in select(model_rules(config), config, ("talker", "code_predictor")):
        leaf = jax.ShapeDtypeStruct(rule.flax_shape, compute_dtype(config, rule) or jnp.bfloat16)
        leaves[rule.flax] = leaf.update(sharding=place(rule.flax, leaf))
    return unflatten_dict(leaves, sep="/")


def abstract_state(
    config: ModelConfig, params: dict[str, Any], batch: int, capacity: int, place: PlaceState
) -> generate.DecodeState:
    """What prefill would return, as shapes."""
    codebooks = config.talker.num_codebooks

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    prompt = PromptBatch(
        text_ids=ids(batch, PROMPT_SLOTS),
        codes=ids(batch, PROMPT_SLOTS, codebooks),
        lengths=ids(batch),
        trailing_text_ids=ids(batch, 32),
        x_vectors=None,
        speaker_position=ids(batch),
    )
    keys = jax.eval_shape(lambda: generate.utterance_keys(0, jnp.arange(batch)))
    shapes = jax.eval_shape(
        lambda *arguments: generate.prefill(arguments[0], config, *arguments[1:], capacity),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params), prompt, keys, ids(batch),
    )  # fmt: skip
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.update(sharding=place(path, leaf)), shapes)
