"""Batches of about equal duration: clips of similar length together, in a few shapes that each compile once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.prompt import PromptPlan, TextMode, Tokenizer, batch_plans
from qwen3_tts_jax.train.batches import places_of, with_other_texts
from qwen3_tts_jax.train.examples import Example
from qwen3_tts_jax.train.loss import Batch

_MULTIPLE = 8


@dataclass(frozen=True)
class _Bucket:
    """Examples that share a shape: `rows` of them, prompts of `prompt` and `trailing` ids, `frames` frames."""

    members: tuple[int, ...]
    rows: int
    prompt: int
    trailing: int
    frames: int


@dataclass(frozen=True, eq=False)
class BucketedBatches:
    """Batches of examples, with the interface of `batches.Batches`: a function of the step alone.

    The examples are split by length into buckets of about equal duration, each with one batch shape. Every epoch
    shuffles the buckets' turns; a bucket goes through its examples again and again, each time in another order.

    Attributes:
        examples: all there are.
        tokenizer: the model's.
        config: of the model being trained, new speakers included.
        batch_frames: the most frames of a batch, padding included; a longer clip has one of its own.
        accumulate: batches per step, all of one shape.
        text_modes: how the text is read, taken in turn.
        seed: of the order.
        count: the most buckets.
        multiple: what the rows of a batch are a multiple of, for devices that share them.
    """

    examples: Sequence[Example]
    tokenizer: Tokenizer
    config: ModelConfig
    batch_frames: int
    accumulate: int = 1
    text_modes: tuple[TextMode, ...] = ("all_at_once",)
    seed: int = 0
    count: int = 6
    multiple: int = 1
    _buckets: list[_Bucket] = field(init=False, repr=False)
    _turns: list[int] = field(init=False, repr=False)
    _has_durations: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_frames < 1 or self.count < 1:
            raise ConfigError(
                f"batches need at least one frame and one bucket, got {self.batch_frames} and {self.count}"
            )
        object.__setattr__(self, "_buckets", self._make_buckets())
        turns = [max(1, round(len(each.members) / (each.rows * self.accumulate))) for each in self._buckets]
        object.__setattr__(self, "_turns", turns)
        has_durations = any(each.line.durations is not None for each in self.examples)
        object.__setattr__(self, "_has_durations", has_durations)

    @property
    def row_counts(self) -> set[int]:
        """The numbers of rows that batches may have."""
        return {each.rows for each in self._buckets}

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example comes up about once."""
        return sum(self._turns)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Rows, prompt positions and frames of the batches, shortest first."""
        return [(each.rows, each.prompt, each.frames) for each in self._buckets]

    def describe(self) -> dict[str, Any]:
        """What determines the batches, as JSON values."""
        shape = [self.batch_frames, self.count, self.multiple]
        return {"batch": [*shape, self.accumulate, list(self.text_modes), self.seed]}

    def of_step(self, step: int) -> tuple[Batch, list[Example]]:
        """The batches [A, B, …] of a step, and their examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        turns = np.repeat(np.arange(len(self._buckets)), self._turns)
        order = np.random.default_rng([self.seed, epoch]).permutation(turns)
        number = int(order[place])
        bucket = self._buckets[number]
        earlier = epoch * self._turns[number] + int(np.sum(order[:place] == number))
        rows = bucket.rows * self.accumulate
        # Of each index into the bucket's endless list, the round and the place in it.
        chosen = [divmod(index, len(bucket.members)) for index in range(earlier * rows, (earlier + 1) * rows)]
        orders = {around: self._order(number, around) for around in {around for around, _ in chosen}}
        picked = [(bucket.members[orders[around][place]], around) for around, place in chosen]
        examples = [self.examples[index] for index, _ in picked]
        batch = self._batch(bucket, examples, [sum(pair) for pair in picked])
        batch = jax.tree.map(lambda leaf: leaf.reshape(self.accumulate, bucket.rows, *leaf.shape[1:]), batch)
        return batch, examples

    def in_order(self, *, other_texts: bool = False) -> list[Batch]:
        """All examples once, from short to long, in batches [B, …]; see `Batches.in_order`."""
        batches = []
        order = [index for bucket in self._buckets for index in bucket.members]
        ordered = [self.examples[index] for index in order]
        if other_texts:
            # Over all buckets: a clip that is alone in its bucket has no other text there.
            ordered = with_other_texts(ordered)
        example_of = dict(zip(order, ordered, strict=True))
        for bucket in self._buckets:
            examples = [example_of[index] for index in bucket.members]
            for first in range(0, len(examples), bucket.rows):
                part, turns = (each[first : first + bucket.rows] for each in (examples, bucket.members))
                empty = replace(part[0], codes=part[0].codes[:0])
                missing = bucket.rows - len(part)
                batches.append(self._batch(bucket, part + [empty] * missing, [*turns, *[0] * missing]))
        return batches

    def _order(self, number: int, around: int) -> np.ndarray:
        members = self._buckets[number].members
        return np.random.default_rng([self.seed, 1 + number, around]).permutation(len(members))

    def _plan(self, example: Example, turn: int) -> PromptPlan:
        return example.plan(self.tokenizer, self.config, self.text_modes[turn % len(self.text_modes)])

    def _make_buckets(self) -> list[_Bucket]:
        lengths = np.array([len(each.codes) for each in self.examples])
        order = np.argsort(lengths, kind="stable")
        # Cut where the running sum of frames passes equal shares of the total.
        shares = np.cumsum(lengths[order]) - lengths[order] / 2
        cuts = np.minimum(shares * self.count // max(lengths.sum(), 1), self.count - 1)
        buckets = []
        for cut in np.unique(cuts):
            members = order[cuts == cut]
            frames = _rounded(lengths[members].max())
            rows = max(1, self.batch_frames // frames // self.multiple) * self.multiple
            plans = [self._plan(self.examples[i], turn) for i in members for turn in range(len(self.text_modes))]
            prompt = _rounded(max(len(plan.text_ids) for plan in plans))
            trailing = _rounded(max(len(plan.trailing_text_ids) for plan in plans))
            buckets.append(_Bucket(tuple(map(int, members)), rows, prompt, trailing, frames))
        return buckets

    def _batch(self, bucket: _Bucket, examples: Sequence[Example], turns: Sequence[int]) -> Batch:
        plans = [self._plan(each, turn) for each, turn in zip(examples, turns, strict=True)]
        # Longer than the bucket's own only where texts were swapped.
        prompts = batch_plans(
            plans,
            tts_pad=self.config.prompt.tts_pad,
            length=max(bucket.prompt, _rounded(max(len(plan.text_ids) for plan in plans))),
            trailing_length=max(bucket.trailing, _rounded(max(len(plan.trailing_text_ids) for plan in plans))),
        )
        codes = np.full((len(examples), bucket.frames, self.config.talker.num_codebooks), -1, np.int32)
        for row, each in enumerate(examples):
            codes[row, : len(each.codes)] = each.codes
        places = places_of(examples, bucket.frames) if self._has_durations else None
        return Batch(prompts, codes, np.ones(len(examples), bool), places)


def _rounded(length: int) -> int:
    return -(-int(length) // _MULTIPLE) * _MULTIPLE
