"""The host's side of generation: batches in buckets of shapes, and the loops over compiled chunks.

Prompts and batches are padded to a few sizes, so that the compiled programs are few and are used
again; the host looks at the device only between chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig, GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import (
    empty_batch_compiled,
    generate_chunk,
    grow_compiled,
    insert_compiled,
    prefill_compiled,
    utterance_keys,
)
from qwen3_tts_jax.prompt import PromptPlan, Request, Tokenizer, batch_plans, check_seed, check_whole, plan_prompt
from qwen3_tts_jax.sharding import data_size, place_batch, place_state, whole_rows
from qwen3_tts_jax.utterances import joined, spoken_as, utterance_number

FinishReason = Literal["stop", "length"]

Progress = Callable[[Literal["load", "encode", "prefill", "speak", "decode"], int, int], None]
"""Called as progress(stage, done, total): bytes loaded, recordings encoded,
prompts read, frames made, utterances decoded."""

PROMPT_BUCKET = 32
"""The smallest bucket of prompts, and for most models of what follows them."""
UTTERANCE_BUCKET = 256
_BASE_FRAMES, FRAMES_PER_TOKEN = 25, 8
"""Speech hardly ever takes longer than 2 s, and 0.64 s per token of its text."""
_CODEC_CHUNK_FRAMES = 16
# Steps of the codec that the device is given before the host waits for the first of them.
_STEPS_AHEAD = 2

Primed = dict[tuple[int, bytes], decoder.DecoderState]
"""States of the decoder after references, as batches of one row, by the rows that they were decoded in and by their
codes: a voice mostly speaks many utterances, and its reference need not be decoded before each."""
# As many are kept, of the voices that spoke last: 5.2 MB each at the published shapes.
_VOICES = 16

codec_start = jax.jit(decoder.initial_state, static_argnames=("config", "batch"))
codec_step = jax.jit(decoder.decode_step, static_argnames="config", donate_argnames="state")
codec_whole = jax.jit(decoder.decode, static_argnames="config")


@dataclass(frozen=True)
class Speech:
    """One utterance, or a chunk of one that is streamed.

    Attributes:
        samples: float32 [N] in [−1, 1].
        sample_rate: samples per second.
        codes: int32 [T, Q], the frames that `samples` were decoded from.
        finish_reason: "stop" where the model ended the utterance, "length" where the limit cut it, None
            where a stream goes on.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finish_reason: FinishReason | None

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.sample_rate


def shape_step(tokenizer: Tokenizer) -> int:
    """The smallest bucket of frames, and of the text that comes with them.

    It is large for models that read phonemes, which are small and speak single sentences: to compile another program
    would take them longer than to compute in some empty places.
    """
    return UTTERANCE_BUCKET if tokenizer.phonemes else PROMPT_BUCKET


def codec_rows(params: dict[str, Any], config: CodecConfig) -> int:
    """The most utterances that are decoded together: so many for each of the devices that share them.

    One on CPUs, where a row of a product may round differently in another place: so an utterance's samples are the same
    in whatever company. It is about as fast, for nobody is padded to the longest. Hopper GPUs are busy with 32.
    """
    each = 1 if jax.default_backend() == "cpu" else 32 if config.decoder.hopper else 8
    return each * data_size(params)


def _rows_for(params: dict[str, Any], config: CodecConfig, utterances: int) -> int:
    """Rows of the program that decodes so many together, as many on each device.

    Kernels for Hopper GPUs take multiples of 8.
    """
    devices = data_size(params)
    each = -(-utterances // devices)
    return devices * bucket(each, 8 if config.decoder.hopper and each > 2 else 1)


def bucket(size: int, smallest: int) -> int:
    """The next of `smallest` × (1, 2, 3, 4, 6, 8, 12, 16, …), and 0 for 0: few shapes.

    At most half is wasted, beyond `smallest`.
    """
    if size == 0:
        return 0
    step = smallest
    while size > 4 * step:
        step *= 2
    return min(n * step for n in (1, 2, 3, 4) if n * step >= size)


def synthesize_each(
    params: dict[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    generation: GenerationConfig,
    seed: int,
    *,
    batch_size: int,
    chunk_frames: int,
    utterances: Sequence[int] | None = None,
    fixed_shapes: bool = False,
    full_groups: bool = False,
    official_decoding: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Speech]]:
    """Speaks any number of requests; `Qwen3TTS.synthesize_each` tells what the arguments are.

    Those that ended in a chunk are decoded together before the next look at the device. With `full_groups` they
    wait until there are as many as the device is best at.

    All that can be refused is refused at once, not when the first speech is asked for.
    """
    check_seed(seed)
    check_whole("batch_size", batch_size, least=1)
    utterances = range(len(requests)) if utterances is None else utterances
    if len(utterances) != len(requests):
        raise ValueError(f"{len(requests)} requests have {len(utterances)} utterance numbers; give one for each")
    for number in utterances:
        check_seed(number, "the number of an utterance")
    parts = [spoken_as(request, tokenizer) for request in requests]
    plans = [[plan_prompt(part, tokenizer, config) for part in each] for each in parts]
    rows = whole_rows(params, batch_size if fixed_shapes else min(batch_size, bucket(len(requests), 1)))
    counts = [len(each) for each in parts]
    spoken = speak_codes(
        params,
        config,
        generation,
        list(chain(*plans)),
        frame_limits=list(map(frame_limit, chain(*parts), chain(*plans), repeat(config))),
        seed=seed,
        utterances=[
            utterance_number(number, place)
            for number, count in zip(utterances, counts, strict=True)
            for place in range(count)
        ],
        rows=rows,
        chunk_frames=chunk_frames,
        step=shape_step(tokenizer),
        fixed_capacity=fixed_shapes,
        progress=progress,
    )
    spoken = joined(spoken, counts, [request.max_frames for request in requests])

    def decoded() -> Iterator[tuple[int, Speech]]:
        done, together = 0, min(rows, codec_rows(params, config.codec))
        primed: Primed = {}
        for group in _groups(spoken, together, full=full_groups):
            samples = decode_codes(
                params["codec"]["decoder"],
                config.codec,
                [codes for _, codes, _ in group],
                [reference_codes(requests[index], config) for index, _, _ in group],
                primed=primed,
                rows=together if fixed_shapes else None,
                official=official_decoding,
            )
            done += len(group)
            if progress is not None:
                progress("decode", done, len(requests))
            for (index, codes, reason), row in zip(group, samples, strict=True):
                yield index, Speech(row, config.codec.sample_rate, codes, reason)

    return decoded()


def _groups(ended: Iterable[list[Any]], size: int, *, full: bool) -> Iterator[list[Any]]:
    """Those that ended in each chunk, at most `size` at a time; `full` groups wait until there are as many."""
    group: list[Any] = []
    for of_chunk in ended:
        for one in of_chunk:
            group.append(one)
            if len(group) == size:
                yield group
                group = []
        if group and not full:
            yield group
            group = []
    if group:
        yield group


def frame_limit(request: Request, plan: PromptPlan, config: ModelConfig) -> int:
    """The most frames of an utterance: the request's or else the checkpoint's limit, within the talker's context."""
    limit = config.max_new_tokens - 1 if request.max_frames is None else request.max_frames
    return min(limit, config.talker.max_positions - len(plan.text_ids))


def reference_codes(request: Request, config: ModelConfig) -> np.ndarray:
    """Codes [R, Q] that the decoder hears before the request's own; R is 0 without a reference."""
    if request.voice is None or request.voice.codes is None:
        return np.zeros((0, config.talker.num_codebooks), np.int32)
    return request.voice.codes


@dataclass
class _Seat:
    """What a row of the batch is busy with: the plan's index, its limit, and the codes so far."""

    index: int
    limit: int
    chunks: list[np.ndarray] = field(default_factory=list)
    frames: int = 0


def speak_codes(
    params: dict[str, Any],
    config: ModelConfig,
    generation: GenerationConfig,
    plans: Sequence[PromptPlan],
    *,
    frame_limits: Sequence[int],
    seed: int,
    utterances: Sequence[int],
    rows: int,
    chunk_frames: int = 8,
    step: int = PROMPT_BUCKET,
    fixed_capacity: bool = False,
    progress: Progress | None = None,
) -> Iterator[list[tuple[int, np.ndarray, FinishReason]]]:
    """Speaks prompts into codes, `rows` at a time: whoever ends makes room for the next between two chunks.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: of the model.
        generation: how codes are drawn.
        plans: one per utterance; the longest start first, so that the last do not leave the batch idle.
        frame_limits: the most frames of each.
        seed: of the draws, together with the utterance's number.
        utterances: the number of each, 0 … 2³¹ − 1.
        rows: of the compiled programs.
        chunk_frames: frames between two looks at who has ended.
        step: the smallest bucket of frames, and of the text that comes with them.
        fixed_capacity: allocate the cache for the largest limit at once. By default it is what such texts take
            and grows where speech is longer, which compiles another program.
        progress: told of prompts read, and of frames made out of the sum of the limits.

    Yields:
        Of each chunk, the utterances that ended in it: the plan's index, codes int32 [T, Q], and why it ended.
    """
    if not plans:
        return
    prompt_slots = bucket(max(len(plan.text_ids) for plan in plans), PROMPT_BUCKET)
    text_slots = bucket(max(len(plan.trailing_text_ids) for plan in plans), step)
    frames = max(frame_limits)
    if not fixed_capacity:
        frames = min(frames, max(map(expected_frames_of, plans)))
    capacity = prompt_slots + bucket(frames, step)
    # Prompts that each device reads at once: few, so that a single row that is free need not wait for others.
    devices = data_size(params)
    readers = devices * max(1, min(8, rows // devices // 8))

    waiting = deque(sorted(range(len(plans)), key=lambda i: expected_frames_of(plans[i]), reverse=True))
    seats: list[_Seat | None] = [None] * rows
    state = place_state(params, empty_batch_compiled(params, config, rows, capacity, text_slots))
    ended: list[tuple[int, np.ndarray, FinishReason]] = []
    made = 0
    if progress is not None:
        progress("prefill", 0, len(plans))
    while waiting or any(seats):
        free = [row for row, seat in enumerate(seats) if seat is None][: len(waiting)]
        for first in range(0, len(free), readers):
            taken = free[first : first + readers]
            indices = [waiting.popleft() for _ in taken]
            for row, index in zip(taken, indices, strict=True):
                seats[row] = _Seat(index, frame_limits[index])
            # Surplus rows repeat a plan and are inserted nowhere.
            filler = readers - len(taken)
            indices += indices[:1] * filler
            prompts = batch_plans(
                [plans[index] for index in indices],
                length=prompt_slots,
                trailing_length=text_slots,
                tts_pad=config.prompt.tts_pad,
            )
            keys = utterance_keys(seed, np.array([utterances[index] for index in indices], np.int32))
            limits = np.array([frame_limits[index] for index in indices], np.int32)
            prompts, keys, limits = place_batch(params, (prompts, keys, limits))
            new = prefill_compiled(params, config, prompts, keys, limits, prompt_slots)
            state = insert_compiled(state, np.array([*taken, *[rows] * filler], np.int32), new)
        if free and progress is not None:
            progress("prefill", len(plans) - len(waiting), len(plans))
        needed = prompt_slots + max(min(seat.frames + chunk_frames, seat.limit) for seat in seats if seat is not None)
        if needed > capacity:
            capacity = bucket(needed, step)
            state = grow_compiled(state, capacity)
        state, chunk = generate_chunk(params, config, generation, state, chunk_frames)
        # The device makes this chunk while the caller decodes those who ended in the one before.
        yield ended
        chunk, stopped, ended = np.asarray(chunk), np.asarray(state.ended), []
        for row, seat in enumerate(seats):
            if seat is None:
                continue
            codes = chunk[row][chunk[row, :, 0] >= 0]
            seat.chunks.append(codes)
            seat.frames += len(codes)
            made += len(codes)
            if stopped[row] or seat.frames == seat.limit:
                ended.append((seat.index, np.concatenate(seat.chunks), "stop" if stopped[row] else "length"))
                seats[row] = None
        if progress is not None:
            progress("speak", made, sum(frame_limits))
    yield ended


def expected_frames(tokens: int) -> int:
    """Frames that hardly any utterance of so long a text exceeds: three times what speech takes, and two seconds."""
    return _BASE_FRAMES + FRAMES_PER_TOKEN * tokens


def expected_frames_of(plan: PromptPlan) -> int:
    """`expected_frames` of all that the prompt and the frames after it read."""
    return expected_frames(len(plan.text_ids) + len(plan.trailing_text_ids))


def decode_codes(
    params: dict[str, Any],
    config: CodecConfig,
    codes: Sequence[np.ndarray],
    references: Sequence[np.ndarray] | None = None,
    *,
    primed: Primed | None = None,
    rows: int | None = None,
    official: bool = False,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Samples float32 [T × frame_samples] of each utterance's codes [T, Q].

    Decoded in chunks of one shape with carried state, which is exactly the whole decode.

    Args:
        params: the subtree codec/decoder.
        config: of the codec.
        codes: of each utterance.
        references: codes [R, Q] that come before each utterance's; their samples are cut off.
        primed: keeps what was heard of references, for the next call with the same parameters.
        rows: decoded together, be they empty; by default as many as there are, up to `codec_rows`. `official` has one.
        official: decode in chunks without carried state, and cut references off in proportion, as the
            official package does.
        progress: told of utterances decoded.
    """
    if references is None:
        references = [row[:0] for row in codes]
    if official:
        return [_decode_officially(params, config, *row) for row in zip(references, codes, strict=True)]
    primed = {} if primed is None else primed
    together = rows or codec_rows(params, config)
    # Rows should end in about the same chunk.
    order = sorted(range(len(codes)), key=lambda row: len(codes[row]), reverse=True)
    samples: dict[int, np.ndarray] = {}
    for first in range(0, len(order), together):
        part = order[first : first + together]
        utterances = [(references[row], codes[row]) for row in part]
        shape = _rows_for(params, config, rows or len(part))
        samples |= zip(part, _decode_exactly(params, config, utterances, shape, primed), strict=True)
        if progress is not None:
            progress("decode", len(samples), len(codes))
    return [samples[row] for row in range(len(codes))]


def _decode_exactly(
    params: dict[str, Any],
    config: CodecConfig,
    utterances: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: int,
    primed: Primed,
) -> list[np.ndarray]:
    """Of references and codes. Of a reference the last frames, less than a chunk, are decoded with each utterance."""
    heard, left = [], []
    for reference, codes in utterances:
        whole_chunks = len(reference) // _CODEC_CHUNK_FRAMES * _CODEC_CHUNK_FRAMES
        heard.append(reference[:whole_chunks])
        left.append(np.concatenate([reference[whole_chunks:], codes]))
    state = _after(params, config, heard, rows, primed)
    chunks = fetched(samples for _, samples in _steps(params, config, state, left, rows))
    whole = np.concatenate([np.zeros((rows, 0), np.float32), *chunks], axis=1)
    return [
        whole[row, (len(last) - len(codes)) * config.frame_samples : len(last) * config.frame_samples]
        for row, (last, (_, codes)) in enumerate(zip(left, utterances, strict=True))
    ]


def _steps(
    params: dict[str, Any], config: CodecConfig, state: decoder.DecoderState, codes: Sequence[np.ndarray], rows: int
) -> Iterator[tuple[decoder.DecoderState, jax.Array]]:
    """Decodes codes [T, Q] of each row, chunk by chunk → the state after it, and samples [rows, N] on the device."""
    frames = -(-max(map(len, codes)) // _CODEC_CHUNK_FRAMES) * _CODEC_CHUNK_FRAMES
    padded = np.zeros((rows, frames, config.num_codebooks), np.int32)
    for row, utterance in enumerate(codes):
        padded[row, : len(utterance)] = utterance
    for frame in range(0, frames, _CODEC_CHUNK_FRAMES):
        state, chunk = place_batch(params, (state, padded[:, frame : frame + _CODEC_CHUNK_FRAMES]))
        state, samples = codec_step(params, config.decoder, state, chunk)
        yield state, samples


def fetched(arrays: Iterable[jax.Array]) -> Iterator[np.ndarray]:
    """Each of the arrays on the host, while the device makes those after it and holds no more than a few."""
    pending: deque[jax.Array] = deque()
    for array in arrays:
        pending.append(array)
        if len(pending) > _STEPS_AHEAD:
            yield np.asarray(pending.popleft())
    yield from map(np.asarray, pending)


def _after(
    params: dict[str, Any], config: CodecConfig, references: Sequence[np.ndarray], rows: int, primed: Primed
) -> decoder.DecoderState:
    """The state of `rows` rows, the first of which have heard references of whole chunks, int32 [R, Q].

    Those that are not in `primed` are decoded together, by the program that goes on: so each utterance has the samples
    that it has after its reference in one piece.
    """
    voices = [(rows, reference.tobytes()) for reference in references]
    heard = {voice: row for voice, row in zip(voices, references, strict=True) if len(row)}
    new = {voice: row for voice, row in heard.items() if voice not in primed}
    if new:
        steps = _steps(params, config, codec_start(config.decoder, rows), list(new.values()), rows)
        for step, (state, _) in enumerate(steps, 1):
            for row, (voice, reference) in enumerate(new.items()):
                if len(reference) == step * _CODEC_CHUNK_FRAMES:
                    primed[voice] = place_batch(params, _row_of(state, row))
    state = codec_start(config.decoder, rows)
    for voice in heard:
        primed[voice] = primed.pop(voice)  # The last to be forgotten.
        here = np.array([other == voice for other in voices] + [False] * (rows - len(voices)))
        state = _with_voice(*place_batch(params, (state, here)), primed[voice])
    while len(primed) > _VOICES:
        del primed[next(iter(primed))]
    return state


@jax.jit
def _row_of(state: decoder.DecoderState, row: jax.Array) -> decoder.DecoderState:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), state)


@partial(jax.jit, donate_argnames="state")
def _with_voice(state: decoder.DecoderState, here: jax.Array, voice: decoder.DecoderState) -> decoder.DecoderState:
    """The state with that of one row in the rows that are True in `here` [B]."""

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(here.reshape(-1, *[1] * (leaf.ndim - 1)), new, leaf)

    return jax.tree.map(put, state, voice)


def _decode_officially(
    params: dict[str, Any], config: CodecConfig, reference: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """As `decoder.decode_chunked`; chunks are padded on the right to a few lengths, which changes no sample before."""
    whole = np.concatenate([reference, codes])
    longest = decoder.OFFICIAL_CONTEXT_FRAMES + decoder.OFFICIAL_CHUNK_FRAMES
    parts = [np.zeros(0, np.float32)]
    for context, start, end in decoder.official_chunks(len(whole)):
        chunk = whole[start - context : end]
        padding = min(bucket(len(chunk), _CODEC_CHUNK_FRAMES), longest) - len(chunk)
        decoded = codec_whole(params, config.decoder, np.pad(chunk, ((0, padding), (0, 0)))[None])[0]
        kept = slice(context * config.frame_samples, len(chunk) * config.frame_samples)
        parts.append(np.asarray(decoded, np.float32)[kept])
    samples = np.concatenate(parts)
    return samples[int(len(reference) / max(len(whole), 1) * len(samples)) :]
