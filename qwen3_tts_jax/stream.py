"""Speech as it is made: chunks of frames, decoded with carried state as soon as they are there.

A stream is one request. Its codes are those of the whole run with the same seed, and its samples those
of the whole decode. One compiled program makes chunks of any length; the text reaches the talker through
a window of fixed length, so that a long text, or one that is still being written, needs no other program.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any, NamedTuple

import jax
import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import (
    generate_stream,
    grow_compiled,
    prefill_compiled,
    set_text_compiled,
    utterance_keys,
)
from qwen3_tts_jax.prompt import PromptPlan, Request, batch_plans, check_seed, check_whole, plan_prompt, validate
from qwen3_tts_jax.speech import FinishReason, Speech
from qwen3_tts_jax.stream_decoding import StreamDecoder
from qwen3_tts_jax.synthesis import frame_limit, reference_codes
from qwen3_tts_jax.text.tokenizer import IncrementalText, TextTokenizer
from qwen3_tts_jax.utterances import FRAMES_PER_TOKEN, spoken_as, spoken_as_it_arrives, utterance_number

CHUNK_FRAMES = (1, 2, 4, 8)
"""Frames of the first chunk, the second, …, and of all that follow: one (80 ms in the published models) for an early
first sound, then ever fewer interruptions."""

# Frames that the cache has room for at first, where the text is still arriving (144 s); otherwise the prompt's
# tokens decide. A cache that grows later interrupts the speech until a larger program is compiled.
_FRAMES_OF_OPEN_TEXT = 1800
_MIN_CAPACITY = 512
# A piece of text that comes within this time was there already, and the next one may be, too.
_AT_HAND_SECONDS = 0.005


def stream(
    params: dict[str, Any],
    config: ModelConfig,
    tokenizer: TextTokenizer,
    request: Request,
    generation: GenerationConfig,
    seed: int,
    *,
    pieces: Iterable[str] | None,
    schedule: Sequence[int],
    voices: LastVoices,
) -> Iterator[Speech]:
    """Speaks one request chunk by chunk; `Qwen3TTS.stream` describes the arguments.

    `voices` keeps the decoder's states after references. Whatever can be refused is refused at once, not when the first
    chunk is asked for.
    """
    check_seed(seed)
    schedule = checked_schedule(schedule)
    if pieces is None:
        utterances = _utterances_of_text(request, tokenizer, config)
        utterances = chain([next(utterances)], utterances)
    elif request.text_mode != "as_it_comes":
        raise ValueError("a text in pieces is spoken as it comes: it needs non_streaming_mode=False")
    elif request.split is not None:
        raise ValueError("a text in pieces is not split: give the whole text, or leave split out")
    else:
        validate(replace(request, text="…"), config)  # The text itself is checked once it is there.
        utterances = _utterances_of_pieces(request, pieces, tokenizer, config)
    chunks = _speak(params, config, request, generation, seed, utterances, pieces, schedule, voices)
    # A generator that was never started would skip its `finally` when it is closed.
    next(chunks)
    return chunks


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


class _Utterance(NamedTuple):
    """An utterance, its prompt, what follows the prompt's text, and whether it is known to be the last."""

    request: Request
    plan: PromptPlan
    text: SpokenText
    last: bool


def _plan_utterance(
    request: Request, tokenizer: TextTokenizer, config: ModelConfig, *, last: bool = False
) -> _Utterance:
    plan = plan_prompt(request, tokenizer, config)
    return _Utterance(request, plan, SpokenText(plan.trailing_text_ids.tolist()), last)


def _utterances_of_text(request: Request, tokenizer: TextTokenizer, config: ModelConfig) -> Iterator[_Utterance]:
    """The utterances of a whole text: the first of many waits for the phonemes of the second, not of all."""
    parts = spoken_as_it_arrives(request, (), tokenizer) if tokenizer.phonemes else iter(spoken_as(request, tokenizer))
    part = next(parts)
    for following in parts:
        yield _plan_utterance(part, tokenizer, config)
        part = following
    yield _plan_utterance(part, tokenizer, config, last=True)


def _utterances_of_pieces(
    request: Request, pieces: Iterable[str], tokenizer: TextTokenizer, config: ModelConfig
) -> Iterator[_Utterance]:
    """The utterances of a text that is still arriving."""
    if tokenizer.phonemes:
        for part in spoken_as_it_arrives(request, pieces, tokenizer):
            yield _plan_utterance(part, tokenizer, config)
    else:
        yield _Utterance(request, *plan_arriving_text(request, pieces, tokenizer, config), last=True)


def _speak(
    params: dict[str, Any],
    config: ModelConfig,
    request: Request,
    generation: GenerationConfig,
    seed: int,
    utterances: Iterable[_Utterance],
    pieces: Iterable[str] | None,
    schedule: Sequence[int],
    voices: LastVoices,
) -> Iterator[Any]:
    """Yields None once, before anything is done, then the chunks."""
    rate = config.codec.sample_rate
    left = math.inf if request.max_frames is None else operator.index(request.max_frames)
    cut = False
    try:
        yield None
        decoder = StreamDecoder(params["codec"]["decoder"], config.codec, rows=1, voices=voices)
        reference = reference_codes(request, config)
        if len(reference):
            decoder.hear(0, reference)
        for place, (part, plan, text, last) in enumerate(utterances):
            limit = min(frame_limit(part, plan, config), left)
            if limit == 0:
                cut = True
                break
            drawn = {"seed": seed, "utterance": utterance_number(0, place)}
            shapes = {"frame_limit": limit, "schedule": schedule}
            spoken = StreamedCodes(params, config, generation, plan, text, **drawn, **shapes)
            for codes, reason in spoken:
                samples = decoder.decode({0: codes}, meanwhile=spoken.begin)[0]
                left -= len(codes)
                cut = cut or reason == "length"
                yield Speech(samples, rate, codes, _reason(cut) if last and reason is not None else None)
            if last:
                return
        yield Speech(np.zeros(0, np.float32), rate, np.zeros((0, config.talker.num_codebooks), np.int32), _reason(cut))
    finally:
        # A generator may hold a connection open; a file is the caller's to close.
        if isinstance(pieces, Generator):
            pieces.close()


def _reason(cut: bool) -> FinishReason:
    return "length" if cut else "stop"


class SpokenText:
    """The text ids that go with the frames, some of which may still have to arrive.

    Attributes:
        ids: entry k goes with frame k, as far as they are known; `tts_pad` follows the last.
    """

    def __init__(self, ids: Iterable[int], arriving: Iterator[list[int]] | None = None, end: Sequence[int] = ()):
        """`arriving` yields more ids; once it is exhausted, `end` comes last."""
        self.ids = list(ids)
        self._arriving, self._end = arriving, end

    @property
    def complete(self) -> bool:
        """Whether all of it is known."""
        return self._arriving is None

    def has(self, frame: int, count: int) -> bool:
        """Whether `count` frames from `frame` on have their text, without waiting for any."""
        return self.complete or len(self.ids) >= frame + count

    def covered(self, frame: int, count: int) -> int:
        """How many of `count` frames from `frame` on have their text; waits only for the first frame's."""
        at_hand = True
        while not self.has(frame, count if at_hand else 1):
            asked = time.monotonic()
            more = next(self._arriving, None)
            at_hand = time.monotonic() - asked < _AT_HAND_SECONDS
            if more is None:
                self._arriving, more = None, self._end
            self.ids += more
        return count if self.complete else min(count, len(self.ids) - frame)

    def window(self, frame: int, length: int, pad: int) -> np.ndarray:
        """The ids of `length` frames from `frame` on, int32 [1, length]."""
        ids = self.ids[frame : frame + length]
        return np.array([ids + [pad] * (length - len(ids))], np.int32)


def plan_arriving_text(
    request: Request, pieces: Iterable[str], tokenizer: TextTokenizer, config: ModelConfig
) -> tuple[PromptPlan, SpokenText]:
    """Reads the pieces that continue `request.text` until the prompt is certain.

    The request's text mode must be "as_it_comes". A voice cloned in context has room for text over its
    reference's frames, so its prompt needs more of the text than the first token.

    Raises:
        ValueError: as `prompt.plan_prompt`.
    """
    text = tokenizer.incremental()
    arriving = _arriving(text, chain([request.text], pieces))
    for _ in arriving:
        if text.text.strip():
            plan = plan_prompt(replace(request, text=text.text), tokenizer, config)
            trailing = plan.trailing_text_ids.tolist()
            if trailing:  # The last id ends the text, which has not ended yet; the prompt is final.
                return plan, SpokenText(trailing[:-1], arriving, trailing[-1:])
    plan = plan_prompt(replace(request, text=text.text), tokenizer, config)
    return plan, SpokenText(plan.trailing_text_ids.tolist())


def _arriving(text: IncrementalText, pieces: Iterable[str]) -> Iterator[list[int]]:
    for piece in pieces:
        yield text.add(piece)
    yield text.finish()


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
        if frame < len(text.ids) and (frame > 0 or len(text.ids) > self._text_at_start):
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
