"""Pitch and phase that codes can encode: in every frame of 50 ms a voice takes whole sixths of a period.

Codes that encode magnitudes alone leave the phases of harmonics to the decoder, which must then sum pitch over time to
continue from frame to frame, and its speech is rough. So the teacher's pitch is moved a little, by 1 Hz on average, so
that each frame ends at one of six phases, and a separate codebook encodes this phase and how many sixths the frame
took. A decoder then knows both ends of a frame, and what lies between, since the pitch always goes from that of the
last frame to its own in the same way. The next phase is the one before plus the frame's sixths, modulo six.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE, FRAME, HOP = 24_000, 1_200, 300
"""Samples per second, per frame, and per value of the teacher's pitch."""
LEVELS = 6
"""How many phases a frame can end at."""
LOWEST, HIGHEST = 18, 102
"""Sixths of a period in a frame: 60 to 340 Hz."""
VOICED = np.arange(1, LEVELS * (HIGHEST - LOWEST + 1) + 1)
"""The codes of voiced frames."""
_TIMES = (np.arange(FRAME) + 0.5) / FRAME
_APPROACH = (1 - _TIMES) * (1 - 3 * _TIMES)  # from 1 to 0, and 0 on average
_UNVOICED = 40.0  # Hz; where there is no voice, the teacher's pitch is lower


@dataclass(frozen=True)
class Pitch:
    """The pitch of T frames, N = 1200 T samples.

    Attributes:
        phase: in periods, float64 [N], up to whole ones.
        frequency: in Hz, float64 [N], also where there is no voice.
        voiced: bool [N].
        codes: int64 [T], one per frame; 0 without voice, else 1 + 6 · (sixths − `LOWEST`) + phase at its end.
    """

    phase: np.ndarray
    frequency: np.ndarray
    voiced: np.ndarray
    codes: np.ndarray


def on_grid(pitch: np.ndarray, factor: float = 1.0) -> Pitch:
    """The teacher's pitch [4 T] in Hz, times `factor`, moved to whole sixths of a period per frame.

    Where a voice begins, its first frame has a constant pitch and ends at phase 0.
    """
    times, samples = (np.arange(len(pitch)) + 0.5) * HOP - 0.5, np.arange(len(pitch) * HOP)
    voiced = np.interp(samples, times, pitch) > _UNVOICED
    there = np.nonzero(pitch > _UNVOICED)[0]
    if not len(there):
        nothing = np.zeros(len(samples))
        return Pitch(nothing, nothing + 100, voiced, np.zeros(len(samples) // FRAME, np.int64))
    nearest = there[np.abs(np.arange(len(pitch))[:, None] - there).argmin(axis=1)]
    wanted = factor * np.interp(samples, times, pitch[nearest].astype(np.float64)).reshape(-1, FRAME).mean(axis=1)
    sixths = np.clip(np.round(wanted * LEVELS * FRAME / SAMPLE_RATE), LOWEST, HIGHEST).astype(np.int64)
    some = voiced.reshape(-1, FRAME).any(axis=1)
    goes_on = some & np.concatenate([[False], some[:-1]])
    means, ends = sixths / LEVELS / FRAME * SAMPLE_RATE, np.zeros(len(sixths), np.int64)
    for frame in np.nonzero(goes_on)[0]:
        ends[frame] = (ends[frame - 1] + sixths[frame]) % LEVELS
    steps = np.where(goes_on, np.concatenate([means[:1], means[:-1]]) - means, 0)
    frequency = means[:, None] + steps[:, None] * _APPROACH
    phase = ((ends - sixths) / LEVELS)[:, None] + np.cumsum(frequency, axis=1) / SAMPLE_RATE
    codes = np.where(some, 1 + LEVELS * (sixths - LOWEST) + ends, 0)
    return Pitch(phase.ravel(), frequency.ravel(), voiced, codes)


def parts_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes above 0 → the sixths of their frames, and the phases at their ends."""
    return LOWEST + (codes - 1) // LEVELS, (codes - 1) % LEVELS


def pulses(pitch: Pitch, highest: float = 11_000.0) -> np.ndarray:
    """Float32 [N]: all harmonics up to `highest` Hz with amplitude 1, in phase; 0 where there is no voice."""
    # The sum of cos(h t) for h = 1 … H is sin((H + ½) t) / (2 sin(t / 2)) − ½.
    count, angle = np.floor(highest / pitch.frequency), 2 * np.pi * (pitch.phase % 1)
    below = 2 * np.sin(angle / 2)
    at_peak = np.abs(below) < 1e-6
    total = np.where(at_peak, count + 0.5, np.sin((count + 0.5) * angle) / np.where(at_peak, 1, below)) - 0.5
    return np.where(pitch.voiced, total, 0).astype(np.float32)


def periods(pitch: Pitch) -> np.ndarray:
    """The samples at which voiced periods begin."""
    part = (pitch.phase + 1e-9) % 1
    return np.nonzero((part[1:] < part[:-1]) & pitch.voiced[1:])[0] + 1


def features(size: int) -> np.ndarray:
    """What each code says, float32 [`size`, 81], within ±1: cosine and sine of the fundamental at 24 times in the
    frame, those of three harmonics at five, whether there is voice, how high, and how high within an octave.

    So a decoder need not learn to multiply time by pitch and to drop whole periods.
    """
    sixths, ends = parts_of(VOICED)

    def phases(times: np.ndarray) -> np.ndarray:
        return 2 * np.pi * (ends[:, None] - sixths[:, None] * (1 - times)) / LEVELS

    fundamental, coarse = phases((np.arange(24) + 0.5) / 24), phases(np.arange(5) / 4)
    angles = np.concatenate([fundamental, 2 * coarse, 3 * coarse, 4 * coarse], axis=1)
    height = np.log2(sixths / LOWEST)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    table = np.concatenate(
        [table, np.stack([np.ones(len(VOICED)), height / 2.5 - 0.5, np.sin(2 * np.pi * height)], 1)], 1
    )
    result = np.zeros((size, table.shape[1]), np.float32)
    result[0, -3] = -1
    result[VOICED] = table
    return result
