"""Flax parameter tree → safetensors in the published layout."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import save_file

from qwen3_tts_jax.config import CodecConfig, ModelConfig
from qwen3_tts_jax.convert.check import CODEC_FOLDER, WEIGHTS, CheckpointError, check_tree
from qwen3_tts_jax.convert.rule import PARTS, Rule
from qwen3_tts_jax.convert.rules import codec_rules, model_rules
from qwen3_tts_jax.files import completed, require_absent

_log = logging.getLogger(__name__)


def export_safetensors(
    folder: str | Path, params: Mapping[str, Any], config: ModelConfig, dtype: str | None = None
) -> list[Path]:
    """Writes `model.safetensors` and `speech_tokenizer/model.safetensors`, or the one whose parts `params` has.

    The first holds the talker, the code predictor and, in base models, the speaker encoder; the second the
    codec's encoder and decoder. Names, shapes and layouts are the official package's. The JSON files are not
    written.

    Args:
        folder: created if needed.
        params: nested dicts of arrays; all parts of a file or none.
        config: what the tree is checked against.
        dtype: of `model.safetensors`, published in "bfloat16"; None keeps the dtype of each leaf. The codec
            is written as it is.

    Returns:
        The files written.

    Raises:
        CheckpointError: missing, surplus or misshapen leaves, or leaves of another dtype; nothing is written.
        FileExistsError: one of the files exists already.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    given = {part for part in PARTS if any(path.startswith(f"{part}/") for path in flatten_dict(params, sep="/"))}
    files = [
        (folder / WEIGHTS, model_rules(config), dtype),
        (folder / CODEC_FOLDER / WEIGHTS, codec_rules(config.codec), None),
    ]
    files = [file for file in files if given & {rule.part for rule in file[1]}]
    leaves = check_tree("params", params, [rule for _, rules, _ in files for rule in rules])
    if not files:
        raise CheckpointError("params", [f"no part is there; there are {', '.join(PARTS)}"])
    for file, _, _ in files:
        require_absent(file)
    for file, rules, file_dtype in files:
        _write(file, _tensors(leaves, rules, file_dtype))
        _log.info("wrote %s", file)
    return [file for file, _, _ in files]


def export_codec(folder: str | Path, params: Mapping[str, Any], config: CodecConfig) -> Path:
    """Writes the `model.safetensors` of a codec's own folder, in float32 as published.

    Args:
        folder: created if needed.
        params: the trees encoder and decoder.
        config: what they are checked against.

    Returns:
        The file written.

    Raises:
        CheckpointError, OSError: as `export_safetensors`.
    """
    file, rules = Path(folder) / WEIGHTS, codec_rules(config)
    leaves = check_tree("params", {"codec": params}, rules)
    require_absent(file)
    _write(file, _tensors(leaves, rules, "float32"))
    return file


def _tensors(leaves: Mapping[str, Any], rules: Iterable[Rule], dtype: str | None) -> dict[str, np.ndarray]:
    """Views of the leaves wherever neither layout nor dtype changes."""
    tensors = {}
    for rule in rules:
        array = np.asarray(leaves[rule.flax])
        for (name, shape), view in zip(rule.torch.items(), rule.split(array), strict=True):
            tensor = np.ascontiguousarray(rule.transform.invert(view)).reshape(shape)
            tensors[name] = tensor if dtype is None else tensor.astype(jnp.dtype(dtype), copy=False)
    return tensors


def _write(file: Path, tensors: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with completed(file) as temporary:
        # Gives the file the mode of the user's mask; the library would leave it readable by its owner alone.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            # As of a full disk; the library has no exception of its own for that.
            raise OSError(f"{file} cannot be written: {error}") from None
        temporary.chmod(mode)
