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

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.train.lora import LoraConfig, adapted, init_adapters, merge_adapters
from qwen3_tts_jax.train.loss import Batch, LossConfig, LossParts, count_targets, loss_parts, total

PARTS = ("talker", "code_predictor")
_SPEAKERS = "talker/codec_embedding/embedding"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with a linear warm-up and a cosine to the end.

    Attributes:
        learning_rate: the highest, after the warm-up.
        steps: of the whole run; the cosine ends there.
        warmup_steps: from 0 to `learning_rate`.
        final_rate: the last learning rate, as a part of the highest.
        weight_decay: of weights and kernels; not of embeddings, norms and biases.
        betas: of the means of gradients and of their squares.
        clip: the largest norm of the gradient over all leaves.
    """

    learning_rate: float = 2e-5
    steps: int = 1000
    warmup_steps: int = 50
    final_rate: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"the learning rate must be above 0, got {self.learning_rate}")
        if self.steps < 1:
            raise ConfigError(f"the number of steps must be at least 1, got {self.steps}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"the warm-up must be 0 … {self.steps - 1} of {self.steps} steps, got {self.warmup_steps}"
            )
        if self.clip <= 0:
            raise ConfigError(f"the gradient's largest norm must be above 0, got {self.clip}")

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        rate = self.learning_rate
        cosine = optax.cosine_decay_schedule(rate, self.steps - self.warmup_steps, self.final_rate)
        if self.warmup_steps == 0:
            return cosine
        warm = optax.linear_schedule(rate / self.warmup_steps, rate, self.warmup_steps - 1 or 1)
        return optax.join_schedules([warm, cosine], [self.warmup_steps])

    def optimizer(self) -> optax.GradientTransformation:
        """Clipping and AdamW, with moments in float32."""
        adam = optax.adamw(
            self.schedule(), *self.betas, weight_decay=self.weight_decay, mask=_decayed, mu_dtype=jnp.float32
        )
        return optax.chain(optax.clip_by_global_norm(self.clip), adam)


def _decayed(tree: Any) -> Any:
    def of_path(path: tuple, _: Any) -> bool:
        return str(getattr(path[-1], "key", "")).rsplit("/", 1)[-1] in ("weight", "kernel", "a", "b")

    return jax.tree_util.tree_map_with_path(of_path, tree)


@dataclass(frozen=True)
class Recipe:
    """All that the compiled step must know; hashable.

    Attributes:
        model: whose compute dtype the step computes in; what is trained is kept in float32.
        loss: weights of its parts.
        optimizer: see there.
        lora: train adapters, and the rows of `speaker_rows`; None trains the weights themselves.
        frozen: starts of paths that are not trained ("talker/text_embedding"), where `lora` is None.
        speaker_rows: rows of the codec embedding, of new speakers, that a LoRA run trains too.
        remat: compute activations again in the backward pass; slower by a third, far less memory.
    """

    model: ModelConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    frozen: tuple[str, ...] = ()
    speaker_rows: tuple[int, ...] = ()
    remat: bool = True


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: int32 [], steps done.
        trained: {path: float32 leaf}, or {"lora": adapters, "speakers": [n, D]}.
        optimizer: optax's state.
    """

    step: jax.Array
    trained: dict[str, Any]
    optimizer: optax.OptState


def start(params: Params, recipe: Recipe, seed: int = 0) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state before the first step, and the leaves {path: leaf} that stay as they are.

    Args:
        params: with the trees talker and code_predictor; others are left out.
        recipe: see there.
        seed: of the adapters.

    Raises:
        ConfigError, lora.LoraError: as `frozen_paths`.
    """
    params = {part: params[part] for part in PARTS}
    leaves = flatten_dict(params, sep="/")
    fixed = frozen_paths(params, recipe)
    if recipe.lora is None:
        # Copies, for the step gives the state's buffers away.
        trained: dict[str, Any] = {
            path: jnp.array(leaf, jnp.float32) for path, leaf in leaves.items() if path not in fixed
        }
        frozen = {path: leaves[path] for path in fixed}
    else:
        speakers = leaves[_SPEAKERS][jnp.asarray(recipe.speaker_rows, jnp.int32)].astype(jnp.float32)
        trained = {"lora": init_adapters(jax.random.key(seed), params, recipe.lora), "speakers": speakers}
        frozen = dict(leaves)
    return TrainState(jnp.zeros((), jnp.int32), trained, recipe.optimizer.optimizer().init(trained)), frozen


def frozen_paths(params: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Leaves that stay as they are; `params` may be shapes alone.

    Raises:
        ConfigError: `frozen` names a path that does not exist, or leaves nothing to train.
        lora.LoraError: the adapters' `modules` do.
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
        return unflatten_dict({**frozen, **trained}, sep="/")
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


@partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def train_step(
    state: TrainState, frozen: dict[str, jax.Array], batches: Batch, recipe: Recipe
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimizer.

    Args:
        state: given away.
        frozen: of `start`.
        batches: leaves [A, B, …]: the gradient is that of A batches as one.
        recipe: static.

    Returns:
        The next state, and loss [], codes [Q] and end [] (mean cross entropies), gradient_norm [],
        learning_rate [] and finite [] of the step. Where loss or gradient are not finite the state is the old one.
    """
    frames, ends = jax.tree.map(jnp.sum, jax.vmap(count_targets)(batches))
    gradient_of = jax.value_and_grad(_value, has_aux=True)

    def add(carry: Any, batch: Batch) -> tuple[Any, None]:
        (value, parts), gradient = gradient_of(state.trained, frozen, recipe, batch, frames, ends)
        return jax.tree.map(jnp.add, carry, (value, parts, gradient)), None

    num_codebooks = batches.codes.shape[-1]
    nothing = LossParts(jnp.zeros(num_codebooks), jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    carry = (jnp.zeros(()), nothing, jax.tree.map(jnp.zeros_like, state.trained))
    (value, parts, gradient), _ = jax.lax.scan(add, carry, batches)
    updates, optimizer = recipe.optimizer.optimizer().update(gradient, state.optimizer, state.trained)
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(gradient)))
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    new = TrainState(state.step + 1, optax.apply_updates(state.trained, updates), optimizer)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    rate = recipe.optimizer.schedule()(state.step - finite)
    return state, {"loss": value, **parts.means(), "gradient_norm": norm, "learning_rate": rate, "finite": finite}


@partial(jax.jit, static_argnames="recipe")
def evaluate(trained: dict[str, Any], frozen: dict[str, jax.Array], batch: Batch, recipe: Recipe) -> LossParts:
    """The sums of a batch [B, …], without a step."""
    frames, ends = count_targets(batch)
    return _value(trained, frozen, recipe, batch, frames, ends)[1]
