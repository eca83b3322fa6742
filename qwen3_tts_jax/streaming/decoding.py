"""The codec's decoder for streams: rows that go on chunk by chunk, each from where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.codec_decoding import LastVoices, codec_rows, codec_start, codec_step, row_of, rows_for, with_row
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.devices import default_device
from qwen3_tts_jax.sharding import place_batch

CODEC_FRAMES = (16, 8, 4, 2, 1)
"""The decoder compiles once per size; chunks are cut into these."""


class StreamDecoder:
    """The decoder's states for a number of rows, each of which speaks one stream after the other.

    Rows are decoded in groups of the size that suits the device: on CPUs one by one.
    """

    def __init__(self, params: dict[str, Any], config: CodecConfig, rows: int, voices: LastVoices | None = None):
        """All rows begin with silence before them.

        Args:
            params: the subtree codec/decoder.
            config: the codec's.
            rows: how many streams are spoken at a time.
            voices: keeps the states after references, for the next decoder.
        """
        self._params, self._config = params, config
        self._together = min(rows, codec_rows(params, config))
        self._shape = rows_for(params, config, self._together)
        self._states = [self._start() for _ in range(0, rows, self._together)]
        self._voices = LastVoices() if voices is None else voices

    def hear(self, row: int, reference: np.ndarray) -> None:
        """Begins another stream in a row; it continues after a recording's codes [R, Q], where R may be 0."""
        group, place = divmod(row, self._together)
        here = np.arange(self._shape) == place
        state, here = place_batch(self._params, (self._states[group], here))
        self._states[group] = with_row(state, here, self._voice(reference))

    def decode(
        self,
        codes: Mapping[int, np.ndarray],
        ended: Collection[int] = (),
        *,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[int, np.ndarray]:
        """The samples float32 [T × frame_samples] of the next codes [T, Q] of each row.

        Args:
            codes: by row, of all rows that go on; T may differ, and may be 0.
            ended: rows that do not go on after these codes.
            meanwhile: may give the device more to do. It is called before waiting for an accelerator; on CPUs, whose
                cores both would share, once the samples are there.
        """
        groups: dict[int, dict[int, np.ndarray]] = {}
        for row, spoken in codes.items():
            group, place = divmod(row, self._together)
            groups.setdefault(group, {})[place] = spoken
        decoded = {
            group: self._decode_group(group, spoken, {row - group * self._together for row in ended})
            for group, spoken in groups.items()
        }
        if default_device().platform == "cpu":
            jax.block_until_ready(decoded)
        meanwhile()
        samples = {}
        for group, parts in jax.device_get(decoded).items():
            whole = np.concatenate([np.zeros((self._shape, 0), np.float32), *parts], axis=1)
            for place, spoken in groups[group].items():
                samples[group * self._together + place] = whole[place, : len(spoken) * self._config.frame_samples]
        return samples

    def _decode_group(self, group: int, codes: Mapping[int, np.ndarray], ended: Collection[int]) -> list[jax.Array]:
        """Samples [rows, N] on the device, part by part; `codes` and `ended` name rows by their place in the group."""
        state, frames, parts = self._states[group], max(map(len, codes.values())), []
        padded = np.zeros((self._shape, frames, self._config.num_codebooks), np.int32)
        for place, spoken in codes.items():
            padded[place, : len(spoken)] = spoken
        # Rows that pause before the others do, and go on later from there.
        pausing = {place: len(spoken) for place, spoken in codes.items() if len(spoken) < frames and place not in ended}
        paused, start = {}, 0
        for end in sorted({*pausing.values(), frames}):
            for size in _sizes(end - start):
                state, samples = self._step(state, padded[:, start : start + size])
                parts.append(samples)
                start += size
            paused |= {place: row_of(state, place) for place, length in pausing.items() if length == end}
        for place, row in paused.items():
            state = with_row(*place_batch(self._params, (state, np.arange(self._shape) == place)), row)
        self._states[group] = state
        return parts

    def _start(self) -> decoder.DecoderState:
        # Placed where steps leave it, so that the first step needs no program of its own.
        return place_batch(self._params, codec_start(self._config.decoder, self._shape))

    def _step(self, state: decoder.DecoderState, codes: np.ndarray) -> tuple[decoder.DecoderState, jax.Array]:
        return codec_step(self._params, self._config.decoder, state, place_batch(self._params, codes))

    def _voice(self, reference: np.ndarray) -> decoder.DecoderState:
        """The state of one row after a reference, which is decoded by the programs that continue from it."""
        known = self._voices.get(self._params, self._shape, reference)
        if known is not None:
            return known
        state, start = self._start(), 0
        for size in _sizes(len(reference)):
            part = np.broadcast_to(reference[start : start + size], (self._shape, size, reference.shape[1]))
            state, _ = self._step(state, part)
            start += size
        after = place_batch(self._params, row_of(state, 0))
        self._voices.keep(self._params, self._shape, reference, after)
        return after


def _sizes(frames: int) -> Iterator[int]:
    """Cuts a number of frames into the few lengths that are compiled."""
    for size in CODEC_FRAMES:
        while frames >= size:
            yield size
            frames -= size
