"""Examples → batches, determined by the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.buckets import bucket
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.prompt import TextMode, Tokenizer, batch_plans
from qwen3_tts_jax.train.examples import Example
from qwen3_tts_jax.train.loss import Batch

_PROMPT_BUCKET, _FRAME_BUCKET = 32, 16


def with_other_texts(examples: Sequence[Example]) -> list[Example]:
    """The same speech, each clip with the text of the one before it."""
    texts = [each.line.text for each in examples]
    return [
        replace(each, line=replace(each.line, text=text, durations=None))
        for each, text in zip(examples, [texts[-1], *texts[:-1]], strict=True)
    ]


def places_of(examples: Sequence[Example], frames: int) -> np.ndarray:
    """`Batch.places` from the examples' durations."""
    places = np.full((len(examples), frames), -1, np.int32)
    for row, each in enumerate(examples):
        durations = each.line.durations
        if durations is not None and len(each.codes):
            places[row, : len(each.codes)] = np.repeat(np.arange(len(durations)), durations)
    return places


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of examples: a function of the step alone, so that a resumed run sees the same data.

    Attributes:
        examples: all there are; every epoch has its own order.
        tokenizer: the model's.
        config: of the model being trained, new speakers included.
        batch_size: rows of a batch, over all devices.
        accumulate: batches per step.
        text_modes: how the text is read, taken in turn.
        seed: of the order.
    """

    examples: Sequence[Example]
    tokenizer: Tokenizer
    config: ModelConfig
    batch_size: int = 8
    accumulate: int = 1
    text_modes: tuple[TextMode, ...] = ("all_at_once",)
    seed: int = 0

    @property
    def row_counts(self) -> set[int]:
        """The numbers of rows that batches may have."""
        return {self.batch_size}

    def describe(self) -> dict[str, Any]:
        """What determines the batches, as JSON values."""
        return {"batch": [self.batch_size, self.accumulate, list(self.text_modes), self.seed]}

    def of_step(self, step: int) -> tuple[Batch, list[Example]]:
        """The batches [A, B, …] of a step, and their examples."""
        rows = self.batch_size * self.accumulate
        chosen = [divmod(number, len(self.examples)) for number in range(step * rows, (step + 1) * rows)]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in chosen}}
        picked = [(orders[epoch][place], epoch) for epoch, place in chosen]
        batch = self.batch([self.examples[index] for index, _ in picked], [sum(pair) for pair in picked])
        batch = jax.tree.map(lambda leaf: leaf.reshape(self.accumulate, self.batch_size, *leaf.shape[1:]), batch)
        return batch, [self.examples[index] for index, _ in picked]

    def in_order(self, *, other_texts: bool = False) -> list[Batch]:
        """All examples once, in batches [B, …]; rows that pad the last one have no frames.

        With `other_texts` each has the text of the one before it.
        """
        batches = []
        examples = with_other_texts(self.examples) if other_texts else list(self.examples)
        for first in range(0, len(examples), self.batch_size):
            part = examples[first : first + self.batch_size]
            nothing = replace(part[0], codes=part[0].codes[:0])
            filled = part + [nothing] * (self.batch_size - len(part))
            batches.append(self.batch(filled, range(first, first + self.batch_size)))
        return batches

    def batch(self, examples: Sequence[Example], turns: Sequence[int]) -> Batch:
        """One batch [B, …], padded to bucketed lengths; `turns` choose the text modes."""
        plans = [
            each.plan(self.tokenizer, self.config, self.text_modes[turn % len(self.text_modes)])
            for each, turn in zip(examples, turns, strict=True)
        ]
        prompts = batch_plans(
            plans,
            tts_pad=self.config.prompt.tts_pad,
            length=bucket(max(len(plan.text_ids) for plan in plans), _PROMPT_BUCKET),
            trailing_length=bucket(max(len(plan.trailing_text_ids) for plan in plans), _PROMPT_BUCKET),
        )
        frames = bucket(max(len(each.codes) for each in examples), _FRAME_BUCKET)
        codes = np.full((len(examples), frames, self.config.talker.num_codebooks), -1, np.int32)
        for row, each in enumerate(examples):
            codes[row, : len(each.codes)] = each.codes
        return Batch(prompts, codes, np.ones(len(examples), bool))

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
