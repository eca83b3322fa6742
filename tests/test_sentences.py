"""Where texts are cut: sentences in several languages, and parts that are short enough."""

from __future__ import annotations

import itertools
import random

import pytest

from qwen3_tts_jax.text.sentences import divided, sentences


def test_sentences():
    text = 'Hello, Dr. A. Smith! "It is 3.5 km," he said (at 9 a.m. or so). Is it? "Yes."\n\nA title\n\nThe end… So'
    complete, rest = sentences(text)
    assert complete == [
        "Hello, Dr. A. Smith!",
        '"It is 3.5 km," he said (at 9 a.m. or so).',
        "Is it?",
        '"Yes."',
        "A title",
        "The end…",
    ]
    assert rest == "So"


@pytest.mark.parametrize(
    "text",
    [
        "One sentence.", "e.g. this one", "in the U.S. Army", "No. 5 is alive", "3.5", "Wait... what",
        "On Jan. 5, 2024", "see pp. 12 and 13", "approx. 50", "Fig. 3",
    ],
)  # fmt: skip
def test_what_is_one_sentence(text):
    assert sentences(text) == ([], text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他说：“今天很好。”我们走吧！好的。再见", ["他说：“今天很好。”", "我们走吧！", "好的。", "再见"]),
        ("「はい。」と言った。本当？！うん", ["「はい。」", "と言った。", "本当？！", "うん"]),
        ("¿Cómo estás? ¡Muy bien! ¿Y tú?", ["¿Cómo estás?", "¡Muy bien!", "¿Y tú?"]),
        ("Il a dit : « Bonjour. » Puis il part.", ["Il a dit : « Bonjour. » Puis il part."]),
        ("Il a dit: «Bonjour.» Puis il part. «Oui.»", ["Il a dit: «Bonjour.»", "Puis il part.", "«Oui.»"]),
        ("Она ушла. «Привет!» Потом 3.5 км.", ["Она ушла.", "«Привет!»", "Потом 3.5 км."]),
        ("Das ist z.B. Haus Nr. 15. „Ja?“ Nein.", ["Das ist z.B. Haus Nr. 15.", "„Ja?“", "Nein."]),
        ("안녕하세요. 반갑습니다! 네", ["안녕하세요.", "반갑습니다!", "네"]),
    ],
)
def test_sentences_of_other_languages(text, expected):
    complete, rest = sentences(text)
    assert [*complete, rest] == expected


# Parts.


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("One two. Three.", 3, ["One two. Three."]),
        # As few as can be, and equal: not 4 words and 1.
        ("One. Two. Three. Four. Five.", 4, ["One. Two.", "Three. Four. Five."]),
        # A sentence that is short enough is not cut, though fewer parts would do.
        ("One two three. Four five six. Seven eight.", 4, ["One two three.", "Four five six.", "Seven eight."]),
        # One that is not, where a clause ends, and what follows goes with the next.
        ("One two, three four. Five.", 3, ["One two,", "three four. Five."]),
        ("One two three four five. Six.", 3, ["One two three", "four five. Six."]),
        # A cut at the end of a sentence, or else of a clause, goes before parts of equal length.
        ("One two three four. Five.", 2, ["One two", "three four.", "Five."]),
        ("One two three four, five.", 2, ["One two", "three four,", "five."]),
        ("Title\n\nOne two three.", 3, ["Title", "One two three."]),
        (" One.\n\n\n\nTwo. ", 1, ["One.", "Two."]),
        ("", 3, []),
        (" \n\n ", 3, []),
    ],
)
def test_parts(text, longest, expected):
    assert divided(text, longest, words) == expected


def test_what_has_no_words_is_cut_anywhere():
    assert divided("今天天气很好我们去公园", 5, len) == ["今天天", "气很好我", "们去公园"]
    assert divided("今天天气，很好我们去。公园", 7, len) == ["今天天气，", "很好我们去。", "公园"]
    # A character may be longer than a part.
    assert divided("ab", 1, lambda text: 2 * len(text)) == ["a", "b"]


def test_parts_of_a_long_text_are_few_and_whole():
    draw = random.Random(0)
    sizes = [draw.randint(1, 12) for _ in range(2000)]
    text = " ".join(" ".join(["Word"] * size) + "." for size in sizes)
    parts = divided(text, 30, words)
    assert " ".join(parts) == text
    assert max(map(words, parts)) <= 30
    assert all(part.endswith(".") for part in parts)
    # No way needs fewer: the greedy one.
    needed, room = 0, 0
    for size in sizes:
        needed, room = (needed, room - size) if size <= room else (needed + 1, 30 - size)
    assert len(parts) == needed
    assert all(words(a) + words(b) > 30 for a, b in itertools.pairwise(parts))


def test_titles_in_capitals_end_no_sentence():
    assert sentences("MR. SMITH WENT TO MAIN ST. HE") == (["MR. SMITH WENT TO MAIN ST."], "HE")


def test_initials_without_end_take_no_time():
    text = "J. K. " * 20_000
    assert sentences(text) == ([], text)
    assert text.split() == " ".join(divided(text, 100, len)).split()
