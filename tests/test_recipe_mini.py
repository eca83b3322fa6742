"""How long phonemes last: the recipe's best path through CTC's outputs."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from recipes.mini.codes import Clip, durations_of
from recipes.mini.spectral import OUTPUTS, PHONEMES


def clip(text):
    return Clip({"text": text, "speaker": "heart", "audio": "a.flac"}, Path(), np.zeros(0, np.int16), False)


def logits_of(letters, peak=8.0):
    """Outputs that say the letters, "-" nothing."""
    logits = np.zeros((len(letters), len(PHONEMES) + 1), np.float32)
    for number, letter in enumerate(letters):
        logits[number, 0 if letter == "-" else 1 + PHONEMES.index(letter)] = peak
    return logits


def test_frames_belong_to_the_last_phoneme_that_has_begun():
    # Ids: h, ˈɛ, space, l, oʊ, comma. Two outputs a frame.
    heard = ["-", "h", "h", "ɛ", "-", "-", "l", "-", "oʊ", "oʊ", "-", "-"]
    assert durations_of(clip("hˈɛ loʊ,"), logits_of(heard)) == [1, 2, 0, 1, 2, 0]
    # What is silent before the first phoneme is counted as its own.
    assert durations_of(clip("ʃ"), logits_of(["-", "-", "ʃ", "-"])) == [2]


def test_equal_phonemes_in_a_row_need_something_between_them():
    assert durations_of(clip("ss"), logits_of(["s", "-", "-", "s", "s", "s"])) == [1, 2]
    assert durations_of(clip("ss"), logits_of(["s", "s"])) is None  # there is no room for a blank
    assert sum(durations_of(clip("ss"), logits_of(["s", "s", "s", "s"]))) == 2


def test_phonemes_that_do_not_fit():
    assert durations_of(clip("hɛl"), logits_of(["h", "ɛ"])) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all(seed):
    text = ("sss", "hɛl", "tˈæt", "ɪŋ")[seed]
    logits = np.random.default_rng(seed).standard_normal((6, len(PHONEMES) + 1)).astype(np.float32) * 3
    one = clip(text)
    spoken = one.phonemes

    def collapsed(path):
        kept = [label for i, label in enumerate(path) if i == 0 or label != path[i - 1]]
        return [label for label in kept if label]

    best = max(
        (path for path in product(sorted({0, *spoken}), repeat=6) if collapsed(path) == spoken),
        key=lambda path: sum(logits[i, label] for i, label in enumerate(path)),
    )
    expected, said = [0] * len(spoken), 0
    for number, label in enumerate(best):
        said += label != 0 and (number == 0 or label != best[number - 1])
        if number % OUTPUTS == OUTPUTS - 1:
            expected[max(said - 1, 0)] += 1
    assert durations_of(one, logits) == expected
