"""English text in words, in phonemes, and in utterances."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from qwen3_tts_jax.text import phonemes
from qwen3_tts_jax.text.phonemes import (
    CONSONANTS,
    LONGEST_UTTERANCE,
    PAUSES,
    UNITS,
    UnspeakableError,
    phonemize,
    utterances,
)
from qwen3_tts_jax.text.verbalize import written_out

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Marks between letters.
        ('She said:"no"', 'She said: "no"'),
        ('"Wait!"he cried, "or"what?', '"Wait!" he cried, "or" what?'),
        ('"A","B", ("C")', '"A", "B", ("C")'),
        ('He said:"It rains.', 'He said: "It rains.'),
        ("Note:this", "Note: this"),
        ("Hello...there, a…b", "Hello... there, a... b"),
        ("He said (quietly)no.", "He said (quietly) no."),
        ("the word(s)", "the words"),
        ("Wait.What? Dr.Smith", "Wait. What? Dr. Smith"),
        ("e.g.this", "for example this"),
        ("file.txt and Node.js", "file dot txt and Node dot js"),
        ("word --word", "word, word"),
        ("Thanks :-) and bye :D", "Thanks and bye"),
        # Letters and digits.
        ("v1.2.3", "v one dot two dot three"),
        ("Python3.11.4", "Python three dot eleven dot four"),
        ("the 2ND of C# and F#", "the second of C sharp and F sharp"),
        ("H₂O", "H two O"),
        # Ratios and times.
        ("a ratio of 3:2.", "a ratio of three to two."),
        ("16:9, 1:2:3", "sixteen to nine, one to two to three"),
        ("Matthew 5:3-12", "Matthew five three to twelve"),
        ("At 9:45: go!", "At nine forty-five: go!"),
        ("1:23.45", "one to twenty-three point four five"),
        ("00:00, 7.30pm", "midnight, seven thirty PM"),
        ("ISO 9001:2015", "ISO nine thousand and one: twenty fifteen"),
        ("9am-5pm and 9–11 a.m.", "nine AM to five PM and nine to eleven AM."),
        ("9:00-17:00", "nine o'clock to seventeen hundred hours"),
        # Dates.
        ("Dec. 25-26 and 5–7 June", "December twenty-fifth to twenty-sixth and fifth to seventh of June"),
        # Money.
        ("$.50, £.99", "fifty cents, ninety-nine pence"),
        ("US$20", "US twenty dollars"),
        ("$1-2 million, €5–€10", "one to two million dollars, five to ten euros"),
        ("$10/month, 60 words/minute", "ten dollars per month, sixty words per minute"),
        ("₹500 or ₩1,000", "five hundred rupees or one thousand won"),
        # Measures.
        ("2.5GHz", "two point five gigahertz"),
        (".5 kg", "zero point five kilograms"),
        ("5 µm", "five micrometers"),
        ("5-10 km, 20%-30%", "five to ten kilometers, twenty percent to thirty percent"),
        ("10kg-20kg", "ten kilograms to twenty kilograms"),
        ("3 m x 4 m", "three meters by four meters"),
        ("a 6 ft. tall man", "a six feet tall man"),
        ("5ft 3in, 10 in tall", "five feet three inches, ten inches tall"),
        ("5 m/s², 5 km²", "five meters per second squared, five square kilometers"),
        # Numbers.
        ("1/100, 3/1000, 2/3rds", "a hundredth, three thousandths, two thirds"),
        ("10⁻³ and 10²", "ten to the power of minus three and ten squared"),
        ("1-1/2 cups", "one and a half cups"),
        ("those <18 or >65 ^_^", "those less than eighteen or more than sixty-five"),
        ("2*3, √16, 3 < 5", "two times three, square root of sixteen, three is less than five"),
        ("+44 20 7946 0958", "four four, two zero, seven nine four six, zero nine five eight"),
        ("555.123.4567", "five five five, one two three, four five six seven"),
        ("Fig. 3, vol. 2, pp. 4-5", "figure three, volume two, pages four to five"),
        ("tea w/ milk (2 tsp.) vs coffee", "tea with milk (two teaspoons.) versus coffee"),
    ],
)  # fmt: skip
def test_words(text, words):
    assert written_out(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1" * 20_000, "one " * 20_000),
        ("$" + "9" * 4400 + ".25", "dollars " + "nine " * 4400 + "point two five"),
        ("$1" + ",234" * 2000, "dollars one " + "two three four " * 2000),
        ("1/" + "9" * 4400, "one " + "nine " * 4400),
        ("1." + "7" * 8000, "one point " + "seven " * 8000),
        ("1" + "\u00a0234" * 2000 + " km", "one " + "two three four " * 2000 + "km"),
    ],
    ids=["whole", "money", "commas", "part", "decimals", "spaces"],
)
def test_thousands_of_digits_are_said_one_by_one_in_linear_time(text, words):
    start = time.process_time()
    assert written_out(text) == words.strip()
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["", " \n", "!!!", "😀", "😀 🎉!", "—", "...", "日本語", "Привет", "()"])
def test_nothing_to_say(text):
    for say in (phonemize, utterances):
        with pytest.raises(UnspeakableError, match="there is nothing to say in"):
            say(text)


def test_foreign_letters_are_left_out_with_a_warning_each_time():
    for _ in range(2):
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


@pytest.mark.parametrize("shout", ["THE 2 BIG RED BUSES", "RED & TAN BAGS: 50% OFF", "A RED BED"])
def test_words_in_capitals_are_words_where_all_is_in_capitals(shout):
    assert phonemize(shout) == phonemize(shout.lower())


@pytest.mark.parametrize(
    ("acronym", "said"), [("AT&T", "ˈeɪ tˈi ænd tˈi."), ("US $5", "jˈu ˈɛs fˈaɪv dˈɑlɚz."), ("TV 2.", "tˈi vˈi tˈu.")]
)
def test_an_acronym_beside_a_number_or_sign_is_spelled_out(acronym, said):
    assert utterances(acronym) == [said]


def test_threads_say_the_same_with_one_library():
    texts = [text for text, _, _ in SAID]

    def say(_: int) -> tuple[object, list[str]]:
        return phonemes._gruut(), [phonemes._phonemized.__wrapped__(text) for text in texts]

    here = say(0)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(say, range(4))) == [here] * 4


def test_a_word_is_found_without_reading_the_whole_lexicon():
    """And has the phonemes that it has in the library's file."""
    lookup = phonemes._gruut().get_settings("en-us").lookup_phonemes
    queries = []
    lookup.phonemizer.db_conn.set_trace_callback(queries.append)
    lookup.phonemizer.lexicon.clear()
    lookup("morning")
    lookup.phonemizer.db_conn.set_trace_callback(None)
    plan = lookup.phonemizer.db_conn.execute(f"EXPLAIN QUERY PLAN {queries[0]}").fetchone()[3]
    assert plan.startswith("SEARCH word_phonemes USING INDEX")
    # Else the index was sorted in a file, which some machines have no place for.
    assert lookup.phonemizer.db_conn.execute("PRAGMA temp_store").fetchone() == (2,)

    expected: dict[str, dict[str, list[str]]] = {}
    with closing(sqlite3.connect(lookup.db_path)) as file:
        for word, role, said in file.execute("SELECT word, role, phonemes FROM word_phonemes ORDER BY pron_order"):
            expected.setdefault(word, {}).setdefault(role, said.split())
    assert len(expected) > 100_000
    for word in list(expected)[::20]:
        assert lookup(word, do_transforms=False)
        assert list(lookup.phonemizer.lexicon[word].items()) == list(expected[word].items())
    assert lookup("qwrtzk", do_transforms=False) is None


# Utterances.


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


@pytest.mark.parametrize("text", ["Hello", '"Hello"', "(Hello)", "Hello,", "Hello –", "Hello:", "Hello…", '"Hello."'])
def test_sentences_end_with_a_mark(text):
    assert utterances(text) == ["hɛlˈoʊ."]
    assert utterances(f"{text}\n\nHello?\n\n'Hello!'") == ["hɛlˈoʊ.", "hɛlˈoʊ?", "hɛlˈoʊ!"]


def test_parts_of_a_sentence_that_end_between_words_have_no_mark():
    *parts, last = utterances("one two three four five six seven " * 10)
    assert len(parts) == 3
    assert not any(part.endswith(PAUSES) for part in parts)
    assert last.endswith("n.")


def test_units_are_letters_of_one_alphabet():
    assert len(set(UNITS)) == len(UNITS)
    assert set(CONSONANTS) < set(UNITS)
    assert "".join(UNITS).islower()


def test_words_of_little_weight_are_stressed_before_pauses_alone():
    assert phonemize("That is what it is.") == "ðæt ɪz wˈʌt ɪt ˈɪz."
    assert phonemize("From you, for her") == "fɹʌm jˈu, fɚ hˈɚ"
