"""The option --stream: speech to standard output while it is made."""

from __future__ import annotations

import struct
import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import typer

from qwen3_tts_jax.cli.console import cannot_write_standard_output, drop_standard_output, refuse
from qwen3_tts_jax.cli.progress import ProgressLine

if TYPE_CHECKING:
    from qwen3_tts_jax.speech import FinishReason, Speech

# What programs write into a WAV header while the length is unknown, and players take for "to the end".
_UNKNOWN = 0xFFFFFFFF


def check_standard_output() -> None:
    """Refuses a terminal: it would show the samples as characters."""
    if sys.stdout.isatty():
        refuse("--stream writes sound to standard output, which is a terminal: pipe it into a player (| ffplay -)")


def write_stream(
    chunks: Generator[Speech], sample_rate: int, *, raw: bool, progress: ProgressLine
) -> tuple[int, FinishReason | None]:
    """Writes a stream to standard output, chunk by chunk.

    Args:
        chunks: of one utterance; closed at the end.
        sample_rate: of the samples, in Hz.
        raw: leave the WAV header out.
        progress: called with the frames written.

    Returns:
        How many frames were written, and why they ended, or None if nobody listens any more.
    """
    frames, reason = 0, None
    with closing(chunks):
        progress("prefill", 0, 1)
        listening = _write(b"" if raw else wav_header(sample_rate))
        while listening and reason is None:
            speech = next(chunks)
            listening = _write(pcm16(speech.samples))
            if len(speech.codes):
                frames += len(speech.codes)
                progress("speak", frames, frames)
            reason = speech.finish_reason
    return frames, reason if listening else None


def wav_header(sample_rate: int) -> bytes:
    """The 44 bytes before 16-bit mono samples whose number is not known yet."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", 16),
        # PCM, channels, samples a second, bytes a second, bytes a sample, bits a sample
        *(1, 1, sample_rate, 2 * sample_rate, 2, 16),
        *(b"data", _UNKNOWN),
    )


def pcm16(samples: np.ndarray) -> bytes:
    """Samples float [N] in ±1 → 16-bit little-endian, bit for bit as in the files of `audio.write`.

    libsndfile, which writes those, rounds down and clips.

    Raises:
        ValueError: samples that are not finite.
    """
    if not np.isfinite(samples).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples are not finite")
    return np.clip(np.floor(samples * np.float32(32768)), -32768, 32767).astype("<i2").tobytes()


def _write(content: bytes) -> bool:
    """Writes at once; False if the reader has gone."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        drop_standard_output()
        return False
    except OSError as error:
        raise typer.Exit(cannot_write_standard_output(error)) from None
    return True
