"""The tokenizer of bytes and units: one id per phoneme."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.text.durations import Durations
from qwen3_tts_jax.text.phonemes import UNITS, phonemize
from qwen3_tts_jax.text.tokenizer import TextTokenizer, TokenizerError
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer

TEXTS = ["Hello there.", "Oh boy, I say: how now?", "The measure of joy, a church, and this thing!", "Up, in, at 9:45."]


@pytest.fixture
def folder(tmp_path):
    return write_byte_tokenizer(tmp_path / "tokenizer", UNITS)


@pytest.mark.parametrize("pattern", ["official", "qwen2"])
def test_a_phoneme_is_one_id(folder, pattern):
    tokenizer = TextTokenizer.from_folder(folder, pattern)
    long = [unit for unit in UNITS if len(unit.encode()) > 1]
    assert [tokenizer.encode(unit) for unit in long] == [[256 + i] for i in range(len(long))]
    # Between them are the stress marks, which the units are merged of.
    assert tokenizer.encode("<|endoftext|>") == [256 + len(long) + 2]
    assert tokenizer.encode("b e\n") == [98, 32, 101, 10]
    for text in TEXTS:
        phonemes = phonemize(text)
        units = re.findall("[ˈˌ]?(?:[aeo][ɪʊ]|.)", phonemes)
        assert [tokenizer.encode(unit) for unit in units] == [[id_] for id_ in tokenizer.encode(phonemes)]


def test_bytes_remain(folder):
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.encode("é中") == list("é中".encode())
    assert len(tokenizer.assistant("")) == 8


def test_without_units_there_are_bytes_alone(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    assert (folder / "merges.txt").read_text() == "#version: 0.2\n"
    assert len(json.loads((folder / "vocab.json").read_text())) == 256


def test_a_tokenizer_says_that_its_texts_are_phonemes(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert TextTokenizer.from_folder(folder).phonemes is None
    path.write_text(json.dumps(settings | {"phonemes": "en-us"}))
    with pytest.raises(FileNotFoundError, match=r"durations\.json is missing; a model that reads phonemes needs it"):
        TextTokenizer.from_folder(folder)
    assert TextTokenizer.from_folder(folder, phonemize=False).phonemes is None
    durations = Durations.from_file(local_folder(MINI) / "durations.json")
    (folder / "durations.json").write_text(json.dumps(asdict(durations)))
    assert TextTokenizer.from_folder(folder).phonemes == durations
    (folder / "durations.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"durations\.json is damaged"):
        TextTokenizer.from_folder(folder)
    path.write_text(json.dumps(settings | {"phonemes": "tlh"}))
    with pytest.raises(TokenizerError, match="there are no phonemes 'tlh', only en-us"):
        TextTokenizer.from_folder(folder)
