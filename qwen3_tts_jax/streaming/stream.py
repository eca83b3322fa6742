"""One request, spoken as it is made: chunks of frames, decoded with carried state as soon as they are there.

Its codes are those of the whole run with the same seed, and its samples those of the whole decode.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.prompt import PromptPlan, Request, check_seed, plan_prompt, validate
from qwen3_tts_jax.speech import FinishReason, Speech
from qwen3_tts_jax.streaming.codes import StreamedCodes, checked_schedule
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.streaming.text import SpokenText, plan_arriving_text
from qwen3_tts_jax.synthesis import frame_limit, reference_codes
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import spoken_as, spoken_as_it_arrives, utterance_number


def stream(
    params: dict[str, Any],
    config: ModelConfig,
    tokenizer: TextTokenizer,
    request: Request,
    generation: GenerationConfig,
    seed: int,
    *,
    pieces: Iterable[str] | None,
    schedule: Sequence[int],
    voices: LastVoices,
) -> Iterator[Speech]:
    """Speaks one request chunk by chunk; `Qwen3TTS.stream` describes the arguments.

    `voices` keeps the decoder's states after references. Whatever can be refused is refused at once, not when the first
    chunk is asked for.
    """
    check_seed(seed)
    schedule = checked_schedule(schedule)
    if pieces is None:
        utterances = _utterances_of_text(request, tokenizer, config)
        utterances = chain([next(utterances)], utterances)
    elif request.text_mode != "as_it_comes":
        raise ValueError("a text in pieces is spoken as it comes: it needs non_streaming_mode=False")
    elif request.split is not None:
        raise ValueError("a text in pieces is not split: give the whole text, or leave split out")
    else:
        validate(replace(request, text="…"), config)  # The text itself is checked once it is there.
        utterances = _utterances_of_pieces(request, pieces, tokenizer, config)
    chunks = _speak(params, config, request, generation, seed, utterances, pieces, schedule, voices)
    # A generator that was never started would skip its `finally` when it is closed.
    next(chunks)
    return chunks


class _Utterance(NamedTuple):
    """An utterance, its prompt, what follows the prompt's text, and whether it is known to be the last."""

    request: Request
    plan: PromptPlan
    text: SpokenText
    last: bool


def _plan_utterance(
    request: Request, tokenizer: TextTokenizer, config: ModelConfig, *, last: bool = False
) -> _Utterance:
    plan = plan_prompt(request, tokenizer, config)
    return _Utterance(request, plan, SpokenText(plan.trailing_text_ids.tolist()), last)


def _utterances_of_text(request: Request, tokenizer: TextTokenizer, config: ModelConfig) -> Iterator[_Utterance]:
    """The utterances of a whole text: the first of many waits for the phonemes of the second, not of all."""
    parts = spoken_as_it_arrives(request, (), tokenizer) if tokenizer.phonemes else iter(spoken_as(request, tokenizer))
    part = next(parts)
    for following in parts:
        yield _plan_utterance(part, tokenizer, config)
        part = following
    yield _plan_utterance(part, tokenizer, config, last=True)


def _utterances_of_pieces(
    request: Request, pieces: Iterable[str], tokenizer: TextTokenizer, config: ModelConfig
) -> Iterator[_Utterance]:
    """The utterances of a text that is still arriving."""
    if tokenizer.phonemes:
        for part in spoken_as_it_arrives(request, pieces, tokenizer):
            yield _plan_utterance(part, tokenizer, config)
    else:
        yield _Utterance(request, *plan_arriving_text(request, pieces, tokenizer, config), last=True)


def _speak(
    params: dict[str, Any],
    config: ModelConfig,
    request: Request,
    generation: GenerationConfig,
    seed: int,
    utterances: Iterable[_Utterance],
    pieces: Iterable[str] | None,
    schedule: Sequence[int],
    voices: LastVoices,
) -> Iterator[Any]:
    """Yields None once, before anything is done, then the chunks."""
    rate = config.codec.sample_rate
    left = math.inf if request.max_frames is None else operator.index(request.max_frames)
    cut = False
    try:
        yield None
        decoder = StreamDecoder(params["codec"]["decoder"], config.codec, rows=1, voices=voices)
        reference = reference_codes(request, config)
        if len(reference):
            decoder.hear(0, reference)
        for place, (part, plan, text, last) in enumerate(utterances):
            limit = min(frame_limit(part, plan, config), left)
            if limit == 0:
                cut = True
                break
            drawn = {"seed": seed, "utterance": utterance_number(0, place)}
            shapes = {"frame_limit": limit, "schedule": schedule}
            spoken = StreamedCodes(params, config, generation, plan, text, **drawn, **shapes)
            for codes, reason in spoken:
                samples = decoder.decode({0: codes}, meanwhile=spoken.begin)[0]
                left -= len(codes)
                cut = cut or reason == "length"
                yield Speech(samples, rate, codes, _reason(cut) if last and reason is not None else None)
            if last:
                return
        yield Speech(np.zeros(0, np.float32), rate, np.zeros((0, config.talker.num_codebooks), np.int32), _reason(cut))
    finally:
        # A generator may hold a connection open; a file is the caller's to close.
        if isinstance(pieces, Generator):
            pieces.close()


def _reason(cut: bool) -> FinishReason:
    return "length" if cut else "stop"
