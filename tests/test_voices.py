"""Voices without the official package: from recordings of any rate and length, in batches; blends; refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import audio, voices
from qwen3_tts_jax.codec.encoder import encode
from qwen3_tts_jax.convert.rules import all_rules, select
from qwen3_tts_jax.mel import mel_spectrogram
from qwen3_tts_jax.speaker_encoder import x_vector
from qwen3_tts_jax.voice_prompt import VoicePrompt, check_voice
from qwen3_tts_jax.voices import blend, make_voices, padded_x_vectors
from tests.drawn_tree import drawn_tree
from tests.golden_x_vector import speech_like
from tests.shapes import SMALL

NAME = "1.7B-Base"  # 240 samples a frame
MODEL = SMALL[NAME]
RECORDING = Path(__file__).parent / "golden" / "recording.flac"


@cache
def _params():
    rules = select(all_rules(MODEL), MODEL, ["speaker_encoder", "codec/encoder"])
    return jax.tree.map(jnp.asarray, drawn_tree(rules))


def make(*recordings, texts=None, **options):
    return make_voices(_params(), MODEL, recordings, texts or [None] * len(recordings), **options)


def _alone(samples):
    """x-vector and codes of samples at 24 kHz, by the functions beneath and without padding."""

    @jax.jit
    def both(params, samples):
        vector = x_vector(params["speaker_encoder"], MODEL.speaker_encoder, mel_spectrogram(samples))
        return vector[0], encode(params["codec"]["encoder"], MODEL.codec, samples)[0]

    return map(np.asarray, both(_params(), samples[None]))


def test_a_recording_becomes_its_x_vector_codes_and_text():
    samples, rate = audio.read(RECORDING)
    assert rate == 16_000
    [voice] = make((samples, rate), texts=["Some words of a recording."])
    vector, codes = _alone(audio.resample(samples, rate, 24_000))
    assert voice.x_vector.dtype == np.float32
    assert np.std(vector) > 0.1
    np.testing.assert_allclose(voice.x_vector, vector, atol=5e-6)
    assert voice.codes.dtype == np.int32
    np.testing.assert_array_equal(voice.codes, codes)
    assert len(np.unique(codes)) > 10
    assert voice.text == "Some words of a recording."
    check_voice(voice, MODEL)


def test_several_recordings_are_as_each_alone():
    """Of different rates and lengths, with and without a text, quiet and of float64."""
    recordings = [
        (speech_like(24_000), 24_000), (0.01 * speech_like(13_000, 1), 22_050),
        (speech_like(30_001, 2).astype(np.float64), 44_100), (speech_like(24_001, 3), 48_000),
    ]  # fmt: skip
    texts = ["The first one.", None, "第三。", "The fourth."]
    together = make(*recordings, texts=texts)
    for recording, text, voice in zip(recordings, texts, together, strict=True):
        [alone] = make(recording, texts=[text])
        np.testing.assert_allclose(voice.x_vector, alone.x_vector, atol=1e-6)
        assert (voice.codes is None) == (text is None)
        assert voice.text == text
        if text is not None:
            np.testing.assert_array_equal(voice.codes, alone.codes)
            samples = audio.resample(recording[0].astype(np.float32), recording[1], 24_000)
            assert len(voice.codes) == -(-len(samples) // 240)
    vectors = np.stack([voice.x_vector for voice in together])
    assert np.abs(vectors[:, None] - vectors[None]).max(axis=-1)[~np.eye(4, dtype=bool)].min() > 1e-3


def test_new_lengths_compile_nothing():
    make((speech_like(36_000), 24_000))
    compiled = padded_x_vectors._cache_size()
    make(*[(speech_like(length, 1), 24_000) for length in (12_000, 30_011, 48_000)])
    assert padded_x_vectors._cache_size() == compiled
    make((speech_like(96_001), 24_000))  # no other test needs a bucket of 6 s
    assert padded_x_vectors._cache_size() == compiled + 1


@pytest.mark.parametrize(("codec_rate", "times"), [(24_000, 2), (16_000, 3)])
def test_a_recording_is_resampled_once_to_each_rate(monkeypatch, codec_rate, times):
    resampled = []
    monkeypatch.setattr(
        audio, "resample", lambda samples, rate, new_rate: resampled.append(new_rate) or samples[: new_rate // 10]
    )
    monkeypatch.setattr(voices, "_x_vector", lambda *_: np.zeros(MODEL.speaker_encoder.x_vector_width, np.float32))
    monkeypatch.setattr(voices, "encode_recordings", lambda params, config, recordings, **_: [*map(len, recordings)])
    config = replace(MODEL, codec=replace(MODEL.codec, sample_rate=codec_rate))
    made = make_voices(_params(), config, [(speech_like(16_000), 22_050)] * 2, ["The first.", None])
    assert [voice.codes for voice in made] == [codec_rate // 10, None]
    assert sorted(resampled) == sorted([24_000, 24_000, codec_rate][:times])


def test_sliding_window_is_passed_on():
    recording = (speech_like(24_000), 24_000)
    windowed, whole = (make(recording, texts=["Words."], sliding_window=window)[0].codes for window in (True, False))
    assert (windowed != whole).any()


def test_no_recordings():
    assert make() == []


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0, np.float32), 24_000, "holds no samples"),
        (np.where(np.arange(24_000) % 9_000, speech_like(24_000), np.nan), 24_000, "that are not finite: 3 of 24000"),
        (np.where(np.arange(24_000) % 9_000, speech_like(24_000), -np.inf), 24_000, "that are not finite: 3 of"),
        (np.zeros(24_000, np.float32), 24_000, "is silent: its peak is 0, at least -80 dBFS"),
        (np.full(24_000, -9e-5, np.float32), 24_000, "is silent: its peak is -81 dBFS, at least -80 dBFS"),
        (speech_like(7_999), 16_000, r"is too short: 0\.500 s, at least 0\.5 s .*cut out 3 to 30 s"),
        (speech_like(11_999), 24_000, r"is too short"),
        (np.ones(300 * 800 + 1, np.float32), 800, r"is too long: 300\.0 s, at most 300 s .*cut out 3 to 30 s"),
        (speech_like(24_000)[None], 24_000, r"mono floats \[N\] in ±1, got float32 \[1, 24000\]; audio\.read gives"),
        (np.ones(24_000, np.int16), 24_000, r"got int16 \[24000\]"),
        (speech_like(24_000), 0, "sample rate of 0 Hz"),
    ],
)
def test_unusable_recordings(monkeypatch, samples, rate, message):
    monkeypatch.setattr(voices, "padded_x_vectors", None)  # nothing is computed
    with pytest.raises(ValueError, match=f"^the recording .*{message}"):
        make((samples, rate))
    good = (speech_like(24_000), 24_000)
    with pytest.raises(ValueError, match=f"^recording 2 of 3 .*{message}"):
        make(good, (samples, rate), good)


@pytest.mark.parametrize("length", [12_000, 300 * 24_000])
def test_the_longest_and_the_shortest_are_accepted(monkeypatch, length):
    seen = []
    monkeypatch.setattr(voices, "padded_x_vectors", lambda *arguments: seen.append(arguments[2:]) or np.zeros((1, 56)))
    make((np.full(length, 1.1e-4, np.float32), 24_000))
    [(padded, lengths)] = seen
    assert padded.shape[0] == 1
    assert padded.shape[1] >= length
    assert lengths == length


@pytest.mark.parametrize("text", ["", " \n\t", "…!?"])
def test_texts_without_a_letter(monkeypatch, text):
    monkeypatch.setattr(voices, "padded_x_vectors", None)
    with pytest.raises(ValueError, match=r"^the recording has a text without a letter, .*give what the recording says"):
        make((speech_like(24_000), 24_000), texts=[text])


def test_numbers_of_texts_and_models():
    recording = (speech_like(24_000), 24_000)
    with pytest.raises(ValueError, match="1 recordings have 2 texts; give one for each, or None"):
        make(recording, texts=["One.", "Two."])
    with pytest.raises(ValueError, match="this custom_voice model makes no voices; use a base model"):
        make_voices({}, SMALL["1.7B-CustomVoice"], [recording], [None])


@pytest.mark.parametrize(
    ("text", "seconds", "warned"),
    [
        ("Hi.", 3.5, True),
        ("Hi, I", 3.0, False),
        ("一二三四。", 4.0, False),
        ("一二三四。", 4.5, True),
        ("7 Uhr", 3.9, False),
        (None, 60.0, False),
    ],
)
def test_a_text_far_shorter_than_its_audio_is_warned_of(monkeypatch, recwarn, text, seconds, warned):
    monkeypatch.setattr(voices, "padded_x_vectors", lambda *_: np.zeros((1, 56)))
    monkeypatch.setattr(voices, "encode_recordings", lambda *arguments, **_: [None] * len(arguments[2]))
    recording = (speech_like(int(seconds * 8_000)), 8_000)
    monkeypatch.setattr(voices, "VoicePrompt", lambda *_: None)
    if warned:
        with pytest.warns(UserWarning, match=rf"recording 2 of 2 lasts {seconds} s but its text has only .*check"):
            make((recording[0][:8_000], 8_000), recording, texts=["A good one.", text])
    else:
        make(recording, texts=[text])
        assert not recwarn.list


def _voice(*values):
    return VoicePrompt(np.array(values, np.float32))


def test_blend_goes_along_the_great_circle():
    a, b = _voice(2.0, 0.0, 0.0), _voice(0.0, 0.0, 4.0)
    got = blend(a, b, 1 / 3).x_vector
    assert got.dtype == np.float32
    length = 2 * 2 / 3 + 4 / 3
    np.testing.assert_allclose(got, length * np.array([np.cos(np.pi / 6), 0, np.sin(np.pi / 6)]), rtol=1e-6, atol=1e-7)
    random = np.random.RandomState(0)
    x, y = (VoicePrompt(scale * random.standard_normal(1024).astype(np.float32)) for scale in (1, 3))
    angles = [_angle(x.x_vector, blend(x, y, weight).x_vector) for weight in (0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(angles, angles[-1] * np.array([0.25, 0.5, 0.75, 1]), rtol=1e-5)
    np.testing.assert_allclose(blend(x, y, 0.3).x_vector, blend(y, x, 0.7).x_vector, rtol=1e-4, atol=1e-6)


def _angle(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_the_ends_of_a_blend_are_the_voices():
    codes = np.ones((3, 5), np.int32)
    a, b = (VoicePrompt(np.array(values, np.float32), codes, "Text.") for values in ((0.1, 0.7), (0.3, -0.2)))
    for weight, voice in ((0, a), (1, b), (0.0, a), (1.0, b), (0.5, None)):
        blended = blend(a, b, weight)
        assert blended.codes is None
        assert blended.text is None
        if voice is not None:
            np.testing.assert_array_equal(blended.x_vector, voice.x_vector)
    opposite = VoicePrompt(-a.x_vector)  # the ends need no way between them
    np.testing.assert_array_equal(blend(a, opposite, 0).x_vector, a.x_vector)


@pytest.mark.parametrize("apart", [0, 1e-30, 1e-7, 1e-5, 1e-3])
def test_nearly_parallel_voices(apart):
    a, b = _voice(3.0, 0.0), _voice(5.0, 5 * apart)
    np.testing.assert_allclose(blend(a, b, 0.25).x_vector, [3.5, 3.5 * apart / 4], rtol=1e-5, atol=1e-30)


def test_impossible_blends():
    a, b = _voice(1.0, 2.0), _voice(2.0, 1.0)
    for weight in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"weight of a blend must be from 0 .* to 1 .*, got"):
            blend(a, b, weight)
    with pytest.raises(ValueError, match=r"different models .* widths 2 and 3"):
        blend(a, _voice(1.0, 2.0, 3.0), 0.5)
    with pytest.raises(ValueError, match="opposite directions"):
        blend(a, _voice(-2.0, -4.0001), 0.5)
    with pytest.raises(ValueError, match="length 0 has no direction"):
        blend(_voice(0.0, 0.0), b, 0.5)
    assert np.isfinite(blend(a, _voice(-2.0, -3.5), 0.5).x_vector).all()


def test_files_are_offered_here_too(tmp_path):
    voices.save(_voice(1.0, 2.0), tmp_path / "voice", name="Anna")
    np.testing.assert_array_equal(voices.load(tmp_path / "voice").x_vector, [1, 2])
    assert voices.describe(tmp_path / "voice")["name"] == "Anna"
    assert len(voices.load_all(tmp_path / "voice")) == 1


def test_a_voice_of_another_model_is_refused_by_it():
    [voice] = make((speech_like(24_000), 24_000))
    with pytest.raises(ValueError, match=r"shape \[56\], this model's have \[48\]"):
        check_voice(voice, SMALL["0.6B-Base"])
    check_voice(voice, replace(MODEL, max_new_tokens=3))
