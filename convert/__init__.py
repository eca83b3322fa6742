"""Checkpoints ↔ Flax parameter trees: `resolve`, `load_checkpoint`, `export_safetensors`.

`orbax_checkpoint` is not imported here, since importing Orbax takes a second.
"""

from qwen3_tts_jax.convert.check import CheckpointError
from qwen3_tts_jax.convert.export import export_codec, export_safetensors
from qwen3_tts_jax.convert.hub import ModelNotFoundError, resolve, resolve_codec
from qwen3_tts_jax.convert.load import load_checkpoint, load_codec, load_params
from qwen3_tts_jax.convert.rule import PARTS, Rule
from qwen3_tts_jax.convert.rules import SYNTHESIS_PARTS, codec_rules, model_rules, tree_shapes

__all__ = [
    "PARTS",
    "SYNTHESIS_PARTS",
    "CheckpointError",
    "ModelNotFoundError",
    "Rule",
    "codec_rules",
    "export_codec",
    "export_safetensors",
    "load_checkpoint",
    "load_codec",
    "load_params",
    "model_rules",
    "resolve",
    "resolve_codec",
    "tree_shapes",
]
