"""Parameter tree ↔ an Orbax checkpoint in a self-contained folder.

`params/<part>` holds one Orbax checkpoint per part, so that each can be read without the others; the JSON
and tokenizer files lie where the published layout has them; `qwen3_tts_jax.json` marks the folder.
The layout is for trained trees and other tools that read Orbax: the safetensors files load faster.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.check import CODEC_FOLDER, MARKER, PARAMS, CheckpointError, check_tree, copy_small_files
from qwen3_tts_jax.convert.load import Finish, Progress
from qwen3_tts_jax.convert.rule import PARTS, Rule
from qwen3_tts_jax.convert.rules import SYNTHESIS_PARTS, all_rules, compute_dtype, select
from qwen3_tts_jax.files import completed_folder, require_absent
from qwen3_tts_jax.hf_config import read_folder
from qwen3_tts_jax.sharding import Placement

FORMAT = 2
_log = logging.getLogger(__name__)


def save(folder: str | Path, params: Mapping[str, Any], config: ModelConfig, source_folder: str | Path) -> Path:
    """Writes the parts that `params` has, in their dtypes, with all other files that a model needs.

    Args:
        folder: must not exist.
        params: nested dicts of arrays, each of its parts (`rule.PARTS`) complete.
        config: what the tree is checked against.
        source_folder: of the same model; the JSON and tokenizer files are copied from it.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` exists.
        CheckpointError: the tree does not fit the config, or the source folder holds another model.
        OSError: the folder cannot be written.
    """
    folder, source_folder = Path(folder), Path(source_folder)
    require_absent(folder)
    paths = flatten_dict(params, sep="/")
    parts = [part for part in PARTS if any(path.startswith(f"{part}/") for path in paths)]
    if not parts:
        raise CheckpointError("params", [f"no part is there; there are {', '.join(PARTS)}"])
    rules = select(all_rules(config), config, parts)
    leaves = check_tree("params", params, rules)
    stored = config.with_dtypes("float32").with_attention(lambda _: "xla")
    if read_folder(source_folder).with_dtypes("float32") != stored:
        raise CheckpointError(source_folder, ["its JSON files describe another model than the parameters"])
    with completed_folder(folder) as temporary:
        for directory in (Path(), Path(CODEC_FOLDER)):
            copy_small_files(source_folder / directory, temporary / directory)
        with _checkpointer(rules) as checkpointer:
            for part in parts:
                args = ocp.args.PyTreeSave(_subtree(leaves, part))
                try:
                    checkpointer.save(_part_folder(temporary, part), args=args)
                except Exception as error:  # As in `load`; most often a full disk.
                    raise OSError(f"{folder} cannot be written: {_first_line(error)}") from error
        dtypes = {part: sorted({str(leaf.dtype) for leaf in _flat_part(leaves, part).values()}) for part in parts}
        marker = {"format": FORMAT, "dtypes": dtypes}
        (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    _log.info("wrote %s", folder)
    return folder


def load(
    folder: str | Path,
    config: ModelConfig,
    parts: Iterable[str] = SYNTHESIS_PARTS,
    progress: Progress | None = None,
    placement: Placement | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """Loads `parts` of a folder that `save` wrote, to `placement` or else onto JAX's default device.

    Dtypes are as in `load.load_params`: compute dtypes, and gathered tables as they were saved.
    `progress` is called after every part with the bytes done and the bytes to do, `finish` for each leaf of a part.

    Raises:
        CheckpointError: `folder` was not written by `save`, or by a newer version; it lacks a part; or it
            has missing, surplus or misshapen leaves or leaves of other dtypes, all of them named.
        ValueError: an unknown part.
    """
    folder, parts = Path(folder), tuple(parts)
    rules = select(all_rules(config), config, parts)
    _check_marker(folder, parts)
    params: dict[str, Any] = {}
    done = 0
    with _checkpointer(rules) as checkpointer:
        stored = {}
        for part in parts:
            stored |= _stored(checkpointer, folder, part)
        stored = check_tree(folder, unflatten_dict(stored, sep="/"), rules)
        # Without a sharding Orbax reads NumPy arrays. Arrays that it places itself are committed to their device, and
        # JAX would compile other programs for them than for the arrays of `load_params`.
        wanted = {
            rule.flax: jax.ShapeDtypeStruct(
                rule.flax_shape,
                compute_dtype(config, rule) or stored[rule.flax].dtype,
                sharding=None if placement is None else placement(rule.flax, rule.flax_shape),
            )
            for rule in rules
        }
        for part in parts:
            tree = _subtree(wanted, part)
            args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
            try:
                leaves = flatten_dict(checkpointer.restore(_part_folder(folder, part), args=args), sep="/")
            except Exception as error:  # Orbax itself raises bare exceptions.
                reason = _first_line(error.__cause__ or error)
                raise CheckpointError(folder, [f"{part} cannot be read: {reason}"]) from error
            done += _nbytes(leaves.values())
            # Popped one by one, so that what `finish` replaces is freed.
            for name in tuple(leaves):
                path, leaf = f"{part}/{name}", jax.device_put(leaves.pop(name))
                params |= jax.block_until_ready({path: leaf} if finish is None else finish(path, leaf))
            if progress is not None:
                progress(done, _nbytes(wanted.values()))
    return unflatten_dict(params, sep="/")


def _check_marker(folder: Path, parts: Iterable[str]) -> None:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        version, there = marker["format"], marker["dtypes"]
    except FileNotFoundError:
        raise CheckpointError(folder, [f"{MARKER} is missing: this is no converted checkpoint"]) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(folder, [f"{MARKER} is broken: convert the checkpoint again"]) from None
    if version != FORMAT:
        raise CheckpointError(folder, [f"{MARKER} has format {version}, this version reads {FORMAT}: convert again"])
    missing = [f"{part} was not converted; there are {', '.join(there)}" for part in parts if part not in there]
    if missing:
        raise CheckpointError(folder, missing)


def _stored(checkpointer: ocp.Checkpointer, folder: Path, part: str) -> dict[str, Any]:
    """Shape and dtype of the leaves of a part, by path."""
    try:
        metadata = checkpointer.metadata(_part_folder(folder, part)).item_metadata
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(folder, [f"{part} cannot be read: {_first_line(error)}"]) from error
    if metadata is None:
        raise CheckpointError(folder, [f"{part} is missing or damaged: convert the checkpoint again"])
    return {f"{part}/{path}": leaf for path, leaf in flatten_dict(metadata.tree, sep="/").items()}


def _checkpointer(rules: Iterable[Rule]) -> ocp.Checkpointer:
    # The fastest to load: a file per array, uncompressed, with few of them in flight at a time. Orbax
    # refuses an array that is larger than its limit on what is in flight.
    largest = max(4 * math.prod(rule.flax_shape) for rule in rules)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=True, use_compression=False, restore_concurrent_gb=1 + largest // 10**9
    )
    return ocp.Checkpointer(handler)


def _part_folder(folder: Path, part: str) -> Path:
    return folder.absolute() / PARAMS / part


def _flat_part(leaves: Mapping[str, Any], part: str) -> dict[str, Any]:
    prefix = f"{part}/"
    return {path.removeprefix(prefix): leaf for path, leaf in leaves.items() if path.startswith(prefix)}


def _subtree(leaves: Mapping[str, Any], part: str) -> dict[str, Any]:
    return unflatten_dict(_flat_part(leaves, part), sep="/")


def _nbytes(leaves: Iterable[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
