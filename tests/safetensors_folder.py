"""Small checkpoints in the published layout as conversion sees them: weights alone, whole or sharded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file, save_file

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.rule import PARTS
from qwen3_tts_jax.convert.rules import codec_rules, model_rules
from tests.draw import draw
from tests.shapes import SMALL

CODEC = "speech_tokenizer/model.safetensors"


def all_parts(config: ModelConfig) -> list[str]:
    return [part for part in PARTS if part != "speaker_encoder" or config.speaker_encoder is not None]


def small(name: str) -> ModelConfig:
    """A small config whose text table is small too: nothing here looks a token up."""
    config = SMALL[name]
    prompt = replace(config.prompt, tts_bos=80, tts_eos=81, tts_pad=82)
    return replace(config, talker=replace(config.talker, text_vocab_size=83), prompt=prompt)


def write(folder: Path, config: ModelConfig, dtype: str = "bfloat16", shards: int = 1) -> Path:
    """A checkpoint in the published layout; the main model in `shards` files."""
    (folder / "speech_tokenizer").mkdir(parents=True)
    for file, rules, file_dtype in (
        (folder / "model.safetensors", model_rules(config), dtype),
        (folder / CODEC, codec_rules(config.codec), "float32"),
    ):
        tensors = {name: draw(name, shape).astype(file_dtype) for rule in rules for name, shape in rule.torch.items()}
        if shards == 1 or file == folder / CODEC:
            save_file(tensors, file)
            continue
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        weight_map = {tensor: names[i % shards] for i, tensor in enumerate(tensors)}
        for name in names:
            save_file({t: tensors[t] for t, place in weight_map.items() if place == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def edit(file, change):
    """Rewrites a file after `change` worked on its dict of tensors."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)
