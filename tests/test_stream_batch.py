"""Streams side by side: each as if it were alone, whoever joins, ends or leaves; what is compiled, kept and refused."""

from __future__ import annotations

import gc
import threading
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, codec_decoding, decode_state, generate
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.streaming import batch as stream_batch
from qwen3_tts_jax.streaming import decoding
from qwen3_tts_jax.streaming.batch import StreamBatch
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from tests.small_checkpoint import small_voice
from tests.streams import REQUESTS, TEXT, alone, assert_same, custom_voices, spoken, whole


@pytest.mark.parametrize("together", [1, 2, 4], ids=["decoded apart", "in pairs", "in fours"])
@pytest.mark.parametrize("variant", REQUESTS)
def test_each_is_what_it_is_alone(load, monkeypatch, variant, together):
    """With fewer rows than streams, and some that come later."""
    model, requests = load(variant), REQUESTS[variant]
    expected = alone(model, requests)
    monkeypatch.setattr(decoding, "codec_rows", lambda *_: together)
    batch = model.stream_batch(batch_size=3)
    numbers = [batch.add(request, seed) for seed, request in enumerate(requests[:2])]
    found = spoken(batch, {1: [(requests[2], 2)], 4: [(one, 3 + n) for n, one in enumerate(requests[3:])]})
    assert numbers == [0, 1]
    assert sorted(found) == list(range(len(requests)))
    for number, speech in enumerate(expected):
        assert_same(found[number], speech)


@pytest.mark.parametrize("seed", range(6))
def test_random_company(load, monkeypatch, seed):
    model, rng = load("1.7B-CustomVoice"), np.random.default_rng(seed)
    monkeypatch.setattr(decoding, "codec_rows", lambda *_: int(rng.integers(1, 5)))
    requests = [custom_voices()[n] for n in rng.integers(0, 5, 9)]
    requests = [replace(one, max_frames=int(rng.integers(1, 40))) for one in requests]
    joining = defaultdict(list)
    for number, request in enumerate(requests):
        joining[int(rng.integers(1, 4))].append((request, number))
    schedule = tuple(rng.integers(1, 9, 3).tolist())
    batch = model.stream_batch(batch_size=int(rng.integers(2, 6)), schedule=schedule)
    batch.add(Request(TEXT, speaker="ryan", max_frames=40), seed=100)
    found = spoken(batch, joining)
    order = [number for step in sorted(joining) for _, number in joining[step]]
    expected = alone(model, requests)
    for number, request in enumerate(order, 1):
        assert_same(found[number], expected[request])


def test_mini_speaks_sentence_by_sentence():
    mini = Qwen3TTS.from_pretrained("mini")
    requests = [
        Request("One. Two words. And now three.", speaker="henry"),
        Request("Four more words.", speaker="heart"),
    ]
    batch = mini.stream_batch(batch_size=2)
    for seed, request in enumerate(requests):
        batch.add(request, seed)
    found = spoken(batch)
    for number, speech in enumerate(alone(mini, requests)):
        assert_same(found[number], speech)


def test_the_youngest_decides_how_long_a_chunk_is(load):
    model = load("1.7B-CustomVoice", -1.0)
    batch, request = model.stream_batch(batch_size=2), Request(TEXT, speaker="ryan", max_frames=100)
    first = batch.add(request)
    sizes = [len(dict(batch.step())[first].codes) for _ in range(4)]
    second = batch.add(request)
    # The chunk that was under way when it came, then its own first.
    for _ in range(5):
        sizes.append([len(chunk.codes) for number, chunk in batch.step() if number in (first, second)])
    assert sizes == [1, 2, 4, 8, [8], [1, 1], [2, 2], [4, 4], [8, 8]]


def test_nothing_is_begun_behind_the_limit(load):
    """Of a text in parts: the chunk that reaches the limit is the last."""
    model = load("1.7B-CustomVoice", -1.0)
    batch = model.stream_batch(batch_size=2)
    batch.add(Request("It's a long way. Isn't it, my friends? Goodbye to all!", speaker="ryan", split=8, max_frames=5))
    chunks = []
    while batch:
        chunks += [chunk for _, chunk in batch.step()]
    assert [(len(chunk.codes), chunk.finish_reason) for chunk in chunks] == [(1, None), (2, None), (2, "length")]


def test_a_cancelled_stream_leaves_its_row(load):
    model = load("1.7B-CustomVoice", -1.0)
    requests = [Request(TEXT, speaker="ryan", max_frames=40), *custom_voices()]
    expected = alone(model, requests)
    batch = model.stream_batch(batch_size=2)
    for seed, request in enumerate(requests):
        batch.add(request, seed)
    assert len(batch) == 6
    for _ in range(2):
        assert [number for number, _ in batch.step()] == [0, 1]
    batch.cancel(0)  # It speaks,
    batch.cancel(3)  # and this one waits.
    assert len(batch) == 4
    assert [number for number, _ in batch.step()] == [1]
    found, speaking = defaultdict(list), []
    while batch:
        speaking.append([])
        for number, chunk in batch.step():
            found[number].append(chunk)
            speaking[-1].append(number)
        assert all(stream is None or stream.number != 3 for stream in batch._rows)
    assert speaking[0] == [2, 1]
    assert sorted(found) == [1, 2, 4, 5]
    for number in (2, 4, 5):
        assert_same(whole(found[number]), expected[number])
    for number in (0, 3, 5, 99):
        batch.cancel(number)  # Has ended, or never was.
    assert not batch
    assert batch.step() == []
    # And once more, with nobody left in any row.
    again = batch.add(requests[1], 1)
    assert_same(spoken(batch)[again], expected[1])


def test_few_programs_serve_all(load):
    model = load("1.7B-CustomVoice", -1.0)
    compiled = (
        generate.prefill_compiled, decode_state.insert_compiled, generate.generate_stream, generate.set_text_compiled,
        codec_decoding.codec_step, codec_decoding.with_row,
    )  # fmt: skip
    spoken_first = model.stream_batch(batch_size=3)
    spoken_first.add(Request(TEXT, speaker="ryan", text_mode="as_it_comes", max_frames=38))
    spoken(spoken_first)
    before = [function._cache_size() for function in compiled]
    batch = model.stream_batch(batch_size=3)
    for seed, limit in enumerate([9, 1, 30, 17, 22]):
        text = TEXT if seed % 2 else "Short."
        mode = "all_at_once" if seed == 2 else "as_it_comes"
        batch.add(Request(text, speaker="serena", text_mode=mode, max_frames=limit), seed)
    spoken(batch)
    assert [function._cache_size() for function in compiled] == before


def test_a_cache_that_grows(load, monkeypatch):
    model, rooms = load("1.7B-CustomVoice", -1.0), []
    monkeypatch.setattr("qwen3_tts_jax.streaming.codes._MIN_CAPACITY", 32)
    grow = stream_batch.grow_compiled
    monkeypatch.setattr(stream_batch, "grow_compiled", lambda state, room: rooms.append(room) or grow(state, room))
    requests = [
        Request(text, speaker="ryan", max_frames=limit) for text, limit in (("A.", 9), (TEXT * 4, 9), ("Hi.", 150))
    ]
    expected = alone(model, requests)
    rooms.clear()
    batch = model.stream_batch(batch_size=3, capacity=20)
    for seed, request in enumerate(requests):
        batch.add(request, seed)
    found = spoken(batch)
    assert len(found[2].codes) == 150
    # For the first prompt, the second, and speech that goes on.
    assert rooms == [64, 128, 256]
    for number, speech in enumerate(expected):
        assert_same(found[number], speech)


def test_caches_that_are_written_once_for_a_chunk(load):
    """As on TPUs."""
    model = load("1.7B-CustomVoice")
    staged = Qwen3TTS(generate.configure(model.config, "tpu"), model.params, model.tokenizer)
    batch = staged.stream_batch(batch_size=3, capacity=1)
    for seed, request in enumerate(custom_voices()):
        batch.add(request, seed)
    found = spoken(batch)
    for number, speech in enumerate(alone(model, custom_voices())):
        assert_same(found[number], speech)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_next_chunk_is_made_while_one_is_heard(load, monkeypatch, backend):
    """On accelerators from when its predecessor's samples are under way, on CPUs from when they are there."""
    model, events = load("1.7B-CustomVoice", -1.0), []
    monkeypatch.setattr(decoding, "default_device", lambda: SimpleNamespace(platform=backend))

    def log(module, name, event):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: events.append(event) or function(*given))

    log(stream_batch, "generate_stream", "speak")
    log(decoding, "codec_step", "decode")
    log(jax, "block_until_ready", "wait")
    log(jax, "device_get", "fetch")
    batch = model.stream_batch(batch_size=2, schedule=(4,))
    for limit in (8, 12):
        batch.add(Request(TEXT, speaker="ryan", max_frames=limit))
    batch.step()
    decoded = ["wait", "speak", "fetch"] if backend == "cpu" else ["speak", "fetch"]
    assert events == ["speak", "fetch", "decode", "decode", *decoded]
    spoken(batch)
    assert events.count("speak") == 3


def test_requests_come_from_other_threads(load):
    model, requests = load("1.7B-CustomVoice"), custom_voices() * 4
    batch = model.stream_batch(batch_size=4)
    numbers: dict[int, int] = {}

    def come(first: int) -> None:
        for place in range(first, len(requests), 4):
            numbers[place] = batch.add(requests[place], place)

    threads = [threading.Thread(target=come, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    chunks = defaultdict(list)
    while batch or any(thread.is_alive() for thread in threads):
        for number, chunk in batch.step():
            chunks[number].append(chunk)
    assert sorted(numbers.values()) == list(range(20))
    for place, speech in enumerate(alone(model, requests)):
        assert_same(whole(chunks[numbers[place]]), speech)


def test_what_is_dropped_frees_all(load):
    model = load("1.7B-Base")

    def held() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    def speak() -> StreamBatch:
        batch = model.stream_batch(batch_size=2)
        for seed in range(20):
            batch.add(Request("Hi.", voice=small_voice("1.7B-Base", 1 + seed), max_frames=2), seed)
        return batch

    spoken(speak())  # The model has kept the voices that spoke last.
    before = held()
    batch = speak()
    empty = held()
    batch.step()
    assert held() > empty > before
    spoken(batch)
    del batch
    assert held() == before


def test_bad_requests_are_refused_and_the_others_go_on(load):
    model = load("1.7B-CustomVoice")
    batch = model.stream_batch(batch_size=2)
    batch.add(custom_voices()[0])
    batch.step()
    for request, seed, error, message in [
        (Request(" ", speaker="ryan"), 0, ValueError, "the text is empty"),
        (Request("a", speaker="nobody"), 0, ValueError, "unknown speaker 'nobody'"),
        (Request("a", speaker="ryan", split=0), 0, ValueError, "split must be at least 1"),
        (Request("a", speaker="ryan"), -1, ValueError, "seed must be"),
        ("a", 0, TypeError, "a stream needs a `Request`, got 'a'"),
    ]:
        with pytest.raises(error, match=message):
            batch.add(request, seed)
        assert len(batch) == 1
    with pytest.raises(ValueError, match="at least 1, got"):
        model.stream_batch(schedule=())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.stream_batch(batch_size=0)
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        model.stream_batch(capacity=0)


def test_rows_of_the_decoder_that_pause(load, monkeypatch):
    """A row that says less than the others goes on from there; those that have ended do not hold the others up."""
    model, rng = load("1.7B-Base"), np.random.default_rng(1)
    params, config = model.params["codec"]["decoder"], model.config.codec
    monkeypatch.setattr(decoding, "codec_rows", lambda *_: 3)
    steps, step = [], decoding.codec_step
    monkeypatch.setattr(decoding, "codec_step", lambda *given: steps.append(given[3].shape[1]) or step(*given))
    codes = [rng.integers(0, 37, (12, 5)).astype(np.int32) for _ in range(4)]
    reference = rng.integers(0, 37, (7, 5)).astype(np.int32)
    decode = jax.jit(decoder.decode, static_argnums=1)
    expected = [np.asarray(decode(params, config.decoder, row[None]))[0] for row in codes]
    after = np.asarray(decode(params, config.decoder, np.concatenate([reference, codes[1]])[None]))[0]
    expected[1] = after[7 * config.frame_samples :]
    streamed = StreamDecoder(params, config, 4)
    streamed.hear(1, reference)
    assert steps == [4, 2, 1]
    chunks = [streamed.decode({0: codes[0][:8], 1: codes[1][:5], 2: codes[2][:0], 3: codes[3][:4]})]
    assert steps[3:] == [4, 1, 2, 1, 4]
    chunks.append(streamed.decode({0: codes[0][8:], 1: codes[1][5:6], 2: codes[2][:4]}, ended=[1]))
    assert steps[8:] == [4]
    for row, cut in ((0, 12), (1, 6), (2, 4), (3, 4)):
        said = np.concatenate([chunk[row] for chunk in chunks if row in chunk])
        np.testing.assert_allclose(said, expected[row][: cut * config.frame_samples], rtol=0, atol=1e-5)
