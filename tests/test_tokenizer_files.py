"""The rebuilt text tokenizer: byte-pair merges found from ranks, and the published ids."""

import json

import pytest

from tests.tokenizer_files import ADDED_TOKENS, FIRST_ADDED_ID, byte_letters, split_into_pair


def test_split_finds_the_merge_that_was_made_last():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258, b"abcbc": 259}
    assert split_into_pair(b"ab", ranks) == (b"a", b"b")
    assert split_into_pair(b"abc", ranks) == (b"a", b"bc")
    assert split_into_pair(b"abcbc", ranks) == (b"abc", b"bc")


def test_split_refuses_ranks_that_no_merges_can_make():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"xyz": 256}
    with pytest.raises(ValueError, match="xyz"):
        split_into_pair(b"xyz", ranks)


def test_bytes_are_spelled_one_to_one():
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert letters[ord("A")] == "A"
    assert letters[ord(" ")] == "Ġ"
    assert letters[ord("\n")] == "Ċ"


def test_files_have_the_published_sizes_and_ids(tokenizer_folder):
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (tokenizer_folder / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert sorted(vocab.values()) == list(range(FIRST_ADDED_ID))
    assert len(merges) == FIRST_ADDED_ID - 256
    assert [vocab["".join(merge.split(" "))] for merge in merges] == list(range(256, FIRST_ADDED_ID))
    assert (vocab["Hello"], vocab["Ġworld"], vocab["assistant"]) == (9707, 1879, 77_091)
    assert len(ADDED_TOKENS) == 33
    added = {int(i): token["content"] for i, token in config["added_tokens_decoder"].items()}
    assert added[151_644] == "<|im_start|>"
    assert added[151_671] == "<tts_pad>"
    assert max(added) == 151_675
