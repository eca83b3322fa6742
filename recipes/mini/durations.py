"""How long phonemes last, in whole frames."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from qwen3_tts_jax.phonemes import PAUSES, UNITS

TICKS = 2
"""Of 25 ms, in which the teacher counts, per frame."""
UNIT = re.compile("|".join(sorted(UNITS, key=len, reverse=True)) + "|.")
"""What the text tokenizer has an id for."""


def on_frames(units: Sequence[str], wanted: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """Durations in ticks of 25 ms → those of whole frames: ticks of all letters, and frames of each unit.

    A space lasts nothing: its neighbours share what it would have. What rounding takes or adds is made good by the
    next unit, up to a tick. Two short phonemes share a frame, which is then counted to the first.
    """
    lengths = [float(np.maximum(each, 0).sum()) for each in wanted]
    for number, unit in enumerate(units):
        if unit == " ":
            lengths[number - 1] += lengths[number] / 2
            lengths[number + 1] += lengths[number] / 2
    ticks = [np.zeros(len(each), int) for each in wanted]
    frames, owed = [0] * len(units), 0.0

    def give(number: int, count: int) -> None:
        shares = np.maximum(wanted[number], 0.15)
        edges = np.round(np.cumsum([0, *(shares / shares.sum() * count)])).astype(int)
        ticks[number] = np.diff(edges)

    spoken, at = [number for number, unit in enumerate(units) if unit != " "], 0
    while at < len(spoken):
        number, following = spoken[at], spoken[at + 1] if at + 1 < len(spoken) else None
        want = lengths[number] + owed
        both = following is not None and units[number] not in PAUSES and units[following] not in PAUSES
        if both and want < 1.6 and lengths[following] < 1.9 and want + lengths[following] < 3.1:
            give(number, 1)
            give(following, 1)
            frames[number] = 1
            owed, at = want + lengths[following] - TICKS, at + 2
        else:
            frames[number] = max(1, round(want / TICKS))
            give(number, frames[number] * TICKS)
            owed, at = want - frames[number] * TICKS, at + 1
        owed = min(max(owed, -1.0), 1.0)
    return [int(tick) for each in ticks for tick in each], frames
