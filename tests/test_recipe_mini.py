"""How long phonemes last in the recipe's frames, what each frame says, and the list of the teacher's speech."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_tts_jax.text.durations import UNIT, Durations
from recipes.mini.codes import Clip
from recipes.mini.durations import LEAD, TAIL, TICKS, fitted, on_frames, text_of
from recipes.mini.spectral import PHONEMES


def frames_of(text, *lengths):
    """Of units that want so many ticks."""
    units = UNIT.findall(text)
    assert len(units) == len(lengths)
    return on_frames(units, [np.array([length], float) for length in lengths])


def test_durations_are_rounded_and_what_is_owed_is_made_good():
    assert frames_of("sˈæt", 4, 6, 4) == ([4, 6, 4], [2, 3, 2])
    # 3 → 2 frames (4 ticks), one too many, so the next gets 5 − 1.
    assert frames_of("sˈæ", 3.2, 5) == ([4, 4], [2, 2])
    # No more than a tick is owed: 0.2 → a frame, and −1.8 becomes −1.
    assert frames_of("sˈæ", 0.2, 5) == ([2, 4], [1, 2])


def test_two_short_phonemes_share_a_frame():
    assert frames_of("stˈæ", 1, 1, 4) == ([1, 1, 4], [1, 0, 2])
    # A pause shares with none.
    assert frames_of("st,", 4, 1, 1) == ([4, 2, 2], [2, 1, 1])
    # One that is not short shares with none.
    assert frames_of("stˈæ", 1, 2, 4)[1] == [1, 1, 2]


def test_a_space_is_shared_by_its_neighbours():
    assert frames_of("s t", 3, 2, 3) == ([4, 0, 4], [2, 0, 2])


@pytest.mark.parametrize("seed", range(5))
def test_all_ticks_are_frames(seed):
    rng = np.random.default_rng(seed)
    units = UNIT.findall("ðɪs ɪz ə tˈɛst, əv bɹˈɔd stɹˈits ænd əv wˈɚdz.")
    wanted = [rng.uniform(0, 4, rng.integers(1, 3)) for _ in units]
    ticks, frames = on_frames(units, wanted)
    assert sum(ticks) == TICKS * sum(frames)
    assert len(ticks) == sum(map(len, wanted))


def test_what_frames_say():
    row = {"text": "stˈæ, ə", "durations": [2, 0, 1, 1, 0, 2], "speaker": "heart", "audio": "a.flac"}
    labels = Clip(row, np.zeros(0, np.int16), False).labels
    said = [[PHONEMES[label - 1] if label else None for label in pair] for pair in labels]
    assert said == [["s", None], ["s", "t"], ["æ", None], [",", None], ["ə", None], ["ə", None]]


def test_the_text_has_an_id_per_frame_and_every_phoneme():
    row = {"text": "stˈæ ən.", "durations": [LEAD + 3, 0, 1, 0, 1, 2, 3 + TAIL], "audio": "a.flac"}
    assert text_of(row) == ".sstˈæənn..."
    # The nearest that has more gives.
    assert text_of(row | {"durations": [LEAD + 1, 0, 1, 0, 3, 2, 3 + TAIL]}) == ".stˈæəənn..."
    with pytest.raises(ValueError, match=r"a\.flac: more phonemes than frames"):
        text_of({"text": "st", "durations": [LEAD + 1, TAIL], "audio": "a.flac"})


def test_durations_are_fitted():
    left = {f"{kind} {count}": value for kind, value in (("vowel", 2), ("consonant", 0)) for count in range(4)}
    told = Durations({"s": 2, "t": 1, "ɪ": 1, "ˈæ": 3, ".": 4}, {"s": 1, "": 0}, left)
    rng, rows = np.random.default_rng(0), []
    for _ in range(300):
        text = "".join(rng.choice(["s", "t", "ɪ", "ˈæ"], 6)) + "."
        frames = told.frames(text)
        assert min(frames) > 0
        frames[0] += LEAD
        frames[-1] += TAIL
        rows.append({"text": text, "durations": frames})
    found = fitted(rows)
    for row in rows[:20]:
        assert found.frames(row["text"]) == told.frames(row["text"])


def test_lines_of_an_interrupted_list_stay_on_the_disk(tmp_path, monkeypatch):
    for name in ("hibari", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(dsp=SimpleNamespace(SR=24_000), tts=None))
    from recipes.mini import teacher_speech

    (tmp_path / "sentences.txt").write_text("One.\nTwo.\n")
    (tmp_path / "speech").mkdir()
    kept = json.dumps({"audio": "heart/00000.flac", "seconds": 1.0}) + "\n"
    partial = tmp_path / "speech" / "heart.part"
    partial.write_text(kept + '{"audio": "hea')
    seen = []

    def speak(text, voice):
        seen.append(partial.read_text())
        return np.zeros(24_000), [1], [0]

    monkeypatch.setattr(teacher_speech, "Teacher", lambda: SimpleNamespace(speak=speak))
    monkeypatch.setattr(sys, "argv", ["teacher_speech", str(tmp_path), "--voice", "heart"])
    teacher_speech.main()
    assert seen == [kept]
    audios = [json.loads(line)["audio"] for line in (tmp_path / "speech" / "heart.jsonl").read_text().splitlines()]
    assert audios == ["heart/00000.flac", "heart/00001.flac"]
