"""A request → the utterances that it is spoken as, and their codes → its own.

Mostly they are one and the same. A request may ask for its text to be split; and a model that reads phonemes learnt
from single sentences, so it speaks one after the other, each as its phonemes, one per frame. Their codes are decoded as
one, and the pause between two is the silence that they begin and end with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from qwen3_tts_jax.prompt import CLOSING_IDS, ROLE_IDS, Request, Tokenizer, check_whole
from qwen3_tts_jax.sentences import divided, sentences

if TYPE_CHECKING:
    from qwen3_tts_jax.synthesis import FinishReason

_BASE_FRAMES, FRAMES_PER_TOKEN = 25, 8
"""Speech hardly ever takes longer than 2 s, and 0.64 s per token of its text."""
# `mini` is silent for 6 frames more than it has ids to say, and may hold a single word's vowel for ten: what has not
# ended by then has run away.
_FRAMES_AFTER_TEXT = 20
_LANGUAGE = "english"
# Far apart in the numbers of utterances: 2³² divided by the golden ratio, an odd number.
_STEP = 2_654_435_769


def spoken_as(request: Request, tokenizer: Tokenizer) -> list[Request]:
    """The requests of one utterance each that a request is spoken as.

    Where it asks for a split, their texts are its own in parts (see `sentences.divided`), each with the limit that is
    expected of so long a text within that of the request.

    Where the model reads phonemes, their texts are those of its sentences (see `phonemes.utterances`) in their
    durations (see `durations.frame_text`), each is read as it comes, and each has a limit of frames of its own within
    that of the request. Sentences that begin behind the request's limit are none of them.

    Raises:
        ValueError: there is nothing to say in the text, or `split` is no whole number of at least 1.
    """
    durations = tokenizer.phonemes
    if durations is None:
        return _split(request, tokenizer)
    # Its library is for those alone whose model reads phonemes.
    from qwen3_tts_jax import phonemes

    parts, frames = [], 0
    for text in phonemes.utterances(request.text):
        # Speech lasts longer than its phonemes, for it ends in silence.
        if request.max_frames is not None and frames > request.max_frames:
            break
        parts.append(_utterance(request, durations.frame_text(text), tokenizer))
        frames += sum(durations.frames(text))
    return parts


def spoken_as_it_arrives(request: Request, pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[Request]:
    """`spoken_as` for models that read phonemes, of a text that `pieces` go on with.

    A sentence is there once something follows it.

    Raises:
        ValueError: the text has ended, and there is nothing to say in it.
    """
    from qwen3_tts_jax import phonemes

    pending, said = "", False
    for piece in chain([request.text], pieces):
        complete, pending = sentences(pending + piece)
        for sentence in complete:
            try:
                yield from spoken_as(replace(request, text=sentence), tokenizer)
                said = True
            except phonemes.UnspeakableError:
                phonemes.warn_of_foreign_letters(sentence)
    try:
        yield from spoken_as(replace(request, text=pending), tokenizer)
    except phonemes.UnspeakableError:
        if not said:
            raise
        phonemes.warn_of_foreign_letters(pending)


def text_tokens(text: str, tokenizer: Tokenizer) -> int:
    """How many tokens a text is."""
    return len(tokenizer.assistant(text)) - ROLE_IDS - CLOSING_IDS


def expected_frames(tokens: int) -> int:
    """Frames that hardly any utterance of so long a text exceeds: three times what speech takes, and two seconds."""
    return _BASE_FRAMES + FRAMES_PER_TOKEN * tokens


def _split(request: Request, tokenizer: Tokenizer) -> list[Request]:
    if request.split is None:
        return [request]
    check_whole("split", request.split, least=1)
    parts = divided(request.text, request.split, lambda text: text_tokens(text, tokenizer))
    if len(parts) <= 1:
        return [request]
    limits = [_within(request, expected_frames(text_tokens(part, tokenizer))) for part in parts]
    return [replace(request, text=part, max_frames=limit) for part, limit in zip(parts, limits, strict=True)]


def _within(request: Request, limit: int) -> int:
    return limit if request.max_frames is None else min(limit, request.max_frames)


def _utterance(request: Request, text: str, tokenizer: Tokenizer) -> Request:
    limit = _within(request, text_tokens(text, tokenizer) + _FRAMES_AFTER_TEXT)
    # Phonemes are of one language, which such a model was always told.
    language = _LANGUAGE if str(request.language).lower() == "auto" else request.language
    return replace(request, text=text, language=language, text_mode="as_it_comes", max_frames=limit)


def utterance_number(number: int, place: int) -> int:
    """The number, 0 … 2³¹ − 1, of the utterance at a place in a request with a number; the first has that itself."""
    return (int(number) + place * _STEP) % 2**31


def joined(
    spoken: Iterable[Sequence[tuple[int, np.ndarray, FinishReason]]],
    counts: Sequence[int],
    limits: Sequence[int | None],
) -> Iterator[list[tuple[int, np.ndarray, FinishReason]]]:
    """Puts the utterances of each request together again.

    Args:
        spoken: groups of utterances in any order: index among all, codes int32 [T, Q], and why it ended.
        counts: how many utterances each request is spoken as; those of the first come first.
        limits: the most frames of each request; None where its utterances' own are enough.

    Yields:
        Of each group, the requests whose last utterance is in it: index, codes int32 [T, Q], and "length" where the
        limit of any of its utterances or its own cut it, else "stop".
    """
    owners = [(index, place) for index, count in enumerate(counts) for place in range(count)]
    waiting: dict[int, dict[int, tuple[np.ndarray, FinishReason]]] = {}
    for group in spoken:
        complete: list[tuple[int, np.ndarray, FinishReason]] = []
        for number, codes, reason in group:
            index, place = owners[number]
            found = waiting.setdefault(index, {})
            found[place] = codes, reason
            if len(found) < counts[index]:
                continue
            parts = [waiting[index][place] for place in range(counts[index])]
            del waiting[index]
            whole = np.concatenate([codes for codes, _ in parts])
            cut = whole[: limits[index]]
            # What makes as many frames as it may is cut, as an utterance is: the end would have come after them.
            within = limits[index] is None or len(whole) < limits[index]
            ended = within and all(reason == "stop" for _, reason in parts)
            complete.append((index, cut, "stop" if ended else "length"))
        yield complete
