"""`SpeechTokenizer`: recordings ↔ codes, with the codec alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from qwen3_tts_jax import audio as sound
from qwen3_tts_jax import convert, hf_config
from qwen3_tts_jax.audio import AudioLike
from qwen3_tts_jax.buckets import bucket
from qwen3_tts_jax.codec import encoder, hopper
from qwen3_tts_jax.codec_decoding import decode_codes, fetched
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.sharding import place_batch
from qwen3_tts_jax.speech import Progress
from qwen3_tts_jax.voice_prompt import codes_problem

# Longer chunks waste more of the last one, shorter ones keep a CPU's cores less busy.
_CHUNK_FRAMES = 32
_ROWS = 8

encode_start = jax.jit(encoder.initial_state, static_argnames=("config", "batch", "capacity"))
encode_step = jax.jit(encoder.encode_step, static_argnames="config", donate_argnames="state")


def encode_recordings(
    params: dict[str, Any],
    config: CodecConfig,
    recordings: Sequence[np.ndarray],
    *,
    sliding_window: bool = True,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Encodes recordings of any lengths, each as if it were alone.

    They run through one compiled program per number of rows (1, 2, 3, 4, 6 or 8), in chunks with carried
    state, so that with the sliding window hours need no more memory than seconds.

    Args:
        params: the subtree codec/encoder.
        config: the codec's.
        recordings: float [N] each, N > 0, in [−1, 1] at the codec's sample rate.
        sliding_window: see `encoder.encode`. Without it memory and time per frame grow with the recording.
        progress: called as progress("encode", recordings done, recordings in all).

    Returns:
        Codes int32 [ceil(N / frame_samples), Q] of each; see `encoded_frames`.

    Raises:
        ValueError: a recording of another shape or dtype, empty or not finite, before anything is computed.
    """
    for row, samples in enumerate(recordings):
        problem = sound.samples_problem(samples)
        if problem:
            raise ValueError(f"recording {row} {problem}")
    # Rows of a batch should end in about the same step.
    order = sorted(range(len(recordings)), key=lambda row: len(recordings[row]), reverse=True)
    codes: dict[int, np.ndarray] = {}
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        batch = _encode_batch(params, config, [recordings[row] for row in rows], sliding_window)
        codes |= zip(rows, batch, strict=True)
        if progress is not None:
            progress("encode", len(codes), len(order))
    return [codes[row] for row in range(len(recordings))]


def encoded_frames(config: CodecConfig, count: int, rate: int) -> int:
    """How many frames a codec makes of a recording of `count` samples at `rate` Hz, which is resampled first."""
    return -(-sound.resampled_length(count, rate, config.sample_rate) // config.frame_samples)


def _encode_batch(
    params: dict[str, Any], config: CodecConfig, recordings: Sequence[np.ndarray], sliding_window: bool
) -> list[np.ndarray]:
    rows, chunk_samples = bucket(len(recordings), 1), _CHUNK_FRAMES * config.frame_samples
    # Rows that fill up the bucket have no samples.
    lengths = np.array([*map(len, recordings), *[0] * (rows - len(recordings))])
    chunks = -(-lengths.max() // chunk_samples)
    capacity = None
    if not sliding_window or config.encoder.transformer.sliding_window is None:
        positions = _CHUNK_FRAMES * config.encoder.downsample_stride
        capacity = bucket(int(chunks) * positions, positions)
    # Placed where steps leave it, so that the first step needs no program of its own.
    state = place_batch(params, encode_start(config.encoder, rows, capacity))
    codes = list(fetched(_steps(params, config, state, recordings, lengths, int(chunks))))
    whole = np.concatenate(codes, axis=1)[: len(recordings)]
    return [row[row[:, 0] >= 0] for row in whole]


def _steps(
    params: dict[str, Any],
    config: CodecConfig,
    state: encoder.EncoderState,
    recordings: Sequence[np.ndarray],
    lengths: np.ndarray,
    chunks: int,
) -> Iterator[jax.Array]:
    """Codes [B, T, Q] of each chunk, on the device; `lengths` [B] is 0 in rows without a recording."""
    chunk_samples = _CHUNK_FRAMES * config.frame_samples
    for start in range(0, chunks * chunk_samples, chunk_samples):
        samples = np.zeros((len(lengths), chunk_samples), np.float32)
        for row, recording in enumerate(recordings):
            piece = recording[start : start + chunk_samples]
            samples[row, : len(piece)] = piece
        here = np.clip(lengths - start, 0, chunk_samples).astype(np.int32)
        samples, here = place_batch(params, (samples, here))
        state, new = encode_step(params, config, state, samples, here)
        yield new


class SpeechTokenizer:
    """The codec ready to use; make one with `from_pretrained`.

    Attributes:
        config: the codec's, with the dtype that it computes in.
        params: its parameter trees "encoder" and "decoder", usable with the functions of `codec`.
    """

    def __init__(self, config: CodecConfig, params: dict[str, Any]):
        self.config, self.params = config, params

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: str = "float32",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Loads only the codec of a checkpoint; all published ones have the same.

        Args:
            model: a checkpoint's folder (published layout or converted), its `speech_tokenizer` folder, a
                Hugging Face repo id, "Qwen/Qwen3-TTS-Tokenizer-12Hz" among them, or a short name such as
                "0.6B-Base".
            dtype: "float32" as published, "bfloat16_3x" for a decoder in three passes (see
                `config.CodecConfig.with_dtype`), or "bfloat16", which gives other codes.
            revision: branch, tag or commit on Hugging Face.
            cache_dir: where downloads are kept; Hugging Face's own cache by default.
            local_files_only: never ask the network; None lets the environment variable HF_HUB_OFFLINE decide.
            progress: called as progress("load", bytes_done, bytes_total).

        Raises:
            FileNotFoundError: no such folder or repo, or files are missing.
            qwen3_tts_jax.config.ConfigError: a codec that this package cannot run.
            qwen3_tts_jax.convert.CheckpointError: weights that do not fit the config, all errors at once.
        """
        folder = convert.resolve_codec(model, revision, cache_dir, local_files_only)
        config = hopper.configure(hf_config.read_codec(folder).with_dtype(dtype))
        report = None if progress is None else partial(progress, "load")
        return cls(config, convert.load_codec(folder, config, report))

    def encode(
        self,
        audio: AudioLike | np.ndarray | list[AudioLike | np.ndarray],
        sample_rate: int | None = None,
        *,
        sliding_window: bool = True,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """Recordings → codes int32 [T, Q] of each; `encoded_frames` gives T.

        Each recording has the codes that it would have alone. In the official package the last frame of the
        shorter recordings in a list sees the padding, and may differ.

        Args:
            audio: one recording or a list of them: see `audio.AudioLike`, or samples [N] or [N, channels],
                which need `sample_rate`. Any rate will do: they are resampled to the codec's.
            sample_rate: of bare samples, in Hz; other kinds of recordings carry their own.
            sliding_window: see `codec.encoder.encode`; for more than 10 s, False gives the codes of the official
                package on a CPU.
            progress: see `encode_recordings`.

        Raises:
            ValueError, TypeError, OSError: as `audio.read`, bare samples without a rate, or no encoder in `params`.
            qwen3_tts_jax.config.ConfigError: the encoder is not trained.
        """
        self.config.require_encoder()
        if "encoder" not in self.params:
            raise ValueError("the codec's encoder was not loaded: SpeechTokenizer.from_pretrained loads both halves")
        sources = audio if isinstance(audio, list) else [audio]
        recordings = [self._read(row, source, sample_rate) for row, source in enumerate(sources)]
        return encode_recordings(
            self.params["encoder"], self.config, recordings, sliding_window=sliding_window, progress=progress
        )

    def _read(self, row: int, source: AudioLike | np.ndarray, sample_rate: int | None) -> np.ndarray:
        try:
            if hasattr(source, "__array__") and not isinstance(source, str | bytes):
                if sample_rate is None:
                    raise ValueError("bare samples need sample_rate, in Hz")
                source = (np.asarray(source), sample_rate)
            samples, rate = sound.read(source)
        except (OSError, TypeError, ValueError) as error:
            raise type(error)(f"recording {row}: {error}") from error
        return sound.resample(samples, rate, self.config.sample_rate)

    def decode(
        self, codes: np.ndarray | list[np.ndarray], *, progress: Progress | None = None
    ) -> tuple[list[np.ndarray], int]:
        """Codes → samples float32 [T × frame_samples] of each utterance in [−1, 1], and their rate in Hz.

        Args:
            codes: integers [T, Q], T > 0, or a list of such, of any lengths.
            progress: called as progress("decode", utterances done, utterances in all).

        Raises:
            ValueError: an array of another shape or dtype, or a code that is not in the codebook.
        """
        utterances = codes if isinstance(codes, list) else [codes]
        checked = [self._checked(row, utterance) for row, utterance in enumerate(utterances)]
        samples = decode_codes(self.params["decoder"], self.config, checked, progress=progress)
        return samples, self.config.sample_rate

    def _checked(self, row: int, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        problem = codes_problem(codes, self.config.num_codebooks, self.config.decoder.codebook_size)
        if problem:
            raise ValueError(f"codes {row} {problem}")
        return codes.astype(np.int32)

    # The methods of the official package, under its names.

    def get_model_type(self) -> str:
        """The codec's type in config.json; there is no other."""
        return "qwen3_tts_tokenizer_12hz"

    def get_input_sample_rate(self) -> int:
        """Samples per second that the encoder reads."""
        return self.config.sample_rate

    def get_output_sample_rate(self) -> int:
        """Samples per second that the decoder makes."""
        return self.config.sample_rate

    def get_encode_downsample_rate(self) -> int:
        """Samples per frame that the encoder reads."""
        return self.config.frame_samples

    def get_decode_upsample_rate(self) -> int:
        """Samples per frame that the decoder makes."""
        return self.config.frame_samples
