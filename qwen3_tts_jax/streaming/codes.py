"""One prompt → its codes, chunk by chunk.

One compiled program makes chunks of any length; the text reaches the talker through a window of fixed length, so that a
long text, or one that is still being written, needs no other program.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.decode_state import grow_compiled
from qwen3_tts_jax.generate import generate_stream, prefill_compiled, set_text_compiled, utterance_keys
from qwen3_tts_jax.prompt import PromptPlan, batch_plans, check_whole
from qwen3_tts_jax.speech import FinishReason
from qwen3_tts_jax.streaming.text import SpokenText
from qwen3_tts_jax.utterances import FRAMES_PER_TOKEN

CHUNK_FRAMES = (1, 2, 4, 8)
"""Frames of the first chunk, the second, …, and of all that follow: one (80 ms in the published models) for an early
first sound, then ever fewer interruptions."""

# Frames that the cache has room for at first, where the text is still arriving (144 s); otherwise the prompt's
# tokens decide. A cache that grows later interrupts the speech until a larger program is compiled.
_FRAMES_OF_OPEN_TEXT = 1800
_MIN_CAPACITY = 512


def checked_schedule(schedule: Sequence[int]) -> tuple[int, ...]:
    """The frames of each chunk, as Python's own numbers.

    Raises:
        ValueError: there are none, or one is no whole number of at least 1.
    """
    for frames in schedule:
        check_whole("a chunk of the schedule", frames)
    sizes = tuple(map(operator.index, schedule))
    if min(sizes, default=0) < 1:
        raise ValueError(f"schedule must be numbers of frames of at least 1, got {list(sizes)}")
    return sizes


class StreamedCodes:
    """One prompt spoken into codes, chunk by chunk.

    Iterating yields the codes int32 [T, Q] of a chunk and None or, with the last chunk (T may be 0), why it ended.
    `begin` has the device make the next chunk while the caller is busy with the one before.
    """

    def __init__(
        self,
        params: dict[str, Any],
        config: ModelConfig,
        generation: GenerationConfig,
        plan: PromptPlan,
        text: SpokenText,
        *,
        frame_limit: int,
        seed: int,
        schedule: Sequence[int],
        utterance: int = 0,
    ):
        """Reads the prompt.

        Args:
            params: the trees `talker` and `code_predictor`.
            config: the model's.
            generation: how codes are drawn.
            plan: the prompt; its trailing text is not used.
            text: what follows the prompt's text.
            frame_limit: the most frames.
            seed: seeds the draws, as in a batch, together with the utterance's number.
            schedule: frames of each chunk; the last entry is repeated. A chunk is shorter where the text or
                the speech ends, or where the text has not arrived.
            utterance: its number, 0 … 2³¹ − 1.
        """
        self._params, self._config, self._generation = params, config, generation
        self._text, self._frame_limit, self._longest = text, frame_limit, max(schedule)
        self._sizes = chain(schedule, repeat(schedule[-1]))
        self._slots = bucket(len(plan.text_ids), PROMPT_BUCKET)
        self._capacity = first_capacity(plan, text, frame_limit, self._longest)
        self._text_at_start, self._frame = len(text.ids), 0
        self._size: int | None = None
        self._chunk: jax.Array | None = None
        self._reason: FinishReason | None = None

        pad = config.prompt.tts_pad
        plan = replace(plan, trailing_text_ids=text.window(0, self._longest, pad)[0])
        prompt = batch_plans([plan], tts_pad=pad, length=self._slots)
        keys, limits = utterance_keys(seed, np.full(1, utterance, np.int32)), np.full(1, frame_limit, np.int32)
        self._state = prefill_compiled(params, config, prompt, keys, limits, self._capacity)

    def __iter__(self) -> Iterator[tuple[np.ndarray, FinishReason | None]]:
        while self._reason is None:
            if self._chunk is None:
                self._dispatch(self._text.covered(self._frame, self._wanted()))
            chunk, ended = jax.device_get((self._chunk, self._state.ended))
            self._chunk = None
            codes = chunk[0][chunk[0, :, 0] >= 0]
            self._frame += len(codes)
            if ended[0]:
                self._reason = "stop"
            elif self._frame == self._frame_limit:
                self._reason = "length"
            yield codes, self._reason

    def begin(self) -> None:
        """Starts the next chunk, if there is one, its text is at hand and the cache has room for it."""
        if self._chunk is not None or self._reason is not None:
            return
        count = self._wanted()
        # A larger cache is another program, and the chunk in the caller's hands should not wait for it to compile.
        if self._text.has(self._frame, count) and self._slots + self._frame + count <= self._capacity:
            self._dispatch(count)

    def _wanted(self) -> int:
        """Frames of the next chunk if all have their text."""
        if self._size is None:
            self._size = next(self._sizes)
        return min(self._size, self._frame_limit - self._frame)

    def _dispatch(self, count: int) -> None:
        params, config, text, frame = self._params, self._config, self._text, self._frame
        if text.has_new(frame, self._text_at_start):
            window = text.window(frame, self._longest, config.prompt.tts_pad)
            self._state = set_text_compiled(params, config, self._state, window)
        needed = self._slots + frame + count
        if needed > self._capacity:
            self._capacity = cache_capacity(needed)
            self._state = grow_compiled(self._state, self._capacity)
        self._state, self._chunk = generate_stream(
            params, config, self._generation, self._state, np.int32(count), self._longest
        )
        self._size = None


def first_capacity(plan: PromptPlan, text: SpokenText, frame_limit: int, longest: int) -> int:
    """Slots of the cache that a stream starts with: its prompt's, one for each expected frame, and a chunk's.

    The arguments are those of `StreamedCodes`; `longest` is the frames of its longest chunk.
    """
    expected = FRAMES_PER_TOKEN * (len(plan.text_ids) + len(text.ids)) if text.complete else _FRAMES_OF_OPEN_TEXT
    return cache_capacity(bucket(len(plan.text_ids), PROMPT_BUCKET) + min(frame_limit, expected) + longest)


def cache_capacity(slots: int) -> int:
    """Slots of a stream's cache that is to have at least `slots`: a power of two, so that programs are few."""
    return max(_MIN_CAPACITY, 1 << (slots - 1).bit_length())
