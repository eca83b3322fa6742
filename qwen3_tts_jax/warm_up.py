"""Compiles what later processes will need: speaks a little in every shape, with compiled programs kept on disk.

Shapes come in buckets (see `buckets.bucket`), so the programs for texts up to some length are few. Each is
compiled by the very calls that will use it; as soon as its first frames are there, the next follows.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from qwen3_tts_jax.buckets import PROMPT_BUCKET, bucket
from qwen3_tts_jax.codec_decoding import codec_rows, decode_codes
from qwen3_tts_jax.config import GenerationConfig
from qwen3_tts_jax.decode_state import grow_compiled
from qwen3_tts_jax.generate import empty_batch_compiled, generate_stream
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import PromptPlan, Request, plan_prompt
from qwen3_tts_jax.sharding import whole_rows
from qwen3_tts_jax.streaming.codes import CHUNK_FRAMES, first_capacity
from qwen3_tts_jax.streaming.decoding import CODEC_FRAMES, StreamDecoder
from qwen3_tts_jax.streaming.text import SpokenText
from qwen3_tts_jax.synthesis import expected_frames_of, frame_limit, reference_codes, shape_step
from qwen3_tts_jax.utterances import expected_frames, spoken_as, text_tokens
from qwen3_tts_jax.voices import BUCKET_SECONDS, make_voices


@dataclass(frozen=True)
class Warmed:
    """A way of speaking that no longer needs compiling.

    Attributes:
        name: which it is, and from what length of text on.
        seconds: how long it took.
        compiled: programs that were compiled and kept.
        found: programs that had been kept before.
    """

    name: str
    seconds: float
    compiled: int
    found: int


def warm_up(
    model: Qwen3TTS,
    request: Request,
    *,
    tokens: int = 64,
    batch_sizes: Sequence[int] = (),
    stream: bool = True,
    stream_batches: Sequence[int] = (),
    recordings: Sequence[float] = (),
    generation: GenerationConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Warmed]:
    """Compiles what `Qwen3TTS.synthesize` of one request, `Qwen3TTS.stream`, `.stream_batch` and batch jobs need.

    That includes a single stream whose cache doubles once, or whose text is still arriving.

    Programs are kept where `compile_cache.keep_compiled` says; call it first.

    Args:
        model: compiles them, on its devices and in its dtypes.
        request: what all requests have in common, such as a voice of that length; its text is replaced by texts of
            up to `tokens` tokens.
        tokens: length of the longest text.
        batch_sizes: also for batch jobs of these sizes.
        stream: also for streams.
        stream_batches: also for these numbers of streams at a time.
        recordings: also for making voices from recordings of these lengths in seconds (base models).
        generation: how codes are drawn; the checkpoint's own by default.
        progress: called with the number of ways that are done, and of all.

    Yields:
        Each way once it is done.
    """
    generation = generation or model.config.generation
    # "the" is one token, and few phonemes.
    texts = [" ".join(["the"] * count) for count in range(1, tokens + 1)]
    requests = [replace(request, text=text) for text in texts]
    ways = [*_ways(model, requests, batch_sizes, stream, stream_batches, generation), *_voices(model, recordings)]
    for done, (name, speak) in enumerate(ways):
        if progress is not None:
            progress(done, len(ways))
        with _counted() as count:
            began = time.perf_counter()
            speak()
            yield Warmed(name, time.perf_counter() - began, count["cache_misses"], count["cache_hits"])
    if progress is not None:
        progress(len(ways), len(ways))


def _ways(
    model: Qwen3TTS,
    requests: Sequence[Request],
    batch_sizes: Sequence[int],
    stream: bool,
    stream_batches: Sequence[int],
    generation: GenerationConfig,
) -> list[tuple[str, Callable[[], None]]]:
    """One way of speaking per shape: its name, and a call with the longest text of it, which needs most programs."""
    ways: dict[tuple[Any, ...], tuple[str, Callable[[], None]]] = {}
    step = shape_step(model.tokenizer)

    def add(shapes: tuple[Any, ...], name: str, speak: Callable[[], None]) -> None:
        ways[shapes] = (ways[shapes][0] if shapes in ways else name, speak)

    for count, request in enumerate(requests, 1):
        part, plan = _longest(model, request)
        text = f"from {count} {'token' if count == 1 else 'tokens'} on"
        frames = frame_limit(part, plan, model.config)
        slots = bucket(len(plan.text_ids), PROMPT_BUCKET), bucket(len(plan.trailing_text_ids), step)
        expected = min(frames, expected_frames_of(plan))
        add(
            ("speak", *slots, bucket(expected, step)),
            f"one utterance, {text}",
            lambda request=request: _speak(model, request, generation, 1, fixed_shapes=False),
        )
        for size in batch_sizes:
            item = part if part.max_frames is not None else replace(part, max_frames=_job_limit(model, part))
            most = bucket(frame_limit(item, plan, model.config), step)
            item = replace(request, max_frames=item.max_frames)
            add(
                ("batch", size, *slots, most),
                f"batches of {size}, {text}",
                lambda item=item, size=size: _speak(model, item, generation, size, fixed_shapes=True),
            )
        if stream:
            room = first_capacity(plan, SpokenText(plan.trailing_text_ids.tolist()), frames, max(CHUNK_FRAMES))
            add(
                ("stream", slots[0], room),
                f"stream, {text}",
                lambda request=request, room=room: _stream(model, request, generation, larger=2 * room),
            )
        for size in stream_batches:
            add(
                ("streams", size, slots[0]),
                f"{size} streams at a time, {text}",
                lambda request=request, size=size: _stream_together(model, request, generation, size),
            )
    if stream:
        add(
            ("written",),
            "stream of a text that is still being written",
            lambda: _stream(model, replace(requests[-1], text="", text_mode="as_it_comes"), generation, _pieces()),
        )
    return list(ways.values())


def _longest(model: Qwen3TTS, request: Request) -> tuple[Request, PromptPlan]:
    """Of the utterances that a request is spoken as, the one that reads most."""
    parts = [(part, plan_prompt(part, model.tokenizer, model.config)) for part in spoken_as(request, model.tokenizer)]
    return max(parts, key=lambda part: expected_frames_of(part[1]))


def _job_limit(model: Qwen3TTS, request: Request) -> int:
    """The frame limit of such an item in a batch job."""
    return min(expected_frames(text_tokens(request.text, model.tokenizer)), model.config.max_new_tokens - 1)


class _EnoughError(Exception):
    """The first frames are there."""


def _speak(model: Qwen3TTS, request: Request, generation: GenerationConfig, rows: int, *, fixed_shapes: bool) -> None:
    def stop(stage: str, *_: int) -> None:
        if stage == "speak":
            raise _EnoughError

    with suppress(_EnoughError):
        options = {"batch_size": rows, "fixed_shapes": fixed_shapes, "progress": stop}
        next(model.synthesize_each([request] * rows, generation, **options))
    together = min(whole_rows(model.params, rows), codec_rows(model.params, model.config.codec))
    silence = [np.zeros((1, model.config.talker.num_codebooks), np.int32)] * together
    references = [reference_codes(request, model.config)] * together
    decode_codes(model.params["codec"]["decoder"], model.config.codec, silence, references, rows=together)


def _stream(
    model: Qwen3TTS,
    request: Request,
    generation: GenerationConfig,
    pieces: Iterator[str] | None = None,
    larger: int | None = None,
) -> None:
    with closing(model.stream(request, generation, pieces=pieces)) as chunks:
        for _ in islice(chunks, 2):
            pass
    params, config, longest = model.params, model.config, max(CHUNK_FRAMES)
    if larger is not None:
        state = grow_compiled(empty_batch_compiled(params, config, 1, larger // 2, longest), larger)
        generate_stream(params, config, generation, state, np.int32(0), longest)
    _decode_chunks(model, 1)


def _stream_together(model: Qwen3TTS, request: Request, generation: GenerationConfig, rows: int) -> None:
    arriving = replace(request, text="", text_mode="as_it_comes", max_frames=None)
    for one, pieces in ((request, None), (arriving, _pieces())):
        batch = model.stream_batch(generation, batch_size=rows)
        batch.add(one, pieces=pieces)
        for _ in range(2):
            batch.step()
    _decode_chunks(model, rows)


def _decode_chunks(model: Qwen3TTS, rows: int) -> None:
    """Decodes one chunk of each length that the decoder is compiled for."""
    silence = np.zeros((sum(CODEC_FRAMES), model.config.talker.num_codebooks), np.int32)
    StreamDecoder(model.params["codec"]["decoder"], model.config.codec, rows).decode({0: silence})


def _pieces() -> Iterator[str]:
    yield "one "
    yield "two"


def _voices(model: Qwen3TTS, recordings: Sequence[float]) -> Iterator[tuple[str, Callable[[], None]]]:
    for count, seconds in enumerate(sorted({bucket(math.ceil(each), BUCKET_SECONDS) for each in recordings})):
        # Codes, which need a text, are made in steps of one length; x-vectors are made of the whole at once.
        text = "one two three" if count == 0 else None
        yield f"voices of recordings of {seconds} s", partial(_make_voice, model, seconds, text)


def _make_voice(model: Qwen3TTS, seconds: int, text: str | None) -> None:
    rate = model.config.codec.sample_rate
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, seconds * rate).astype(np.float32)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        make_voices(model.params, model.config, [(noise, rate)], [text])


@contextmanager
def _counted() -> Iterator[dict[str, int]]:
    """Counts the hits and misses of JAX's persistent cache."""
    count = {"cache_misses": 0, "cache_hits": 0}

    def listen(event: str, **_: Any) -> None:
        name = event.rpartition("/")[2]
        if name in count:
            count[name] += 1

    jax.monitoring.register_event_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_listener(listen)
