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
from qwen3_tts_jax.cache import WindowCache
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.rules import compute_dtype, model_rules, select
from qwen3_tts_jax.decode_state import DecodeState
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.transformer import Transformer

PROMPT_SLOTS = 64

Place = Callable[[str, jax.ShapeDtypeStruct], Sharding]
"""Where a parameter goes, by its path."""
PlaceState = Callable[[tuple, jax.ShapeDtypeStruct], Sharding]
"""Where a leaf of the state goes, by its path in the state."""


def published(size: str, talker_layers: int, predictor_layers: int, codec_dtype: str = "float32") -> ModelConfig:
    """A published model ("0.6B", "1.7B") in bfloat16 with fewer layers."""
    config = preset(f"{size}-CustomVoice").with_dtypes("bfloat16", codec_dtype)

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


def abstract_request(config: ModelConfig, batch: int) -> tuple[PromptBatch, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """What prefill reads besides the parameters, as shapes: prompts, keys and limits."""
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
    return prompt, jax.eval_shape(lambda: generate.utterance_keys(0, jnp.arange(batch))), ids(batch)


def abstract_state(
    config: ModelConfig, params: dict[str, Any], batch: int, capacity: int, place: PlaceState
) -> DecodeState:
    """What prefill would return, as shapes."""
    shapes = jax.eval_shape(
        lambda *arguments: generate.prefill(arguments[0], config, *arguments[1:], capacity),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params),
        *abstract_request(config, batch),
    )  # fmt: skip
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.update(sharding=place(path, leaf)), shapes)


def compiled_prefill(config: ModelConfig, batch: int, device: Sharding) -> str:
    """The optimised HLO of `generate.prefill` for prompts of `PROMPT_SLOTS`."""
    params = abstract_params(config, lambda *_: device)
    request = jax.tree.map(lambda leaf: leaf.update(sharding=device), abstract_request(config, batch))
    lowered = generate.prefill_compiled.lower(params, config, *request, PROMPT_SLOTS)
    return lowered.compile().as_text()


def compiled_window(config: ModelConfig, batch: int, frames: int, device: Sharding) -> str:
    """The optimised HLO of the transformer of the codec's decoder, whose window is short."""
    stack = config.codec.decoder.transformer
    module, x = Transformer(stack), jax.ShapeDtypeStruct((batch, frames, stack.width), stack.dtype)
    cache = jax.eval_shape(lambda: WindowCache.zeros(stack, batch))
    variables = jax.eval_shape(module.init, jax.random.key(0), x, cache)
    arguments = jax.tree.map(lambda leaf: leaf.update(sharding=device), (variables, x, cache))
    return jax.jit(module.apply).lower(*arguments).compile().as_text()
