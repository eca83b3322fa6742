"""English text as it is spoken, in phonemes. For models whose texts are phonemes, like `mini`.

The library gruut does the work: it tags parts of speech (to *read*, has *read*), looks words up and guesses unknown
ones with a model of its own. Numbers and symbols become words before it sees them (`verbalize`). Phonemes are IPA in
lower case, because upper case splits words in the text tokenizer.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import lru_cache
from typing import Any

from qwen3_tts_jax.text.sentences import sentences
from qwen3_tts_jax.text.verbalize import foreign_letters, written_out

VOWELS = ("ɑ", "æ", "ʌ", "ɔ", "ə", "ɛ", "ɚ", "ɪ", "i", "ʊ", "u", "aɪ", "aʊ", "eɪ", "oʊ", "oɪ")
"""Phonemes that may follow a stress mark. a, e and o only begin diphthongs."""
CONSONANTS = tuple("bdfɡhʤjklmnŋpɹsʃtʧθðvwzʒ")
STRESSES = ("ˈ", "ˌ")
PAUSES = (",", ".", "?", "!")

UNITS = VOWELS + CONSONANTS + tuple(stress + vowel for stress in STRESSES for vowel in VOWELS)
"""Phonemes as a text tokenizer should see them: a stressed vowel is one."""

_OTHER_SPELLINGS = {"ɔɪ": "oɪ", "t͡ʃ": "ʧ", "d͡ʒ": "ʤ"}

_LANGUAGE = "en-us"

LONGEST_UTTERANCE = 116
"""In letters: about 8 s of speech, and with the rest of a prompt no more than `buckets.UTTERANCE_BUCKET`."""

_WORD = re.compile(r"[A-Za-z]+")
# Words that stay words in capitals, as for emphasis; other short ones are spelled out.
_SHORT_WORDS = {
    "all", "an", "and", "any", "are", "as", "be", "but", "by", "can", "did", "do", "for", "get", "go", "had", "has",
    "have", "he", "her", "him", "his", "how", "if", "in", "is", "its", "let", "me", "my", "new", "no", "not", "now",
    "of", "off", "oh", "old", "on", "one", "or", "our", "out", "she", "so", "the", "they", "to", "too", "two", "up",
    "was", "we", "who", "why", "yes", "yet", "you",
}  # fmt: skip
# Words that are hardly ever stressed except before a pause.
_WEAK_WORDS = {
    "am", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for", "from",
    "had", "has", "have", "he", "her", "him", "his", "i", "if", "in", "is", "it", "its", "may", "me", "might", "must",
    "my", "of", "on", "or", "our", "shall", "she", "should", "so", "than", "that", "the", "their", "them", "there",
    "they", "to", "us", "was", "we", "were", "will", "with", "would", "you", "your",
}  # fmt: skip
_SOUNDS = ("shh", "psst", "brr", "tsk", "pfft")


class UnspeakableError(ValueError):
    """A text in which there is nothing to say."""


def utterances(text: str) -> list[str]:
    """The phonemes of an English text, as from `phonemize`, in pieces to be spoken one after the other.

    They are its sentences, and clauses or words of sentences longer than `LONGEST_UTTERANCE`. Sentences without
    a mark at the end get a stop: speech of a word or two often runs on where no mark ends it.

    Raises:
        UnspeakableError: no word is left of it.

    Warns:
        UserWarning: as `phonemize`, also about sentences of which no word is left.
    """
    spoken: list[str] = []
    complete, rest = sentences(text)
    for sentence in (*complete, rest):
        with suppress(UnspeakableError):
            said = _phonemized(sentence)
            spoken += _pieces(said if said.endswith(PAUSES) else said + ".")
    if not spoken:
        raise UnspeakableError(_nothing_in(text))
    warn_of_foreign_letters(text)
    return spoken


def phonemize(text: str) -> str:
    """The phonemes of an English text: words with spaces between them, pauses as , . ? or !

    Raises:
        UnspeakableError: no word is left of it.

    Warns:
        UserWarning: letters of other alphabets are left out.
    """
    spoken = _phonemized(text)
    warn_of_foreign_letters(text)
    return spoken


def warn_of_foreign_letters(text: str) -> None:
    """Warns of letters of other alphabets, which are left out."""
    if foreign := foreign_letters(text):
        warnings.warn(f"letters that are not English are left out: {foreign[:20]}", UserWarning, stacklevel=3)


@lru_cache(4096)
def _phonemized(text: str) -> str:
    """`phonemize`, without its warning."""
    words: list[str] = []
    readable = written_out(text)
    # One library for all threads, as it takes long to load and remembers words; it serves one at a time.
    with _one_at_a_time:
        gruut = _gruut()
        known = gruut.get_settings(_LANGUAGE).lookup_phonemes
        # More than an acronym or two: numbers and signs, which have become words, are in small letters.
        capitals = [word for word in _WORD.findall(readable) if len(word) > 1 and word.isupper()]
        shouted = text.isupper() and sum(bool(known(word.lower(), do_transforms=False)) for word in capitals) > 1
        readable = _WORD.sub(lambda match: _readable(match[0], known, shouted), readable)
        spoken = [word for word in gruut.words(*gruut(readable, lang=_LANGUAGE)) if word.is_break or word.phonemes]
    for word, following in zip(spoken, [*spoken[1:], None], strict=False):
        if word.is_break:
            if words and words[-1][-1] not in PAUSES:
                words[-1] += _pause(word.text, word.is_major_break)
        else:
            weak = word.text.lower() in _WEAK_WORDS and following is not None and not following.is_break
            words.append("".join(_spelling(phoneme, stressed=not weak) for phoneme in word.phonemes))
    if not words:
        raise UnspeakableError(_nothing_in(text))
    if words[-1].endswith(","):
        words[-1] = words[-1][:-1] + "."
    return " ".join(words)


def _nothing_in(text: str) -> str:
    text = " ".join(text.split())
    hint = ": this model reads English alone" if foreign_letters(text) else ""
    return f"there is nothing to say in {text if len(text) <= 40 else text[:40] + '…'!r}{hint}"


def _readable(word: str, known: Any, shouted: bool) -> str:
    """A word as gruut should see it, for gruut spells out words in capitals; `known` looks words up."""
    lower = word.lower()
    if known(lower, do_transforms=False):
        if word.isupper() and (shouted or len(word) > 3 or lower in _SHORT_WORDS):
            return lower
        return word
    if word.isupper():
        return word
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word)  # GitHub, ChatGPT
    if parts != word:
        return _WORD.sub(lambda match: _readable(match[0], known, shouted), parts)
    if len(word) > 1 and not re.search("[aeiouy]", lower) and lower not in _SOUNDS:
        return word.upper()
    return word


def _pieces(spoken: str) -> Iterator[str]:
    """Cuts phonemes where there are pauses, else between words, into as few and as equal pieces as that allows."""
    if len(spoken) <= LONGEST_UTTERANCE:
        yield spoken
        return
    count = -(-len(spoken) // LONGEST_UTTERANCE)
    margin = len(spoken) // 10
    middle = len(spoken) / 2 if count % 2 == 0 else len(spoken) * (count // 2) / count
    for cut in (r"(?<=[,.?!]) ", " ", ""):
        places = [match.span() for match in re.finditer(cut, spoken) if margin < match.start() < len(spoken) - margin]
        if places:
            break
    end, start = min(places, key=lambda place: abs(place[0] - middle))
    for piece in (spoken[:end], spoken[start:]):
        piece = piece[:-1] + "." if piece.endswith(",") else piece
        yield from _pieces(piece)


def _pause(text: str, is_major: bool) -> str:
    if not is_major:
        return ","
    return next((mark for mark in "?!" if mark in text), ".")


def _spelling(phoneme: str, stressed: bool) -> str:
    stress = phoneme[0] if phoneme[0] in STRESSES else ""
    plain = phoneme[len(stress) :]
    return stress * stressed + _OTHER_SPELLINGS.get(plain, plain)


_one_at_a_time = threading.Lock()


@lru_cache(1)
def _gruut() -> Any:
    """The library, with its lexicon in memory: the file has no index, so each new word would read all of it."""
    # Imported here: it takes half a second, and only models that read phonemes need it.
    from gruut.phonemize import SqlitePhonemizer
    from gruut.text_processor import TextProcessor

    gruut = TextProcessor(default_lang=_LANGUAGE)
    lookup = gruut.get_settings(_LANGUAGE).lookup_phonemes
    lexicon = sqlite3.connect(":memory:", check_same_thread=False)
    # An index is sorted in a file otherwise, for which there may be no room.
    lexicon.execute("PRAGMA temp_store = MEMORY")
    with closing(sqlite3.connect(lookup.db_path)) as file:
        file.backup(lexicon)
    lexicon.execute("CREATE INDEX by_word ON word_phonemes (word)")
    lookup.phonemizer = SqlitePhonemizer(lexicon, **lookup.phonemizer_args)
    return gruut
