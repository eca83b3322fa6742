"""Checkpoint folder → Flax parameter tree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax.config import CodecConfig, ModelConfig
from qwen3_tts_jax.convert.check import check_codec, check_folder, is_converted
from qwen3_tts_jax.convert.rule import Rule
from qwen3_tts_jax.convert.rules import SYNTHESIS_PARTS, all_rules, codec_rules, compute_dtype, select
from qwen3_tts_jax.convert.safetensors_file import DTYPES, StoredTensor, read_into
from qwen3_tts_jax.hf_config import read_folder
from qwen3_tts_jax.sharding import Placement

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do."""

Finish = Callable[[str, jax.Array], Mapping[str, jax.Array]]
"""Takes a placed leaf's path and the leaf; returns what replaces it, by path. See `quantize.quantize_leaf`."""

_log = logging.getLogger(__name__)


def load_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    parts: Iterable[str] = SYNTHESIS_PARTS,
    progress: Progress | None = None,
    placement: Placement | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """`load_params`, or `orbax_checkpoint.load` if the folder was converted."""
    if not is_converted(folder):
        return load_params(folder, config, parts, progress, placement, finish)
    # Only here, since importing Orbax takes a second.
    from qwen3_tts_jax.convert import orbax_checkpoint

    return orbax_checkpoint.load(folder, config, parts, progress, placement, finish)


def load_params(
    folder: str | Path,
    config: ModelConfig,
    parts: Iterable[str] = SYNTHESIS_PARTS,
    progress: Progress | None = None,
    placement: Placement | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """Loads `parts` (of `rule.PARTS`) of a checkpoint, to `placement` or else onto JAX's default device.

    The folder is in the published layout: `model.safetensors` and `speech_tokenizer/model.safetensors`,
    each a single file or sharded, in float32, bfloat16 or float16. Every name, shape and dtype of both is
    checked before any weight is read. Weights come in the config's compute dtypes, gathered tables in the
    file's dtype. Only one tensor is in flight at a time, so memory peaks little above the size of the tree that
    `finish` leaves.

    Returns:
        Nested dicts of arrays, {"talker": {"codec_head": {"weight": …}, …}, …}.

    Raises:
        CheckpointError: the files do not fit the config; see `check.check_folder`.
        ValueError: an unknown part.
    """
    rules = select(all_rules(config), config, parts)
    stored = check_folder(Path(folder), config)
    return _load(folder, rules, stored, lambda rule: compute_dtype(config, rule), progress, placement, finish)


def load_codec(folder: str | Path, config: CodecConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Loads both halves of the codec, and nothing else, from its own folder.

    That is the `speech_tokenizer` folder of a checkpoint, converted or not, or a download of the codec alone.

    Returns:
        {"encoder": …, "decoder": …}, in the config's dtype as with `load_params`.

    Raises:
        CheckpointError: the file does not fit the config; see `check.check_codec`.
    """
    folder = Path(folder)
    if is_converted(folder.parent):
        model = replace(read_folder(folder.parent), codec=config)
        return load_checkpoint(folder.parent, model, ("codec/encoder", "codec/decoder"), progress)["codec"]
    rules, dtype = codec_rules(config), jnp.dtype(config.encoder.transformer.dtype)
    stored = check_codec(folder, config)
    return _load(folder, rules, stored, lambda rule: None if rule.gathered else dtype, progress)["codec"]


def _load(
    folder: str | Path,
    rules: Iterable[Rule],
    stored: Mapping[str, StoredTensor],
    dtype_of: Callable[[Rule], jnp.dtype | None],
    progress: Progress | None,
    placement: Placement | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    total = sum(stored[name].nbytes for rule in rules for name in rule.torch)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    leaves: dict[str, jax.Array] = {}
    with ExitStack() as stack:
        streams = {
            file: stack.enter_context(file.open("rb"))
            for file in {stored[name].file for rule in rules for name in rule.torch}
        }
        for rule in rules:
            dtype = dtype_of(rule)
            if dtype is None:
                dtype = jnp.result_type(*(DTYPES[stored[name].dtype] for name in rule.torch))
            array = _aligned_empty(rule.flax_shape, dtype)
            for name, out in zip(rule.torch, rule.split(array), strict=True):
                read_into(streams[stored[name].file], stored[name], rule.transform, out, advance)
            # Waiting for each leaf keeps host copies from piling up in front of an accelerator.
            where = None if placement is None else placement(rule.flax, rule.flax_shape)
            leaf = jax.device_put(array, where)
            leaves |= jax.block_until_ready({rule.flax: leaf} if finish is None else finish(rule.flax, leaf))
    _log.info("loaded %d leaves (%.2f GB) from %s", len(leaves), total / 1e9, folder)
    return unflatten_dict(leaves, sep="/")


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype, alignment: int = 64) -> np.ndarray:
    """An array that JAX's CPU backend takes over as it is; it would copy one of another alignment."""
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)
