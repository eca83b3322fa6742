"""A base model with what a LoRA run learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.train.lines import Line, add_speakers
from qwen3_tts_jax.train.lora import load_adapters, merge_adapters
from qwen3_tts_jax.train.sft import with_speakers


def with_lora(path: str | Path, params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """The parameters and the config of the model that a LoRA turns its base into.

    Args:
        path: lora.safetensors of a run.
        params: of the base, with the trees talker and code_predictor; others stay as they are, except that a base
            model that gets speakers loses its speaker encoder.
        config: of the base.

    Returns:
        Plain weights, each leaf in its own dtype, for `Qwen3TTS(config, params, tokenizer)`, `export.export_model` and
        all functions of this package.

    Raises:
        lora.LoraError: no such file, one of another kind, or adapters of another base.
        lines.DataError: the base has speakers of the same names.
    """
    adapters, lora, speakers = load_adapters(path, params)
    config, rows = add_speakers(config, [Line(str(path), None, "", speaker=name) for name in speakers])
    merged: dict[str, Any] = dict(params) | merge_adapters(
        {part: params[part] for part in ("talker", "code_predictor")}, adapters, lora
    )
    merged = with_speakers(merged, {rows[name]: row for name, row in speakers.items()})
    if config.speaker_encoder is None:
        merged.pop("speaker_encoder", None)
    return merged, config
