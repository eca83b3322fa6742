"""What a codec is trained with besides itself: recordings and their cache, a teacher's features, a discriminator."""

import json
import os
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import audio
from qwen3_tts_jax.codec.conv import sin_squared
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.train.codec import data as codec_data
from qwen3_tts_jax.train.codec.codes import cut_codes, read_recording_codes, with_codes
from qwen3_tts_jax.train.codec.data import Clips, Recording, check_headers, decode_recordings, find_recordings
from qwen3_tts_jax.train.codec.discriminator import Discriminator, codec_losses, discriminator_step, start_discriminator
from qwen3_tts_jax.train.codec.teacher import Features, Teacher, distance, read_features
from qwen3_tts_jax.train.interrupts import Interrupted
from qwen3_tts_jax.train.lines import DataError
from tests.command import write_recording
from tests.train_codec import CODEC, FRAME, FRAMES, clips, clips_with_codes


@pytest.fixture
def recordings(tmp_path):
    """b.wav, inner/a.flac of other rates and lengths, and a text file."""
    folder = tmp_path / "recordings"
    (folder / "inner").mkdir(parents=True)
    write_recording(folder / "b.wav", 0.7, 16_000, seed=1)
    write_recording(folder / "inner" / "a.FLAC", 0.9, 44_100, seed=2)
    (folder / "notes.txt").write_text("nothing to hear")
    return folder


def write_lines(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_recordings_of_folders_and_lines(recordings):
    found = find_recordings(recordings)
    assert [one.where for one in found] == ["b.wav", os.path.join("inner", "a.FLAC")]
    assert check_headers(found) == [(11_200, 16_000), (39_690, 44_100)]
    lines = write_lines(recordings, {"audio": "inner/a.FLAC", "text": "Hello."}, "", {"audio": "b.wav"})
    found = find_recordings(lines)
    assert [one.where for one in found] == ["data.jsonl line 1", "data.jsonl line 3"]
    assert [one.audio for one in found] == [recordings / "inner" / "a.FLAC", recordings / "b.wav"]
    # Which `str.splitlines` takes for ends of lines.
    lines.write_text('{"audio": "b.wav", "text": "One\u2028two\x85three"}\r\n', encoding="utf-8")
    assert len(find_recordings(lines)) == 1


def test_refused_recordings(recordings, tmp_path):
    soundfile.write(recordings / "short.wav", np.full(1000, 0.1), 16_000)
    lines = write_lines(recordings, "{", [1], {"text": "Hi."}, {"audio": "none.wav"}, {"audio": "b.wav"})
    with pytest.raises(
        DataError,
        match=r"line 1 is not JSON: .*; data.jsonl line 2 is not a JSON object; data.jsonl line 3 has no audio",
    ):
        find_recordings(lines)
    with pytest.raises(DataError, match=r"line 1: features must be a file's name, got 5"):
        find_recordings(write_lines(recordings, {"audio": "b.wav", "features": 5}))
    lines = write_lines(recordings, {"audio": "b.wav"}, {"audio": "none.wav"})
    with pytest.raises(DataError, match=r"line 2: audio .*none\.wav is not there"):
        find_recordings(lines)
    many = write_lines(recordings, *[{"audio": f"{i}.wav"} for i in range(13)])
    with pytest.raises(DataError, match=r"line 10: [^;]* \(and 3 more\)$"):
        find_recordings(many)
    headers = write_lines(recordings, {"audio": "notes.txt"}, {"audio": "short.wav"})
    with pytest.raises(DataError, match=r"line 1: .*notes.txt is no sound file: .*line 2: .* is too short: 0\.06"):
        check_headers(find_recordings(headers))
    with pytest.raises(DataError, match=r"data\.jsonl has no lines"):
        find_recordings(write_lines(recordings))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no recordings"):
        find_recordings(tmp_path / "empty")
    with pytest.raises(DataError, match="none is no folder of recordings and no file"):
        find_recordings(tmp_path / "none")


def test_recordings_are_decoded_once(recordings, tmp_path, monkeypatch):
    """Files that cannot be learnt from are named after the others are kept."""
    write_recording(recordings / "c.wav", 0.6, 24_000, seed=3)
    soundfile.write(recordings / "silent.wav", np.zeros(20_000), 24_000)
    soundfile.write(recordings / "wrong.wav", np.full(20_000, np.nan, np.float32), 24_000, subtype="FLOAT")
    monkeypatch.setattr(codec_data, "_SHARD_SAMPLES", 20_000)
    cache, told = tmp_path / "cache", []
    with pytest.raises(DataError, match=r"silent.wav: .* is silent: .*; wrong.wav: .* not finite"):
        decode_recordings(find_recordings(recordings), cache, 24_000)
    for name in ("silent.wav", "wrong.wav"):
        (recordings / name).unlink()

    def nothing(*_):
        raise AssertionError("it was decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(codec_data, "_decode", nothing)
        patch.setattr(codec_data, "check_folder", nothing)
        found = find_recordings(recordings)
        data = decode_recordings(found, cache, 24_000, lambda *numbers: told.append(numbers))
    assert told == []
    assert len(list(cache.glob("*.npy"))) == 2
    for recording, samples in zip(found, data.samples, strict=True):
        expected = audio.resample(*audio.read(recording.audio), 24_000)
        assert samples.dtype == np.int16
        np.testing.assert_allclose(samples / 32_767, np.clip(expected, -1, 1), atol=0.51 / 32_767)
    np.testing.assert_allclose(data.seconds, 0.7 + 0.9 + 0.6, atol=1e-3)

    write_recording(recordings / "b.wav", 0.8, 16_000, seed=4)
    again = decode_recordings(found, cache, 24_000, lambda *numbers: told.append(numbers))
    assert told == [(1, 1)]
    assert [len(one) for one in again.samples] == [19_200, *[len(one) for one in data.samples[1:]]]
    other = decode_recordings(found, cache, 16_000)
    assert [len(one) for one in other.samples] == [12_800, 9600, 14_400]


def test_a_signal_while_recordings_are_decoded(recordings, tmp_path, monkeypatch):
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("another handles SIGTERM")
    decode, found, told = codec_data._decode, find_recordings(recordings), []

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(codec_data, "_decode", interrupted)
        with pytest.raises(Interrupted, match=r"^stopped after 1 of 2 recordings, which are kept$"):
            decode_recordings(found, tmp_path / "cache", 24_000)
    decode_recordings(found, tmp_path / "cache", 24_000, lambda *numbers: told.append(numbers))
    assert told == [(1, 1)]


def test_crops_follow_from_seed_and_step_alone():
    data, length = clips(), FRAMES * FRAME
    assert data.places(3, 50, length, 7, 0.25) == data.places(3, 50, length, 7, 0.25)
    assert data.places(3, 50, length, 7, 0.25) != data.places(4, 50, length, 7, 0.25)
    assert data.places(3, 50, length, 7, 0.25) != data.places(3, 50, length, 8, 0.25)
    places = [place for step in range(200) for place in data.places(step, 20, length, 0, 0.25)]
    lengths = np.array([len(one) for one in data.samples])
    counts = np.bincount([which for which, _ in places], minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), lengths / lengths.sum(), atol=0.03)
    firsts = np.array([first for which, first in places if which == 0])
    assert firsts.min() == 0
    assert 0.95 * (lengths[0] - length) < firsts.max() <= lengths[0] - length
    np.testing.assert_allclose(np.mean(firsts == 0), 0.25, atol=0.04)
    assert lengths[4] < length
    assert {first for which, first in places if which == 4} == {0}
    crops = data.cut([(0, 5), (4, 0)], length)
    np.testing.assert_array_equal(np.round(crops[0] * 32_767), data.samples[0][5 : 5 + length])
    assert (crops[1, lengths[4] :] == 0).all()
    assert np.abs(crops[1, : lengths[4]]).max() > 0.05
    assert data.names([(1, 2400)]) == "data.jsonl line 2 from 0.10 s"


def test_crops_with_codes():
    """They begin on whole frames, with the codes before them as far as there are any."""
    data, length = clips_with_codes(), FRAMES * FRAME
    places = [*data.places(3, 50, length, 7, 0.25), *data.middles(length)]
    assert {first % FRAME for _, first in places} == {0}
    assert max(first for which, first in places if which == 0) > 100 * FRAME
    assert all(first + length <= len(data.samples[which]) for which, first in places if which < 3)
    codes = data.codes[0]
    given = cut_codes(data, [(0, 0), (0, 7 * FRAME), (0, 100 * FRAME), (4, 0)], FRAMES, 20)
    assert given.codes.shape == (4, 20 + FRAMES, 5)
    np.testing.assert_array_equal(given.before, [0, 7, 20, 0])
    for row, first in enumerate((0, 0, 80)):
        np.testing.assert_array_equal(given.codes[row], codes[first:][: 20 + FRAMES])
    np.testing.assert_array_equal(given.ends, [FRAMES] * 3 + [len(data.codes[4])])
    np.testing.assert_array_equal(given.codes[3][: len(data.codes[4])], data.codes[4])
    crops = given.of_crops(FRAMES)
    for row, first in enumerate((0, 7, 100)):
        np.testing.assert_array_equal(crops[row], codes[first:][:FRAMES])


def test_what_has_no_codes_or_no_samples_is_left_out():
    codes = np.zeros((11, 5), np.int32)
    recording = Recording("a", "a.wav")
    for samples, expected in ((80, (80, 10)), (85, (85, 11)), (90, (88, 11))):
        clip = with_codes(Clips((recording,), (np.ones(samples, np.int16),), 24_000), [codes], 8)
        assert (len(clip.samples[0]), len(clip.codes[0])) == expected


def test_codes_of_recordings(tmp_path, monkeypatch):
    for i in range(3):
        write_recording(tmp_path / f"{i}.wav", 0.6, 16_000, seed=i)
    frames = 14_400 // FRAME
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 32, (frames + i, 5)) for i in (-1, 0, 1)]
    np.savez(tmp_path / "codes.npz", a=codes[0], b=codes[1])
    np.save(tmp_path / "c.npy", codes[2].astype(np.int16))
    good = [
        {"audio": "0.wav", "codes": "codes.npz", "key": "a"}, {"audio": "1.wav", "codes": "codes.npz", "key": "b"},
        {"audio": "2.wav", "codes": "c.npy"},
    ]  # fmt: skip

    def read(*rows):
        found = find_recordings(write_lines(tmp_path, *rows))
        return read_recording_codes(found, check_headers(found), CODEC)

    opened, load = [], np.load
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", lambda path, **options: opened.append(path.name) or load(path, **options))
        found = read(*good)
    assert sorted(opened) == ["c.npy", "codes.npz"]
    for mine, expected in zip(found, codes, strict=True):
        assert mine.dtype == np.int32
        np.testing.assert_array_equal(mine, expected)
    assert read(*[{"audio": row["audio"]} for row in good]) is None

    def refused(match, **fields):
        with pytest.raises(DataError, match=match):
            read(good[0], good[1] | fields, good[2])

    refused(r"data\.jsonl line 2 has no codes, and others have", codes=None)
    refused(r"data\.jsonl line 2: codes .*none\.npz is not there", codes="none.npz")
    refused(r"data\.jsonl line 2: codes must be a \.npy or \.npz file, got 'codes.txt'", codes="codes.txt")
    refused(r"data\.jsonl line 2: codes must be a \.npy or \.npz file, got 3", codes=3)
    refused(r"data\.jsonl line 2: a \.npz file of codes needs a key", key=None)
    refused(r"data\.jsonl line 2: a \.npz file of codes needs a key, .*; others have none", codes="c.npy")
    refused(r"data\.jsonl line 2: codes .*codes\.npz d cannot be read", key="d")
    (tmp_path / "broken.npy").write_text("no array")
    refused(r"data\.jsonl line 2: codes .*broken\.npy cannot be read", codes="broken.npy", key=None)
    over = codes[1].copy()
    over[5, 3] = 32
    for array, match in (
        (codes[1][:, :4], r"must be whole numbers \[T, 5\], .* got int64 \[1800, 4\]"),
        (codes[1].astype(float), r"must be whole numbers \[T, 5\], .* got float64"),
        (over, r"has codes from 0 to 32; the codec's are 0 … 31"),
        (-codes[1], "has codes from -31 to 0"),
        (codes[1][:-2], r"have 1798 frames, and the recording of 0\.60 s has 1800"),
        (np.pad(codes[1], ((0, 2), (0, 0))), "have 1802 frames"),
    ):
        np.save(tmp_path / "wrong.npy", array)
        refused(rf"data\.jsonl line 2: codes .*wrong\.npy {match}", codes="wrong.npy", key=None)


def test_features_of_frames():
    """At 50 a second a frame of 80 ms has those that lie in it, wherever a crop begins; at 5 the one around it."""
    array = np.arange(50, dtype=np.float32)[:, None] * np.array([1.0, 10.0], np.float32)
    places = [(0, 0), (0, 1920), (0, 960), (0, 19_200)]
    targets = Features((array,), 50.0).targets(places, 4, 24_000, 1920)
    np.testing.assert_allclose(targets[0, :, 0], [1.5, 5.5, 9.5, 13.5])
    np.testing.assert_allclose(targets[1], targets[0] + 4 * np.array([1.0, 10.0]))
    np.testing.assert_allclose(targets[2, :, 0], [3.5, 7.5, 11.5, 15.5])
    np.testing.assert_allclose(targets[3, :, 0], [41.5, 45.5, 48.5, 0.0])
    slow = Features((array,), 5.0).targets([(0, 0)], 5, 24_000, 1920)
    np.testing.assert_allclose(slow[0, :, 0], [0, 0, 1, 1, 1])


def test_the_distance_to_a_teacher():
    rng = np.random.default_rng(0)
    vectors, head, targets = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 5))
    targets[1, 2] = 0
    expected = []
    for vector, target in zip(vectors.reshape(6, 4)[:5], targets.reshape(6, 5)[:5], strict=True):
        predicted = head @ vector
        expected.append(1 - predicted @ target / np.linalg.norm(predicted) / np.linalg.norm(target))
    np.testing.assert_allclose(distance(jnp.asarray(vectors), head, jnp.asarray(targets)), np.mean(expected), rtol=1e-5)
    assert distance(jnp.asarray(vectors), head, jnp.zeros((2, 3, 5))) == 0


def test_features_beside_recordings(recordings, tmp_path):
    folder = tmp_path / "features"
    (folder / "inner").mkdir(parents=True)
    np.save(folder / "b.npy", np.random.default_rng(0).normal(size=(35, 6)).astype(np.float32))
    np.savez(folder / "inner" / "a.npz", features=np.ones((45, 6), np.float16))
    found = find_recordings(recordings, folder)
    read = read_features(found, check_headers(found), 50.0)
    assert read.width == 6
    np.testing.assert_array_equal(read.arrays[1], 1.0)
    lines = write_lines(recordings, {"audio": "b.wav", "features": "../features/b.npy"})
    assert find_recordings(lines)[0].features.samefile(folder / "b.npy")

    def refused(match, rate=50.0, source=recordings):
        with pytest.raises((DataError, ConfigError), match=match):
            read_features(find_recordings(source, folder), check_headers(find_recordings(source)), rate)

    refused(r"b\.wav: .*has 35 frames, 1.40 s at 25 per second, and the recording is 0.70 s", rate=25.0)
    refused("rate of the teacher's features must be above 0", rate=0.0)
    for array, match in (
        (np.ones((45, 5), np.float32), "has 5 numbers per frame, others 6"),
        (np.ones(45, np.float32), r"must be floats \[T, D\], got float32 \[45\]"),
        (np.full((45, 6), np.nan, np.float32), "is not finite"),
    ):
        np.savez(folder / "inner" / "a.npz", features=array)
        refused(rf"a\.FLAC: features .*a\.npz: {match}")
    np.savez(folder / "inner" / "a.npz", a=np.ones(3), b=np.ones(3))
    refused("must hold one array, holds 2")
    (folder / "b.npy").unlink()
    refused(r"b\.wav: features .*b\.npy are not there")
    with pytest.raises(DataError, match=r"b\.wav has no features"):
        read_features(find_recordings(recordings), check_headers(found), 50.0)
    with pytest.raises(ConfigError, match="weight of the teacher"):
        Teacher(6, 0.0)


@pytest.mark.parametrize("kind", ["hinge", "least-squares"])
def test_a_discriminator_learns_to_tell(kind):
    config = Discriminator(512, kind=kind, fft_sizes=(256,), channels=4, learning_rate=3e-3)
    state, rng = start_discriminator(config), np.random.default_rng(0)
    time = np.arange(1024) / 24_000

    def pair():
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000, (4, 1)) * time)
        return (0.1 * rng.normal(size=tone.shape)).astype(np.float32), tone.astype(np.float32)

    learn = jax.jit(lambda state, made, real: discriminator_step(state, config, made, real))
    losses = jax.jit(lambda state, made, real: codec_losses(state.params, config, made, real))
    before = losses(state, *pair())
    for _ in range(60):
        state = learn(state, *pair())
    made, real = pair()
    taught, own = losses(state, made, real)
    assert own < 0.5 * before[1]
    # What is told from recordings has more to gain than recordings themselves.
    assert losses(state, real, real)[0]["adversarial"] < taught["adversarial"]
    assert losses(state, real, real)[0]["features"] < 1e-6 < taught["features"]
    gradient = jax.grad(lambda made: codec_losses(state.params, config, made, real)[0]["adversarial"])(made)
    assert np.abs(gradient).max() > 0


def test_refused_discriminators():
    with pytest.raises(ConfigError, match="must hear at least 2048 samples, got 2000"):
        Discriminator(2000)
    with pytest.raises(ConfigError, match="every 1 or more steps"):
        replace(Discriminator(2048), every=0)


def test_the_gradient_of_sin_squared():
    x = np.concatenate([np.linspace(-12, 12, 4001), np.linspace(-20_000, 20_000, 1001)]).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(sin_squared(x), np.sin(exact) ** 2, atol=1e-6)
    gradient = jax.vmap(jax.grad(sin_squared))(x)
    np.testing.assert_allclose(gradient, np.sin(2 * exact), atol=1e-6)
