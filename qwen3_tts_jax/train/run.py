"""Training a talker and its code predictor: the steps of `loop.run_steps`, over devices, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.train.batches import Batches
from qwen3_tts_jax.train.buckets import BucketedBatches
from qwen3_tts_jax.train.loop import Stepped, run_steps
from qwen3_tts_jax.train.loss import Batch, LossParts, total
from qwen3_tts_jax.train.progress import Schedule, plain
from qwen3_tts_jax.train.shards import place
from qwen3_tts_jax.train.step import Recipe, TrainState, assemble, evaluate, start, train_step

_SCHEDULE = Schedule()


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
        params: the trees talker and code_predictor: the best by validation where there was one, else the last.
        state: what they were assembled from.
        step: steps they have seen.
        loss: their validation loss, or the last training loss.
        ended_early: whether patience ran out.
    """

    params: Params
    state: TrainState
    step: int
    loss: float
    ended_early: bool


def fit(
    params: Params,
    recipe: Recipe,
    data: Batches | BucketedBatches,
    folder: str | Path,
    *,
    validation: Batches | BucketedBatches | None = None,
    schedule: Schedule = _SCHEDULE,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    speak: Callable[[Params, int], None] | None = None,
    mesh: Mesh | None = None,
    text_gap: bool = False,
) -> Result:
    """Trains for `recipe.optimizer.steps` steps, resuming where a run in `folder` was interrupted.

    Numbers go to `folder`/log.jsonl, one JSON object per line; checkpoints to `folder`/checkpoints. A resumed run has
    the same parameters, bit for bit, as one that was never interrupted.

    Args:
        params: the trees talker and code_predictor before training. Donated, see `step.start`. With a mesh, give them
            at their `shards.placement`: otherwise they lie whole on a device until they are spread.
        recipe: what is trained and how.
        data: to learn from.
        folder: of the run.
        validation: data to judge by; its best state is kept.
        schedule: what happens when.
        settings: more JSON values that a checkpoint must agree with.
        report: called with every line of the log.
        speak: called as speak(params, step) to write samples of speech.
        mesh: spreads the rows of every batch, and the numbers of large leaves, over its axis "data"
            (`sharding.make_mesh`): each device keeps a part of weights and moments (Rajbhandari et al. 2020,
            arXiv:1910.02054), and XLA decides whether weights or activations are exchanged.
        text_gap: evaluate validation data of two clips or more also with the texts of other clips. The log then says
            by how much the cross entropy of code 0 rises: 0 until the model listens to the text, which no loss shows.

    Raises:
        ValueError: a batch that the mesh's devices cannot share.
        DivergedError, interrupts.Interrupted, state_files.RunError: as `loop.run_steps`.
    """
    if mesh is not None:
        for batches in (data, validation or data):
            for rows in batches.row_counts:
                if rows % mesh.shape["data"]:
                    raise ValueError(
                        f"a batch of {rows} cannot be shared by data={mesh.shape['data']} devices: choose a multiple"
                    )
    state, frozen = start(params, recipe, data.seed, mesh)
    del params
    held_out = [] if validation is None else [place(batch, mesh) for batch in validation.in_order()]
    swapped = []
    if validation is not None and text_gap and len(validation.examples) > 1:
        swapped = [place(batch, mesh) for batch in validation.in_order(other_texts=True)]

    def advance(state: TrainState, step: int, batches: Batch) -> Stepped[TrainState]:
        state, metrics = train_step(state, frozen, place(batches, mesh, axis=1), recipe, mesh)
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batches))
        return Stepped(state, metrics, int(np.sum(batches.codes[..., 0] >= 0)), shapes)

    def names(step: int) -> str:
        return ", ".join(dict.fromkeys(each.line.where for each in data.of_step(step)[1]))

    def parts_of(state: TrainState, batches: list[Batch]) -> LossParts:
        return _sum([evaluate(state.kept, frozen, batch, recipe) for batch in batches])

    def judge(state: TrainState) -> tuple[dict[str, Any], float]:
        parts = parts_of(state, held_out)
        value = float(total(parts, parts.frames, parts.ends, recipe.loss))
        numbers = {"validation_loss": value, **plain(jax.device_get(parts.means()), "validation_")}
        if swapped:
            other = parts_of(state, swapped)
            numbers["text_gap"] = float(other.means()["codes"][0] - parts.means()["codes"][0])
        return numbers, value

    ended = run_steps(
        state,
        lambda step: data.of_step(step)[0],
        advance,
        folder,
        describe(recipe) | data.describe() | {"utterances": len(data.examples)} | dict(settings or {}),
        recipe.optimizer.steps,
        names=names,
        unit="frames",
        judge=judge if held_out else None,
        speak=speak and (lambda state, step: speak(assemble(state.kept, frozen, recipe), step)),
        schedule=schedule,
        report=report,
    )
    return Result(assemble(ended.state.kept, frozen, recipe), ended.state, ended.step, ended.value, ended.early)


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint of a run must agree with, as JSON values; `fit` adds what determines its batches."""
    model = recipe.model
    described = {
        "speakers": dict(model.prompt.speakers),
        **{f"model's {each.name}": repr(getattr(model, each.name)) for each in fields(model)},
        "loss": asdict(recipe.loss),
        "optimizer": asdict(recipe.optimizer),
        "frozen": list(recipe.frozen),
        "speaker_rows": list(recipe.speaker_rows),
        "average": recipe.average,
    }
    for name in ("lora", "regularization", "alignment"):
        part = getattr(recipe, name)
        described[name] = None if part is None else asdict(part)
    return described


def _sum(parts: list[LossParts]) -> LossParts:
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)
