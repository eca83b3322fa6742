"""AdamW or Muon, their schedule, gradient clipping, averages of weights, and the skipping of non-finite steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from qwen3_tts_jax.config import ConfigError

_RMS = 0.2  # of Muon's steps; AdamW's are about that


Tree = TypeVar("Tree")

IsMatrix = Callable[[str, jax.Array], bool]
"""is_matrix(path, leaf): whether Muon learns the leaf."""


def of_transformer(path: str, leaf: jax.Array) -> bool:
    """Matrices of a transformer's layers, [*outputs, in]."""
    return "/transformer/layers_" in path and path.endswith("/weight")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with a linear warm-up and cosine decay to the end.

    Or Muon (Jordan et al. 2024) for matrices, scaled to AdamW's steps so that one learning rate serves both (Liu et al.
    2025, arXiv:2502.16982), and AdamW with Nesterov momentum for all else.

    Attributes:
        learning_rate: the highest, after the warm-up.
        steps: of the whole run; the cosine ends there.
        warmup_steps: in which the rate rises to `learning_rate`, in equal steps.
        final_rate: the last learning rate, as a part of the highest.
        weight_decay: of weights and kernels; not of embeddings, norms and biases.
        betas: of the means of gradients and of their squares.
        clip: the largest norm of the gradient over all leaves.
        kind: which of the two.
    """

    learning_rate: float = 2e-5
    steps: int = 1000
    warmup_steps: int = 50
    final_rate: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    kind: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"the learning rate must be above 0, got {self.learning_rate}")
        if self.steps < 1:
            raise ConfigError(f"the number of steps must be at least 1, got {self.steps}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"the warm-up must be 0 … {self.steps - 1} of {self.steps} steps, got {self.warmup_steps}"
            )
        if not self.clip > 0:
            raise ConfigError(f"the gradient's largest norm must be above 0, got {self.clip}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"the weight decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.final_rate <= 1:
            raise ConfigError(f"the last learning rate must be a part of the highest, got {self.final_rate}")

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        rate = self.learning_rate
        cosine = optax.cosine_decay_schedule(rate, self.steps - self.warmup_steps, self.final_rate)
        if self.warmup_steps == 0:
            return cosine
        warm = optax.linear_schedule(rate / self.warmup_steps, rate, self.warmup_steps - 1 or 1)
        return optax.join_schedules([warm, cosine], [self.warmup_steps])

    def optimizer(self, is_matrix: IsMatrix = of_transformer) -> optax.GradientTransformation:
        """Clipping and AdamW or Muon, with moments in float32.

        Args:
            is_matrix: which leaves Muon takes, as matrices of all axes but the last by the last; in a single row or
                column it has nothing to make orthogonal.
        """
        moments = jnp.float32
        if self.kind == "muon":
            # Its own decay has no mask for what AdamW learns. With a learning rate of -1 it gives directions, as
            # `scale_by_adam` does. Its products have JAX's default precision: bfloat16 is enough for them.
            directions = optax.contrib.muon(
                -1.0, mu_dtype=moments, adam_b1=self.betas[0], adam_b2=self.betas[1], consistent_rms=_RMS,
                muon_weight_dimension_numbers=partial(jax.tree_util.tree_map_with_path, partial(_axes, is_matrix)),
            )  # fmt: skip
        else:
            directions = optax.scale_by_adam(*self.betas, mu_dtype=moments)
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            directions,
            optax.add_decayed_weights(self.weight_decay, _decayed),
            optax.scale_by_learning_rate(self.schedule()),
        )


def moving_average(average: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    """The average updated with the `new` weights, after `step` earlier steps."""
    # It follows faster at first, so that it soon forgets where it started.
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, new)


def if_finite(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """The state after a step, or the one before where the step's loss or gradient was not `finite`, bool []."""
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)


def _leaf_name(path: tuple) -> str:
    return str(getattr(path[-1], "key", ""))


def _decayed(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _leaf_name(path).rsplit("/", 1)[-1] in ("weight", "kernel", "a", "b"), tree
    )


def _axes(is_matrix: IsMatrix, path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
    if not is_matrix(_leaf_name(path), leaf):
        return None
    # Which side is reduced does not matter: orthogonality and the scale of steps are the same either way.
    return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))
