"""Streams side by side whose texts are still being written: each as if it were alone, and what waits for what."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, Speech, StreamError, generate
from qwen3_tts_jax.streaming import decoding
from qwen3_tts_jax.streaming.batch import StreamBatch
from tests.small_checkpoint import small_voice
from tests.streams import TEXT, assert_same, custom_voices, spoken, whole

PIECES = ["It is a ", "lo", "ng way, ", "isn't ", "it, 很", "远。 And ", "then home", " again."]
ARRIVING = {
    "1.7B-CustomVoice": Request("", speaker="ryan", text_mode="as_it_comes", max_frames=40),
    "1.7B-Base": Request("Well: ", voice=small_voice("1.7B-Base", 3), text_mode="as_it_comes", max_frames=40),
}


def slowly(pieces: Iterable[str], seconds: float = 0.02) -> Iterator[str]:
    for piece in pieces:
        time.sleep(seconds)
        yield piece


class Written:
    """Pieces of a text, of which the last `wait` come only by `go`; `asked` counts how many were asked for."""

    def __init__(self, pieces: list[str], wait: int):
        self._pieces, self._wait, self._may_go = pieces, wait, threading.Semaphore(0)
        self.asked, self.closed = 0, threading.Event()

    def __call__(self) -> Iterator[str]:
        try:
            for place, piece in enumerate(self._pieces):
                self.asked += 1
                if place >= len(self._pieces) - self._wait:
                    assert self._may_go.acquire(timeout=60)
                yield piece
        finally:
            self.closed.set()

    def go(self, count: int | None = None) -> None:
        """Lets so many pieces come; all by default."""
        self._may_go.release(self._wait if count is None else count)


def in_pieces(model: Qwen3TTS, request: Request, pieces: list[str], seed: int) -> Speech:
    return whole(list(model.stream(request, seed=seed, pieces=iter(pieces))))


@pytest.mark.parametrize("eos_boost", [-1.0, 1.0], ids=["until the limit", "until they end"])
@pytest.mark.parametrize("variant", ARRIVING)
def test_each_is_what_it_is_alone(load, variant, eos_boost):
    model, request = load(variant, eos_boost), ARRIVING[variant]
    others = [replace(request, text=TEXT, max_frames=limit) for limit in (30, 5)]
    batch = model.stream_batch(batch_size=3)
    batch.add(others[0], 0)
    numbers = [batch.add(request, 1 + place, pieces=slowly(PIECES, 0.01 * place)) for place in range(3)]
    assert numbers == [1, 2, 3]
    batch.add(others[1], 4)
    found = spoken(batch)
    for number, seed, other in ((0, 0, others[0]), (4, 4, others[1])):
        assert_same(found[number], whole(list(model.stream(other, seed=seed))))
    for number in numbers:
        assert_same(found[number], in_pieces(model, request, PIECES, number))


@pytest.mark.parametrize("limit", [None, 30])
def test_mini_speaks_a_sentence_once_it_has_ended(limit):
    mini = Qwen3TTS.from_pretrained("mini")
    pieces = ["One. Tw", "o words", ". And now", " three.", " Four."]
    request = Request("", speaker="henry", text_mode="as_it_comes", max_frames=limit)
    other = Request("Five more words. And six.", speaker="heart")
    batch = mini.stream_batch(batch_size=2)
    batch.add(request, 3, pieces=slowly(pieces, 0.1))
    batch.add(other, 4)
    found = spoken(batch)
    assert_same(found[0], in_pieces(mini, request, pieces, 3))
    assert found[0].finish_reason == ("stop" if limit is None else "length")
    assert_same(found[1], whole(list(mini.stream(other, seed=4))))


@pytest.mark.parametrize("limited", [False, True], ids=["without a limit", "at its limit"])
def test_mini_knows_its_end_once_it_knows_the_text(limited):
    """At the request's limit it need not know, in a batch or alone."""
    mini = Qwen3TTS.from_pretrained("mini")
    request = Request("", speaker="henry", text_mode="as_it_comes")
    (alone,) = mini.synthesize([replace(request, text="One.")])
    request = replace(request, max_frames=len(alone.codes) if limited else None)
    text, batch = Written(["One.\n\n*", ""], 1), mini.stream_batch(batch_size=1)
    batch.add(request, pieces=text())
    chunks = []
    while sum(len(chunk.codes) for _, chunk in chunks) < len(alone.codes):
        chunks += batch.step()
    assert bool(batch) is not limited
    timer = after(0.2, text.go)
    chunks += batch.step()
    timer.join()
    assert not batch
    found = whole([chunk for _, chunk in chunks])
    np.testing.assert_array_equal(found.codes, alone.codes)
    assert (len(chunks[-1][1].codes) == 0) is not limited
    assert found.finish_reason == ("length" if limited else "stop")
    if limited:
        text = Written(["One.\n\n*", ""], 1)
        assert list(mini.stream(request, pieces=text()))[-1].finish_reason == "length"
        assert text.asked == 1


@pytest.mark.parametrize(("staged", "together"), [(False, 1), (True, 3)], ids=["as on CPUs", "as on TPUs"])
def test_one_that_waits_for_its_text_does_not_hold_the_others_up(load, monkeypatch, staged, together):
    monkeypatch.setattr(decoding, "codec_rows", lambda *_: together)
    plain = load("1.7B-CustomVoice", -1.0)
    config = generate.configure(plain.config, "tpu") if staged else plain.config
    model = Qwen3TTS(config, plain.params, plain.tokenizer)
    request, text = ARRIVING["1.7B-CustomVoice"], Written(PIECES, 3)
    other = Request(TEXT, speaker="serena", max_frames=40)
    batch = model.stream_batch(batch_size=3)
    waiting, speaking = batch.add(request, 7, pieces=text()), batch.add(other, 8)
    chunks = defaultdict(list)
    while not any(chunk.finish_reason for chunk in chunks[speaking]):
        for number, chunk in batch.step():
            chunks[number].append(chunk)
    assert text.asked == len(PIECES) - 2
    assert sum(len(chunk.codes) for chunk in chunks[waiting]) < 20
    assert len(batch) == 1
    # Nor does it shorten their chunks.
    assert [len(chunk.codes) for chunk in chunks[speaking]][-3:-1] == [8, 8]
    text.go()
    while batch:
        for number, chunk in batch.step():
            chunks[number].append(chunk)
    assert_same(whole(chunks[waiting]), in_pieces(plain, request, PIECES, 7))
    assert_same(whole(chunks[speaking]), whole(list(plain.stream(other, seed=8))))


@pytest.mark.parametrize("seed", range(4))
def test_random_company(load, seed):
    model, rng = load("1.7B-CustomVoice", -1.0), np.random.default_rng(seed)
    words = [f"{word} " for word in (TEXT * 4).split()]
    requests, texts = [], []
    for _ in range(7):
        limit = int(rng.integers(1, 50))
        if rng.random() < 0.3:
            requests.append(replace(custom_voices()[1], max_frames=limit))
            texts.append(None)
        else:
            requests.append(replace(ARRIVING["1.7B-CustomVoice"], max_frames=limit))
            texts.append(words[: rng.integers(1, 20)])
    batch = model.stream_batch(batch_size=3, schedule=tuple(rng.integers(1, 9, 3).tolist()))
    for number, (request, text) in enumerate(zip(requests, texts, strict=True)):
        pieces = None if text is None else slowly(text, float(rng.choice([0.0, 0.003, 0.01])))
        batch.add(request, number, pieces=pieces)
    found = spoken(batch)
    for number, (request, text) in enumerate(zip(requests, texts, strict=True)):
        alone = list(model.stream(request, seed=number, pieces=text))
        assert_same(found[number], whole(alone))


def after(seconds: float, do) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


@pytest.mark.parametrize("what", ["text", "request", "cancel"])
def test_a_step_waits_while_all_wait_for_text(load, what):
    model, text = load("1.7B-CustomVoice", -1.0), Written(PIECES, len(PIECES))
    batch = model.stream_batch(batch_size=2)
    first = batch.add(ARRIVING["1.7B-CustomVoice"], pieces=text())
    come = {
        "text": text.go,
        "request": lambda: batch.add(Request("Hi.", speaker="ryan", max_frames=3)),
        "cancel": lambda: batch.cancel(first),
    }[what]
    start = time.monotonic()
    timer = after(0.3, come)
    numbers = [number for number, _ in batch.step()]
    assert time.monotonic() - start >= 0.3
    timer.join()
    assert numbers == {"text": [first], "request": [first + 1], "cancel": []}[what]
    text.go()


# Python reports what fails in the thread after the text's own error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_text_that_cannot_be_read_ends_its_stream_alone(load):
    model = load("1.7B-CustomVoice", -1.0)

    def hung_up(error: BaseException) -> Iterator[str]:
        yield "Good words come first, "
        raise error

    def closed_badly() -> Iterator[str]:
        try:
            yield "\ud800 is half of a pair, "
        finally:
            raise ConnectionError("the connection was closed already")

    batch = model.stream_batch(batch_size=3)
    arriving, other = ARRIVING["1.7B-CustomVoice"], Request(TEXT, speaker="ryan", max_frames=30)
    batch.add(other, 5)
    bad = {
        batch.add(arriving, 6, pieces=hung_up(ConnectionError("the language model hung up"))): "model hung up",
        batch.add(arriving, pieces=hung_up(asyncio.CancelledError("no more"))): "no more",
        batch.add(arriving, pieces=[" ", "\n"]): "the text is empty",
        batch.add(arriving, pieces=closed_badly()): "surrogate",
    }
    chunks, errors = defaultdict(list), {}
    while batch:
        try:
            for number, chunk in batch.step():
                chunks[number].append(chunk)
        except StreamError as error:
            errors[error.number] = str(error.__cause__)
    assert errors.keys() == bad.keys()
    for number, message in bad.items():
        assert message in errors[number]
    assert_same(whole(chunks[0]), whole(list(model.stream(other, seed=5))))
    # What came before the error is spoken, all of it; alone, all but the chunk that could not be filled.
    alone = []
    with pytest.raises(ConnectionError):
        alone.extend(model.stream(arriving, seed=6, pieces=hung_up(ConnectionError())))
    codes = [np.concatenate([chunk.codes for chunk in found]) for found in (chunks[1], alone)]
    assert len(codes[0]) >= len(codes[1]) > 2
    np.testing.assert_array_equal(codes[0][: len(codes[1])], codes[1])


@pytest.mark.parametrize("how", ["ended", "cancelled", "dropped"])
def test_reading_stops_with_the_stream(load, how):
    model = load("1.7B-CustomVoice", -1.0)
    text = Written(["word "] * 1000, 900 if how == "ended" else 990)
    batch = model.stream_batch(batch_size=2)
    pieces = slowly(text(), 0.002)
    number = batch.add(replace(ARRIVING["1.7B-CustomVoice"], max_frames=8), pieces=pieces)
    if how == "ended":
        spoken(batch)
        text.go()
    else:
        batch.step()
        if how == "cancelled":
            batch.cancel(number)
            assert not batch
        gone = weakref.ref(batch)
        del batch
        gc.collect()
        assert gone() is None
        text.go()
    assert text.closed.wait(30)
    assert text.asked <= (101 if how == "ended" else 11)
    assert inspect.getgeneratorstate(pieces) == inspect.GEN_CLOSED


def test_reading_stops_before_there_is_a_sentence():
    text = Written(["word "] * 1000, 990)
    batch = Qwen3TTS.from_pretrained("mini").stream_batch(batch_size=1)
    batch.cancel(batch.add(Request("", speaker="henry", text_mode="as_it_comes"), pieces=text()))
    assert batch.step() == []
    text.go()
    assert text.closed.wait(30)
    assert text.asked <= 12


def test_what_is_no_generator_is_left_open(load, tmp_path):
    """A file is its caller's, who may want to read on."""
    (tmp_path / "text.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    batch: StreamBatch = load("1.7B-CustomVoice", -1.0).stream_batch(batch_size=1)
    with open(tmp_path / "text.txt", encoding="utf-8") as file:
        batch.add(replace(ARRIVING["1.7B-CustomVoice"], max_frames=6), pieces=file)
        spoken(batch)
        assert not file.closed


def test_what_is_refused_at_once(load):
    batch = load("1.7B-CustomVoice").stream_batch(batch_size=1)
    arriving, threads = ARRIVING["1.7B-CustomVoice"], threading.active_count()
    for change, message in [
        ({"text_mode": "all_at_once"}, "a text in pieces is spoken as it comes"),
        ({"split": 10}, "a text in pieces is not split"),
        ({"speaker": "nobody"}, "unknown speaker 'nobody'"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch.add(replace(arriving, **change), pieces=["a"])
    assert not batch
    assert threading.active_count() == threads
