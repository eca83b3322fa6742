"""A trained model in the official layout, which this package and the official one load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import export_safetensors

_CODEC = "speech_tokenizer"
_WEIGHTS = ".safetensors"


def export_model(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    source: str | Path,
    dtype: str | None = "bfloat16",
) -> Path:
    """Writes config, generation_config, tokenizer files, weights and codec into a new folder.

    Args:
        folder: must not exist.
        params: the trees talker, code_predictor and, of a base model, speaker_encoder. With codec/encoder and
            codec/decoder they are written too; else the codec's files are those of `source`.
        config: of the model; `source` may be of another type, as after adding speakers.
        source: a folder in the official layout, for the tokenizer and the codec.
        dtype: of the weights; None keeps that of each leaf.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` exists.
        FileNotFoundError: `params` has no codec and `source` no weights of one.
        qwen3_tts_jax.convert.CheckpointError: the tree does not fit the config.
    """
    folder, source = Path(folder), Path(source)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: choose another folder or move it away")
    own_codec = "codec" in params
    if not own_codec and not list((source / _CODEC).glob(f"*{_WEIGHTS}")):
        raise FileNotFoundError(f"{source / _CODEC} holds no weights: give params with the codec, or another source")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _copy(source, temporary, weights=False)
        _copy(source / _CODEC, temporary / _CODEC, weights=not own_codec)
        written = dict(
            zip(
                ("config.json", f"{_CODEC}/config.json", "generation_config.json"), hf_export.to_hf(config), strict=True
            )
        )
        if not own_codec:
            del written[f"{_CODEC}/config.json"]
        for name, content in written.items():
            (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        export_safetensors(temporary, params, config, dtype)
        if hf_config.read_folder(temporary).with_dtypes("float32") != config.with_dtypes("float32"):
            raise ValueError(f"{source} has a codec of another shape than the model")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _copy(source: Path, target: Path, *, weights: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        wanted = (".json", ".txt", ".jinja", _WEIGHTS) if weights else (".json", ".txt", ".jinja")
        if file.is_file() and file.suffix in wanted and (weights or not file.name.endswith(f"{_WEIGHTS}.index.json")):
            shutil.copyfile(file, target / file.name)
