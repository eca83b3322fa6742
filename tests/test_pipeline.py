"""The class: official names and errors, batches of any size, what compiles, what a seed means."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, buckets, codec_decoding, generate, pipeline, synthesis
from qwen3_tts_jax.codec.decoder import decode_chunked
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.generate import generate_chunk, prefill_compiled
from qwen3_tts_jax.utterances import utterance_number
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folder):
    return write_small_checkpoint(tmp_path_factory.mktemp("model"), SMALL["1.7B-CustomVoice"], tokenizer_folder)


@pytest.fixture(scope="module")
def model(folder):
    return Qwen3TTS.from_pretrained(folder, dtype="float32", chunk_frames=4)


def requests(count, frames=6):
    texts = ["Good morning.", "A second sentence, longer than the first.", "Three!", "Four and no more."]
    speakers = ["ryan", "serena", "dylan"]
    return [Request(f"{texts[i % 4]} {i}", "english", speakers[i % 3], max_frames=frames + i % 3) for i in range(count)]


def test_voices_and_languages_are_those_of_the_official_package(model):
    assert model.get_supported_speakers() == [
        "aiden", "dylan", "eric", "ono_anna", "ryan", "serena", "sohee", "uncle_fu", "vivian"
    ]  # fmt: skip
    assert model.get_supported_languages() == [
        "auto", "chinese", "english", "french", "german", "italian", "japanese", "korean", "portuguese", "russian",
        "spanish",
    ]  # fmt: skip


def test_one_value_serves_all_texts_and_seeds_repeat(model):
    texts = ["One.", "Two, a little longer."]
    options = {"max_new_tokens": 7}
    wavs, rate = model.generate_custom_voice(texts, "ryan", "english", **options)
    listed, _ = model.generate_custom_voice(texts, ["ryan", "RYAN"], ["english", "English"], **options)
    other, _ = model.generate_custom_voice(texts, "ryan", "english", seed=1, **options)
    assert rate == 24_000
    for wav, again, different in zip(wavs, listed, other, strict=True):
        assert wav.dtype == np.float32
        assert len(wav) == 6 * model.config.codec.frame_samples
        np.testing.assert_array_equal(wav, again)
        assert np.abs(wav - different).max() > 1e-3
    single, _ = model.generate_custom_voice(texts[0], "ryan", "english", **options)
    np.testing.assert_allclose(single[0], wavs[0], atol=1e-5)


def test_batch_size_and_chunks_change_nothing(model, folder):
    speeches = model.synthesize(requests(7), seed=3)
    assert [len(speech.codes) for speech in speeches] == [6, 7, 8, 6, 7, 8, 6]
    assert {speech.finish_reason for speech in speeches} == {"length"}
    assert speeches[0].seconds == pytest.approx(6 * model.config.codec.frame_samples / 24_000)
    other = Qwen3TTS.from_pretrained(folder, dtype="float32", chunk_frames=3)
    for again in (model.synthesize(requests(7), seed=3, batch_size=2), other.synthesize(requests(7), seed=3)):
        for speech, expected in zip(again, speeches, strict=True):
            np.testing.assert_array_equal(speech.codes, expected.codes)
            np.testing.assert_allclose(speech.samples, expected.samples, atol=1e-5)


def test_a_second_call_with_the_same_shapes_compiles_nothing(model):
    sizes = []
    for seed in range(2):
        model.synthesize(requests(3), seed=seed)
        sizes.append([f._cache_size() for f in (prefill_compiled, generate_chunk, codec_decoding.codec_step)])
    assert sizes[0] == sizes[1]


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer_folder):
    config = SMALL["1.7B-CustomVoice"]
    config = replace(config, talker=replace(config.talker, text_vocab_size=151_675))
    folder = write_small_checkpoint(tmp_path, config, tokenizer_folder)
    with pytest.raises(ConfigError, match=r"has 151676 ids, but text_vocab_size in config\.json is 151675"):
        Qwen3TTS.from_pretrained(folder)


def test_speech_longer_than_the_first_cache_goes_on(tmp_path, tokenizer_folder):
    """The cache grows between chunks, which must not show in the codes."""
    folder = write_small_checkpoint(tmp_path / "endless", SMALL["1.7B-CustomVoice"], tokenizer_folder, eos_boost=-1.0)
    request = Request("Hi.", "english", "ryan", max_frames=90)
    grown, at_once = (
        Qwen3TTS.from_pretrained(folder, dtype="float32", chunk_frames=frames).synthesize([request])[0]
        for frames in (9, 90)
    )
    assert grown.codes.shape == (90, 16)
    assert grown.samples.shape == (90 * SMALL["1.7B-CustomVoice"].codec.frame_samples,)
    np.testing.assert_array_equal(grown.codes, at_once.codes)


def test_the_checkpoint_limits_what_no_request_limits(model):
    """As in the official package, max_new_tokens=N makes N − 1 frames."""
    short = Qwen3TTS(replace(model.config, max_new_tokens=6), model.params, model.tokenizer)
    speech = short.synthesize([Request("Hi.", "english", "ryan")])[0]
    assert (len(speech.codes), speech.finish_reason) == (5, "length")


def test_parts_of_a_text_are_spoken_side_by_side_each_within_its_limit(tmp_path, tokenizer_folder, monkeypatch):
    folder = write_small_checkpoint(tmp_path / "endless", SMALL["1.7B-CustomVoice"], tokenizer_folder, eos_boost=-1.0)
    model = Qwen3TTS.from_pretrained(folder, dtype="float32", chunk_frames=50)
    rows = []

    def noting(params, config, count, *sizes):
        rows.append(count)
        return generate.empty_batch_compiled(params, config, count, *sizes)

    monkeypatch.setattr(synthesis, "empty_batch_compiled", noting)
    whole = Request("Good morning. It is late, is it not? It is.", "english", "ryan", split=8)
    (speech,) = model.synthesize([whole], seed=3)
    assert rows == [3]
    parts = {"Good morning.": 3, "It is late, is it not?": 8, "It is.": 3}
    alone = [replace(whole, text=text, max_frames=25 + 8 * tokens) for text, tokens in parts.items()]
    numbers = [utterance_number(0, place) for place in range(3)]
    expected = np.concatenate([each.codes for each in model.synthesize(alone, seed=3, utterances=numbers)])
    assert len(expected) == 3 * 25 + 8 * 14
    np.testing.assert_array_equal(speech.codes, expected)
    (samples,), _ = model.speech_tokenizer.decode([expected])
    np.testing.assert_allclose(speech.samples, samples, rtol=0, atol=1e-5)
    cut, short = model.synthesize([replace(whole, max_frames=60), replace(whole, split=14)], seed=3)
    np.testing.assert_array_equal(cut.codes, expected[:60])
    assert {speech.finish_reason, cut.finish_reason} == {"length"}
    # A text that is short enough is spoken as if there were nothing to split, up to the model's own limit.
    assert len(short.codes) == model.config.max_new_tokens - 1


def test_the_official_decode_is_the_same_below_300_frames(model):
    exact = model.synthesize(requests(2))
    official = model.synthesize(requests(2), official_decoding=True)
    for a, b in zip(exact, official, strict=True):
        np.testing.assert_allclose(a.samples, b.samples, atol=1e-5)


@pytest.mark.parametrize("asked", [True, False])
def test_each_official_call_can_ask_for_the_official_decode(model, monkeypatch, asked):
    found, design = [], Qwen3TTS(replace(model.config, model_type="voice_design"), model.params, model.tokenizer)
    monkeypatch.setattr(Qwen3TTS, "synthesize", lambda *_, official_decoding: found.append(official_decoding) or [])
    model.generate_custom_voice("Hi.", "ryan", official_decoding=asked)
    design.generate_voice_design("Hi.", "An old man.", official_decoding=asked)
    assert found == [asked] * 2


def test_the_official_decode_of_any_length_needs_few_programs(model):
    params, config = model.params["codec"]["decoder"], model.config.codec
    codes = np.random.default_rng(0).integers(0, 53, (330, 16)).astype(np.int32)
    chunked = jax.jit(decode_chunked, static_argnums=1)
    before = codec_decoding.codec_whole._cache_size()
    for frames in (330, 320, 310, 305, 290):
        (samples,) = codec_decoding.decode_codes(params, config, [codes[:frames]], official=True)
        assert samples.shape == (frames * config.frame_samples,)
        if frames in (330, 290):
            expected = chunked(params, config.decoder, codes[None, :frames])[0]
            np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-5)
    # Of whole chunks with the frames before them, and of 30 to 55 frames.
    assert codec_decoding.codec_whole._cache_size() - before == 4


def decode_together(monkeypatch, rows):
    for module in (synthesis, codec_decoding):
        monkeypatch.setattr(module, "codec_rows", lambda *_: rows)


@pytest.mark.parametrize("together", [1, 8])
def test_progress_counts_every_stage_to_its_end(model, monkeypatch, together):
    decode_together(monkeypatch, together)
    # The device need not stand still for what the host knows.
    monkeypatch.setattr(jax, "block_until_ready", None)
    seen = []
    model.synthesize(requests(3), batch_size=2, progress=lambda *event: seen.append(event))
    decoded = [("decode", 1, 3), ("decode", 2, 3)][0 if together == 1 else 1 :]
    assert seen == [
        ("prefill", 0, 3), ("prefill", 2, 3), ("speak", 8, 21), ("speak", 13, 21), ("prefill", 3, 3),
        *decoded, ("speak", 17, 21), ("speak", 21, 21), ("decode", 3, 3),
    ]  # fmt: skip


def test_a_row_that_ends_is_refilled_between_chunks(model, monkeypatch):
    """One long and four short utterances in two rows: the four follow one another beside the long one."""
    limits = [4, 16, 4, 4, 4]
    wanted = [replace(request, max_frames=limit) for request, limit in zip(requests(5), limits, strict=True)]
    chunks = []

    def counted(*args):
        chunks.append(args)
        return generate_chunk(*args)

    monkeypatch.setattr(synthesis, "generate_chunk", counted)
    each = list(model.synthesize_each(wanted, seed=3, batch_size=2))
    # The longest text starts first and ends last.
    assert [index for index, _ in each] == [3, 0, 4, 1, 2]
    assert len(chunks) == 4
    for index, speech in each:
        assert len(speech.codes) == limits[index]
        alone = model.synthesize([wanted[index]], seed=3, utterances=[index])[0]
        np.testing.assert_array_equal(speech.codes, alone.codes)
        np.testing.assert_allclose(speech.samples, alone.samples, atol=1e-5)


def test_rows_are_refilled_where_the_cache_is_written_once_for_a_chunk(model, folder, monkeypatch):
    """As models are loaded on a TPU."""
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "default_device", lambda: SimpleNamespace(platform="tpu"))
        staged = Qwen3TTS.from_pretrained(folder, dtype="float32", chunk_frames=4)
    assert (model.config.talker.staging_devices, staged.config.talker.staging_devices) == (0, 1)
    wanted = [replace(request, max_frames=limit) for request, limit in zip(requests(5), [4, 16, 4, 6, 4], strict=True)]
    expected = model.synthesize(wanted, seed=3, batch_size=2)
    for found, speech in zip(staged.synthesize(wanted, seed=3, batch_size=2), expected, strict=True):
        np.testing.assert_array_equal(found.codes, speech.codes)
        np.testing.assert_allclose(found.samples, speech.samples, atol=1e-5)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_speech_is_there_after_the_chunk_in_which_it_ended(model, monkeypatch, fixed_shapes):
    """Also where several are decoded together; rows that are filled up wait until they are full."""
    decode_together(monkeypatch, 8)
    limits = [20, 4, 12, 4]
    wanted = [replace(request, max_frames=limit) for request, limit in zip(requests(4), limits, strict=True)]
    frames, seen = [0], {}

    def note(stage, done, total):
        if stage == "speak":
            frames[0] = done

    for index, _ in model.synthesize_each(wanted, seed=3, batch_size=4, fixed_shapes=fixed_shapes, progress=note):
        seen[index] = frames[0]
    decoded = []
    model.synthesize(wanted, batch_size=4, fixed_shapes=fixed_shapes, progress=lambda *each: decoded.append(each))
    # Where all is wanted together, nothing is decoded before.
    assert [done for stage, done, _ in decoded if stage == "decode"] == [4]
    # Of 40 frames, 16 are made in the first chunk.
    assert seen == ({0: 40, 1: 40, 2: 40, 3: 40} if fixed_shapes else {0: 40, 1: 16, 2: 32, 3: 16})


def test_filled_batches_give_the_same_bytes_in_any_company(model):
    """Shapes follow from the largest request, here the first; neither order, company nor count may show."""
    wanted = requests(6)
    wanted[0] = replace(wanted[0], max_frames=20)
    whole = dict(model.synthesize_each(wanted, seed=3, batch_size=3, fixed_shapes=True))
    for part in ([0, 4], [5, 0, 3, 2]):
        chosen = [wanted[index] for index in part]
        for speech, index in zip(
            model.synthesize(chosen, seed=3, batch_size=3, fixed_shapes=True, utterances=part), part, strict=True
        ):
            np.testing.assert_array_equal(speech.codes, whole[index].codes)
            np.testing.assert_array_equal(speech.samples, whole[index].samples)


def test_loading_reports_every_byte(folder):
    seen = []
    Qwen3TTS.from_pretrained(folder, progress=lambda *event: seen.append(event))
    assert {stage for stage, _, _ in seen} == {"load"}
    done = [done for _, done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][2] > 0


def test_dtypes_of_weights_and_of_tables(folder):
    half = Qwen3TTS.from_pretrained(folder, dtype="bfloat16")
    full = Qwen3TTS.from_pretrained(folder, dtype="float32")
    for model, dtype in ((half, "bfloat16"), (full, "float32")):
        assert model.params["talker"]["codec_head"]["weight"].dtype == dtype
        assert model.params["talker"]["text_embedding"]["embedding"].dtype == "bfloat16"
        assert model.params["codec"]["decoder"]["conv_in"]["kernel"].dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ""}, "the text is empty"),
        ({"text": ["Hi.", "  "]}, "the text is empty"),
        ({"speaker": "nobody"}, "unknown speaker 'nobody'; there are aiden, dylan"),
        ({"language": "klingon"}, "unknown language 'klingon'; there are auto, beijing_dialect, chinese"),
        ({"text": ["a", "b"], "speaker": ["ryan"] * 3}, "batch lengths differ: text=2, speaker=3"),
        ({"text": "a", "language": ["english"] * 2}, "batch lengths differ: text=1, speaker=1, language=2"),
        ({"max_new_tokens": 1}, "max_new_tokens must be at least 2"),
        ({"max_new_tokens": 4.5}, r"max_new_tokens must be a whole number, got 4\.5"),
        ({"top_k": 20.0}, r"top_k must be a whole number, got 20\.0"),
        ({"subtalker_top_k": "5"}, "subtalker_top_k must be a whole number, got '5'"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"seed": 1.0}, r"seed must be a whole number, got 1\.0"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": -1}, "seed must be 0 … 2147483647, got -1"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\], got 1.5"),
        ({"text": "word " * 40_000}, "exceeds the model's context of 32768"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(model, monkeypatch, arguments, message):
    monkeypatch.setattr(synthesis, "prefill_compiled", None)
    with pytest.raises(ValueError, match=message):
        model.generate_custom_voice(**({"text": "Hi.", "speaker": "ryan"} | arguments))


def test_unknown_options_are_refused_by_name(model):
    with pytest.raises(TypeError, match="unknown option 'tempreature'; there are do_sample, temperature"):
        model.generate_custom_voice("Hi.", "ryan", tempreature=1.0)


def test_the_wrong_method_names_the_right_one(model):
    with pytest.raises(ValueError, match="needs a voice_design model; this is a custom_voice model: use generate_cus"):
        model.generate_voice_design("Hi.", "An old man.")


def test_a_batch_holds_at_least_one(model):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.synthesize(requests(1), batch_size=0)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number, got 1\.5"):
        model.synthesize(requests(1), batch_size=1.5)
    assert model.synthesize([]) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2**31, "be 0 … 2147483647, got 2147483648"),
        (-1, "be 0 … 2147483647, got -1"),
        (0.5, r"be a whole number, got 0\.5"),
    ],
)
def test_what_is_no_number_of_an_utterance(model, number, message):
    for speak in (model.synthesize, model.synthesize_each):
        with pytest.raises(ValueError, match=f"the number of an utterance must {message}"):
            speak(requests(2), utterances=[0, number])
    last = [replace(requests(1)[0], max_frames=1)]
    assert len(model.synthesize(last, utterances=np.array([2**31 - 1]))) == 1


def test_what_is_no_request(model):
    for wanted, message in (
        (["Hello."], "requests must be `Request`s, got 'Hello.'"),
        (Request("Hello.", speaker="ryan"), "'Request' object is not iterable"),
    ):
        for speak in (model.synthesize, model.synthesize_each):
            with pytest.raises(TypeError, match=message):
                speak(wanted)
    for fields in ({"text": b"Hello."}, {"text": ("a", "b")}, {"text": None}, {"text": "a", "instruct": 5}):
        with pytest.raises(TypeError, match="must be a str, got"):
            Request(**fields)
    assert len(model.synthesize(replace(each, max_frames=1) for each in requests(2))) == 2


@pytest.mark.parametrize(
    ("chunk_frames", "message"),
    [(0, "chunk_frames must be at least 1, got 0"), (2.5, r"chunk_frames must be a whole number, got 2\.5")],
)
def test_a_chunk_has_at_least_one_frame(model, chunk_frames, message):
    with pytest.raises(ValueError, match=message):
        Qwen3TTS(model.config, model.params, model.tokenizer, chunk_frames=chunk_frames)


@pytest.mark.parametrize(
    ("size", "smallest", "bucket"),
    [(0, 32, 0), (1, 32, 32), (32, 32, 32), (33, 32, 64), (97, 32, 128), (129, 32, 192), (193, 32, 256), (5, 1, 6)],
)
def test_buckets(size, smallest, bucket):
    assert buckets.bucket(size, smallest) == bucket


def test_few_buckets_and_little_waste():
    found = [buckets.bucket(size, 32) for size in range(1, 10_000)]
    assert all(size <= bucket <= max(32, 2 * size) for size, bucket in enumerate(found, 1))
    assert len(set(found)) < 22
