"""The text tokenizer against ids of the official package, which `golden/text_ids.json` holds.

`parity/test_text_parity.py` checks that file against the official package itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3_tts_jax.text.tokenizer import TextTokenizer, TokenizerError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "text_ids.json").read_text(encoding="utf-8"))
PATTERNS_DIFFER = {
    "camelCase",
    "brands",
    "thai",
    "thai_final_marks",
    "vowelled_arabic",
    "slash_after_newline",
    "apostrophes",
}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder)


@pytest.fixture(scope="module")
def qwen2_tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder, pattern="qwen2")


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_are_the_official_ones(name: str, tokenizer: TextTokenizer, qwen2_tokenizer: TextTokenizer):
    case = GOLDEN[name]
    assert tokenizer.assistant(case["text"]) == case["official"]
    assert qwen2_tokenizer.assistant(case["text"]) == case["qwen2"]


def test_the_golden_cases_tell_the_patterns_apart():
    assert {name for name, case in GOLDEN.items() if case["official"] != case["qwen2"]} == PATTERNS_DIFFER


def test_frames(tokenizer: TextTokenizer):
    im_start, im_end, newline, hello = 151_644, 151_645, 198, [9707, 11, 1879, 13]
    assistant, user = [im_start, 77_091, newline], [im_start, 872, newline]
    assert tokenizer.encode("Hello, world.") == hello
    assert tokenizer.assistant("Hello, world.") == [*assistant, *hello, im_end, newline, *assistant]
    assert tokenizer.reference("Hello, world.") == [*assistant, *hello, im_end, newline]
    assert tokenizer.instruct("Hello, world.") == [*user, *hello, im_end, newline]


def test_empty_text_has_no_ids(tokenizer: TextTokenizer):
    assert tokenizer.encode("") == []


def test_newlines_at_the_start_merge_with_the_one_of_the_role(tokenizer: TextTokenizer):
    # The official package counts positions, so such a text loses its newlines to the role.
    assert tokenizer.assistant("\n\nHi")[:4] == [151_644, 77_091, 1406, 13_048]


def test_decomposed_letters_are_composed(tokenizer: TextTokenizer):
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9") == [963]


def test_added_tokens_in_a_text_become_their_ids(tokenizer: TextTokenizer):
    assert tokenizer.encode("a<|im_end|>b") == [64, 151_645, 65]
    assert tokenizer.encode("<tts_pad><tts_text_bos><tts_text_eod>") == [151_671, 151_672, 151_673]


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: TextTokenizer):
    with pytest.raises(ValueError, match=r"character 2 of the text is a lone surrogate \(U\+D83D\)"):
        tokenizer.encode("ab\ud83dcd")


def test_unknown_pattern_lists_the_known_ones(tokenizer_folder: Path):
    with pytest.raises(ValueError, match="unknown tokenizer pattern 'gpt2'; there are official, qwen2"):
        TextTokenizer.from_folder(tokenizer_folder, pattern="gpt2")


# Damaged files, on a vocabulary of the 256 bytes, one merge and one added token


@pytest.fixture
def small_folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A whole tokenizer that loads in no time: the bytes, " t" and "<end>"."""
    published = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    vocab = {token: index for token, index in published.items() if index < 256} | {"Ġt": 256}
    added = {"content": "<end>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    config = {"added_tokens_decoder": {"257": added | {"special": True}}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_the_small_tokenizer_is_whole(small_folder: Path):
    assert TextTokenizer.from_folder(str(small_folder)).encode("t t<end>") == [83, 256, 257]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(name: str, small_folder: Path):
    (small_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        TextTokenizer.from_folder(small_folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_binary_file_is_named(name: str, small_folder: Path):
    (small_folder / name).write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TokenizerError, match=f"{name} is damaged"):
        TextTokenizer.from_folder(small_folder)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
def test_a_cut_off_json_file_is_named(name: str, small_folder: Path):
    content = (small_folder / name).read_bytes()
    (small_folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(TokenizerError, match=f"{name} is not valid JSON"):
        TextTokenizer.from_folder(small_folder)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content)), encoding="utf-8")


def _without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vocab.json", list, "vocab.json must hold a JSON object, got list"),
        ("vocab.json", lambda vocab: _without(vocab, "A"), r"vocab.json is damaged: its ids are not 0 … 255"),
        ("vocab.json", lambda vocab: vocab | {"A": [7]}, "vocab.json is damaged: its ids are not 0 … 256"),
        ("tokenizer_config.json", lambda _: {}, "tokenizer_config.json has no 'added_tokens_decoder'"),
        (
            "tokenizer_config.json",
            lambda config: {"added_tokens_decoder": {"257": {"content": "<end>"}}},
            "tokenizer_config.json: added token '257' is damaged",
        ),
        (
            "tokenizer_config.json",
            lambda config: {"added_tokens_decoder": {"300": config["added_tokens_decoder"]["257"]}},
            "gives '<end>' the id 300, but after the 257 tokens of vocab.json it is 257",
        ),
    ],
)
def test_a_damaged_json_file_is_named(name: str, change: Callable[[dict], object], message: str, small_folder: Path):
    _edit(small_folder / name, change)
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(small_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ġ\n", "merges.txt is damaged: line 1 has 1 parts"),
        ("Ġ t\n\na b c\n", "merges.txt is damaged: line 3 has 3 parts"),
        ("#version: 0.2\n", "merges.txt is cut off: 0 merges, vocab.json needs 1"),
        ("Ġ t\nĠ q\n", r"merges.txt does not fit vocab.json: .*Token `Ġq` out of vocabulary"),
    ],
)
def test_damaged_merges_are_named(content: str, message: str, small_folder: Path):
    (small_folder / "merges.txt").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(small_folder)


def test_an_added_token_within_the_vocabulary_needs_no_merge(small_folder: Path):
    _edit(small_folder / "vocab.json", lambda vocab: vocab | {"<end>": 257})
    assert TextTokenizer.from_folder(small_folder).encode("t<end>") == [83, 257]


# A text in pieces

_FRAGMENTS = [
    "Hello", "world", "don't", "IT'S", "parseHTTPResponse", "中文ABCd", "。", "你好，", "世界！\n", " ", "  ", "\n",
    "\n\n", "\t", "1", "23", "3.14", "<|im_end|>", "<|im_", "end|>", "<", "|", "!", "!!\n", "/", "\u3000", "e\u0301",
    "ก็", "สวัสดี", "أَهْلًا", "한국어", "\u1112\u1161\u11ab", "ñ", "A", "b", "Ω",
    "😀", "…", "--", "'s", "'", "\r\n", " \n ",
]  # fmt: skip


@pytest.mark.parametrize("pattern", ["official", "qwen2"])
def test_ids_of_pieces_are_those_of_the_whole(pattern: str, tokenizer_folder: Path):
    tokenizer = TextTokenizer.from_folder(tokenizer_folder, pattern=pattern)
    rng = random.Random(7)
    for _ in range(1500):
        text = "".join(rng.choice(_FRAGMENTS) for _ in range(rng.randint(1, 12)))
        whole = tokenizer.assistant(text)[3:-5]
        pieces, ids, start = tokenizer.incremental(), [], 0
        while start < len(text):
            end = start + rng.randint(1, 4)
            ids += pieces.add(text[start:end])
            assert ids == whole[: len(ids)], (text, pieces.text)
            assert text[:end].startswith(pieces.text)
            start = end
        assert ids + pieces.finish() == whole, text
        assert pieces.text == text


def test_ids_are_given_out_word_by_word(tokenizer: TextTokenizer):
    pieces = tokenizer.incremental()
    assert pieces.add("Hel") == pieces.add("lo") == []
    assert pieces.add(" wor") == tokenizer.encode("Hello")
    assert pieces.add("ld, 你好") == tokenizer.encode(" world,")
    assert pieces.add("，今天") == tokenizer.encode(" 你好")
    assert pieces.text == "Hello world, 你好"
    assert pieces.finish() == tokenizer.encode("，今天")


def test_a_special_token_is_not_cut_in_two(tokenizer: TextTokenizer):
    pieces = tokenizer.incremental()
    assert pieces.add("a <|im_end") == tokenizer.encode("a")
    assert pieces.add("|> b") == tokenizer.encode(" <|im_end|>")
    pieces = tokenizer.incremental()
    assert pieces.add("a <|im_ending, ") == tokenizer.encode("a <|im_ending,")
