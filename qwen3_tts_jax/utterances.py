"""A request → the utterances that it is spoken as, and their codes → the request's.

Usually a request is one utterance. It may ask for its text to be split; and a model that reads phonemes learnt from
single sentences, so it speaks one after the other, each as its phonemes, one per frame. The codes of all are decoded
as one, and the pause between two utterances is the silence that they begin and end with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from qwen3_tts_jax.prompt import Request, Tokenizer, check_whole
from qwen3_tts_jax.speech import FinishReason
from qwen3_tts_jax.text.sentences import divided, sentences
from qwen3_tts_jax.text.tokenizer import CLOSING_IDS, ROLE_IDS

_BASE_FRAMES, FRAMES_PER_TOKEN = 25, 8
"""Speech hardly ever takes longer than 2 s plus 0.64 s per token of its text."""
# `mini` makes 6 frames of silence besides one frame per id, and may hold a single word's vowel for ten: an utterance
# that has not ended by then has run away.
_FRAMES_AFTER_TEXT = 20
_LANGUAGE = "english"
# Keeps utterance numbers far apart: 2³² divided by the golden ratio, an odd number.
_STEP = 2_654_435_769


def spoken_as(request: Request, tokenizer: Tokenizer) -> list[Request]:
    """Turns a request into the requests, of one utterance each, that it is spoken as.

    If it asks for a split, their texts are parts of its own (see `text.sentences.divided`), each with the frame limit
    expected for its length, within the request's limit.

    If the model reads phonemes, their texts are the phonemes of its sentences (see `text.phonemes.utterances`) in their
    durations (see `text.durations.frame_text`). Each is read as it comes and has a frame limit of its own, within the
    request's limit. Sentences that would begin beyond that limit are left out.

    Raises:
        ValueError: there is nothing to say in the text, or `split` is no whole number of at least 1.
    """
    durations = tokenizer.phonemes
    if durations is None:
        return _split(request, tokenizer)
    # Imported here, because only models that read phonemes need its library.
    from qwen3_tts_jax.text import phonemes

    parts, frames = [], 0
    for text in phonemes.utterances(request.text):
        # Speech lasts longer than its phonemes, because it ends in silence.
        if request.max_frames is not None and frames > request.max_frames:
            break
        parts.append(_utterance(request, durations.frame_text(text), tokenizer))
        frames += sum(durations.frames(text))
    return parts


def spoken_as_it_arrives(request: Request, pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[Request]:
    """`spoken_as` for models that read phonemes, of a text that `pieces` continue.

    A sentence is complete once something follows it.

    Raises:
        ValueError: the text has ended, and there is nothing to say in it.
    """
    from qwen3_tts_jax.text import phonemes

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
    """How many tokens a text has."""
    return len(tokenizer.assistant(text)) - ROLE_IDS - CLOSING_IDS


def expected_frames(tokens: int) -> int:
    """Frames that hardly any utterance of `tokens` exceeds: three times what speech takes, plus two seconds."""
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
    # Phonemes belong to one language, and such a model was always told which.
    language = _LANGUAGE if str(request.language).lower() == "auto" else request.language
    return replace(request, text=text, language=language, text_mode="as_it_comes", max_frames=limit)


def utterance_number(number: int, place: int) -> int:
    """The number, 0 … 2³¹ − 1, of the utterance at `place` in request `number`; the first has the request's own."""
    return (int(number) + place * _STEP) % 2**31


def joined(
    spoken: Iterable[Sequence[tuple[int, np.ndarray, FinishReason]]],
    counts: Sequence[int],
    limits: Sequence[int | None],
) -> Iterator[list[tuple[int, np.ndarray, FinishReason]]]:
    """Joins the utterances of each request again.

    Args:
        spoken: groups of utterances in any order: index among all, codes int32 [T, Q], and why it ended.
        counts: how many utterances each request is spoken as; those of the first come first.
        limits: the most frames of each request; None where its utterances' own are enough.

    Yields:
        For each group, the requests that it completes: index, codes int32 [T, Q], and "length" if the request's own
        limit or that of any of its utterances cut it, else "stop".
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
            # A request that makes all the frames it may counts as cut, as an utterance does: its end would come later.
            within = limits[index] is None or len(whole) < limits[index]
            ended = within and all(reason == "stop" for _, reason in parts)
            complete.append((index, cut, "stop" if ended else "length"))
        yield complete
