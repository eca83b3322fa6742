from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import audio

RATE = 24_000


def tone(num_samples: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 / RATE * np.arange(num_samples))).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "file_format", "subtype"),
    [
        ("a.wav", "WAV", "PCM_16"),
        ("a.flac", "FLAC", "PCM_16"),
        ("a.ogg", "OGG", "VORBIS"),
        ("a.b.WAV", "WAV", "PCM_16"),
    ],
)
def test_format_follows_the_ending(name: str, file_format: str, subtype: str, tmp_path: Path):
    audio.write(tmp_path / name, tone(5001), RATE)
    info = soundfile.info(tmp_path / name)
    assert (info.format, info.subtype) == (file_format, subtype)
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, 5001)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_samples_come_back_to_16_bits(name: str, tmp_path: Path):
    samples = tone(150_001, level=0.9)  # more than two blocks
    audio.write(str(tmp_path / name), samples, RATE)
    back, _ = soundfile.read(tmp_path / name, dtype="float32")
    np.testing.assert_allclose(back, samples, rtol=0, atol=1.01 / 32_768)


def test_vorbis_comes_back_close(tmp_path: Path):
    samples = tone(150_001)
    audio.write(tmp_path / "a.ogg", samples, RATE)
    back, _ = soundfile.read(tmp_path / "a.ogg", dtype="float32")
    assert np.abs(back - samples).max() < 0.1
    assert np.corrcoef(back, samples)[0, 1] > 0.999


def test_vorbis_is_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes, write = [], soundfile.SoundFile.write
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda file, data: (sizes.append(len(data)), write(file, data)))
    audio.write(tmp_path / "a.ogg", tone(200_001), RATE)
    assert sum(sizes) == 200_001
    assert max(sizes) <= 100_000


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path):
    audio.write(tmp_path / "a.wav", np.array([0.0, 1.5, -1.5, 1.0, -1.0], np.float32), RATE)
    back, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert back.tolist() == [0, 32_767, -32_768, 32_767, -32_768]


def test_loud_samples_are_clipped_in_vorbis_too(tmp_path: Path):
    # Vorbis itself stores any level: without clipping the two formats would sound different.
    audio.write(tmp_path / "a.ogg", tone(5001, level=3.0), RATE)
    back, _ = soundfile.read(tmp_path / "a.ogg", dtype="float32")
    assert 0.9 < np.abs(back).max() < 1.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float, tmp_path: Path):
    samples = tone(7)
    samples[3] = bad
    with pytest.raises(ValueError, match=r"1 of 7 samples for .*a\.wav are not finite"):
        audio.write(tmp_path / "a.wav", samples, RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("samples", [np.zeros((1, 5), np.float32), np.zeros(5, np.int16)])
def test_other_shapes_and_types_are_refused(samples: np.ndarray, tmp_path: Path):
    with pytest.raises(ValueError, match=r"samples must be floats of shape \[N\], got"):
        audio.write(tmp_path / "a.wav", samples, RATE)


@pytest.mark.parametrize("name", ["a.mp3", "a", ".wav"])
def test_unknown_endings_list_the_known_ones(name: str, tmp_path: Path):
    for call in (audio.check_writable, lambda path: audio.write(path, tone(5), RATE)):
        with pytest.raises(ValueError, match=r"is not supported, use one of \.wav, \.flac, \.ogg"):
            call(tmp_path / name)


def test_a_missing_folder_is_named(tmp_path: Path):
    for call in (audio.check_writable, lambda path: audio.write(path, tone(5), RATE)):
        with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
            call(tmp_path / "nowhere" / "a.wav")


def test_a_folder_of_that_name_is_refused(tmp_path: Path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.wav is a folder"):
        audio.check_writable(tmp_path / "a.wav")
    with pytest.raises(IsADirectoryError, match=r"a\.wav is a folder"):
        audio.write(tmp_path / "a.wav", tone(5), RATE)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *content: bytes, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    for way in ("touch", "write_bytes"):
        monkeypatch.setattr(Path, way, refuse)
    for call in (audio.check_writable, lambda path: audio.write(path, tone(5), RATE)):
        with pytest.raises(PermissionError, match=r"cannot write into the folder .*: Read-only file system"):
            call(tmp_path / "a.wav")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="cannot write into the folder"):
        audio.check_writable(tmp_path / "a.wav")


def test_checking_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"old")
    audio.check_writable(tmp_path / "a.wav")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.wav", b"old")]


def test_writing_creates_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "touch", lambda path, **_: pytest.fail(f"{path} was created"))
    audio.write(tmp_path / "a.wav", tone(5), RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.wav").write_bytes(b"old")
    seen = []

    def fail(path: Path, content: memoryview) -> None:
        path.touch()
        seen.append(((tmp_path / "a.wav").read_bytes(), len(list(tmp_path.iterdir()))))
        raise RuntimeError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(RuntimeError, match="disk full"):
            audio.write(tmp_path / "a.wav", tone(5), RATE)
    assert seen == [(b"old", 2)]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.wav", b"old")]
    audio.write(tmp_path / "a.wav", tone(5), RATE)
    assert soundfile.info(tmp_path / "a.wav").frames == 5
    assert len(list(tmp_path.iterdir())) == 1


def test_empty_audio_is_an_empty_file(tmp_path: Path):
    audio.write(tmp_path / "a.wav", np.zeros(0, np.float32), RATE)
    assert soundfile.info(tmp_path / "a.wav").frames == 0
