"""Training on several devices: which rows of a batch, and which part of every array, each one keeps."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3_tts_jax.sharding import DATA, Placement
from qwen3_tts_jax.train.loss import Batch

_LARGE = 2**12  # numbers; cutting a smaller leaf costs more in messages than it saves in memory

Tree = TypeVar("Tree")


def placement(mesh: Mesh | None) -> Placement | None:
    """Where leaves go; large ones are cut along the longest axis that the axis "data" divides. None without a mesh."""
    if mesh is None:
        return None
    size = mesh.shape[DATA]

    def place(_: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, length in enumerate(shape) if length % size == 0]
        if prod(shape) < _LARGE or not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))

    return place


def spread(tree: Tree, mesh: Mesh | None) -> Tree:
    """Leaves at their `placement`; as they are without a mesh."""
    where = placement(mesh)
    return tree if where is None else jax.tree.map(lambda leaf: jax.device_put(leaf, where("", leaf.shape)), tree)


def made(function: Callable[..., Tree], *arguments: object, mesh: Mesh | None) -> Tree:
    """What `function` returns, every leaf made at its `placement`: no device ever holds a large one whole."""
    where, shardings = placement(mesh), None
    if where is not None:
        shapes = jax.eval_shape(function, *arguments)
        shardings = jax.tree.map(lambda leaf: where("", leaf.shape), shapes)
    return jax.jit(function, out_shardings=shardings)(*arguments)


def place(batch: Batch, mesh: Mesh | None, axis: int = 0) -> Batch:
    """The batch on the mesh, its rows (axis `axis`) spread over "data"; unchanged without a mesh."""
    if mesh is None:
        return batch
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA)))
