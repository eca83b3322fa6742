"""Token ids equal to the official processor's, on texts that were not chosen by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3_tts_jax.text.tokenizer import TextTokenizer
from tests.parity.oracle import quiet
from tests.tokenizer_files import ADDED_TOKENS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text_ids.json").read_text(encoding="utf-8"))

# Blocks of code points to draw from: scripts with and without case, combining marks, digits of many kinds,
# spaces and line ends, joiners and directions, symbols, private use, planes above the first.
RANGES = [
    (0x00, 0x7F), (0x20, 0x7E), (0x80, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0xEFF), (0x10A0, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2460, 0x27BF),
    (0x3000, 0x30FF), (0x3130, 0x318F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFFFD),
    (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF),
    (0xE0000, 0xE01EF),
]  # fmt: skip
PIECES = [
    "'s",
    "'LL",
    "n't",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\n\n",
    "/",
    "//",
    "...",
    "e\u0301",
    "\u200d",
    "1",
    "aB",
    *ADDED_TOKENS,
]


def random_text(rng: random.Random) -> str:
    """Runs of letters of one block between pieces that the pre-tokenizer's pattern is about."""
    parts = []
    for _ in range(rng.randrange(1, 12)):
        low, high = rng.choice(RANGES)
        parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(0, 7))))
        parts.append(rng.choice(PIECES) if rng.random() < 0.6 else "")
    return "".join(parts)


def corpus() -> list[str]:
    rng = random.Random(20_260_122)
    texts = [case["text"] for case in GOLDEN.values()] + [random_text(rng) for _ in range(1500)]
    # Random characters seldom make long tokens: cut real sentences into each other as well.
    sentences = [case["text"] for case in GOLDEN.values()]
    for _ in range(500):
        one, other = rng.choice(sentences), rng.choice(sentences)
        texts.append(one[rng.randrange(len(one)) :] + other[: rng.randrange(len(other))])
    return texts


@pytest.fixture(scope="module")
def native(tokenizer_folder: Path) -> Any:
    """Transformers' own tokenizer of the files, without the swapped pattern."""
    with quiet():
        from transformers import Qwen2TokenizerFast

        return Qwen2TokenizerFast.from_pretrained(str(tokenizer_folder))


def official_ids(model: Any, framed: str) -> list[int]:
    return model._tokenize_texts([framed])[0][0].tolist()


def test_ids_in_the_three_frames(official: Callable[..., Any], tokenizer_folder: Path):
    model, ours = official("0.6B-CustomVoice"), TextTokenizer.from_folder(tokenizer_folder)
    for text in corpus():
        assert ours.assistant(text) == official_ids(model, model._build_assistant_text(text)), repr(text)
        assert ours.reference(text) == official_ids(model, model._build_ref_text(text)), repr(text)
        assert ours.instruct(text) == official_ids(model, model._build_instruct_text(text)), repr(text)
        assert ours.encode(text) == (official_ids(model, text) if text else []), repr(text)


def test_ids_of_the_qwen2_pattern(native: Any, tokenizer_folder: Path):
    ours = TextTokenizer.from_folder(tokenizer_folder, pattern="qwen2")
    for text in corpus():
        assert ours.encode(text) == native(text)["input_ids"], repr(text)


def test_the_patterns_differ_on_the_corpus(tokenizer_folder: Path):
    ours = TextTokenizer.from_folder(tokenizer_folder)
    qwen2 = TextTokenizer.from_folder(tokenizer_folder, pattern="qwen2")
    assert sum(ours.encode(text) != qwen2.encode(text) for text in corpus()) > 20


def test_golden_ids_are_the_official_ones(official: Callable[..., Any], native: Any):
    model = official("0.6B-CustomVoice")
    for case in GOLDEN.values():
        framed = model._build_assistant_text(case["text"])
        assert case["official"] == official_ids(model, framed)
        assert case["qwen2"] == native(framed)["input_ids"]
