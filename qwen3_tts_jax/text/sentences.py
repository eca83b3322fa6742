"""Where a text can be cut: at the ends of sentences, of clauses, of words. No JAX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

# What ends a sentence, if what follows begins one; in Chinese and Japanese it always does.
_SENTENCE_END = re.compile(
    r"""(?:(?<=[.?!…])|(?<=[.?!…]["'”“’»)\]]))\s+(?=["'“‘„«¿¡(\[]*[^\Wa-z_])
      |(?:(?<=[。？！])|(?<=[。？！][”’」』）]))(?![。？！”’」』）])\s*
      |\n\s*\n""",
    re.VERBOSE,
)
# Abbreviations and initials, whose stop ends no sentence.
_NO_END = re.compile(
    r"(?:^|[\s(\"'“])(?:\w|(?:\w\.)+\w|[Mm]r|[Mm]rs|[Mm]s|[Dd]r|St|Mt|Jr|Prof|Capt|Lt|Sgt|Col|Gen|Gov|Sen|Rev|Sr|No|vs"
    r"|MR|MRS|MS|DR|MT|PROF|CAPT|LT|SGT|COL|GEN|GOV|SEN|REV)\.$"
)
# Abbreviations whose stop ends no sentence before a number.
_NO_END_BEFORE_NUMBER = re.compile(
    r"\b(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|[Nn]os|Nr|pp|[Ff]igs?|[Vv]ol|[Cc]h|[Ss]ec|[Ee]q|[Vv]er|approx)\.$"
)
# Characters at the end of a sentence that are searched for an abbreviation: it may be all initials.
_LONGEST_ABBREVIATION = 40
_CLAUSE_END = re.compile(r"(?<=[,;:—])\s+|(?<=[，、；：])")
_WORD_END = re.compile(r"\s+")
_CHARACTER_END = re.compile(r"(?<=.)", re.DOTALL)


def sentences(text: str) -> tuple[list[str], str]:
    """The sentences of a text that have certainly ended, and the rest; only white space between them is dropped."""
    found, start = [], 0
    for end, following in _sentence_ends(text):
        found.append(text[start:end])
        start = following
    return found, text[start:]


def divided(text: str, longest: int, length: Callable[[str], int]) -> list[str]:
    """A text in parts that are short enough: as few as possible, and of much the same length.

    Parts end where sentences do; only within a sentence that is too long by itself, where clauses do, else words, else
    anywhere.

    Args:
        text: any; white space at the ends of parts is left out.
        longest: the length that no part should exceed, at least 1; a single character may.
        length: measures a text. The length of several together is taken to be the sum of theirs.
    """
    pieces = list(_pieces(text, longest, length))
    lengths = [length(piece.strip()) for piece, _ in pieces]
    # The best division of the first n pieces: how badly it cuts, how many parts it has, the sum of their squared
    # lengths, and where the last part begins. Without any part all is 0.
    best: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]
    for stop in range(1, len(pieces) + 1):
        choices, total = [], 0
        for start in range(stop - 1, -1, -1):
            total += lengths[start]
            if total > longest and start < stop - 1:
                break
            badness, parts, squares, _ = best[start]
            cut = pieces[start - 1][1] if start else 0
            choices.append((badness + cut, parts + 1, squares + total * total, start))
        best.append(min(choices))
    stop, parts = len(pieces), []
    while stop:
        start = best[stop][3]
        parts.append("".join(piece for piece, _ in pieces[start:stop]).strip())
        stop = start
    return [part for part in reversed(parts) if part]


def _sentence_ends(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence but the last ends, and where the next begins."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        last = text[max(start, end.start() - _LONGEST_ABBREVIATION) : end.start()]
        before_number = text[end.end() : end.end() + 1].isdigit()
        goes_on = _NO_END.search(last) or (before_number and _NO_END_BEFORE_NUMBER.search(last))
        if end[0].count("\n") > 1 or not goes_on:
            yield end.span()
            start = end.end()


def _ends(pattern: re.Pattern[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (end.span() for end in pattern.finditer(text))


# From the best place for a cut to the worst.
_CUTS = (_sentence_ends, _ends(_CLAUSE_END), _ends(_WORD_END), _ends(_CHARACTER_END))


def _pieces(text: str, longest: int, length: Callable[[str], int], cut: int = 0) -> Iterator[tuple[str, int]]:
    """The pieces of a text, with the white space behind them, and how bad a cut after each is.

    They are its sentences, the clauses of those that are too long, and so on.
    """
    starts = [0, *(following for _, following in _CUTS[cut](text)), len(text)]
    for start, stop in pairwise(starts):
        piece = text[start:stop]
        if cut + 1 < len(_CUTS) and length(piece.strip()) > longest:
            *smaller, (last, _) = _pieces(piece, longest, length, cut + 1)
            yield from smaller
            yield last, cut
        elif piece:
            yield piece, cut
