"""How long phonemes last: the three tables, rounding, and the text that a model reads an id of per frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_tts_jax.text.durations import END, UNIT, Durations, features_of, frame_text

LEFT = {f"{kind} {count}": 0.0 for kind in ("vowel", "consonant") for count in range(4)}


def test_units_are_stressed_phonemes_pauses_and_spaces():
    assert UNIT.findall("ʧˈoɪs, aɪ!") == ["ʧ", "ˈoɪ", "s", ",", " ", "aɪ", "!"]


def test_what_durations_depend_on():
    units = UNIT.findall("mˌænɪ ə,hˈi")
    assert list(features_of(units)) == [
        (0, ("m", "ˌæ", "consonant 3")),
        (1, ("ˌæ", "n", "vowel 2")),
        (2, ("n", "ɪ", "consonant 2")),
        (3, ("ɪ", "ə", "vowel 1")),
        (5, ("ə", ",", "vowel 0")),
        (6, (",", "h", "consonant 0")),
        (7, ("h", "ˈi", "consonant 1")),
        (8, ("ˈi", END, "vowel 0")),
    ]


def test_more_vowels_than_three_are_far():
    assert [keys[2] for _, keys in features_of(list("ɪɪɪɪɪ"))] == [
        "vowel 3",
        "vowel 3",
        "vowel 2",
        "vowel 1",
        "vowel 0",
    ]


def test_terms_are_added():
    durations = Durations({"n": 1.0, "ɪ": 2.0}, {"ɪ": 0.1, END: 3.0}, LEFT | {"consonant 1": 2.0, "vowel 0": 1.0})
    assert durations.frames("nɪ") == [3, 6]


def test_half_of_what_rounding_takes_is_made_good():
    durations = Durations({"n": 1.4, "ɪ": 2.4, "d": 0.2}, {}, LEFT)
    # 1.4; 2.4 + 0.2; 1.4 − 0.2
    assert durations.frames("nɪn") == [1, 3, 1]
    # Every phoneme is said, and no more than a frame is owed: 0.2; (0.2 − 0.4); …
    assert durations.frames("dddn") == [1, 1, 1, 1]
    assert durations.frames("d n") == [1, 0, 1]


def test_unknown_phonemes_last_as_long_as_others():
    assert Durations({"n": 1.0, "ɪ": 5.0}, {}, LEFT).frames("ʒ") == [3]


def test_an_id_per_frame_behind_the_mark_of_the_end():
    assert frame_text(UNIT.findall("nˈoʊ ɪ?"), [2, 3, 0, 1, 2]) == "?nnˈoʊˈoʊˈoʊɪ??"
    assert frame_text(UNIT.findall("nˈoʊ"), [1, 2]) == ".nˈoʊˈoʊ"
    durations = Durations({"n": 1.0, "ɪ": 2.0, "!": 3.0}, {}, LEFT)
    assert durations.frame_text("n ɪ!") == "!nɪɪ!!!"


def test_files(tmp_path: Path):
    path = tmp_path / "durations.json"
    tables = {"own": {"n": 1}, "before": {"": 0.5}, "left": LEFT}
    with pytest.raises(FileNotFoundError, match=r"durations\.json is missing"):
        Durations.from_file(path)
    path.write_text(json.dumps(tables), encoding="utf-8")
    assert Durations.from_file(path) == Durations({"n": 1.0}, {"": 0.5}, LEFT)
    for wrong in (
        {"own": {}},
        tables | {"own": {}},
        tables | {"own": {"n": "long"}},
        tables | {"own": {"n": float("nan")}},
        tables | {"left": {"vowel 0": 1.0}},
        [],
    ):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=r"durations\.json is damaged"):
            Durations.from_file(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"durations\.json is damaged"):
        Durations.from_file(path)
