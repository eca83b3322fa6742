"""Streams side by side, and what each of them says by itself."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from qwen3_tts_jax import Qwen3TTS, Request, Speech
from qwen3_tts_jax.streaming.batch import StreamBatch
from tests.small_checkpoint import small_voice

TEXT = "It's a long way to Tipperary, isn't it? 很远。"


def custom_voices() -> list[Request]:
    """Of different lengths and limits, in both text modes; one that is split."""
    return [
        Request("Hi.", "english", "ryan", max_frames=30),
        Request(TEXT, "english", "serena", text_mode="as_it_comes", max_frames=25),
        Request(TEXT * 3, speaker="ryan", instruct="Softly.", max_frames=3),
        Request("It's a long way. Isn't it, my friends? Goodbye to all!", speaker="ryan", split=8, max_frames=60),
        Request("Good morning.", "german", "serena", text_mode="as_it_comes", max_frames=40),
    ]


def base_voices() -> list[Request]:
    frames = (0, 3, 41, 3)
    voices = [small_voice("1.7B-Base", count) for count in frames]
    return [
        Request(TEXT, voice=one, text_mode=mode, max_frames=18)
        for one, mode in zip(voices, ["as_it_comes", "as_it_comes", "all_at_once", "all_at_once"], strict=True)
    ]


REQUESTS = {"1.7B-CustomVoice": custom_voices(), "1.7B-Base": base_voices()}


def alone(model: Qwen3TTS, requests: list[Request]) -> list[Speech]:
    """What each stream says by itself, where request number n has the seed n."""
    return [whole(list(model.stream(request, seed=seed))) for seed, request in enumerate(requests)]


def whole(chunks: list[Speech]) -> Speech:
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    samples, codes = (np.concatenate([getattr(one, name) for one in chunks]) for name in ("samples", "codes"))
    return Speech(samples, chunks[0].sample_rate, codes, chunks[-1].finish_reason)


def spoken(batch: StreamBatch, joining: dict[int, list[tuple[Request, int]]] | None = None) -> dict[int, Speech]:
    """What the streams of a batch say, by their numbers; after the step with a number, those `joining` are added."""
    chunks, steps = defaultdict(list), 0
    while batch:
        for number, chunk in batch.step():
            assert len(chunk.samples) == len(chunk.codes) * (len(chunk.samples) // max(1, len(chunk.codes)))
            chunks[number].append(chunk)
        steps += 1
        for request, seed in (joining or {}).get(steps, ()):
            batch.add(request, seed)
    return {number: whole(one) for number, one in chunks.items()}


def assert_same(found: Speech, expected: Speech) -> None:
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.samples, expected.samples, rtol=0, atol=1e-5)
    assert (found.finish_reason, found.sample_rate) == (expected.finish_reason, expected.sample_rate)
