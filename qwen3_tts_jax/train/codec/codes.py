"""Codes that come with recordings, for a decoder that learns from them alone: checked, cut, and decoded in crops.

The decoder looks back, its transformer furthest, so crops are decoded with the codes before them. All of these go
through the quantizer, the transformer and the upsampling of latents, which cost little; the rest of the decoder
computes only the frames that the crop's samples depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.codec.decoder import initial_state
from qwen3_tts_jax.codec.quantizer import SplitResidualQuantizer
from qwen3_tts_jax.config import CodecConfig, CodecDecoderConfig
from qwen3_tts_jax.speech_tokenizer import encoded_frames
from qwen3_tts_jax.train.code_files import read_codes
from qwen3_tts_jax.train.codec.data import Clips, Length, Recording
from qwen3_tts_jax.train.lines import raise_problems
from qwen3_tts_jax.train.soft_codes import decode_latents

_TOLERANCE = 1  # frames by which codes may be shorter or longer than their recording


def read_recording_codes(
    recordings: Sequence[Recording], lengths: Sequence[Length], config: CodecConfig
) -> tuple[np.ndarray, ...] | None:
    """Codes int32 [T, Q] of each recording; None where no recording has any.

    Args:
        recordings: from `data.find_recordings`.
        lengths: from `data.check_headers`.
        config: of the codec that made the codes.

    Raises:
        train.lines.DataError: codes for some recordings only, files that do not hold codes of the codec, or codes whose
            length is not the recording's. The first ten of the last kind are named.
    """
    if all(recording.codes is None for recording in recordings):
        return None
    missing = next((recording for recording in recordings if recording.codes is None), None)
    if missing is not None:
        raise_problems([f"{missing.where} has no codes, and others have: all recordings of a run have them, or none"])
    read = read_codes(recordings, config)
    problems = []
    for recording, (count, rate) in zip(recordings, lengths, strict=True):
        frames, expected = len(read[recording]), encoded_frames(config, count, rate)
        if abs(frames - expected) > _TOLERANCE:
            problems.append(
                f"{recording.where}: codes {recording.codes} have {frames} frames, and the recording of "
                f"{count / rate:.2f} s has {expected}"
            )
    raise_problems(problems)
    return tuple(read[recording] for recording in recordings)


def with_codes(clips: Clips, codes: Sequence[np.ndarray], frame_samples: int) -> Clips:
    """Clips whose crops begin on whole frames; samples without codes and codes without samples are cut off."""
    pairs = list(zip(clips.samples, codes, strict=True))
    return replace(
        clips,
        samples=tuple(samples[: len(one) * frame_samples] for samples, one in pairs),
        codes=tuple(one[: -(-len(samples) // frame_samples)] for samples, one in pairs),
        frame_samples=frame_samples,
    )


@flax.struct.dataclass
class GivenCodes:
    """Codes of crops of T frames, with up to C frames of context before them.

    Attributes:
        codes: int32 [B, C + T, Q].
        before: int32 [B], frames of a row that come before its crop: C, or fewer where the row begins with its
            recording.
        ends: int32 [B], frames that the crop really has: T, or fewer where its recording ends.
    """

    codes: jax.Array
    before: jax.Array
    ends: jax.Array

    def of_crops(self, frames: int) -> jax.Array:
        """Codes int32 [B, T, Q] of the crops alone, T = `frames`."""
        return _pieces(self.codes, self.before, frames)


def cut_codes(clips: Clips, places: Sequence[tuple[int, int]], frames: int, context: int) -> GivenCodes:
    """Codes of crops of `frames` frames from `Clips.places` or `middles`, with up to `context` frames before."""
    rows = np.zeros((len(places), context + frames, clips.codes[0].shape[1]), np.int32)
    before, ends = np.zeros((2, len(places)), np.int32)
    for row, (which, sample) in enumerate(places):
        first = sample // clips.frame_samples
        before[row] = min(first, context)
        piece = clips.codes[which][first - before[row] :][: context + frames]
        rows[row, : len(piece)] = piece
        ends[row] = min(frames, len(piece) - before[row])
    return GivenCodes(rows, before, ends)


def decode_crops(
    params: Mapping[str, Any],
    config: CodecDecoderConfig,
    given: GivenCodes,
    frames: int,
    latents: Callable[[SplitResidualQuantizer], jax.Array],
) -> jax.Array:
    """Samples [B, T·frame_samples] of crops of T = `frames` frames; 0 after the end of a recording.

    They equal those of decoding the whole recording, up to the effect of the frames left out: rows that begin with
    their recording are decoded from the decoder's own initial state.

    Args:
        params: the subtree codec/decoder.
        config: its shapes.
        given: codes of the crops and of the frames before.
        frames: T.
        latents: called with the quantizer, returns [B, C + T, quantizer_width].
    """
    past = min(_waveform_past(config), given.codes.shape[1] - frames)
    first = jnp.maximum(given.before - past, 0)
    rate = math.prod(config.latent_upsample_rates)

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.module.name == "conv_in":  # the first module of the waveform part
            args = (_pieces(args[0], first * rate, (past + frames) * rate), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        samples = decode_latents(params, config, given.codes.shape, latents)
    samples = _pieces(samples, (given.before - first) * config.frame_samples, frames * config.frame_samples)
    there = jnp.arange(samples.shape[1]) < given.ends[:, None] * config.frame_samples
    return jnp.where(there, samples, 0.0)


def _pieces(rows: jax.Array, first: jax.Array, length: int) -> jax.Array:
    """[B, N, …] → [B, length, …], a piece of each row that begins at its `first`, int32 [B]."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(rows, first)


def _waveform_past(config: CodecDecoderConfig) -> int:
    """How many frames of latents before its own a frame's samples depend on."""
    contexts = jax.eval_shape(lambda: initial_state(config, 1).contexts)
    inputs = contexts["conv_out"].shape[1]
    for i, rate in reversed(list(enumerate(config.upsample_rates))):
        stage = {name: context.shape[1] for name, context in contexts[f"upsample_{i}"].items()}
        of_upsampling = stage.pop("transposed_conv")
        inputs = math.ceil((inputs + sum(stage.values())) / rate) + of_upsampling
    inputs += contexts["conv_in"].shape[1]
    return math.ceil(inputs / math.prod(config.latent_upsample_rates))
