"""One request, spoken as it is made: chunks of frames, decoded with carried state as soon as they are there.

Its codes are those of the whole run with the same seed, and its samples those of the whole decode.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.prompt import Request, check_seed
from qwen3_tts_jax.speech import FinishReason, Speech
from qwen3_tts_jax.streaming.codes import StreamedCodes, checked_schedule
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.streaming.text import close_source
from qwen3_tts_jax.streaming.utterances import Utterance, planned
from qwen3_tts_jax.synthesis import frame_limit, reference_codes
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import utterance_number


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
    utterances = planned(request, pieces, tokenizer, config)
    chunks = _speak(params, config, request, generation, seed, utterances, pieces, schedule, voices)
    # A generator that was never started would skip its `finally` when it is closed.
    next(chunks)
    return chunks


def _speak(
    params: dict[str, Any],
    config: ModelConfig,
    request: Request,
    generation: GenerationConfig,
    seed: int,
    utterances: Iterable[Utterance],
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
                # At the request's limit, whatever is still to come is left out.
                ended = reason is not None and (last or left == 0)
                yield Speech(samples, rate, codes, _reason(cut) if ended else None)
            if ended:
                return
        yield Speech.silent(config.codec, _reason(cut))
    finally:
        close_source(pieces)


def _reason(cut: bool) -> FinishReason:
    return "length" if cut else "stop"
