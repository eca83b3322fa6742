"""A trained model in the official layout, which this package and the official one load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import export_safetensors
from qwen3_tts_jax.convert.check import CODEC_FOLDER, WEIGHTS_INDEX, copy_small_files
from qwen3_tts_jax.files import completed_folder, require_absent

_WEIGHTS = ".safetensors"


def export_model(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    source: str | Path,
    dtype: str | None = "bfloat16",
    codec: str | Path | None = None,
) -> Path:
    """Writes config, generation_config, tokenizer files, weights and codec into a new folder.

    Args:
        folder: must not exist.
        params: the trees talker, code_predictor and, of a base model, speaker_encoder. Where it has codec/encoder and
            codec/decoder these are written too; otherwise the files of `codec` are copied.
        config: of the model; `source` may be of another type, as after adding speakers.
        source: a folder in the official layout, for the tokenizer and the codec.
        dtype: of the weights; None keeps that of each leaf.
        codec: the codec's own folder, where it is not `source`/speech_tokenizer.

    Returns:
        `folder`.

    Raises:
        FileExistsError, PermissionError: as `files.require_absent`, for `folder`.
        FileNotFoundError: `params` has no codec and `source` no weights of one.
        ValueError: the codec of `source` is of another shape than the config's.
        qwen3_tts_jax.convert.CheckpointError: the tree does not fit the config.
    """
    folder, source = Path(folder), Path(source)
    codec = source / CODEC_FOLDER if codec is None else Path(codec)
    require_absent(folder)
    own_codec = "codec" in params
    if not own_codec and not list(codec.glob(f"*{_WEIGHTS}")):
        raise FileNotFoundError(f"{codec} holds no weights: give params with the codec, or another source")
    with completed_folder(folder) as temporary:
        copy_small_files(source, temporary)
        copy_small_files(codec, temporary / CODEC_FOLDER)
        if not own_codec:
            for file in (*codec.glob(f"*{_WEIGHTS}"), *codec.glob(WEIGHTS_INDEX)):
                shutil.copyfile(file, temporary / CODEC_FOLDER / file.name)
        names = ("config.json", f"{CODEC_FOLDER}/config.json", "generation_config.json")
        written = dict(zip(names, hf_export.to_hf(config), strict=True))
        if not own_codec:
            del written[f"{CODEC_FOLDER}/config.json"]
        for name, content in _processors(config).items():
            if not (temporary / name).exists():
                written[name] = content
        for name, content in written.items():
            (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        export_safetensors(temporary, params, config, dtype)
        if hf_config.read_folder(temporary).with_dtypes("float32") != config.with_dtypes("float32"):
            raise ValueError(f"{source} has a codec of another shape than the model")
    return folder


def _processors(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The files by which the official package finds its text processor and the codec's feature extractor."""
    text = {
        "padding_side": "left",
        "padding_value": 0.0,
        "processor_class": "Qwen3TTSProcessor",
        "return_attention_mask": True,
    }
    name = "preprocessor_config.json"
    return {name: text, f"{CODEC_FOLDER}/{name}": hf_export.codec_preprocessor_to_hf(config.codec)}
