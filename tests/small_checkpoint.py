"""Writes a checkpoint with random weights in the published layout, without PyTorch.

The files hold the same weights, bit by bit, as those that `tests.parity.random_checkpoint` writes through
the official classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.rule import Rule
from qwen3_tts_jax.convert.rules import codec_rules, model_rules
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.draw import draw
from tests.shapes import SMALL
from tests.tokenizer_files import FILES as TOKENIZER_FILES

_END_ROWS = "talker.codec_head.weight"


def write_small_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    tokenizer_folder: str | Path,
    seed: int = 0,
    dtype: str = "bfloat16",
    eos_boost: float = 0.0,
) -> Path:
    """Writes all the files that loading needs and returns the folder.

    Args:
        folder: created where it does not exist.
        config: shapes and token ids, one of `tests.shapes.SMALL`.
        tokenizer_folder: where the files of the text tokenizer lie (the fixture of the same name).
        seed: see `tests.draw.draw`.
        dtype: of the main model; the codec is float32, as published.
        eos_boost: the codec head's row of the end token is multiplied by 1 + eos_boost; 1 makes most rows
            end below 40 frames.
    """
    folder, codec_folder = Path(folder), Path(folder) / "speech_tokenizer"
    codec_folder.mkdir(parents=True, exist_ok=True)
    for path, content in zip(
        (folder / "config.json", codec_folder / "config.json", folder / "generation_config.json"),
        hf_export.to_hf(config),
        strict=True,
    ):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
    end_rows = {config.prompt.codec_eos: 1 + eos_boost}
    _write_weights(folder, model_rules(config), seed, dtype, end_rows)
    _write_weights(codec_folder, codec_rules(config.codec), seed, "float32", {})
    return folder


def small_voice(variant: str, frames: int) -> VoicePrompt:
    """A random voice for a small base model: with so many frames in context, or with 0 as an x-vector alone."""
    config, rng = SMALL[variant], np.random.default_rng(frames)
    x_vector = rng.normal(size=config.speaker_encoder.x_vector_width).astype(np.float32)
    if frames == 0:
        return VoicePrompt(x_vector)
    size = (frames, config.talker.num_codebooks)
    codes = rng.integers(0, config.code_predictor.codebook_size, size).astype(np.int32)
    return VoicePrompt(x_vector, codes, "What the recording says.")


def _write_weights(folder: Path, rules: Iterable[Rule], seed: int, dtype: str, row_scales: Mapping[int, float]) -> None:
    tensors = {}
    for rule in rules:
        for name, shape in rule.torch.items():
            values = draw(name, shape, seed)
            if name == _END_ROWS:
                for row, scale in row_scales.items():
                    values[row] *= scale
            tensors[name] = values.astype(jnp.dtype(dtype))
    save_file(tensors, folder / "model.safetensors")
