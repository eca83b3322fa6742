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
    """Where leaves go; large ones are cut along the longest axis that the axis "data" divides. None without a mesh.

    Embeddings are cut along their width: else all devices would look up, and exchange, the rows of the whole batch.
    """
    if mesh is None:
        return None
    size = mesh.shape[DATA]

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, length in enumerate(shape) if length % size == 0]
        if prod(shape) < _LARGE or not axes:
            return NamedSharding(mesh, PartitionSpec())
        width = len(shape) - 1
        is_embedding = path.rpartition("/")[2] == "embedding" and width in axes
        chosen = width if is_embedding else max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * chosen, DATA))

    return place


def spread(tree: Tree, mesh: Mesh | None) -> Tree:
    """Leaves at their `placement`; as they are without a mesh."""
    return tree if mesh is None else jax.tree.map(jax.device_put, tree, _shardings(tree, mesh))


def held(tree: Tree, mesh: Mesh | None) -> Tree:
    """In a compiled function, leaves at their `placement`; as they are without a mesh."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, _shardings(tree, mesh))


def made(function: Callable[..., Tree], *arguments: object, mesh: Mesh | None) -> Tree:
    """What `function` returns, every leaf made at its `placement`: no device ever holds a large one whole."""
    shardings = None if mesh is None else _shardings(jax.eval_shape(function, *arguments), mesh)
    return jax.jit(function, out_shardings=shardings)(*arguments)


def _shardings(tree: Tree, mesh: Mesh) -> Tree:
    where = placement(mesh)

    def of(path: tuple, leaf: jax.Array) -> NamedSharding:
        return where(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)

    return jax.tree_util.tree_map_with_path(of, tree)


def place(batch: Batch, mesh: Mesh | None, axis: int = 0) -> Batch:
    """The batch on the mesh, its rows (axis `axis`) spread over "data"; unchanged without a mesh."""
    if mesh is None:
        return batch
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA)))
