"""How long phonemes last, in whole frames: of the teacher, and of the model that learns from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qwen3_tts_jax.text.durations import UNIT, Durations, features_of, frame_text
from qwen3_tts_jax.text.phonemes import PAUSES

TICKS = 2
"""Ticks per frame: the teacher counts in ticks of 25 ms."""
LEAD, TAIL = 1, 3
"""Frames of silence before and after what is said: the same for all clips, so that ends are learnt."""
AHEAD = 3
"""More frames of silence with which the talker begins, so that its text is that far ahead of what it says."""


def on_frames(units: Sequence[str], wanted: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """Rounds durations in ticks of 25 ms to whole frames: ticks of all letters, and frames of each unit.

    A space has no duration: its neighbours share what it would have had. The next unit makes up for what rounding
    takes or adds, up to a tick. Two short phonemes share a frame, which is counted for the first.
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


def text_of(row: dict[str, Any]) -> str:
    """The text that the talker reads for a line of WORK/speech: an id per frame, and at least one per phoneme.

    If two phonemes share a frame, one takes a frame from the nearest phoneme that has several.
    """
    units, frames = UNIT.findall(row["text"]), _spoken(row)
    places = [place for place, unit in enumerate(units) if unit != " "]
    for number, place in enumerate(places):
        if frames[place] == 0:
            rich = [other for other in places if frames[other] > 1]
            if not rich:
                raise ValueError(f"{row['audio']}: more phonemes than frames")
            giver = min(rich, key=lambda other: abs(places.index(other) - number))
            frames[giver] -= 1
            frames[place] = 1
    return frame_text(units, frames)


def fitted(rows: Iterable[dict[str, Any]]) -> Durations:
    """The durations nearest to those of lines of WORK/speech, by least squares."""
    numbers: dict[tuple[str, str], int] = {}
    pairs: list[tuple[list[int], float]] = []
    for row in rows:
        frames = [float(each) for each in _spoken(row)]
        features = list(features_of(UNIT.findall(row["text"])))
        for number, (place, _) in enumerate(features):
            if frames[place] == 0:
                frames[place] = frames[features[number - 1][0]] = 0.5
        for place, keys in features:
            columns = zip(("own", "before", "left"), keys, strict=True)
            pairs.append(([numbers.setdefault(each, len(numbers)) for each in columns], frames[place]))
    size = len(numbers)
    columns, wanted = np.array([each for each, _ in pairs]), np.array([each for _, each in pairs])
    products, sums = np.zeros((size, size)), np.zeros(size)
    for column in columns.T:
        np.add.at(sums, column, wanted)
        for other in columns.T:
            np.add.at(products, (column, other), 1.0)
    # Only sums of the three terms are known, not each of them: the smallest are taken.
    weights = np.linalg.solve(products + np.eye(size), sums)
    tables: dict[str, dict[str, float]] = {"own": {}, "before": {}, "left": {}}
    for (table, key), number in numbers.items():
        tables[table][key] = round(float(weights[number]), 3)
    return Durations(**tables)


def _spoken(row: dict[str, Any]) -> list[int]:
    """Frames of each unit, without the silence at both ends."""
    frames = list(row["durations"])
    frames[0] -= LEAD
    frames[-1] -= TAIL
    return frames
