"""The host's side of generation: batches in buckets of shapes, and the loops over compiled chunks.

Prompts and batches are padded to a few sizes, so that compiled programs are few and reused; the host
looks at the device only between chunks.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, UTTERANCE_BUCKET, bucket
from qwen3_tts_jax.codec_decoding import LastVoices, codec_rows, decode_codes
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.decode_state import grow_compiled, insert_compiled
from qwen3_tts_jax.generate import empty_batch_compiled, generate_chunk, prefill_compiled, utterance_keys
from qwen3_tts_jax.prompt import PromptPlan, Request, Tokenizer, batch_plans, check_seed, check_whole, plan_prompt
from qwen3_tts_jax.sharding import data_size, mesh_of, place_batch, whole_rows
from qwen3_tts_jax.speech import FinishReason, Progress, Speech
from qwen3_tts_jax.utterances import expected_frames, joined, spoken_as, utterance_number

# With fewer sentences for each of its rows, a batch saves less time than compiling its program takes.
_SENTENCES_PER_ROW = 4


def shape_step(tokenizer: Tokenizer) -> int:
    """The smallest bucket of frames, and of the text that comes with them.

    It is large for models that read phonemes, which are small and speak single sentences: compiling another program
    would take longer than computing some padding.
    """
    return UTTERANCE_BUCKET if tokenizer.phonemes else PROMPT_BUCKET


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
    voices: LastVoices,
    utterances: Sequence[int] | None = None,
    fixed_shapes: bool = False,
    full_groups: bool = False,
    official_decoding: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Speech]]:
    """Speaks any number of requests; `Qwen3TTS.synthesize_each` describes the arguments.

    Those that ended in the same chunk are decoded together before the next look at the device. With `full_groups`
    they wait until they are as many as the device decodes best.

    `voices` keeps the decoder's states after references. Whatever can be refused is refused at once, not when the first
    speech is asked for.
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
    counts = [len(each) for each in parts]
    # With models that read phonemes, a few sentences one by one take less time than compiling another program.
    useful = max(len(requests), sum(counts) // _SENTENCES_PER_ROW) if tokenizer.phonemes else sum(counts)
    rows = whole_rows(params, batch_size if fixed_shapes else min(batch_size, bucket(useful, 1)))
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
        for group in _groups(spoken, together, full=full_groups):
            samples = decode_codes(
                params["codec"]["decoder"],
                config.codec,
                [codes for _, codes, _ in group],
                [reference_codes(requests[index], config) for index, _, _ in group],
                voices=voices,
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
    """Those that ended in each chunk, at most `size` at a time; `full` groups wait until they have `size`."""
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
    limit = config.max_new_tokens - 1 if request.max_frames is None else operator.index(request.max_frames)
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
    """Speaks prompts into codes, `rows` at a time: between chunks, utterances that ended make room for the next.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: the model's.
        generation: how codes are drawn.
        plans: one per utterance; the longest start first, so that the last do not leave the batch idle.
        frame_limits: the most frames of each.
        seed: seeds the draws, together with the utterance's number.
        utterances: the number of each, 0 … 2³¹ − 1.
        rows: how many the compiled programs have.
        chunk_frames: frames between two checks for rows that have ended.
        step: the smallest bucket of frames, and of the text that comes with them.
        fixed_capacity: allocate the cache for the largest limit at once. By default it has room for what such texts
            take, and grows where speech is longer, which compiles another program.
        progress: told of prompts read, and of frames made out of the sum of the limits.

    Yields:
        For each chunk, the utterances that ended in it: the plan's index, codes int32 [T, Q], and why it ended.
    """
    if not plans:
        return
    prompt_slots = bucket(max(len(plan.text_ids) for plan in plans), PROMPT_BUCKET)
    text_slots = bucket(max(len(plan.trailing_text_ids) for plan in plans), step)
    frames = max(frame_limits)
    if not fixed_capacity:
        frames = min(frames, max(map(expected_frames_of, plans)))
    capacity = prompt_slots + bucket(frames, step)
    # Prompts read at once, shared by the devices: few, because a single free row is filled up with surplus ones.
    devices = data_size(params)
    readers = devices * max(1, min(8, rows // devices // 8))

    waiting = deque(sorted(range(len(plans)), key=lambda i: expected_frames_of(plans[i]), reverse=True))
    seats: list[_Seat | None] = [None] * rows
    state = empty_batch_compiled(params, config, rows, capacity, text_slots, mesh_of(params))
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
        # The device makes this chunk while the caller decodes the utterances that ended in the one before.
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


def expected_frames_of(plan: PromptPlan) -> int:
    """`expected_frames` for all the text ids that the prompt and the frames after it read."""
    return expected_frames(len(plan.text_ids) + len(plan.trailing_text_ids))
