"""Streams: the speech of the whole run, chunk by chunk; text in pieces; what is compiled, kept and freed."""

from __future__ import annotations

import gc
import inspect
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, codec_decoding, generate
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import GenerationConfig
from qwen3_tts_jax.streaming import codes as streamed_codes
from qwen3_tts_jax.streaming import decoding
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.utterances import utterance_number
from tests.small_checkpoint import small_voice

TEXT = "It's a long way to Tipperary, isn't it? 很远。"


# (variant, options of both calls): every kind of model, in context with a long and a short reference.
CALLS = [
    ("1.7B-CustomVoice", {"speaker": "ryan", "instruct": "Softly."}),
    ("1.7B-VoiceDesign", {"instruct": "An old man."}),
    ("1.7B-Base", {"voice_clone_prompt": small_voice("1.7B-Base", 0)}),
    ("1.7B-Base", {"voice_clone_prompt": small_voice("1.7B-Base", 3)}),
    ("1.7B-Base", {"voice_clone_prompt": small_voice("1.7B-Base", 41)}),
]
METHODS = {"custom_voice": "custom_voice", "voice_design": "voice_design", "base": "voice_clone"}


def both(model: Qwen3TTS, text, streamed_text, options, **more) -> tuple[list, np.ndarray]:
    """The chunks of the stream, and the waveform of the whole."""
    method = METHODS[model.config.model_type]
    (whole,), _ = getattr(model, f"generate_{method}")(text, **options, **more)
    return list(getattr(model, f"stream_{method}")(streamed_text, **options, **more)), whole


def joined(chunks) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.mark.parametrize("at_once", [True, False], ids=["all_at_once", "as_it_comes"])
@pytest.mark.parametrize(("variant", "options"), CALLS)
def test_a_stream_is_the_whole_run(load, variant, options, at_once):
    model = load(variant)
    more = {"non_streaming_mode": at_once, "seed": 5, "max_new_tokens": 30, "language": "english"}
    chunks, whole = both(model, TEXT, TEXT, options, **more)
    np.testing.assert_allclose(joined(chunks), whole, rtol=0, atol=1e-5)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    frames = sum(len(chunk.codes) for chunk in chunks)
    assert chunks[-1].finish_reason == ("length" if frames == 29 else "stop")
    sizes = [len(chunk.codes) for chunk in chunks[:-1]]
    assert sizes == [1, 2, 4, 8, 8, 8][: len(sizes)]
    for chunk in chunks:
        assert len(chunk.samples) == len(chunk.codes) * model.config.codec.frame_samples
        assert chunk.sample_rate == 24_000


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("variant", "options"), CALLS)
def test_text_in_pieces_is_the_text(load, variant, options, size):
    model = load(variant)
    pieces = (TEXT[start : start + size] for start in range(0, len(TEXT), size))
    more = {"non_streaming_mode": False, "seed": 3, "max_new_tokens": 40}
    chunks, whole = both(model, TEXT, TEXT, options, **more)
    del more["non_streaming_mode"]  # the default with pieces
    method = getattr(model, f"stream_{METHODS[model.config.model_type]}")
    in_pieces = list(method(pieces, **options, **more))
    np.testing.assert_array_equal(
        np.concatenate([chunk.codes for chunk in in_pieces]), np.concatenate([chunk.codes for chunk in chunks])
    )
    np.testing.assert_allclose(joined(in_pieces), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("variant", "options"), [CALLS[0], CALLS[3]])
def test_a_text_that_is_split(load, variant, options):
    model, parts = load(variant), ["It's a long way to Tipperary.", "Isn't it, my friends?", "Goodbye to all!"]
    more = {"seed": 5, "max_new_tokens": 60}
    chunks, whole = both(model, " ".join(parts), " ".join(parts), options, split=10, **more)
    np.testing.assert_allclose(joined(chunks), whole, rtol=0, atol=1e-5)
    codes = np.concatenate([chunk.codes for chunk in chunks])
    # Each part as if it were alone, and then the next.
    voice = options.get("voice_clone_prompt")
    fields = {"text_mode": "as_it_comes", "voice": voice} if voice else options
    requests = [Request(part, max_frames=59, **fields) for part in parts]
    numbers = [utterance_number(0, place) for place in range(3)]
    alone = np.concatenate([one.codes for one in model.synthesize(requests, seed=5, utterances=numbers)])
    np.testing.assert_array_equal(codes, alone[:59])
    assert chunks[-1].finish_reason == ("length" if len(alone) > 59 else "stop")
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    # A limit of exactly as many frames says the same of a stream and of the whole.
    for limit in (len(alone), len(alone) + 1):
        request = Request(" ".join(parts), split=10, max_frames=limit, **fields)
        (speech,) = model.synthesize([request], seed=5)
        assert list(model.stream(request, seed=5))[-1].finish_reason == speech.finish_reason
        assert speech.finish_reason == ("length" if limit == len(alone) else "stop")


def test_speech_starts_before_the_text_is_there(load, monkeypatch):
    model, taken = load("1.7B-CustomVoice", -1.0), []
    now = 0.0
    monkeypatch.setattr("qwen3_tts_jax.streaming.text.time", SimpleNamespace(monotonic=lambda: now))

    def pieces():
        nonlocal now
        for number in itertools.count():
            taken.append(number)
            now += slow
            yield "word "

    slow = 0.02
    chunks = model.stream_custom_voice(pieces(), "ryan", max_new_tokens=100)
    # One word is in the prompt; the next, which is certain once a third begins, goes with the first frame.
    assert [len(next(chunks).codes) for _ in range(4)] == [1] * 4
    assert len(taken) <= 6
    # Text that is there is spoken by the schedule.
    slow = 0
    next(chunks)
    assert [len(next(chunks).codes) for _ in range(3)] == [8] * 3
    assert len(taken) <= 6 + 4 * 8 + 1
    chunks.close()


@pytest.mark.parametrize("schedule", [(1,), (5,), (3, 1, 7), [2, 2]])
def test_the_schedule_is_kept(load, schedule):
    model = load("1.7B-CustomVoice", -1.0)
    options = {"seed": 1, "max_new_tokens": 24}
    chunks = list(model.stream_custom_voice(TEXT, "ryan", schedule=schedule, **options))
    expected = list(schedule)
    while sum(expected) < 23:
        expected.append(schedule[-1])
    expected[-1] -= sum(expected) - 23
    assert [len(chunk.codes) for chunk in chunks] == expected
    (whole,), _ = model.generate_custom_voice(TEXT, "ryan", **options)
    np.testing.assert_allclose(joined(chunks), whole, rtol=0, atol=1e-5)


def test_numbers_may_be_of_numpy(load):
    model, options = load("1.7B-CustomVoice", -1.0), {"max_new_tokens": 12}
    expected = list(model.stream_custom_voice("Hi.", "ryan", schedule=(2, 3), seed=4, **options))
    numbers = {name: np.int32(value) for name, value in options.items()}
    schedule = np.array([2, 3])
    found = list(model.stream_custom_voice("Hi.", "ryan", schedule=schedule, seed=np.int64(4), **numbers))
    assert [chunk.codes.tolist() for chunk in found] == [chunk.codes.tolist() for chunk in expected]
    (speech,) = model.synthesize(
        [Request("Hi.", speaker="ryan", max_frames=np.int8(11), split=np.uint8(9))],
        seed=np.uint8(4), batch_size=np.int32(2), utterances=np.arange(1, dtype=np.int8),
    )  # fmt: skip
    assert speech.codes.tolist() == [codes.tolist() for chunk in expected for codes in chunk.codes]
    batch = model.stream_batch(batch_size=np.int32(2), capacity=np.int64(600), schedule=schedule)
    batch.add(Request("Hi.", speaker="ryan", max_frames=np.int16(11)), np.uint64(4))
    assert [chunk.codes.tolist() for _ in expected for _, chunk in batch.step()] == [
        chunk.codes.tolist() for chunk in expected
    ]


def test_few_programs_serve_every_stream(load):
    model = load("1.7B-CustomVoice", -1.0)
    compiled = (
        generate.prefill_compiled,
        generate.generate_stream,
        generate.set_text_compiled,
        codec_decoding.codec_step,
    )
    warm = {"schedule": (1, 2, 4, 8, 16), "non_streaming_mode": False, "max_new_tokens": 60}
    list(model.stream_custom_voice(TEXT, "ryan", **warm))
    before = [function._cache_size() for function in compiled]
    for text, options in [
        ("Short.", {"seed": 3, "max_new_tokens": 9}),
        (TEXT, {"schedule": (7, 16), "non_streaming_mode": False, "max_new_tokens": 50}),
        (iter(TEXT), {"schedule": (16, 1), "max_new_tokens": 33}),
    ]:
        list(model.stream_custom_voice(text, "ryan", **({"schedule": (1, 2, 16)} | options)))
    assert [function._cache_size() for function in compiled] == before


def test_a_stream_outlives_its_first_cache(load, monkeypatch):
    model = load("1.7B-CustomVoice", -1.0)
    monkeypatch.setattr(streamed_codes, "_MIN_CAPACITY", 64)
    monkeypatch.setattr(streamed_codes, "FRAMES_PER_TOKEN", 1)
    monkeypatch.setattr(streamed_codes, "_FRAMES_OF_OPEN_TEXT", 1)
    options = {"seed": 2, "max_new_tokens": 150}
    chunks, whole = both(model, "Hi.", "Hi.", {"speaker": "ryan"}, **options)
    assert sum(len(chunk.codes) for chunk in chunks) == 149
    np.testing.assert_allclose(joined(chunks), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pieces", "max_new_tokens", "capacity"), [(None, None, 512), (["Hi."], None, 512), (["Hi. "], 3000, 2048)]
)
def test_the_first_cache_has_room_for_what_is_expected(load, monkeypatch, pieces, max_new_tokens, capacity):
    model, seen = load("1.7B-CustomVoice", -1.0), []

    def prefill(*arguments):
        seen.append(arguments[-1])
        raise InterruptedError

    monkeypatch.setattr(streamed_codes, "prefill_compiled", prefill)
    text = "Hi." if pieces is None else itertools.chain(pieces, itertools.repeat("and on, "))
    with pytest.raises(InterruptedError):
        next(model.stream_custom_voice(text, "ryan", max_new_tokens=max_new_tokens))
    assert seen == [capacity]


def test_what_stops_early_leaves_nothing(load):
    model, closed = load("1.7B-CustomVoice", -1.0), []

    def pieces():
        try:
            while True:
                yield "word "
        finally:
            closed.append(True)

    def speak(text):
        chunks = model.stream_custom_voice(text, "ryan", max_new_tokens=200)
        next(chunks), next(chunks)
        chunks.close()

    speak(TEXT)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    for _ in range(3):
        speak(TEXT)
        speak(pieces())
    model.stream_custom_voice(unheard := pieces(), "ryan").close()
    assert inspect.getgeneratorstate(unheard) == inspect.GEN_CLOSED
    dropped = model.stream_custom_voice(pieces(), "ryan", max_new_tokens=200)
    next(dropped)
    held = sum(array.nbytes for array in jax.live_arrays())
    assert held > before
    del dropped
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) == before
    assert closed == [True] * 4


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_next_chunk_is_made_while_one_is_heard(load, monkeypatch, backend):
    """On accelerators from when its predecessor's samples are under way, on CPUs from when they are there."""
    model, events = load("1.7B-CustomVoice", -1.0), []
    monkeypatch.setattr(decoding, "default_device", lambda: SimpleNamespace(platform=backend))

    def log(module, name, event):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: events.append(event) or function(*given))

    log(streamed_codes, "generate_stream", "speak")
    log(decoding, "codec_step", "decode")
    log(jax, "block_until_ready", "wait")
    log(jax, "device_get", "fetch")
    chunks = model.stream_custom_voice(TEXT, "ryan", schedule=(4,), max_new_tokens=13)
    next(chunks)
    decoded = ["wait", "speak", "fetch"] if backend == "cpu" else ["speak", "fetch"]
    assert events == ["speak", "fetch", "decode", *decoded]
    next(chunks)
    assert events[len(decoded) + 3 :] == ["fetch", "decode", *decoded]
    # There is none after the last.
    assert next(chunks).finish_reason == "length"
    assert events.count("speak") == 3


def test_what_is_heard_does_not_wait_for_a_larger_cache(load, monkeypatch):
    model = load("1.7B-CustomVoice", -1.0)
    monkeypatch.setattr(streamed_codes, "_MIN_CAPACITY", 64)
    monkeypatch.setattr(streamed_codes, "FRAMES_PER_TOKEN", 1)
    grown = []
    grow = streamed_codes.grow_compiled
    monkeypatch.setattr(streamed_codes, "grow_compiled", lambda *given: grown.append(heard) or grow(*given))
    heard = 0
    for chunk in model.stream_custom_voice("Hi.", "ryan", schedule=(8,), seed=2, max_new_tokens=150):
        heard += len(chunk.codes)
    assert grown == [32, 96]


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_no_generator_is_left_open(load, tmp_path, ended):
    """A file is its caller's, who may want to read on."""
    (tmp_path / "text.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    with open(tmp_path / "text.txt", encoding="utf-8") as file:
        chunks = load("1.7B-CustomVoice", -1.0).stream_custom_voice(file, "ryan", max_new_tokens=6)
        next(chunks)
        if ended:
            list(chunks)
        chunks.close()
        assert not file.closed


def test_a_failing_source_of_text_frees_too(load):
    model = load("1.7B-CustomVoice", -1.0)

    def pieces():
        yield "Good words come first, "
        raise ConnectionError("the language model hung up")

    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    chunks = model.stream_custom_voice(pieces(), "ryan")
    with pytest.raises(ConnectionError, match="hung up"):
        list(chunks)
    del chunks
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) == before


def test_many_short_streams_keep_nothing(load):
    model = load("1.7B-CustomVoice")
    prompt = Request(TEXT, "english", "ryan", max_frames=6)
    list(model.stream(prompt))
    gc.collect()
    before = len(jax.live_arrays()), generate.generate_stream._cache_size(), codec_decoding.codec_step._cache_size()
    for seed in range(40):
        list(model.stream(prompt, seed=seed))
    gc.collect()
    after = len(jax.live_arrays()), generate.generate_stream._cache_size(), codec_decoding.codec_step._cache_size()
    assert after == before


@pytest.mark.parametrize(
    ("variant", "method", "arguments", "message"),
    [
        ("1.7B-CustomVoice", "custom_voice", {"text": " ", "speaker": "ryan"}, "the text is empty"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "nobody"}, "unknown speaker 'nobody'"),
        ("1.7B-CustomVoice", "custom_voice", {"text": iter("a"), "speaker": "nobody"}, "unknown speaker 'nobody'"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "schedule": ()}, r"at least 1, got \[\]"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "schedule": (1, 0)}, "at least 1, got"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "schedule": (1, 2.5)}, "number, got 2"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "max_new_tokens": 9.5}, "number, got 9"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "top_k": -1}, "top_k must be 0"),
        ("1.7B-CustomVoice", "custom_voice", {"text": "a", "speaker": "ryan", "split": 0}, "split must be at least 1"),
        (
            "1.7B-CustomVoice", "custom_voice",
            {"text": iter("a"), "speaker": "ryan", "split": 9}, "a text in pieces is not split",
        ),
        (
            "1.7B-CustomVoice", "custom_voice",
            {"text": iter("a"), "speaker": "ryan", "non_streaming_mode": True},
            'a text in pieces is spoken as it comes: it needs a Request with text_mode="as_it_comes", or '
            "non_streaming_mode=False",
        ),
        ("1.7B-CustomVoice", "voice_design", {"text": "a", "instruct": "b"}, "use stream_custom_voice"),
        ("1.7B-CustomVoice", "voice_clone", {"text": "a"}, "needs a base model"),
        ("1.7B-Base", "voice_clone", {"text": "a"}, "there is no voice to clone"),
        (
            "1.7B-Base", "voice_clone",
            {"text": "a", "voice_clone_prompt": small_voice("0.6B-Base", 0)}, "make the voice",
        ),
        ("1.7B-Base", "voice_clone", {"text": "a", "voice_clone_prompt": []}, "speaks with one voice, got 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_at_once(load, monkeypatch, variant, method, arguments, message):
    monkeypatch.setattr(streamed_codes, "prefill_compiled", None)
    monkeypatch.setattr(decoding, "codec_step", None)
    with pytest.raises(ValueError, match=message):
        getattr(load(variant), f"stream_{method}")(**arguments)


@pytest.mark.parametrize("pieces", [[], ["", " \n", ""]])
def test_pieces_without_words_are_refused(load, pieces):
    chunks = load("1.7B-CustomVoice").stream_custom_voice(pieces, "ryan")
    with pytest.raises(ValueError, match="the text is empty"):
        next(chunks)


def test_a_primed_decoder_goes_on_where_the_reference_ends(load):
    model = load("1.7B-Base")
    params, config = model.params["codec"]["decoder"], model.config.codec
    codes = np.random.default_rng(0).integers(0, 37, (57, 5)).astype(np.int32)
    whole = np.asarray(jax.jit(decoder.decode, static_argnums=1)(params, config.decoder, codes[None]))[0]
    for reference in (0, 1, 31, 56):
        streamed = StreamDecoder(params, config, 1)
        streamed.hear(0, codes[:reference])
        samples = streamed.decode({0: codes[reference:]})[0]
        np.testing.assert_allclose(samples, whole[reference * config.frame_samples :], rtol=0, atol=1e-5)


def test_the_general_call_streams_what_synthesize_speaks(load):
    model, greedy = load("1.7B-CustomVoice"), GenerationConfig.greedy()
    request = Request("Word by word, ", "german", "serena", text_mode="as_it_comes", max_frames=20)
    chunks = list(model.stream(request, greedy, pieces=["as it ", "comes."]))
    (speech,) = model.synthesize(
        [Request("Word by word, as it comes.", "german", "serena", text_mode="as_it_comes", max_frames=20)], greedy
    )
    np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks]), speech.codes)
    assert chunks[-1].finish_reason == speech.finish_reason
    assert sum(chunk.seconds for chunk in chunks) == pytest.approx(speech.seconds)


def test_any_cutting_gives_the_samples_of_the_whole(load):
    """Of 1 to 400 frames, in random chunks; and frames that follow change nothing."""
    model, rng = load("1.7B-Base"), np.random.default_rng(5)
    params, config = model.params["codec"]["decoder"], model.config.codec
    codes = rng.integers(0, 37, (400, 5)).astype(np.int32)
    whole = np.asarray(jax.jit(decoder.decode, static_argnums=1)(params, config.decoder, codes[None]))[0]
    for frames in (1, 2, 71, 73, *rng.integers(3, 400, 8).tolist(), 400):
        cuts = np.unique([0, frames, *rng.integers(0, frames + 1, rng.integers(0, 40))])
        streamed = StreamDecoder(params, config, 1)
        samples = [streamed.decode({0: codes[start:end]})[0] for start, end in itertools.pairwise(cuts.tolist())]
        np.testing.assert_allclose(
            np.concatenate(samples), whole[: frames * config.frame_samples], rtol=0, atol=1e-5, err_msg=str(cuts)
        )


def test_a_stream_holds_the_same_however_long_it_is(load):
    model = load("1.7B-CustomVoice", -1.0)
    chunks = model.stream(Request("Hi.", "english", "ryan", max_frames=300), schedule=(16,))
    *held, at_the_end = [sum(array.nbytes for array in jax.live_arrays()) for _ in chunks]
    assert len(set(held)) == 1
    assert at_the_end <= held[0]
