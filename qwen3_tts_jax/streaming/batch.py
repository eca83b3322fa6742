"""Many streams at once: requests join a batch whenever they come, and their chunks are made side by side.

On accelerators a frame of a batch takes little longer than that of one utterance, because the weights are read once.
Each stream has the codes that it would have alone with the same seed.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import (
    empty_batch_compiled,
    generate_stream,
    grow_compiled,
    insert_compiled,
    prefill_compiled,
    set_text_compiled,
    utterance_keys,
)
from qwen3_tts_jax.prompt import PromptPlan, Request, batch_plans, check_seed, check_whole, plan_prompt
from qwen3_tts_jax.sharding import place_batch, place_state, whole_rows
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.streaming.codes import cache_capacity, checked_schedule
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.streaming.text import SpokenText
from qwen3_tts_jax.synthesis import frame_limit, reference_codes
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import spoken_as, utterance_number


@dataclass(eq=False)
class _Stream:
    """A request and how far it has been spoken.

    Attributes:
        number: what the caller knows it by.
        seed: seeds its draws.
        reference: codes [R, Q] that the decoder hears first.
        parts: the utterances that are still to come, with their prompts.
        left: frames that the request may still make.
        place: index of the current utterance, −1 before the first.
        text: what follows that utterance's prompt.
        slots: cache slots that its prompt takes.
        frame: frames of it made so far, of at most `limit`.
        speaking: whether it has not ended yet.
        chunks: how many were begun.
        cut: whether a limit has cut any of it.
    """

    number: int
    seed: int
    reference: np.ndarray
    parts: deque[tuple[Request, PromptPlan]]
    left: float
    place: int = -1
    text: SpokenText = field(default_factory=lambda: SpokenText(()))
    slots: int = 0
    frame: int = 0
    limit: int = 0
    speaking: bool = False
    chunks: int = 0
    cut: bool = False

    @property
    def over(self) -> bool:
        """Whether all of it was spoken."""
        return not self.speaking and not self.parts

    def begin(self, text: SpokenText, *, slots: int, limit: int) -> None:
        """Goes on to the next utterance."""
        self.place += 1
        self.text, self.slots, self.frame, self.limit, self.speaking = text, slots, 0, limit, True

    def count(self, frames: int, *, ended: bool) -> None:
        """Accounts for frames that were made; `ended` says whether the model ended the utterance after them."""
        self.frame += frames
        self.left -= frames
        if ended or self.frame == self.limit:
            self.speaking = False
            self.cut |= not ended
        if self.left == 0 and self.parts:
            self.cut = True
            self.parts.clear()


class StreamBatch:
    """Streams that are spoken side by side; make one with `Qwen3TTS.stream_batch`.

    `add` and `cancel` may be called from any thread at any time; `step` from one only. `len` counts the streams that
    have not ended, including those that wait for a free row.
    """

    def __init__(
        self,
        params: dict[str, Any],
        config: ModelConfig,
        tokenizer: TextTokenizer,
        generation: GenerationConfig,
        *,
        batch_size: int,
        capacity: int,
        schedule: Sequence[int],
        voices: LastVoices,
    ):
        """See `Qwen3TTS.stream_batch`; `voices` keeps the decoder's states after references."""
        check_whole("batch_size", batch_size, least=1)
        check_whole("capacity", capacity, least=1)
        self._params, self._config, self._tokenizer, self._generation = params, config, tokenizer, generation
        self._schedule = checked_schedule(schedule)
        self._longest = max(self._schedule)
        self._numbers = itertools.count()
        self._open: dict[int, _Stream] = {}
        self._waiting: deque[_Stream] = deque()
        rows = whole_rows(params, operator.index(batch_size))
        self._rows: list[_Stream | None] = [None] * rows
        self._capacity = cache_capacity(operator.index(capacity))
        state = empty_batch_compiled(params, config, rows, self._capacity, self._longest)
        self._state = place_state(params, state)
        # The chunk that the device is making, and the streams that speak in it, by row.
        self._chunk: tuple[dict[int, _Stream], jax.Array] | None = None
        self._decoder = StreamDecoder(params["codec"]["decoder"], config.codec, rows, voices)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, request: Request, seed: int = 0) -> int:
        """Has a request spoken as soon as a row is free; returns its stream's number, which no other stream has.

        Args:
            request: what to say, in which voice, and for how long at most.
            seed: the same seed gives the codes that `Qwen3TTS.stream` gives this request.

        Raises:
            ValueError: a bad request or seed; the others go on.
            TypeError: `request` is not a `Request`.
        """
        if not isinstance(request, Request):
            raise TypeError(f"a stream needs a `Request`, got {request!r}")
        check_seed(seed)
        parts = spoken_as(request, self._tokenizer)
        plans = [plan_prompt(part, self._tokenizer, self._config) for part in parts]
        left = math.inf if request.max_frames is None else operator.index(request.max_frames)
        number, utterances = next(self._numbers), deque(zip(parts, plans, strict=True))
        stream = _Stream(number, seed, reference_codes(request, self._config), utterances, left)
        self._open[number] = stream
        self._waiting.append(stream)
        return number

    def cancel(self, number: int) -> None:
        """Ends a stream early, without a last chunk; does nothing if it has ended already."""
        self._open.pop(number, None)

    def step(self) -> list[tuple[int, Speech]]:
        """Makes the next chunk of every stream that has a row, and has the device begin the one after it.

        Returns:
            The number of each of these streams, and its chunk. A stream's last chunk has a finish_reason, and may have
            no samples. Empty if there is nothing to speak.
        """
        if self._chunk is None:
            self._begin()
        if self._chunk is None:
            return []
        rows, chunk = self._chunk
        chunk, ended = jax.device_get((chunk, self._state.ended))
        self._chunk = None
        codes = {row: chunk[row][chunk[row, :, 0] >= 0] for row in rows}
        for row, stream in rows.items():
            stream.count(len(codes[row]), ended=bool(ended[row]))
        over = [row for row, stream in rows.items() if stream.over]
        samples = self._decoder.decode(codes, over, meanwhile=self._begin)
        speeches = []
        for row, stream in rows.items():
            if stream.number not in self._open:
                continue  # It was cancelled.
            reason = ("length" if stream.cut else "stop") if stream.over else None
            if stream.over:
                self.cancel(stream.number)
            speeches.append((stream.number, Speech(samples[row], self._config.codec.sample_rate, codes[row], reason)))
        return speeches

    def _begin(self) -> None:
        """Gives free rows to waiting streams, and the device the next chunk if any stream speaks."""
        for row, stream in enumerate(self._rows):
            if stream is None or stream.over or stream.number not in self._open:
                stream = self._rows[row] = self._next()
                if stream is None:
                    continue
                self._decoder.hear(row, stream.reference)
            if not stream.speaking:
                self._read(row, stream)
        rows = {row: stream for row, stream in enumerate(self._rows) if stream is not None}
        if not rows:
            return
        if any(0 < stream.frame < len(stream.text.ids) for stream in rows.values()):
            pad = self._config.prompt.tts_pad
            windows = np.full((len(self._rows), self._longest), pad, np.int32)
            for row, stream in rows.items():
                windows[row] = stream.text.window(stream.frame, self._longest, pad)[0]
            windows = place_batch(self._params, windows)
            self._state = set_text_compiled(self._params, self._config, self._state, windows)
        self._make_room(max(stream.slots + stream.frame for stream in rows.values()))
        # The youngest stream decides: its first sound should not wait for a long chunk of the others.
        count = self._schedule[min(len(self._schedule) - 1, *(stream.chunks for stream in rows.values()))]
        for stream in rows.values():
            stream.chunks += 1
        self._state, chunk = generate_stream(
            self._params, self._config, self._generation, self._state, np.int32(count), self._longest
        )
        self._chunk = rows, chunk

    def _next(self) -> _Stream | None:
        """The first waiting stream that was not cancelled."""
        while self._waiting:
            stream = self._waiting.popleft()
            if stream.number in self._open:
                return stream
        return None

    def _read(self, row: int, stream: _Stream) -> None:
        """Puts the prompt of the stream's next utterance into a row of the batch."""
        part, plan = stream.parts.popleft()
        text = SpokenText(plan.trailing_text_ids.tolist())
        limit = min(frame_limit(part, plan, self._config), stream.left)
        stream.begin(text, slots=len(plan.text_ids), limit=limit)
        pad, length = self._config.prompt.tts_pad, bucket(stream.slots, PROMPT_BUCKET)
        self._make_room(length)
        plan = replace(plan, trailing_text_ids=text.window(0, self._longest, pad)[0])
        prompt = batch_plans([plan], tts_pad=pad, length=length)
        keys = utterance_keys(stream.seed, np.full(1, utterance_number(0, stream.place), np.int32))
        prompt, keys, limits = place_batch(self._params, (prompt, keys, np.full(1, limit, np.int32)))
        new = prefill_compiled(self._params, self._config, prompt, keys, limits, length)
        self._state = insert_compiled(self._state, np.full(1, row, np.int32), new)

    def _make_room(self, slots: int) -> None:
        """Grows the cache if it cannot hold the longest chunk after so many slots."""
        if slots + self._longest > self._capacity:
            self._capacity = cache_capacity(slots + self._longest)
            self._state = grow_compiled(self._state, self._capacity)
