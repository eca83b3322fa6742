"""The host's side of the codec's decoder: utterances of any length in chunks of one shape, each after its reference."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.buckets import bucket
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.devices import default_device
from qwen3_tts_jax.sharding import data_size, place_batch
from qwen3_tts_jax.speech import Progress

_CHUNK_FRAMES = 16
# Steps that the device is given before the host waits for the first of them.
_STEPS_AHEAD = 2

# The decoder's state after a reference takes 5.2 MB at the published shapes.
_VOICES = 16

codec_start = jax.jit(decoder.initial_state, static_argnames=("config", "batch"))
codec_step = jax.jit(decoder.decode_step, static_argnames="config", donate_argnames="state")
codec_whole = jax.jit(decoder.decode, static_argnames="config")


class LastVoices:
    """The decoder's states after the references of the voices that spoke last, as batches of one row.

    A voice usually speaks many utterances, and its reference need not be decoded before each. Any thread may ask.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[int, bytes], decoder.DecoderState] = OrderedDict()
        self._leaves: list[jax.Array] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, params: dict[str, Any], rows: int, reference: np.ndarray) -> decoder.DecoderState | None:
        """The state after a reference's codes [R, Q], or None if it is not kept.

        Args:
            params: the subtree codec/decoder; states that other parameters made are forgotten.
            rows: of the program that decoded it: programs of other sizes round differently.
            reference: its codes.
        """
        key = _key(rows, reference)
        with self._lock:
            self._require(params)
            if key in self._states:
                self._states.move_to_end(key)
            return self._states.get(key)

    def keep(self, params: dict[str, Any], rows: int, reference: np.ndarray, state: decoder.DecoderState) -> None:
        """Keeps a state for `get`, in place of the least recently used if there are too many."""
        with self._lock:
            self._require(params)
            self._states[_key(rows, reference)] = state
            while len(self._states) > _VOICES:
                self._states.popitem(last=False)

    def _require(self, params: dict[str, Any]) -> None:
        leaves = jax.tree.leaves(params)
        if len(leaves) != len(self._leaves) or any(map(operator.is_not, leaves, self._leaves)):
            self._states.clear()
            self._leaves = leaves


def _key(rows: int, reference: np.ndarray) -> tuple[int, bytes]:
    return rows, np.asarray(reference, np.int32).tobytes()


def codec_rows(params: dict[str, Any], config: CodecConfig) -> int:
    """The most utterances that are decoded together: a number for each of the devices that share them.

    One on CPUs, where a row of a product may round differently at another place in the batch: decoded alone, an
    utterance always has the same samples. It is about as fast, as nothing is padded to the longest. 32 keep Hopper GPUs
    busy.
    """
    each = 1 if default_device().platform == "cpu" else 32 if config.decoder.hopper else 8
    return each * data_size(params)


def rows_for(params: dict[str, Any], config: CodecConfig, utterances: int) -> int:
    """Rows of the program that decodes so many utterances together, the same number on each device.

    Kernels for Hopper GPUs take multiples of 8.
    """
    devices = data_size(params)
    each = -(-utterances // devices)
    return devices * bucket(each, 8 if config.decoder.hopper and each > 2 else 1)


def decode_codes(
    params: dict[str, Any],
    config: CodecConfig,
    codes: Sequence[np.ndarray],
    references: Sequence[np.ndarray] | None = None,
    *,
    voices: LastVoices | None = None,
    rows: int | None = None,
    official: bool = False,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Samples float32 [T × frame_samples] of each utterance's codes [T, Q].

    Decoded in chunks of one shape with carried state, which is exactly the whole decode.

    Args:
        params: the subtree codec/decoder.
        config: the codec's.
        codes: of each utterance.
        references: codes [R, Q] that come before each utterance's; their samples are cut off.
        voices: keeps the states after references, for the next call.
        rows: decoded together, even if some are empty; by default as many as are needed, up to `codec_rows`.
            `official` decodes one at a time.
        official: decode in chunks without carried state, and cut references off in proportion, as the
            official package does.
        progress: told of utterances decoded.
    """
    if references is None:
        references = [row[:0] for row in codes]
    if official:
        decoded = []
        for reference, own in zip(references, codes, strict=True):
            decoded.append(_decode_officially(params, config, reference, own))
            if progress is not None:
                progress("decode", len(decoded), len(codes))
        return decoded
    voices = LastVoices() if voices is None else voices
    together = rows or codec_rows(params, config)
    # Rows should end in about the same chunk.
    order = sorted(range(len(codes)), key=lambda row: len(codes[row]), reverse=True)
    samples: dict[int, np.ndarray] = {}
    for first in range(0, len(order), together):
        part = order[first : first + together]
        utterances = [(references[row], codes[row]) for row in part]
        shape = rows_for(params, config, rows or len(part))
        samples |= zip(part, _decode_exactly(params, config, utterances, shape, voices), strict=True)
        if progress is not None:
            progress("decode", len(samples), len(codes))
    return [samples[row] for row in range(len(codes))]


def _decode_exactly(
    params: dict[str, Any],
    config: CodecConfig,
    utterances: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: int,
    voices: LastVoices,
) -> list[np.ndarray]:
    """Decodes (reference, codes) pairs; a reference's last frames, fewer than a chunk, go with each utterance."""
    heard, left = [], []
    for reference, codes in utterances:
        whole_chunks = len(reference) // _CHUNK_FRAMES * _CHUNK_FRAMES
        heard.append(reference[:whole_chunks])
        left.append(np.concatenate([reference[whole_chunks:], codes]))
    state = _after(params, config, heard, rows, voices)
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
    frames = -(-max(map(len, codes)) // _CHUNK_FRAMES) * _CHUNK_FRAMES
    padded = np.zeros((rows, frames, config.num_codebooks), np.int32)
    for row, utterance in enumerate(codes):
        padded[row, : len(utterance)] = utterance
    for frame in range(0, frames, _CHUNK_FRAMES):
        state, chunk = place_batch(params, (state, padded[:, frame : frame + _CHUNK_FRAMES]))
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
    params: dict[str, Any], config: CodecConfig, references: Sequence[np.ndarray], rows: int, voices: LastVoices
) -> decoder.DecoderState:
    """The state of `rows` rows, the first of which have heard references of whole chunks, int32 [R, Q].

    Those that are not among `voices` are decoded together, by the program that continues from them: so each utterance
    has the same samples as if it were decoded in one piece with its reference.
    """
    heard = {reference.tobytes(): reference for reference in references if len(reference)}
    states = {voice: voices.get(params, rows, reference) for voice, reference in heard.items()}
    new = [voice for voice, state in states.items() if state is None]
    if new:
        steps = _steps(params, config, codec_start(config.decoder, rows), [heard[voice] for voice in new], rows)
        for step, (state, _) in enumerate(steps, 1):
            for row, voice in enumerate(new):
                if len(heard[voice]) == step * _CHUNK_FRAMES:
                    states[voice] = place_batch(params, row_of(state, row))
                    voices.keep(params, rows, heard[voice], states[voice])
    state = codec_start(config.decoder, rows)
    for voice, after in states.items():
        here = np.array([other.tobytes() == voice for other in references] + [False] * (rows - len(references)))
        state = with_row(*place_batch(params, (state, here)), after)
    return state


@jax.jit
def row_of(state: decoder.DecoderState, row: jax.Array) -> decoder.DecoderState:
    """The state of one row, as a batch of its own."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), state)


@partial(jax.jit, donate_argnames="state")
def with_row(state: decoder.DecoderState, here: jax.Array, row: decoder.DecoderState) -> decoder.DecoderState:
    """The state with `row`, of one row, in all rows that are True in `here` [B]."""

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(here.reshape(-1, *[1] * (leaf.ndim - 1)), new, leaf)

    return jax.tree.map(put, state, row)


def _decode_officially(
    params: dict[str, Any], config: CodecConfig, reference: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """As `decoder.decode_chunked`; chunks are padded on the right to a few lengths, which changes no sample before."""
    whole = np.concatenate([reference, codes])
    longest = decoder.OFFICIAL_CONTEXT_FRAMES + decoder.OFFICIAL_CHUNK_FRAMES
    parts = [np.zeros(0, np.float32)]
    for context, start, end in decoder.official_chunks(len(whole)):
        chunk = whole[start - context : end]
        padding = min(bucket(len(chunk), _CHUNK_FRAMES), longest) - len(chunk)
        decoded = codec_whole(params, config.decoder, np.pad(chunk, ((0, padding), (0, 0)))[None])[0]
        kept = slice(context * config.frame_samples, len(chunk) * config.frame_samples)
        parts.append(np.asarray(decoded, np.float32)[kept])
    samples = np.concatenate(parts)
    return samples[int(len(reference) / max(len(whole), 1) * len(samples)) :]
