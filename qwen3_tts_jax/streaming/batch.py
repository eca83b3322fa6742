"""Many streams at once: requests join a batch whenever they come, and their chunks are made side by side.

On accelerators a frame of a batch takes little longer than that of one utterance, because the weights are read once.
Each stream has the codes that it would have alone with the same seed. One whose text has not arrived waits, and the
others go on.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.decode_state import grow_compiled, insert_compiled
from qwen3_tts_jax.generate import (
    empty_batch_compiled,
    generate_stream,
    prefill_compiled,
    set_text_compiled,
    utterance_keys,
)
from qwen3_tts_jax.prompt import Request, batch_plans, check_seed, check_whole
from qwen3_tts_jax.sharding import mesh_of, place_batch, whole_rows
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.streaming.codes import cache_capacity, checked_schedule
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.streaming.member import Arrivals, Member, read_text
from qwen3_tts_jax.streaming.utterances import planned
from qwen3_tts_jax.synthesis import frame_limit, reference_codes
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import utterance_number


class StreamError(RuntimeError):
    """A stream whose text could not be read to its end; `__cause__` says why.

    Attributes:
        number: of the stream.
    """

    def __init__(self, number: int):
        super().__init__(f"the text of stream {number} could not be read to its end")
        self.number = number


class StreamBatch:
    """Streams that are spoken side by side; make one with `Qwen3TTS.stream_batch`.

    `add` and `cancel` may be called from any thread at any time; `step` from one only. `len` counts the streams that
    have not ended, including those that wait for a free row or for their text.
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
        self._open: dict[int, Member] = {}
        self._arrivals = Arrivals()
        rows = whole_rows(params, operator.index(batch_size))
        self._rows: list[Member | None] = [None] * rows
        self._capacity = cache_capacity(operator.index(capacity))
        self._state = empty_batch_compiled(params, config, rows, self._capacity, self._longest, mesh_of(params))
        # The chunk that the device is making, and the streams that speak in it, by row.
        self._chunk: tuple[dict[int, Member], jax.Array] | None = None
        # Last chunks without samples, of streams whose text turned out to have ended.
        self._ended: list[tuple[int, Speech]] = []
        self._decoder = StreamDecoder(params["codec"]["decoder"], config.codec, rows, voices)
        # Threads that read texts hold nothing of the batch, and stop when it is dropped.
        weakref.finalize(self, _cancel_all, self._open)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, request: Request, seed: int = 0, *, pieces: Iterable[str] | None = None) -> int:
        """Has a request spoken as soon as a row is free; returns its stream's number, which no other stream has.

        Args:
            request: what to say, in which voice, and for how long at most.
            seed: the same seed gives the codes that `Qwen3TTS.stream` gives this request.
            pieces: the text after `request.text`, which may then be empty, as it arrives; needs the text mode
                "as_it_comes". A thread reads it, and closes a generator once the stream has ended and it gives its
                next piece. A stream that waits for its text keeps its row.

        Raises:
            ValueError: a bad request or seed; the others go on.
            TypeError: `request` is not a `Request`.
        """
        if not isinstance(request, Request):
            raise TypeError(f"a stream needs a `Request`, got {request!r}")
        check_seed(seed)
        member = Member(next(self._numbers), seed)
        source = None if pieces is None else member.while_open(pieces)
        utterances = planned(request, source, self._tokenizer, self._config)
        if request.max_frames is not None:
            member.frames_left = operator.index(request.max_frames)
        member.reference = reference_codes(request, self._config)
        if pieces is None:
            member.utterances.extend(utterances)
            member.text_ended = True
        else:
            read_text(member, utterances, pieces, self._arrivals)
        self._open[member.number] = member
        self._arrivals.note()
        return member.number

    def cancel(self, number: int) -> None:
        """Ends a stream early, without a last chunk; does nothing if it has ended already."""
        member = self._open.pop(number, None)
        if member is not None:
            member.cancelled = True
            self._arrivals.note()

    def step(self) -> list[tuple[int, Speech]]:
        """Makes the next chunk of every stream that has a row and text, and has the device begin the one after it.

        If all streams that have a row wait for their text, so does this: that text must come from another thread.

        Returns:
            The number of each of these streams, and its chunk. A stream's last chunk has a finish_reason, and may have
            no samples; it may come in the same step as the one before it. Empty if there is nothing to speak.

        Raises:
            StreamError: the text of one stream, which has ended now, could not be read, turned out to be empty or too
                long for the model, or has nothing to say; what came before was spoken. The others go on at the next
                step.
        """
        while True:
            come = self._arrivals.count
            self._raise_failed()
            if self._chunk is None:
                self._begin()
            if self._chunk is not None or self._ended or not self._open:
                break
            self._arrivals.wait(come)
        speeches = [] if self._chunk is None else self._chunk_spoken(*self._chunk)
        ended, self._ended = self._ended, []
        return speeches + ended

    def _raise_failed(self) -> None:
        for member in list(self._open.values()):
            if member.failed:
                self.cancel(member.number)
                raise StreamError(member.number) from member.error

    def _chunk_spoken(self, speaking: Mapping[int, Member], chunk: jax.Array) -> list[tuple[int, Speech]]:
        """Fetches a chunk, decodes it, and has the device begin the next."""
        chunk, ended = jax.device_get((chunk, self._state.ended))
        self._chunk = None
        # Those that pause say nothing, and their decoders stand still.
        silence = np.zeros((0, chunk.shape[2]), np.int32)
        codes = {row: silence for row, member in enumerate(self._rows) if member is not None}
        for row, member in speaking.items():
            codes[row] = chunk[row][chunk[row, :, 0] >= 0]
            member.count(len(codes[row]), ended=bool(ended[row]))
        over = {row: member for row, member in speaking.items() if member.over}
        for member in over.values():
            member.finished = True
        samples = self._decoder.decode(codes, over, meanwhile=self._begin)
        speeches = []
        for row, member in speaking.items():
            if member.cancelled:
                continue
            if row in over:
                self._open.pop(member.number, None)
            reason = member.reason if row in over else None
            speeches.append((member.number, Speech(samples[row], self._config.codec.sample_rate, codes[row], reason)))
        return speeches

    def _begin(self) -> None:
        """Gives free rows to waiting streams, and the device the next chunk if any stream can speak."""
        for row, member in enumerate(self._rows):
            if member is not None and not (member.cancelled or member.speaking or member.over) and member.utterances:
                self._read_prompt(row, member)
            if member is None or member.over or member.cancelled:
                self._end(member)
                member = self._rows[row] = self._next()
                if member is not None:
                    self._decoder.hear(row, member.reference)
                    self._read_prompt(row, member)
        speaking = {row: member for row, member in enumerate(self._rows) if member is not None and member.speaking}
        ready = {row: member for row, member in speaking.items() if member.text.has(member.frame, 1)}
        if not ready:
            return
        # The youngest stream decides: its first sound should not wait for a long chunk of the others.
        count = self._schedule[min(len(self._schedule) - 1, *(member.chunks for member in ready.values()))]
        # Rows make as many of these frames as have their text. Counted before the windows are filled: what arrives in
        # between may be in them, but is not spoken yet.
        limits = np.zeros(len(self._rows), np.int32)
        for row, member in ready.items():
            limits[row] = min(member.limit, member.frame + member.text.known(member.frame, count))
        self._state = self._state.replace(frame_limit=place_batch(self._params, limits))
        if any(member.has_new_text for member in ready.values()):
            pad = self._config.prompt.tts_pad
            windows = np.full((len(self._rows), self._longest), pad, np.int32)
            for row, member in ready.items():
                windows[row] = member.text.window(member.frame, self._longest, pad)[0]
            windows = place_batch(self._params, windows)
            self._state = set_text_compiled(self._params, self._config, self._state, windows)
        self._make_room(max(member.slots + member.frame for member in speaking.values()))
        for member in ready.values():
            member.chunks += 1
        self._state, chunk = generate_stream(
            self._params, self._config, self._generation, self._state, np.int32(count), self._longest
        )
        self._chunk = ready, chunk

    def _end(self, member: Member | None) -> None:
        """Says why a stream ended whose last chunk did not know yet that it was the last."""
        if member is None or not member.open:
            return
        self._ended.append((member.number, Speech.silent(self._config.codec, member.reason)))
        member.finished = True
        self._open.pop(member.number, None)

    def _next(self) -> Member | None:
        """The first stream that has a prompt and no row yet."""
        waiting = (one for one in list(self._open.values()) if one.place < 0 and one.utterances and not one.over)
        return next(waiting, None)

    def _read_prompt(self, row: int, member: Member) -> None:
        """Puts the prompt of the stream's next utterance into a row of the batch."""
        part, plan, text, last = member.utterances.popleft()
        limit = min(frame_limit(part, plan, self._config), member.frames_left)
        if limit == 0:
            member.stop()
            return
        member.begin(text, slots=len(plan.text_ids), limit=limit, last=last)
        pad, length = self._config.prompt.tts_pad, bucket(member.slots, PROMPT_BUCKET)
        self._make_room(length)
        plan = replace(plan, trailing_text_ids=text.window(0, self._longest, pad)[0])
        prompt = batch_plans([plan], tts_pad=pad, length=length)
        keys = utterance_keys(member.seed, np.full(1, utterance_number(0, member.place), np.int32))
        prompt, keys, limits = place_batch(self._params, (prompt, keys, np.full(1, limit, np.int32)))
        new = prefill_compiled(self._params, self._config, prompt, keys, limits, length)
        self._state = insert_compiled(self._state, np.full(1, row, np.int32), new)

    def _make_room(self, slots: int) -> None:
        """Grows the cache if it cannot hold the longest chunk after so many slots."""
        if slots + self._longest > self._capacity:
            self._capacity = cache_capacity(slots + self._longest)
            self._state = grow_compiled(self._state, self._capacity)


def _cancel_all(members: Mapping[int, Member]) -> None:
    for member in members.values():
        member.cancelled = True
