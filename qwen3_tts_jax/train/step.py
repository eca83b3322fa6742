"""One step of fine-tuning: what is trained, with which optimizer, and the function that is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.train.alignment import AlignmentConfig, alignment_loss, guide_loss, init_readout
from qwen3_tts_jax.train.lora import LoraConfig, adapted, init_adapters, merge_adapters
from qwen3_tts_jax.train.loss import Batch, LossConfig, LossParts, count_targets, loss_parts, parts_of_some, total
from qwen3_tts_jax.train.optimizer import OptimizerConfig, if_finite, moving_average
from qwen3_tts_jax.train.regularization import Regularization, corrupt, drop_out
from qwen3_tts_jax.train.score import teacher_force
from qwen3_tts_jax.train.shards import held, made, spread

PARTS = ("talker", "code_predictor")
_SPEAKERS = "talker/codec_embedding/embedding"


@dataclass(frozen=True)
class Recipe:
    """All that the compiled step must know; hashable.

    Attributes:
        model: the step computes in its compute dtype; what is trained is kept in float32.
        loss: weights of its parts.
        optimizer: see there.
        lora: train adapters, and the rows of `speaker_rows`; None trains the weights themselves.
        frozen: prefixes of paths that are not trained ("talker/text_embedding"), where `lora` is None.
        speaker_rows: new speakers' rows of the codec embedding, which a LoRA run trains too.
        remat: recompute activations in the backward pass; slower by a third, far less memory.
        regularization: how what a step reads is corrupted; None corrupts nothing.
        alignment: auxiliary losses; None is without.
        average: decay of the moving average of what is trained, which is then what is judged and kept; 0 takes the
            weights themselves.
        seed: of what is random in a step.
    """

    model: ModelConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    frozen: tuple[str, ...] = ()
    speaker_rows: tuple[int, ...] = ()
    remat: bool = True
    regularization: Regularization | None = None
    alignment: AlignmentConfig | None = None
    average: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.average < 1:
            raise ConfigError(f"the decay of the weights' average must be from 0 to below 1, got {self.average}")
        weights, last = self.loss.codebooks, self.model.talker.num_codebooks - 1
        if weights is not None and len(weights) != last:
            raise ConfigError(f"there are {len(weights)} weights of codebooks for codes 1 … {last}")
        if self.alignment is not None:
            self.alignment.check(self.model)
            if self.lora is not None:
                raise ConfigError("the alignment's loss is for runs without a LoRA")


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: int32 [], steps done.
        trained: {path: float32 leaf}, or {"lora": adapters, "speakers": [n, D]}.
        optimizer: optax's state.
        average: moving averages of `trained`; empty where the recipe has none.
    """

    step: jax.Array
    trained: dict[str, Any]
    optimizer: optax.OptState
    average: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, Any]:
        """What is judged and kept: the average where there is one."""
        return self.average or self.trained


def start(
    params: Params, recipe: Recipe, seed: int = 0, mesh: Mesh | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state before the first step, and the leaves {path: leaf} that stay as they are.

    Args:
        params: with the trees talker and code_predictor; others are left out. Donated: leaves that are trained become
            the state's own, for the step to donate, or are deleted here where they are not float32.
        recipe: see there.
        seed: of the adapters.
        mesh: what all is spread over, see `shards.placement`; moments are never whole on one device.

    Raises:
        ConfigError, lora.LoraError: as `frozen_paths`.
    """
    params = spread({part: params[part] for part in PARTS}, mesh)
    leaves = flatten_dict(params, sep="/")
    fixed = frozen_paths(params, recipe)
    if recipe.lora is None:
        trained: dict[str, Any] = {path: _widened(leaf) for path, leaf in leaves.items() if path not in fixed}
        frozen = {path: leaves[path] for path in fixed}
    else:
        speakers = leaves[_SPEAKERS][jnp.asarray(recipe.speaker_rows, jnp.int32)].astype(jnp.float32)
        trained = {"lora": init_adapters(jax.random.key(seed), params, recipe.lora), "speakers": speakers}
        frozen = dict(leaves)
    if recipe.alignment is not None:
        trained |= init_readout(jax.random.key(seed), recipe.model, recipe.alignment)
    trained = spread(trained, mesh)
    # Copies, because the step donates both.
    average = jax.tree.map(jnp.copy, trained) if recipe.average else {}
    optimizer = made(recipe.optimizer.optimizer().init, trained, mesh=mesh)
    return TrainState(spread(jnp.zeros((), jnp.int32), mesh), trained, optimizer, average), frozen


def _widened(leaf: jax.Array) -> jax.Array:
    """The leaf in float32; one of another dtype is deleted once it is copied."""
    wide = jnp.asarray(leaf, jnp.float32)
    if isinstance(leaf, jax.Array) and leaf.dtype != wide.dtype:
        leaf.delete()
    return wide


def frozen_paths(params: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Leaves that stay as they are; `params` may be shapes alone.

    Raises:
        ConfigError: `frozen` names a path that does not exist, or leaves nothing to train.
        lora.LoraError: the adapters' `modules` name no weight.
    """
    paths = list(flatten_dict({part: params[part] for part in PARTS}, sep="/"))
    if recipe.lora is not None:
        adapted(params, recipe.lora)
        return paths
    for prefix in recipe.frozen:
        if not any(f"{path}/".startswith(f"{prefix}/") for path in paths):
            raise ConfigError(f"nothing to freeze in {prefix!r}; paths look like {paths[0]}")
    fixed = [path for path in paths if any(f"{path}/".startswith(f"{prefix}/") for prefix in recipe.frozen)]
    if len(fixed) == len(paths):
        raise ConfigError("everything is frozen: nothing is left to train")
    return fixed


def assemble(trained: Mapping[str, Any], frozen: Mapping[str, jax.Array], recipe: Recipe) -> Params:
    """The trees talker and code_predictor that `trained` and `frozen` stand for, in the dtypes of training."""
    if recipe.lora is None:
        leaves = {path: leaf for path, leaf in {**frozen, **trained}.items() if path.startswith(PARTS)}
        return unflatten_dict(leaves, sep="/")
    params = merge_adapters(unflatten_dict(dict(frozen), sep="/"), trained["lora"], recipe.lora)
    table = params["talker"]["codec_embedding"]["embedding"]
    rows = jnp.asarray(recipe.speaker_rows, jnp.int32)
    table = table.at[rows].set(trained["speakers"].astype(table.dtype))
    params["talker"] = params["talker"] | {"codec_embedding": {"embedding": table}}
    return params


def to_compute(params: Params, config: ModelConfig) -> Params:
    """Weights in the compute dtype. Tables that are only gathered stay: their rows are cast after the gather."""
    dtype = config.talker.transformer.dtype
    leaves = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: leaf if path.endswith("/embedding") else leaf.astype(dtype) for path, leaf in leaves.items()}, sep="/"
    )


def _value(
    trained: Mapping[str, Any],
    frozen: Mapping[str, jax.Array],
    recipe: Recipe,
    batch: Batch,
    frames: jax.Array,
    ends: jax.Array,
) -> tuple[jax.Array, LossParts]:
    params = to_compute(assemble(trained, frozen, recipe), recipe.model)
    parts = loss_parts(params, recipe.model, batch, remat=recipe.remat)
    return total(parts, frames, ends, recipe.loss), parts


def _helped_value(
    trained: Mapping[str, Any],
    frozen: Mapping[str, jax.Array],
    recipe: Recipe,
    batch: Batch,
    frames: jax.Array,
    ends: jax.Array,
    key: jax.Array,
    alignment_weight: jax.Array,
) -> tuple[jax.Array, tuple[LossParts, jax.Array]]:
    """`_value` with `recipe.regularization`, plus the alignment's losses, which are returned too, [2]."""
    model, hard = recipe.model, recipe.regularization or Regularization()
    params = to_compute(assemble(trained, frozen, recipe), model)
    corrupt_key, drop_key = jax.random.split(key)
    seen = corrupt(corrupt_key, batch.codes, model, hard)
    forced = teacher_force(
        params,
        model,
        batch.prompts,
        batch.codes,
        capture=() if recipe.alignment is None else recipe.alignment.paths(model),
        edit=(lambda path, output: drop_out(drop_key, path, output, hard.dropout)) if hard.dropout else None,
        remat=recipe.remat,
        seen=seen,
    )
    chosen = jnp.arange(batch.codes[..., 0].size) if seen.chosen is None else seen.chosen
    if seen.chosen is None:
        forced = forced.replace(code_logits=forced.code_logits.reshape(1, -1, *forced.code_logits.shape[2:]))
    parts = parts_of_some(forced, model, batch, chosen)
    value, aligned = total(parts, frames, ends, recipe.loss), jnp.zeros(2)
    if recipe.alignment is not None:
        alignment = recipe.alignment
        states, *queries_key = (forced.activations[path] for path in alignment.paths(model))

        def losses(states: jax.Array, *queries_key: jax.Array) -> jax.Array:
            read = alignment_loss(trained, model, alignment, batch, states)
            return jnp.stack([read, guide_loss(model, batch, *queries_key) if queries_key else jnp.zeros(())])

        aligned = jax.lax.cond(alignment_weight > 0, losses, lambda *_: jnp.zeros(2), states, *queries_key)
        value = value + alignment_weight * (aligned[0] + alignment.guide / alignment.weight * aligned[1])
    return value, (parts, aligned)


@partial(jax.jit, static_argnames=("recipe", "mesh"), donate_argnames="state")
def train_step(
    state: TrainState, frozen: dict[str, jax.Array], batches: Batch, recipe: Recipe, mesh: Mesh | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimizer.

    Args:
        state: donated.
        frozen: from `start`.
        batches: leaves [A, B, …]: the gradient is that of A batches as one.
        recipe: static.
        mesh: static; what `start` was given, so that the next state lies where this one does.

    Returns:
        The next state, and loss [], codes [Q] and end [] (mean cross entropies), gradient_norm [], learning_rate []
        and finite [] of the step, and alignment [] and guide [] where the recipe has them. If the loss or its
        gradient is not finite, the state is the old one.
    """
    frames, ends = jax.tree.map(jnp.sum, jax.vmap(count_targets)(batches))
    helped = recipe.regularization is not None or recipe.alignment is not None
    gradient_of = jax.value_and_grad(_helped_value if helped else _value, has_aux=True)
    count = batches.codes.shape[0]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(recipe.seed), state.step), count)
    weight = jnp.zeros(())
    if recipe.alignment is not None:
        weight = jnp.where(state.step < recipe.alignment.steps, recipe.alignment.weight / count, 0.0)

    def add(carry: Any, batch_key: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        batch, key = batch_key
        more = (key, weight) if helped else ()
        (value, aux), gradient = gradient_of(state.trained, frozen, recipe, batch, frames, ends, *more)
        parts, aligned = aux if helped else (aux, jnp.zeros(2))
        return jax.tree.map(jnp.add, carry, (value, parts, aligned, gradient)), None

    num_codebooks = batches.codes.shape[-1]
    nothing = LossParts(jnp.zeros(num_codebooks), jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    carry = (jnp.zeros(()), nothing, jnp.zeros(2), jax.tree.map(jnp.zeros_like, state.trained))
    (value, parts, aligned, gradient), _ = jax.lax.scan(add, carry, (batches, keys))
    updates, optimizer = recipe.optimizer.optimizer().update(gradient, state.optimizer, state.trained)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    trained = optax.apply_updates(state.trained, updates)
    average = moving_average(state.average, trained, state.step, recipe.average) if recipe.average else {}
    rate = recipe.optimizer.schedule()(state.step)
    state = if_finite(finite, TrainState(state.step + 1, trained, optimizer, average), state)
    metrics = {"loss": value, **parts.means(), "gradient_norm": norm, "learning_rate": rate, "finite": finite}
    if recipe.alignment is not None:
        metrics["alignment"] = aligned[0] / count
        if recipe.alignment.guide:
            metrics["guide"] = aligned[1] / count
    return held(state, mesh), metrics


@partial(jax.jit, static_argnames="recipe")
def evaluate(trained: dict[str, Any], frozen: dict[str, jax.Array], batch: Batch, recipe: Recipe) -> LossParts:
    """The sums of a batch [B, …], without a step."""
    frames, ends = count_targets(batch)
    return _value(trained, frozen, recipe, batch, frames, ends)[1]
