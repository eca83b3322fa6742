"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on weights by path, and their files.

A weight W [..., in], all of whose axes but the last are outputs, becomes W + alpha / rank · B A, reshaped, with
A [rank, in] and B [out, rank]. B starts at zero. Adapters are merged before every use, so that what trains is
what the merged model computes, down to the rounding of its dtype. Weights that are one array here have one adapter:
q, k and v share one A and have a B each, and so do gate and up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.files import completed
from qwen3_tts_jax.layers import PRECISION
from qwen3_tts_jax.train.fingerprint import fingerprint

Adapters = dict[str, dict[str, jax.Array]]
"""{path of a weight: {"a": [rank, in], "b": [out, rank]}}, float32."""

_KIND, _SPEAKERS = "qwen3_tts_jax.lora", "speakers/"


@dataclass(frozen=True)
class LoraConfig:
    """Which weights get adapters.

    Attributes:
        rank: of the adapters.
        alpha: they are scaled by alpha / rank.
        modules: parts of paths, each one or more whole names: "attention", "mlp/down", "talker".
    """

    rank: int = 16
    alpha: float = 32.0
    modules: tuple[str, ...] = ("attention", "mlp")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the rank of a LoRA must be at least 1, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"the alpha of a LoRA must be above 0, got {self.alpha}")


class LoraError(ValueError):
    """Adapters that cannot be used, or not with this model."""


def adapted(params: Mapping[str, Any], config: LoraConfig) -> list[str]:
    """Paths of the transformers' weights that get adapters.

    Raises:
        LoraError: an entry of `modules` that no such weight has in its path.
    """
    paths = [path for path in flatten_dict(params, sep="/") if "/transformer/" in path and path.endswith("/weight")]
    for module in config.modules:
        if not any(f"/{module}/" in f"/{path}" for path in paths):
            raise LoraError(f"no weight of a transformer lies in {module!r}; paths look like {paths[0]}")
    return [path for path in paths if any(f"/{module}/" in f"/{path}" for module in config.modules)]


def init_adapters(key: jax.Array, params: Mapping[str, Any], config: LoraConfig) -> Adapters:
    """Fresh adapters, which change nothing yet: A is normal with variance 1 / in, B is zero."""
    leaves = flatten_dict(params, sep="/")
    paths = adapted(params, config)
    adapters = {}
    for path, one in zip(paths, jax.random.split(key, len(paths)), strict=True):
        *outputs, inputs = leaves[path].shape
        a = jax.random.normal(one, (config.rank, inputs), jnp.float32) / math.sqrt(inputs)
        adapters[path] = {"a": a, "b": jnp.zeros((math.prod(outputs), config.rank), jnp.float32)}
    return adapters


def merge_adapters(params: Mapping[str, Any], adapters: Adapters, config: LoraConfig) -> dict[str, Any]:
    """The parameters with the adapters added, each leaf in its own dtype; the sums are in float32."""
    leaves = dict(flatten_dict(params, sep="/"))
    for path, pair in adapters.items():
        weight = leaves[path]
        change = jnp.matmul(pair["b"], pair["a"], precision=PRECISION).reshape(weight.shape)
        leaves[path] = (weight.astype(jnp.float32) + config.alpha / config.rank * change).astype(weight.dtype)
    return unflatten_dict(leaves, sep="/")


def save_adapters(
    path: str | Path,
    adapters: Adapters,
    config: LoraConfig,
    base: str,
    speakers: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a .safetensors file.

    Args:
        path: of the file.
        adapters: what was trained.
        config: theirs.
        base: the fingerprint of the parameters that they are for, without the rows of `speakers`.
        speakers: the rows [D] of new speakers that were trained with them, by name, in the model's order.
    """
    path = Path(path)
    tensors = {f"{name}/{half}": np.asarray(leaf) for name, pair in adapters.items() for half, leaf in pair.items()}
    tensors |= {f"{_SPEAKERS}{name}": np.asarray(row, np.float32) for name, row in (speakers or {}).items()}
    # Files order tensors in their own way, and the first speaker is the one who speaks where none is named.
    names = json.dumps(list(speakers or {}))
    content = save(tensors, {"kind": _KIND, "lora": json.dumps(asdict(config)), "base": base, "speakers": names})
    with completed(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_adapters(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a file of `save_adapters`, whatever model it is for.

    Raises:
        LoraError: no such file, or one of another kind.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{path} cannot be read: {error}") from error
    if metadata.get("kind") != _KIND:
        raise LoraError(f"{path} holds no LoRA of this package")
    if "speakers" not in metadata:
        raise LoraError(f"{path} is of an earlier version of this package; `export` makes a model of its run's folder")
    return metadata, tensors


def load_adapters(path: str | Path, params: Mapping[str, Any]) -> tuple[Adapters, LoraConfig, dict[str, np.ndarray]]:
    """Reads adapters for `params`, the trees talker and code_predictor of their base, and the rows of their speakers.

    Speakers' rows are by name, in the order that they were saved in.

    Raises:
        LoraError: no such file, one of another kind, or adapters of another base.
    """
    metadata, tensors = read_adapters(path)
    settings = json.loads(metadata["lora"])
    config = LoraConfig(**settings | {"modules": tuple(settings["modules"])})
    speakers = {name: tensors.pop(f"{_SPEAKERS}{name}") for name in json.loads(metadata["speakers"])}
    leaves = flatten_dict(params, sep="/")
    adapters: Adapters = {}
    for name, tensor in tensors.items():
        weight, half = name.rsplit("/", 1)
        if weight not in leaves:
            raise LoraError(f"{path} is for another model: this one has no weight {weight}")
        adapters.setdefault(weight, {})[half] = jnp.asarray(tensor)
    for weight, pair in adapters.items():
        *outputs, inputs = leaves[weight].shape
        if pair["a"].shape != (config.rank, inputs) or pair["b"].shape != (math.prod(outputs), config.rank):
            raise LoraError(f"{path} is for a model of other widths: {weight} is {list(leaves[weight].shape)} here")
    if metadata["base"] != fingerprint({part: params[part] for part in ("talker", "code_predictor")}):
        raise LoraError(f"{path} was trained on another base model, whose weights differ: load the one it was made for")
    return adapters, config, speakers
