"""A run's states on disk: whole or not there, and refused if they are another run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from qwen3_tts_jax.files import differences

_STATE, _META = "state", "run.json"

State = TypeVar("State")
"""A pytree of arrays, such as `step.TrainState`."""


class RunError(ValueError):
    """A saved run that cannot be continued."""


def save_state(folder: str | Path, name: str, state: Any, settings: Mapping[str, Any]) -> Path:
    """Writes an Orbax checkpoint `folder`/`name`, replacing one of that name once the new one is whole.

    Args:
        folder: created if needed.
        name: of the checkpoint.
        state: a pytree of arrays; all of it is kept, bit for bit.
        settings: JSON values that a run resumed from here must have too, and whatever else is to be kept.
    """
    target, folder = Path(folder).absolute() / name, Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.partial"
    replaced = folder / f".{name}.old"
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(temporary / _STATE, args=ocp.args.PyTreeSave(_leaves(state)))
    (temporary / _META).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def load_state(path: str | Path, like: State, settings: Mapping[str, Any]) -> State:
    """Reads what `save_state` wrote.

    Args:
        path: of the checkpoint.
        like: a state of the same run, from which the leaves take dtypes, shapes and devices, and whether they are
            committed to these. Donated: it is deleted before the file is read, so that memory holds only one state.
        settings: of the run; those that were saved too must be equal.

    Raises:
        RunError: a broken checkpoint, or one of other settings; those that differ are named.
    """
    path = Path(path).absolute()
    check_settings(path, settings)
    flat, structure = jax.tree.flatten(like)
    free = [isinstance(leaf, jax.Array) and not leaf.committed for leaf in flat]
    wanted = _leaves(like)
    for name, leaf in wanted.items():
        if isinstance(leaf, jax.Array):
            wanted[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            leaf.delete()
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))
    try:
        with _checkpointer() as checkpointer:
            leaves = checkpointer.restore(path / _STATE, args=arguments)
    except Exception as error:  # Orbax itself raises bare exceptions.
        raise RunError(f"{path} cannot be read: {str(error).strip().splitlines()[:1]}") from error
    for i, one in enumerate(free):
        # Empty leaves are in no file.
        leaf = leaves.pop(_name(i), flat[i])
        flat[i] = _freed(leaf) if one else leaf
    return structure.unflatten(flat)


def _freed(leaf: jax.Array) -> jax.Array:
    """An uncommitted copy: Orbax commits what it restores to a device, for which JAX would compile another program."""
    return jnp.asarray(np.asarray(leaf))


def saved_settings(path: str | Path) -> dict[str, Any]:
    """The settings that were saved with a checkpoint."""
    try:
        return json.loads((Path(path) / _META).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is no checkpoint of a run: {error}") from error


def check_settings(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Refuses, as `load_state` does, a checkpoint that was saved with other settings."""
    saved = saved_settings(path)
    shared = {name: json.loads(json.dumps(value)) for name, value in settings.items() if name in saved}
    found = differences({name: saved[name] for name in shared}, shared)
    if found:
        raise RunError(
            f"{path} is of another run: {'; '.join(found)}; start in another folder, or use what it was started with"
        )


def latest(folder: str | Path) -> Path | None:
    """The checkpoint with the most steps among those named by their step; None if there is none."""
    found = [path for path in Path(folder).glob("[0-9]*") if (path / _META).is_file()]
    return max(found, key=lambda path: int(path.name), default=None)


def drop_old(folder: str | Path, keep: int) -> None:
    """Deletes all but the last `keep` checkpoints that are named by their step."""
    found = sorted(
        (path for path in Path(folder).glob("[0-9]*") if (path / _META).is_file()), key=lambda p: int(p.name)
    )
    for path in found[:-keep]:
        shutil.rmtree(path)


def _leaves(state: Any) -> dict[str, Any]:
    """Leaves by number: the names in optax's own states are not for files. Empty leaves have nothing to keep."""
    return {_name(i): leaf for i, leaf in enumerate(jax.tree.leaves(state)) if np.size(leaf)}


def _name(number: int) -> str:
    return f"leaf_{number:05}"


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True))
