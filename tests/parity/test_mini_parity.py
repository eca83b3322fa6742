"""The model in the package, in the official one: the same ids of phonemes and of their frames, and the same speech."""

from __future__ import annotations

import re

from qwen3_tts_jax.convert.verify import run_parity
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.text.phonemes import phonemize
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from tests.parity.oracle import load_official

TEXTS = ["Hello there.", "Oh boy, I say: how now?", "The measure of joy, a church, and this thing!", "Up, in, at 9:45."]


def test_a_phoneme_is_one_id_of_the_official_processor():
    official, ours = load_official(local_folder(MINI)), TextTokenizer.from_folder(local_folder(MINI))
    for text in map(phonemize, TEXTS):
        (ids,) = official._tokenize_texts([official._build_assistant_text(text)])[0].tolist()
        assert ours.assistant(text) == ids
        assert len(ids) == 8 + len(re.findall("[ˈˌ]?(?:[aeo][ɪʊ]|.)", text))


def test_a_frame_is_one_id_of_the_official_processor():
    official, ours = load_official(local_folder(MINI)), TextTokenizer.from_folder(local_folder(MINI))
    for text in map(phonemize, TEXTS):
        in_frames = ours.phonemes.frame_text(text)
        (ids,) = official._tokenize_texts([official._build_assistant_text(in_frames)])[0].tolist()
        assert ours.assistant(in_frames) == ids
        assert len(ids) == 8 + 1 + sum(ours.phonemes.frames(text))


def test_speech():
    report = run_parity(local_folder(MINI), TEXTS[:1], frames=4)
    assert report.passed, report.to_table()
    assert report.settings["text mode"] == "as_it_comes"
