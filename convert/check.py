"""Compares what a checkpoint holds with what the rules expect; nothing here reads weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from qwen3_tts_jax.config import CodecConfig, ModelConfig
from qwen3_tts_jax.convert.rule import Rule
from qwen3_tts_jax.convert.rules import codec_rules, model_rules
from qwen3_tts_jax.convert.safetensors_file import DTYPES, BrokenFileError, StoredTensor, read_header

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
CODEC_FOLDER = "speech_tokenizer"
MARKER = "qwen3_tts_jax.json"
"""A folder that has this file holds a converted checkpoint."""

PARAMS = "params"
"""The folder of its parts, one in each."""

_SHOWN = 40
_SMALL = (".json", ".txt", ".jinja")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class CheckpointError(ValueError):
    """A checkpoint that does not fit its configuration.

    The message shows the first problems; `problems` has all of them, a line each.
    """

    def __init__(self, where: str | Path, problems: Iterable[str]):
        self.problems = tuple(problems)
        lines = [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  … and {len(self.problems) - _SHOWN} more")
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        super().__init__(f"{where}: {count}\n" + "\n".join(lines))


def is_converted(folder: str | Path) -> bool:
    """Whether `orbax_checkpoint.save` wrote the folder."""
    return (Path(folder) / MARKER).exists()


def copy_small_files(source: Path, destination: Path) -> None:
    """Copies a folder's configs and tokenizer files, but neither its weights nor what describes them.

    `destination` is created if needed.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _SMALL and file.name not in (MARKER, WEIGHTS_INDEX):
            shutil.copyfile(file, destination / file.name)


def check_folder(folder: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Compares both files of a folder in the published layout with the rules, both ways.

    Returns:
        Where each tensor of both files lies, by its PyTorch name.

    Raises:
        CheckpointError: with every problem of both files: absent, unfinished or truncated files, missing,
            surplus or misshapen tensors, and dtypes other than F32, BF16 and F16.
    """
    return _check(folder, {folder: model_rules(config), folder / CODEC_FOLDER: codec_rules(config.codec)})


def check_codec(folder: Path, config: CodecConfig) -> dict[str, StoredTensor]:
    """`check_folder` for the codec's own folder."""
    return _check(folder, {folder: codec_rules(config)})


def _check(folder: Path, parts: Mapping[Path, Iterable[Rule]]) -> dict[str, StoredTensor]:
    if not folder.is_dir():
        raise CheckpointError(folder, ["there is no such folder"])
    problems: list[str] = []
    found: dict[str, StoredTensor] = {}
    for part, rules in parts.items():
        before = len(problems)
        tensors = _index(part, folder, problems)
        if len(problems) == before:
            label = str((part / WEIGHTS).relative_to(folder))
            problems += [f"{label}: {problem}" for problem in _differences(tensors, rules)]
        found |= tensors
    if problems:
        raise CheckpointError(folder, problems)
    return found


def check_tree(where: str | Path, tree: Mapping[str, Any], rules: Iterable[Rule]) -> dict[str, Any]:
    """Compares a parameter tree, or one of shapes, with the rules, both ways.

    Returns:
        The leaves by path, in the order of the rules.

    Raises:
        CheckpointError: with every leaf that is missing, surplus or misshapen, or whose dtype is not
            float32, bfloat16 or float16.
    """
    leaves = flatten_dict(tree, sep="/")
    expected = {rule.flax: rule.flax_shape for rule in rules}
    problems = _compare({path: tuple(leaf.shape) for path, leaf in leaves.items()}, expected)
    allowed = tuple(DTYPES.values())
    problems += [
        f"{path} has dtype {leaf.dtype}, expected one of {', '.join(map(str, allowed))}"
        for path, leaf in leaves.items()
        if path in expected and leaf.dtype not in allowed
    ]
    if problems:
        raise CheckpointError(where, problems)
    return {path: leaves[path] for path in expected}


def _differences(tensors: Mapping[str, StoredTensor], rules: Iterable[Rule]) -> list[str]:
    expected = {name: shape for rule in rules for name, shape in rule.torch.items()}
    problems = _compare({name: tensor.shape for name, tensor in tensors.items()}, expected)
    for name, tensor in tensors.items():
        if name in expected and tensor.dtype not in DTYPES:
            problems.append(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    return problems


def _compare(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> list[str]:
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        if name not in expected:
            problems.append(f"{name} {list(shape)} is surplus: this model has no such tensor")
        elif shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)}, expected {list(expected[name])}")
    return problems


def _index(folder: Path, top: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors of `model.safetensors`, or of the shards that its index names."""
    index = folder / WEIGHTS_INDEX
    tensors: dict[str, StoredTensor] = {}
    if (folder / WEIGHTS).exists():
        files, weight_map = [WEIGHTS], {}
    elif index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
            if any(Path(name).name != name for name in files):
                raise ValueError("shards lie beside their index")
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{index.relative_to(top)} is not the index of a sharded checkpoint")
            return {}
    else:
        problems.append(_absent(folder, top))
        return {}
    for name in files:
        label = (folder / name).relative_to(top)
        if not (folder / name).exists():
            problems.append(f"{label} is missing")
            continue
        try:
            header = read_header(folder / name)
        except BrokenFileError as error:
            problems.append(f"{label} {error}")
            continue
        problems += [f"{label}: {tensor} is in another shard too" for tensor in header if tensor in tensors]
        tensors |= header
        problems += [
            f"{label}: {tensor} is missing, though the index says it is here"
            for tensor, file in weight_map.items()
            if file == name and tensor not in header
        ]
    return tensors


def _absent(folder: Path, top: Path) -> str:
    label = (folder / WEIGHTS).relative_to(top)
    # The Hugging Face cache keeps the downloads of a snapshot in a folder beside the snapshots.
    places = [folder, top.parent.parent / "blobs"] if top.parent.name == "snapshots" else [folder]
    unfinished = [path for place in places for path in place.rglob("*.incomplete")]
    if unfinished:
        return f"{label} is missing and {unfinished[0].name} is an unfinished download: download again"
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
    if pickled:
        return f"{label} is missing; {pickled[0]} cannot be read: safetensors files are needed"
    return f"{label} is missing"
