"""The host's side of generation: batches in buckets of shapes, and the loops over compiled chunks.

Prompts and batches are padded to a few sizes, so that the compiled programs are few and are used
again; the host looks at the device only between chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig, GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import DecodeState, generate_chunk, prefill_compiled, utterance_keys
from qwen3_tts_jax.prompt import PromptPlan, batch_plans

Progress = Callable[[Literal["load", "prefill", "speak", "decode"], int, int], None]
"""Called as progress(stage, done, total): bytes loaded, prompts read, frames made, utterances decoded."""

_PROMPT_BUCKET = 32
_CODEC_CHUNK_FRAMES = 16
_CODEC_ROWS = 8

codec_step = jax.jit(decoder.decode_step, static_argnames="config", donate_argnames="state")
codec_chunked = jax.jit(decoder.decode_chunked, static_argnames="config")


def bucket(size: int, smallest: int) -> int:
    """The next of `smallest` × (1, 2, 3, 4, 6, 8, 12, 16, …), and 0 for 0: few shapes, at most half wasted."""
    if size == 0:
        return 0
    step = smallest
    while size > 4 * step:
        step *= 2
    return min(n * step for n in (1, 2, 3, 4) if n * step >= size)


def make_codes(
    params: dict[str, Any],
    config: ModelConfig,
    generation: GenerationConfig,
    plans: Sequence[PromptPlan],
    *,
    frame_limits: Sequence[int],
    seed: int,
    first_utterance: int = 0,
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
        first_utterance: the number of the first one; the others follow.
        chunk_frames: frames between two looks at whether all rows have ended.
        progress: told of prompts read and frames made.

    Returns:
        The codes int32 [T, Q] of each utterance, and whether the model itself ended it.
    """
    count, rows = len(plans), bucket(len(plans), 1)
    # Rows that fill up the bucket repeat a plan and may make no frame.
    filler = rows - count
    batch = batch_plans(
        [*plans, *[plans[0]] * filler],
        length=bucket(max(len(plan.text_ids) for plan in plans), _PROMPT_BUCKET),
        trailing_length=bucket(max(len(plan.trailing_text_ids) for plan in plans), _PROMPT_BUCKET),
        tts_pad=config.prompt.tts_pad,
    )
    keys = utterance_keys(seed, jnp.arange(first_utterance, first_utterance + rows))
    limits = jnp.asarray([*frame_limits, *[0] * filler], jnp.int32)
    if progress is not None:
        progress("prefill", 0, count)
    state = jax.block_until_ready(prefill_compiled(params, config, batch, keys, limits))
    if progress is not None:
        progress("prefill", count, count)

    chunks = [np.zeros((rows, 0, config.talker.num_codebooks), np.int32)]
    frames, most = 0, max(frame_limits)
    while frames < most and bool(jnp.any(state.active)):
        state = _with_room(state, batch.text_ids.shape[1] + frames + chunk_frames)
        state, codes = generate_chunk(params, config, generation, state, chunk_frames)
        chunks.append(np.asarray(codes))
        frames += chunk_frames
        if progress is not None:
            progress("speak", min(frames, most), most)
    codes = np.concatenate(chunks, axis=1)[:count]
    return [row[row[:, 0] >= 0] for row in codes], np.asarray(state.ended)[:count].tolist()


def _with_room(state: DecodeState, slots: int) -> DecodeState:
    if slots <= state.cache.capacity:
        return state
    return state.replace(cache=state.cache.grow(bucket(slots, _PROMPT_BUCKET)))


def decode_codes(
    params: dict[str, Any],
    config: CodecConfig,
    codes: Sequence[np.ndarray],
    *,
    official_chunks: bool = False,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Samples float32 [T × frame_samples] of each utterance's codes [T, Q].

    Decoded in chunks of one shape with carried state, which is exactly the whole decode; or, with
    `official_chunks`, as the official package does it. `params` is the subtree codec/decoder.
    """
    samples: list[np.ndarray] = []
    for first in range(0, len(codes), 1 if official_chunks else _CODEC_ROWS):
        if official_chunks:
            chunked = codec_chunked(params, config.decoder, codes[first][None])
            samples.append(np.asarray(chunked[0], np.float32))
        else:
            samples += _decode_exactly(params, config, codes[first : first + _CODEC_ROWS])
        if progress is not None:
            progress("decode", len(samples), len(codes))
    return samples


def _decode_exactly(params: dict[str, Any], config: CodecConfig, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    rows = bucket(len(codes), 1)
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
