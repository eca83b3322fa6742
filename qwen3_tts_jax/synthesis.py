"""The host's side of generation: batches in buckets of shapes, and the loops over compiled chunks.

Prompts and batches are padded to a few sizes, so that the compiled programs are few and are used
again; the host looks at the device only between chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig, GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import generate_chunk, grow_compiled, prefill_compiled, utterance_keys
from qwen3_tts_jax.prompt import PromptPlan, Request, Tokenizer, batch_plans, plan_prompt

FinishReason = Literal["stop", "length"]

Progress = Callable[[Literal["load", "encode", "prefill", "speak", "decode"], int, int], None]
"""Called as progress(stage, done, total): bytes loaded, recordings encoded,
prompts read, frames made, utterances decoded."""

PROMPT_BUCKET = 32
_CODEC_CHUNK_FRAMES = 16
_CODEC_ROWS = 8

codec_step = jax.jit(decoder.decode_step, static_argnames="config", donate_argnames="state")
codec_chunked = jax.jit(decoder.decode_chunked, static_argnames="config")


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


def bucket(size: int, smallest: int) -> int:
    """The next of `smallest` × (1, 2, 3, 4, 6, 8, 12, 16, …), and 0 for 0: few shapes, at most half wasted."""
    if size == 0:
        return 0
    step = smallest
    while size > 4 * step:
        step *= 2
    return min(n * step for n in (1, 2, 3, 4) if n * step >= size)


def synthesize(
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
    fill: bool = False,
    official_decoding: bool = False,
    progress: Progress | None = None,
) -> list[Speech]:
    """Speaks any number of requests in batches; `Qwen3TTS.synthesize` tells what the arguments are."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    utterances = range(len(requests)) if utterances is None else utterances
    if len(utterances) != len(requests):
        raise ValueError(f"{len(requests)} requests have {len(utterances)} utterance numbers; give one for each")
    plans = [plan_prompt(request, tokenizer, config) for request in requests]
    limits = [frame_limit(request, plan, config) for request, plan in zip(requests, plans, strict=True)]
    speeches: list[Speech] = []
    for first in range(0, len(plans), batch_size):
        rows = slice(first, first + batch_size)
        codes, ended = make_codes(
            params,
            config,
            generation,
            plans[rows],
            frame_limits=limits[rows],
            seed=seed,
            utterances=utterances[rows],
            rows=batch_size if fill else None,
            chunk_frames=chunk_frames,
            progress=progress,
        )
        samples = decode_codes(
            params["codec"]["decoder"],
            config.codec,
            codes,
            [reference_codes(request, config) for request in requests[rows]],
            rows=batch_size if fill else None,
            official=official_decoding,
            progress=progress,
        )
        reasons = ["stop" if row else "length" for row in ended]
        rate = config.codec.sample_rate
        speeches += [Speech(*row) for row in zip(samples, [rate] * len(codes), codes, reasons, strict=True)]
    return speeches


def frame_limit(request: Request, plan: PromptPlan, config: ModelConfig) -> int:
    """The most frames of an utterance: the request's or else the checkpoint's limit, within the talker's context."""
    limit = config.max_new_tokens - 1 if request.max_frames is None else request.max_frames
    return min(limit, config.talker.max_positions - len(plan.text_ids))


def reference_codes(request: Request, config: ModelConfig) -> np.ndarray:
    """Codes [R, Q] that the decoder hears before the request's own; R is 0 without a reference."""
    if request.voice is None or request.voice.codes is None:
        return np.zeros((0, config.talker.num_codebooks), np.int32)
    return request.voice.codes


def make_codes(
    params: dict[str, Any],
    config: ModelConfig,
    generation: GenerationConfig,
    plans: Sequence[PromptPlan],
    *,
    frame_limits: Sequence[int],
    seed: int,
    utterances: Sequence[int] | None = None,
    rows: int | None = None,
    chunk_frames: int = 8,
    progress: Progress | None = None,
) -> tuple[list[np.ndarray], list[bool]]:
    """Speaks one batch of prompts into codes.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: of the model.
        generation: how codes are drawn.
        plans: one per utterance.
        frame_limits: the most frames of each.
        seed: of the draws, together with the utterance's number.
        utterances: the number of each, 0 … 2³¹ − 1; by default 0, 1, 2, ….
        rows: of the compiled program, at least as many as plans; by default the next bucket.
        chunk_frames: frames between two looks at whether all rows have ended.
        progress: told of prompts read and frames made.

    Returns:
        The codes int32 [T, Q] of each utterance, and whether the model itself ended it.
    """
    count = len(plans)
    rows = bucket(count, 1) if rows is None else rows
    # Rows that fill up the bucket repeat a plan and may make no frame.
    filler = rows - count
    batch = batch_plans(
        [*plans, *[plans[0]] * filler],
        length=bucket(max(len(plan.text_ids) for plan in plans), PROMPT_BUCKET),
        trailing_length=bucket(max(len(plan.trailing_text_ids) for plan in plans), PROMPT_BUCKET),
        tts_pad=config.prompt.tts_pad,
    )
    numbers = range(count) if utterances is None else utterances
    keys = utterance_keys(seed, jnp.asarray([*numbers, *[0] * filler], jnp.int32))
    limits = jnp.asarray([*frame_limits, *[0] * filler], jnp.int32)
    if progress is not None:
        progress("prefill", 0, count)
    prompt_slots = batch.text_ids.shape[1]
    capacity = bucket(prompt_slots + chunk_frames, PROMPT_BUCKET)
    state = jax.block_until_ready(prefill_compiled(params, config, batch, keys, limits, capacity))
    if progress is not None:
        progress("prefill", count, count)

    chunks = [np.zeros((rows, 0, config.talker.num_codebooks), np.int32)]
    frames, most = 0, max(frame_limits)
    while frames < most and bool(jnp.any(state.active)):
        capacity = bucket(prompt_slots + frames + chunk_frames, PROMPT_BUCKET)
        if capacity > state.cache.capacity:
            state = grow_compiled(state, capacity)
        state, codes = generate_chunk(params, config, generation, state, chunk_frames)
        chunks.append(np.asarray(codes))
        frames += chunk_frames
        if progress is not None:
            progress("speak", min(frames, most), most)
    codes = np.concatenate(chunks, axis=1)[:count]
    return [row[row[:, 0] >= 0] for row in codes], np.asarray(state.ended)[:count].tolist()


def decode_codes(
    params: dict[str, Any],
    config: CodecConfig,
    codes: Sequence[np.ndarray],
    references: Sequence[np.ndarray] | None = None,
    *,
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
        rows: of the compiled program, but no more than 8; by default the next bucket. `official` has one row.
        official: decode in chunks without carried state, and cut references off in proportion, as the
            official package does.
        progress: told of utterances decoded.
    """
    if references is None:
        references = [row[:0] for row in codes]
    whole = [np.concatenate(both) for both in zip(references, codes, strict=True)]
    samples: list[np.ndarray] = []
    for first in range(0, len(whole), 1 if official else _CODEC_ROWS):
        if official:
            chunked = codec_chunked(params, config.decoder, whole[first][None])
            samples.append(np.asarray(chunked[0], np.float32))
        else:
            part = whole[first : first + _CODEC_ROWS]
            samples += _decode_exactly(params, config, part, min(rows or bucket(len(part), 1), _CODEC_ROWS))
        if progress is not None:
            progress("decode", len(samples), len(codes))
    cuts = [len(reference) * config.frame_samples for reference in references]
    if official:
        parts = [len(reference) / max(len(row), 1) for reference, row in zip(references, whole, strict=True)]
        cuts = [int(part * len(row)) for part, row in zip(parts, samples, strict=True)]
    return [row[cut:] for row, cut in zip(samples, cuts, strict=True)]


def _decode_exactly(
    params: dict[str, Any], config: CodecConfig, codes: Sequence[np.ndarray], rows: int
) -> list[np.ndarray]:
    frames = -(-max(map(len, codes)) // _CODEC_CHUNK_FRAMES) * _CODEC_CHUNK_FRAMES
    padded = np.zeros((rows, frames, config.num_codebooks), np.int32)
    for row, utterance in enumerate(codes):
        padded[row, : len(utterance)] = utterance
    state = decoder.initial_state(config.decoder, rows)
    chunks = [np.zeros((rows, 0), np.float32)]
    for frame in range(0, frames, _CODEC_CHUNK_FRAMES):
        chunk = padded[:, frame : frame + _CODEC_CHUNK_FRAMES]
        state, samples = codec_step(params, config.decoder, state, chunk)
        chunks.append(np.asarray(samples))
    whole = np.concatenate(chunks, axis=1)
    return [whole[row, : len(utterance) * config.frame_samples] for row, utterance in enumerate(codes)]
