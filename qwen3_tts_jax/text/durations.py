"""How long phonemes last: for models that are told which phoneme every frame says, like `mini`.

Such a model reads its text as it comes, an id with each frame. As each phoneme is repeated for its duration, the model
need not find out what comes next or when speech ends. Durations come from an additive model of a speaker's, with terms
for the phoneme, for what follows it, and for how near a pause is: syllables before a pause are longer (Klatt 1976).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from qwen3_tts_jax.text.phonemes import PAUSES, STRESSES, UNITS, VOWELS

UNIT = re.compile("|".join(sorted(UNITS, key=len, reverse=True)) + "|.")
"""A phoneme with its stress, a pause or a space."""
END = ""
"""What follows the last phoneme."""

_VOWELS = {*VOWELS, *(stress + vowel for stress in STRESSES for vowel in VOWELS)}
_FAR = 3
_LEFT = [f"{kind} {count}" for kind in ("vowel", "consonant") for count in range(_FAR + 1)]


@dataclass(frozen=True)
class Durations:
    """Frames of each phoneme or pause: the sum of three terms.

    Attributes:
        own: by the phoneme.
        before: by the phoneme or pause that follows, `END` after the last.
        left: by "vowel" or "consonant" and how many vowels are yet to come before a pause, up to 3, as "vowel 0".
    """

    own: Mapping[str, float]
    before: Mapping[str, float]
    left: Mapping[str, float]

    @classmethod
    def from_file(cls, path: Path) -> Durations:
        """Reads a JSON object with the three tables.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a model that reads phonemes needs it")
        try:
            tables = json.loads(path.read_text(encoding="utf-8"))
            numbers = {
                each.name: {key: float(value) for key, value in tables[each.name].items()} for each in fields(cls)
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None
        if not all(math.isfinite(value) for table in numbers.values() for value in table.values()):
            raise ValueError(f"{path} is damaged: its numbers must be finite")
        if not numbers["own"] or not numbers["left"].keys() >= set(_LEFT):
            raise ValueError(f"{path} is damaged: it must have phonemes in 'own', and {', '.join(_LEFT)} in 'left'")
        return cls(**numbers)

    def frames(self, phonemes: str) -> list[int]:
        """How many frames each unit of phonemes takes, at least one, and none for spaces.

        Half of what rounding removes or adds is carried over to the next unit.
        """
        units = UNIT.findall(phonemes)
        wanted = {place: self._wanted(*features) for place, features in features_of(units)}
        result, owed = [0] * len(units), 0.0
        for place, want in wanted.items():
            result[place] = max(1, round(want + owed))
            owed = min(max(owed + want - result[place], -1.0), 1.0) / 2
        return result

    def frame_text(self, phonemes: str) -> str:
        """The text of an utterance, an id per frame; see `frame_text`."""
        return frame_text(UNIT.findall(phonemes), self.frames(phonemes))

    def _wanted(self, unit: str, following: str, place: str) -> float:
        # Phonemes that the tables do not know last as long as the others do on average.
        own = self.own.get(unit)
        if own is None:
            own = sum(self.own.values()) / len(self.own)
        return own + self.before.get(following, 0.0) + self.left[place]


def features_of(units: Sequence[str]) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """For each unit but spaces, its place and the keys of its terms in the tables of `Durations`."""
    left, following, found = 0, END, []
    for place in reversed(range(len(units))):
        unit = units[place]
        if unit == " ":
            continue
        left = 0 if unit in PAUSES else left
        vowel = unit in _VOWELS
        found.append((place, (unit, following, f"{'vowel' if vowel else 'consonant'} {min(left, _FAR)}")))
        left, following = left + vowel, unit
    return reversed(found)


def frame_text(units: Sequence[str], frames: Sequence[int]) -> str:
    """Each unit once per frame, after the mark that the sentence ends with, so that a question is known early."""
    mark = units[-1] if units[-1] in PAUSES else "."
    return mark + "".join(unit * count for unit, count in zip(units, frames, strict=True) if unit != " ")
