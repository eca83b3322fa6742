"""Several devices: one mesh, and where each array lies on it.

The mesh has the axes `data`, over which rows of a batch are spread, and `model`, over which the talker and the
code predictor are split (Shoeybi et al. 2019, arXiv:1909.08053): by key/value heads, by MLP width, and the text
embedding by vocabulary. The codec and the speaker encoder are whole on every device. XLA does the rest: a
compiled function whose arguments lie on a mesh computes there, and leaves its results there. One device needs
nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.devices import local_devices

DATA, MODEL = "data", "model"

Placement = Callable[[str, tuple[int, ...]], Sharding]
"""Where the parameter with this path ("talker/codec_head/weight") and shape goes."""

Tree = TypeVar("Tree")

# The axis along which a weight is split, by the end of its layer's path, in the talker and the code predictor. The
# layer's scale or bias is split along it too, if it has that axis. Everything else is whole: norms, and the embeddings
# and output layers of codes. Those are small, and splitting them would cost five exchanges between the devices for each
# of a frame's codes, most of them in the sampling.
_SPLIT_AXES = {
    "attention/qkv": 0,  # [K, (G + 2) H, D], what belongs to a key/value head side by side
    "attention/o": 1,  # [D, K G H], query heads in the same order
    "mlp/gate_up": 1,  # [2, F, D]
    "mlp/down": 1,  # [D, F]
    "text_embedding": 0,  # [V, D]
    "text_projection/fc1": 0,
    "text_projection/fc2": 1,
}
_SPLIT_PARTS = ("talker/", "code_predictor/")


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` × `model` devices.

    Args:
        data: parts that a batch is spread over; −1 takes as many as there are devices for.
        model: devices that share one copy of the talker and the code predictor. 1 is the fastest wherever a
            copy fits on one device; more let a single utterance, or a larger batch, use the memory of several.
        devices: by default all of this process on the default device's platform.

    Raises:
        ValueError: sizes below 1, or that the devices cannot make up.
    """
    devices = local_devices() if devices is None else list(devices)
    if model < 1 or (data < 1 and data != -1):
        raise ValueError(f"a mesh needs sizes of at least 1 (data may be -1), got data={data}, model={model}")
    if data == -1 and len(devices) % model:
        raise ValueError(f"{len(devices)} devices cannot be shared out in groups of model={model}")
    data = len(devices) // model if data == -1 else data
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices; there are {len(devices)}")
    return jax.make_mesh(
        (data, model), (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices[: data * model]
    )


def check_mesh(mesh: Mesh, config: ModelConfig) -> None:
    """Refuses a mesh with other axes, or whose `model` axis does not divide the key/value heads.

    Raises:
        ValueError: names the heads and the sizes that would do.
    """
    if mesh.axis_names != (DATA, MODEL):
        raise ValueError(f"the mesh has the axes {mesh.axis_names}, not ('data', 'model'): make it with make_mesh")
    parts = {"talker": config.talker, "code predictor": config.code_predictor}
    heads = {name: part.transformer.num_kv_heads for name, part in parts.items()}
    size = mesh.shape[MODEL]
    for name, count in heads.items():
        if count % size:
            common = [n for n in range(1, count + 1) if not any(other % n for other in heads.values())]
            raise ValueError(
                f"the {name} has {count} key/value heads, which model={size} devices cannot share: "
                f"choose model={' or '.join(map(str, common))}"
            )


def placement(mesh: Mesh, config: ModelConfig) -> Placement:
    """Where parameters go; `convert.load_checkpoint` needs it to put each leaf straight there.

    An axis whose length the mesh does not divide (a vocabulary, an MLP width) is left whole.

    Raises:
        ValueError: as `check_mesh`.
    """
    check_mesh(mesh, config)
    size = mesh.shape[MODEL]

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axis = None
        if path.startswith(_SPLIT_PARTS):
            layer = path.rpartition("/")[0]
            axis = next((axis for end, axis in _SPLIT_AXES.items() if layer.endswith(f"/{end}")), None)
        if axis is None or axis >= len(shape) or shape[axis] % size:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, MODEL))

    return place


def shard_params(params: dict[str, Any], config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The same parameters on the mesh; the originals may then be dropped.

    Raises:
        ValueError: as `check_mesh`.
    """
    place = placement(mesh, config)
    leaves = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: jax.device_put(leaf, place(path, leaf.shape)) for path, leaf in leaves.items()}, sep="/"
    )


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters, or any tree, lie on; None where they were not put on one."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            return sharding.mesh
    return None


def data_size(params: Any) -> int:
    """Parts that a batch is spread over, where `params` lie: the length of the axis `data`, 1 without a mesh."""
    mesh = mesh_of(params)
    return 1 if mesh is None else mesh.shape[DATA]


def whole_rows(params: Any, rows: int) -> int:
    """`rows`, rounded up to a number that the devices of `params` share evenly: unchanged on one device."""
    size = data_size(params)
    return -(-rows // size) * size


def place_batch(params: Any, batch: Tree) -> Tree:
    """Spreads arrays [B, …] over the devices that `params` lie on, row by row; leaves them alone on one device.

    Rows that cannot be shared evenly (see `whole_rows`) are computed by all. Scalars go everywhere.
    """
    mesh = mesh_of(params)
    if mesh is None:
        return batch
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, _rows_spec(mesh, np.shape(leaf)))), batch)


def place_state(mesh: Mesh, state: Tree) -> Tree:
    """In a compiled function, spreads a `DecodeState`: as `place_batch` does, and its cache by key/value heads too.

    That is how chunks return it, so that the first chunk needs no program of its own.
    """

    def place(path: tuple, leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, state_spec(mesh, path, leaf.shape)))

    return jax.tree_util.tree_map_with_path(place, state)


def state_spec(mesh: Mesh, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
    """Where the leaf of a `DecodeState` with this path (of `jax.tree_util`) and shape goes."""
    rows, size = _rows_spec(mesh, shape), mesh.shape[MODEL]
    in_cache = any(getattr(entry, "name", None) == "cache" for entry in path)
    if in_cache and len(shape) == 4 and size > 1:  # [B, K, H, S] and [B, K, S, H]
        return PartitionSpec(rows[0] if len(rows) else None, MODEL)
    return rows


def _rows_spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    # An axis of one device is left out, as XLA does: to JAX the two are different layouts.
    if not shape or mesh.shape[DATA] == 1 or shape[0] % mesh.shape[DATA]:
        return PartitionSpec()
    return PartitionSpec(DATA)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    # On a mesh of one device, `is_equivalent_to` accepts arrays that were not put there; to JAX's cache they differ.
    on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
    return leaf if on_mesh and leaf.sharding.is_equivalent_to(sharding, leaf.ndim) else jax.device_put(leaf, sharding)
