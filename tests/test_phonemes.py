"""English text in words, in phonemes, and in sentences."""

from __future__ import annotations

import random
import re
import threading

import pytest

from qwen3_tts_jax.phonemes import (
    CONSONANTS,
    LONGEST_UTTERANCE,
    PAUSES,
    UNITS,
    UnspeakableError,
    phonemize,
    sentences,
    utterances,
)
from qwen3_tts_jax.verbalize import written_out

# A text, its words, its phonemes.
SAID = [
    (
        "I have 21 apples and 1,234 pears.",
        "I have twenty-one apples and one thousand, two hundred and thirty-four pears.",
        "aɪ hæv twˈɛnti wˈʌn ˈæpəlz ænd wˈʌn θˈaʊzənd, tˈu hˈʌndɹɪd ænd θˈɚti fˈɔɹ pˈɛɹz.",
    ),
    (
        "See https://example.org/news.",
        "See example dot org slash news.",
        "sˈi ɪɡzˈæmpəl dˈɑt ˈɔɹɡ slˈæʃ njˈuz.",
    ),
    (
        "Hello there.",
        "Hello there.",
        "hɛlˈoʊ ðˈɛɹ.",
    ),
    (
        "Pi is 3.14159.",
        "Pi is three point one four one five nine.",
        "pˈaɪ ɪz θɹˈi pˈoɪnt wˈʌn fˈɔɹ wˈʌn fˈaɪv nˈaɪn.",
    ),
    (
        "It was 1984, then 2005.",
        "It was nineteen eighty-four, then two thousand and five.",
        "ɪt wəz nˈaɪntˈin ˈeɪti fˈɔɹ, ðˈɛn tˈu θˈaʊzənd ænd fˈaɪv.",
    ),
    (
        "On Jan. 5, 2024, and on 12/25/2023.",
        "On January fifth, twenty twenty-four, and on December twenty-fifth, twenty twenty-three.",
        "ɔn ʤˈænjuˌɛɹi fˈɪfθ, twˈɛnti twˈɛnti fˈɔɹ, ænd ɔn dɪsˈɛmbɚ twˈɛnti fˈɪfθ, twˈɛnti twˈɛnti θɹˈi.",
    ),
    (
        "2023-12-25",
        "December twenty-fifth, twenty twenty-three",
        "dɪsˈɛmbɚ twˈɛnti fˈɪfθ, twˈɛnti twˈɛnti θɹˈi",
    ),
    (
        "That's $3.50, or $5 million.",
        "That's three dollars and fifty cents, or five million dollars.",
        "ðˈæts θɹˈi dˈɑlɚz ænd fˈɪfti sˈɛnts, ɔɹ fˈaɪv mˈɪljən dˈɑlɚz.",
    ),
    (
        "€10.99 or 50¢",
        "ten euros and ninety-nine cents or fifty cents",
        "tˈɛn jˈʊɹoʊz ænd nˈaɪnti nˈaɪn sˈɛnts ɔɹ fˈɪfti sˈɛnts",
    ),
    (
        "25% of 1/2 cup, 3 1/2 cups and 5/8",
        "twenty-five percent of a half cup, three and a half cups and five eighths",
        "twˈɛnti fˈaɪv pɚsˈɛnt əv ə hˈæf kˈʌp, θɹˈi ænd ə hˈæf kˈʌps ænd fˈaɪv ˈeɪtθs",
    ),
    (
        "It is -5°C.",
        "It is minus five degrees Celsius.",
        "ɪt ɪz mˈaɪnəs fˈaɪv dɪɡɹˈiz sˈɛlsiəs.",
    ),
    (
        "10km/h, 5 kg, 1 kg and 20 m²",
        "ten kilometers per hour, five kilograms, one kilogram and twenty square meters",
        "tˈɛn kɪlˈɔmɪtɚz pˈɚ ˈaʊɚ, fˈaɪv kˈɪləɡɹˌæmz, wˈʌn kˈɪləɡɹˌæm ænd twˈɛnti skwˈɛɹ mˈitɚz",
    ),
    (
        "Write to me@example.com.",
        "Write to me at example dot com.",
        "ɹˈaɪt tə mi æt ɪɡzˈæmpəl dˈɑt kˈɑm.",
    ),
    (
        "the 3rd man on the 21st",
        "the third man on the twenty-first",
        "ðə θˈɚd mˈæn ɔn ðə twˈɛnti fˈɚst",
    ),
    (
        "At 9:45 a.m. Then at 13:05.",
        "At nine forty-five AM. Then at thirteen oh five.",
        "æt nˈaɪn fˈɔɹti fˈaɪv ˈeɪ ˈɛm. ðˈɛn æt θˈɚtˈin ˈoʊ fˈaɪv.",
    ),
    (
        "the 1990s and the '80s",
        "the nineteen nineties and the eighties",
        "ðə nˈaɪntˈin nˈaɪntiz ænd ðə ˈeɪtiz",
    ),
    (
        "NASA, the FBI and AT&T",
        "NASA, the FBI and AT and T",
        "nˈæsə, ðə ˈɛf bˈi aɪ ænd ˈeɪ tˈi ænd tˈi",
    ),
    (
        "HELLO WORLD",
        "HELLO WORLD",
        "hɛlˈoʊ wˈɚld",
    ),
    (
        "I said NO.",
        "I said NO.",
        "aɪ sˈɛd nˈoʊ.",
    ),
    (
        "He said “hello” — and left…",
        'He said "hello", and left...',
        "hi sˈɛd hɛlˈoʊ, ænd lˈɛft.",
    ),
    (
        "Café naïve",
        "Cafe naive",
        "kæfˈeɪ nˌaɪˈiv",
    ),
    (
        "pages 4–5, No. 7, #1",
        "pages four to five, number seven, number one",
        "pˈeɪʤɪz fˈɔɹ tə fˈaɪv, nˈʌmbɚ sˈɛvən, nˈʌmbɚ wˈʌn",
    ),
    (
        "Call 1-800-555-1234.",
        "Call one, eight zero zero, five five five, one two three four.",
        "kˈɔl wˈʌn, ˈeɪt zˈɪɹoʊ zˈɪɹoʊ, fˈaɪv fˈaɪv fˈaɪv, wˈʌn tˈu θɹˈi fˈɔɹ.",
    ),
    (
        "Dr. Smith, St. Louis, e.g. Mr. Jones",
        "Dr. Smith, Saint Louis, for example Mr. Jones",
        "dˈɑktɚ smˈɪθ, sˈeɪnt lˈuɪs, fɚ ɪɡzˈæmpəl mˈɪstɚ ʤˈoʊnz",
    ),
    (
        "MP3, COVID-19 and 2x4",
        "MP three, COVID-nineteen and two by four",
        "ˈɛm pˈi θɹˈi, sˈi ˈoʊ vˈi aɪ dˈi nˈaɪntˈin ænd tˈu baɪ fˈɔɹ",
    ),
    (
        "x² + y = 7 × 3",
        "x squared plus y equals seven times three",
        "ˈɛks skwˈɛɹd plˈʌs wˈaɪ ˈikwəlz sˈɛvən tˈaɪmz θɹˈi",
    ),
    (
        "5'10\"",
        "five feet ten inches",
        "fˈaɪv fˈit tˈɛn ˈɪnʧɪz",
    ),
    (
        "007",
        "zero zero seven",
        "zˈɪɹoʊ zˈɪɹoʊ sˈɛvən",
    ),
    (
        "km",
        "km",
        "kˈeɪ ˈɛm",
    ),
    (
        "Tom & Jerry's",
        "Tom and Jerry's",
        "tˈɑm ænd ʤˈɛɹiz",
    ),
    (
        "I read it. I will read it.",
        "I read it. I will read it.",
        "aɪ ɹˈɛd ˈɪt. aɪ wɪl ɹˈid ˈɪt.",
    ),
    (
        "Room 10.2.1",
        "Room ten dot two dot one",
        "ɹˈum tˈɛn dˈɑt tˈu dˈɑt wˈʌn",
    ),
]


@pytest.mark.parametrize(("text", "words", "phonemes"), SAID, ids=[text for text, _, _ in SAID])
def test_what_is_said(text, words, phonemes):
    assert written_out(text) == words
    assert phonemize(text) == phonemes


@pytest.mark.parametrize("text", ["", " \n", "!!!", "😀", "😀 🎉!", "—", "...", "日本語", "Привет", "()"])
def test_nothing_to_say(text):
    for say in (phonemize, utterances):
        with pytest.raises(UnspeakableError, match="there is nothing to say in"):
            say(text)


def test_foreign_letters_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="letters that are not English are left out: Привет$"):
        assert phonemize("Hello Привет.") == "hɛlˈoʊ."


def test_symbols_and_emoji_between_words_are_left_out():
    assert phonemize("I 💖 *you*_") == "aɪ jˈu"


def test_whatever_the_text_it_is_said_in_these_units():
    rng = random.Random(4)
    pieces = [text for text, _, _ in SAID] + list("$%'\"()[]<>/\\^&*0123456789 .,?!-–:;\n½²°€ßéЖ中😀\u0301")
    for _ in range(150):
        text = "".join(rng.choice(pieces)[: rng.randint(1, 12)] for _ in range(rng.randint(1, 12)))
        assert not re.search(r"[^A-Za-z ,.?!:;\"'()-]", written_out(text)), text
        try:
            said = phonemize(text) if text.isascii() else phonemize(written_out(text))
        except UnspeakableError:
            continue
        left = said.translate(dict.fromkeys(map(ord, " ".join(PAUSES))))
        for unit in sorted(UNITS, key=len, reverse=True):
            left = left.replace(unit, "")
        assert left == "", text


def test_all_threads_can_say_something():
    said = []
    threads = [threading.Thread(target=lambda: said.append(phonemize("Good morning."))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [phonemize("Good morning.")] * 2


# Sentences.


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
    "text", ["One sentence.", "e.g. this one", "in the U.S. Army", "No. 5 is alive", "3.5", "Wait... what"]
)
def test_what_is_one_sentence(text):
    assert sentences(text) == ([], text)


def test_utterances_are_sentences_and_what_cannot_be_said_is_none():
    assert utterances("Hello. How are you?\n\n***\n\nFine! 😀") == ["hɛlˈoʊ.", "hˈaʊ ɑɹ jˈu?", "fˈaɪn!"]


@pytest.mark.parametrize(
    "text",
    [
        "When the rain had stopped, we went out into the garden, looked at the flowers that were left, and wondered, "
        "as we did every year, why nobody had put up a roof, although everybody had talked about one for so long.",
        "one two three four five six seven " * 20,
        "bcdfg" * 100,
    ],
    ids=["clauses", "words", "one word"],
)
def test_long_sentences_are_cut_and_nothing_is_lost(text):
    parts = utterances(text)
    assert len(parts) > 1
    assert max(map(len, parts)) <= LONGEST_UTTERANCE

    def words(spoken: str) -> str:
        return re.sub("[ ,.?!]", "", spoken)

    assert words("".join(parts)) == words(phonemize(text))


def test_clauses_stay_whole():
    clause = "we went down to the river to see the old boats"
    parts = utterances(f"In the morning {clause}, in the evening {clause}, and at night {clause}.")
    assert parts == [
        phonemize(f"in the morning {clause}."),
        phonemize(f"in the evening {clause}."),
        phonemize(f"and at night {clause}."),
    ]


def test_units_are_letters_of_one_alphabet():
    assert len(set(UNITS)) == len(UNITS)
    assert set(CONSONANTS) < set(UNITS)
    assert "".join(UNITS).islower()


def test_words_of_little_weight_are_stressed_before_pauses_alone():
    assert phonemize("That is what it is.") == "ðæt ɪz wˈʌt ɪt ˈɪz."
    assert phonemize("From you, for her") == "fɹʌm jˈu, fɚ hˈɚ"
