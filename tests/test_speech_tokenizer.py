"""`SpeechTokenizer` and its loops on a small codec, without the official package."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax.traverse_util import flatten_dict

from qwen3_tts_jax import Qwen3TTS, audio, speech_tokenizer
from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.codec.encoder import encode
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.convert import CheckpointError, hub
from qwen3_tts_jax.convert.rules import codec_rules
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer, encode_recordings, encoded_frames
from tests.drawn_tree import drawn_tree
from tests.golden_codec_encoder import noise
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint

MODEL = SMALL["1.7B-VoiceDesign"]
CODEC = MODEL.codec
FRAME, RATE, QUANTIZERS = CODEC.frame_samples, CODEC.sample_rate, CODEC.num_codebooks

whole = jax.jit(encode, static_argnums=(1, 4, 5))
whole_decode = jax.jit(decode, static_argnums=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folder):
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint"), MODEL, tokenizer_folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return SpeechTokenizer.from_pretrained(folder)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(speech_tokenizer, "_CHUNK_FRAMES", 4)
    monkeypatch.setattr(speech_tokenizer, "_ROWS", 4)


def _recordings(*lengths):
    return [noise(1, length, seed)[0] for seed, length in enumerate(lengths)]


def _alone(tokenizer, samples, window=True):
    return np.asarray(whole(tokenizer.params["encoder"], CODEC, samples[None], None, None, window)[0])


def test_the_codec_is_loaded_as_it_was_written(tokenizer, folder):
    assert tokenizer.config == CODEC
    expected = flatten_dict(drawn_tree(codec_rules(CODEC))["codec"])
    params = flatten_dict(tokenizer.params)
    assert set(params) == set(expected)
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[path])
    assert SpeechTokenizer.from_pretrained(str(folder / "speech_tokenizer")).config == CODEC


def test_the_codec_of_a_loaded_model(folder, tokenizer):
    model = Qwen3TTS.from_pretrained(folder, "float32")
    codec = model.speech_tokenizer
    assert (codec.config, codec.params) == (CODEC, model.params["codec"])
    codes = np.zeros((3, QUANTIZERS), np.int32)
    np.testing.assert_array_equal(codec.decode(codes)[0], tokenizer.decode(codes)[0])
    (sound,) = _recordings(2 * FRAME)
    with pytest.raises(ValueError, match=r"encoder was not loaded: SpeechTokenizer\.from_pretrained loads both"):
        codec.encode((sound, RATE))
    both = Qwen3TTS(model.config, {"codec": tokenizer.params}, model.tokenizer).speech_tokenizer
    np.testing.assert_array_equal(both.encode((sound, RATE)), tokenizer.encode((sound, RATE)))


def test_nothing_but_the_codec_is_needed(folder, tmp_path):
    alone = shutil.copytree(folder / "speech_tokenizer", tmp_path / "alone")
    seen = []
    codec = SpeechTokenizer.from_pretrained(alone, "bfloat16", progress=lambda *step: seen.append(step))
    assert codec.config == CODEC.with_dtype("bfloat16")
    assert codec.params["encoder"]["conv_in"]["kernel"].dtype == "bfloat16"
    assert codec.params["encoder"]["quantizer"]["semantic"]["embedding_sum"].dtype == "float32"
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(codec.params))
    assert seen[-1] == ("load", size, size)
    (folder_of_both := tmp_path / "both").mkdir()
    shutil.move(alone, folder_of_both / "speech_tokenizer")
    assert SpeechTokenizer.from_pretrained(folder_of_both).config == CODEC


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_frames_of_a_recording_are_told_before_it_is_encoded(tokenizer, rate):
    counts = [441, 882, 1120, 1681, 3360, 7 * FRAME, 7 * FRAME + 1, 14 * FRAME]
    codes = tokenizer.encode(_recordings(*counts), rate)
    assert [encoded_frames(CODEC, count, rate) for count in counts] == [len(each) for each in codes]


def test_frames_of_recordings_that_last_whole_frames():
    codec = SMALL["0.6B-Base"].codec
    assert codec.frame_samples == 1920
    # In floating point one more.
    assert [encoded_frames(codec, frames * 1920, 24_000) for frames in (7, 14, 55)] == [7, 14, 55]
    # The resampler makes one sample more than a frame has.
    assert encoded_frames(codec, 3528, 44_100) == 2


def test_a_converted_checkpoint(tokenizer, folder, tmp_path):
    from qwen3_tts_jax import convert
    from qwen3_tts_jax.convert import orbax_checkpoint

    parts = ("codec/encoder", "codec/decoder")
    params = convert.load_params(folder, MODEL, parts)
    orbax_checkpoint.save(tmp_path / "converted", params, MODEL, folder)
    converted = SpeechTokenizer.from_pretrained(tmp_path / "converted")
    jax.tree.map(np.testing.assert_array_equal, converted.params, tokenizer.params)


def _serve(monkeypatch, folder, files):
    """Makes the Hub hold `files` of a folder; returns the names that each download asked for."""
    from huggingface_hub.utils import filter_repo_objects

    calls = []

    def download(repository, *, allow_patterns, **options):
        calls.append(list(filter_repo_objects(files, allow_patterns=allow_patterns)))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_of_a_repository_only_the_codec_is_downloaded(folder, tmp_path, monkeypatch):
    codec = ["speech_tokenizer/config.json", "speech_tokenizer/model.safetensors"]
    calls = _serve(monkeypatch, folder, ["config.json", "model.safetensors", "vocab.json", *codec])
    assert SpeechTokenizer.from_pretrained("0.6B-Base").config == CODEC
    assert calls == [["config.json", *codec]]

    calls = _serve(monkeypatch, folder / "speech_tokenizer", ["config.json", "model.safetensors", "README.md"])
    assert SpeechTokenizer.from_pretrained("Qwen/Qwen3-TTS-Tokenizer-12Hz").config == CODEC
    assert calls == [["config.json"], ["config.json", "model.safetensors"]]

    # Gigabytes of another model are not downloaded to find no codec.
    shutil.copy(folder / "config.json", tmp_path)
    calls = _serve(monkeypatch, tmp_path, ["config.json", "model.safetensors"])
    with pytest.raises(ConfigError, match=r"config.json: model_type='qwen3_tts' is not supported"):
        SpeechTokenizer.from_pretrained("someone/else")
    assert calls == [["config.json"]]


def test_folders_without_a_codec(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/at/all' is neither a folder"):
        SpeechTokenizer.from_pretrained("nowhere/at/all")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        SpeechTokenizer.from_pretrained(tmp_path)
    shutil.copy(folder / "speech_tokenizer" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        SpeechTokenizer.from_pretrained(tmp_path)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("window", [True, False])
def test_recordings_of_any_lengths_are_what_they_are_alone(tokenizer, window):
    # Fewer and more than a chunk of 4 frames, ends within a frame, and more rows than a batch has.
    lengths = [2 * FRAME + 5, 11 * FRAME - 1, 1, 4 * FRAME, 4 * FRAME + 1, 7 * FRAME]
    recordings = _recordings(*lengths)
    seen = []
    codes = encode_recordings(
        tokenizer.params["encoder"],
        CODEC,
        recordings,
        sliding_window=window,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [("encode", 4, 6), ("encode", 6, 6)]
    for row, samples in zip(codes, recordings, strict=True):
        assert (row.dtype, row.shape) == (np.int32, (-(-len(samples) // FRAME), QUANTIZERS))
        np.testing.assert_array_equal(row, _alone(tokenizer, samples, window))
    for got, expected in zip(tokenizer.encode(recordings, RATE, sliding_window=window), codes, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.usefixtures("short_chunks")
def test_one_program_serves_all_lengths(tokenizer):
    tokenizer.encode(_recordings(5 * FRAME + 3, 9), RATE)
    programs = speech_tokenizer.encode_step._cache_size()
    for lengths in ((1, 2), (40 * FRAME, 3 * FRAME + 1)):
        tokenizer.encode(_recordings(*lengths), RATE)
    assert speech_tokenizer.encode_step._cache_size() == programs
    tokenizer.encode(_recordings(1, 2, 3), RATE)
    assert speech_tokenizer.encode_step._cache_size() == programs + 1


@pytest.mark.usefixtures("short_chunks")
def test_the_encoder_does_not_wait_for_the_codes_of_a_step(tokenizer, monkeypatch):
    events, step = [], speech_tokenizer.encode_step
    (samples,) = _recordings(15 * FRAME)
    expected = _alone(tokenizer, samples)

    class Codes:
        def __init__(self, codes):
            self.codes = codes

        def __array__(self, *_, **__):
            events.append("fetch")
            return np.asarray(self.codes)

    def noting(*arguments):
        events.append("step")
        state, codes = step(*arguments)
        return state, Codes(codes)

    monkeypatch.setattr(speech_tokenizer, "encode_step", noting)
    # Eager, it would be a program for each of its arrays.
    monkeypatch.setattr(speech_tokenizer.encoder, "initial_state", None)
    (codes,) = tokenizer.encode(samples, RATE)
    assert events == ["step", "step", "step", "fetch", "step", "fetch", "fetch", "fetch"]
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.usefixtures("short_chunks")
def test_recordings_of_every_kind(tokenizer, tmp_path):
    samples = np.round(noise(1, 5 * FRAME)[0] * 8000).astype(np.int16)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16_000)
    expected = _alone(tokenizer, audio.resample(samples / np.float32(32_768), 16_000, RATE))
    assert len(expected) == 8
    stereo = np.stack([samples, samples], axis=1)
    every = [path, str(path), path.read_bytes(), (samples, 16_000), (stereo, 16_000), stereo]
    for codes in (*tokenizer.encode(every, 16_000), *tokenizer.encode(path), *tokenizer.encode(samples, 16_000)):
        np.testing.assert_array_equal(codes, expected)
    # The rate is that of bare samples alone.
    np.testing.assert_array_equal(tokenizer.encode([path], 8000)[0], expected)


def test_samples_of_other_libraries(tokenizer):
    samples = np.linspace(-0.5, 0.5, 3000, dtype=np.float32)
    (expected,) = tokenizer.encode(samples, 24_000)
    np.testing.assert_array_equal(tokenizer.encode(jnp.asarray(samples), 24_000)[0], expected)


def test_nothing_is_nothing(tokenizer):
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == ([], RATE)


@pytest.mark.parametrize(
    ("recording", "error", "message"),
    [
        (noise(1, 5)[0], ValueError, "^recording 1: bare samples need sample_rate, in Hz$"),
        ("nowhere.wav", FileNotFoundError, r"^recording 1: there is no file nowhere\.wav$"),
        ((np.array([0, np.nan, 1]), RATE), ValueError, "^recording 1: .* has samples that are not finite: 1 of 3$"),
        (3, TypeError, "^recording 1: int is no recording: "),
    ],
)
def test_recordings_that_cannot_be_read(tokenizer, recording, error, message):
    with pytest.raises(error, match=message):
        tokenizer.encode([(noise(1, 5)[0], RATE), recording])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 5), np.float32), r"must be mono floats \[N\] in ±1, got float32 \[1, 5\]; audio\.read gives"),
        (np.zeros(5, np.int16), r"must be mono floats \[N\] in ±1, got int16 \[5\]; audio\.read gives"),
        (np.zeros(0, np.float32), "holds no samples$"),
    ],
)
def test_recordings_that_are_not_samples(tokenizer, samples, message):
    with pytest.raises(ValueError, match=f"^recording 1 {message}"):
        encode_recordings(tokenizer.params["encoder"], CODEC, [noise(1, 5)[0], samples])


def test_recordings_that_are_not_finite(tokenizer):
    samples = noise(1, 5)[0]
    samples[2] = np.inf
    with pytest.raises(ValueError, match=r"^recording 0 has samples that are not finite: 1 of 5$"):
        encode_recordings(tokenizer.params["encoder"], CODEC, [samples])


def _codes(frames, seed=0):
    return np.random.RandomState(seed).randint(0, CODEC.decoder.codebook_size, (frames, QUANTIZERS))


def test_decode(tokenizer):
    utterances = [_codes(5), _codes(19, seed=1)]
    samples, rate = tokenizer.decode(utterances)
    assert rate == RATE
    for got, codes in zip(samples, utterances, strict=True):
        expected = whole_decode(tokenizer.params["decoder"], CODEC.decoder, codes[None])[0]
        assert (got.dtype, got.shape) == (np.float32, (len(codes) * FRAME,))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    (alone,), _ = tokenizer.decode(utterances[0].astype(np.uint16))
    np.testing.assert_allclose(alone, samples[0], rtol=0, atol=1e-5)


def test_codes_come_back_through_a_recording(tokenizer):
    codes = tokenizer.encode(noise(1, 3 * FRAME)[0], RATE)
    (samples,), rate = tokenizer.decode(codes)
    assert (len(samples), rate) == (3 * FRAME, RATE)


def _changed(value):
    codes = _codes(4)
    codes[2, 3] = value
    return codes


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (_changed(-1), r"codes 1 must be 0 … 40, got -1 in frame 2, codebook 3$"),
        (_changed(41), r"codes 1 must be 0 … 40, got 41 in frame 2, codebook 3$"),
        (_codes(4)[:, :-1], r"codes 1 must be integers \[T, 5\] with T > 0, got int64 \[4, 4\]$"),
        (_codes(4)[None], r"codes 1 must be integers \[T, 5\] with T > 0, got int64 \[1, 4, 5\]$"),
        (_codes(4)[:0], r"codes 1 must be integers \[T, 5\] with T > 0, got int64 \[0, 5\]$"),
        (_codes(4)[:, 0], r"codes 1 must be integers \[T, 5\] with T > 0, got int64 \[4\]$"),
        (_codes(4) * 1.0, r"codes 1 must be integers .*, got float64 "),
        (_codes(4) > 3, r"codes 1 must be integers .*, got bool "),
    ],
)
def test_codes_that_are_none(tokenizer, codes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tokenizer.decode([_codes(3), codes])


def test_largest_and_smallest_codes_are_codes(tokenizer):
    assert len(tokenizer.decode([np.minimum(_changed(40), _changed(0)), _changed(40)])[0]) == 2


def test_what_the_official_class_tells(tokenizer):
    assert tokenizer.get_model_type() == "qwen3_tts_tokenizer_12hz"
    assert tokenizer.get_input_sample_rate() == tokenizer.get_output_sample_rate() == 24_000
    assert tokenizer.get_encode_downsample_rate() == tokenizer.get_decode_upsample_rate() == 24
