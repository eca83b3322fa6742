"""Recordings of every kind → mono samples, and resampling."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import audio

RATE = 22_050
# File format, subtype, and how far off the samples may come back.
FORMATS = {
    "wav": ("WAV", "PCM_16", 1 / 32_000),
    "float.wav": ("WAV", "FLOAT", 1e-7),
    "24.wav": ("WAV", "PCM_24", 1 / 8_000_000),
    "flac": ("FLAC", "PCM_16", 1 / 32_000),
    "ogg": ("OGG", "VORBIS", 0.05),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.05),
}


def tone(num_samples: int, frequency: float = 440, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency / RATE * np.arange(num_samples))).astype(np.float32)


def write(path: Path | io.BytesIO, samples: np.ndarray, kind: str = "wav", rate: int = RATE) -> None:
    file_format, subtype, _ = FORMATS[kind]
    soundfile.write(path, samples, rate, format=file_format, subtype=subtype)


def content(samples: np.ndarray, kind: str = "wav") -> bytes:
    stream = io.BytesIO()
    write(stream, samples, kind)
    return stream.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_formats(kind: str, as_bytes: bool, tmp_path: Path):
    path = tmp_path / f"a.{kind}"
    write(path, tone(5001), kind)
    samples, rate = audio.read(path.read_bytes() if as_bytes else path)
    assert (samples.dtype, samples.shape, rate) == (np.float32, (5001,), RATE)
    np.testing.assert_allclose(samples, tone(5001), rtol=0, atol=FORMATS[kind][2])


@pytest.mark.parametrize("kind", FORMATS)
def test_channels_are_averaged(kind: str, tmp_path: Path):
    left, right = tone(4001), tone(4001, 700, 0.3)
    write(tmp_path / "a", np.stack([left, right], axis=1), kind)
    samples, _ = audio.read(str(tmp_path / "a"))
    assert samples.shape == (4001,)
    np.testing.assert_allclose(samples, (left + right) / 2, rtol=0, atol=FORMATS[kind][2])


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.wav", tone(7))
    for source in ("~/a.wav", Path("~/a.wav")):
        assert audio.read(source)[0].shape == (7,)


@pytest.mark.parametrize("kind", FORMATS)
def test_base64(kind: str):
    data = content(tone(3001), kind)
    expected, _ = audio.read(data)
    for source in (text(data), f"data:audio/x;base64,{text(data)}", base64.encodebytes(data).decode()):
        samples, rate = audio.read(source)
        np.testing.assert_array_equal(samples, expected)
        assert rate == RATE
    assert "/" in text(data)  # as no path of the official package's rule


def test_a_file_goes_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # 260 letters of valid base64 that name a file, in folders because a name is at most 255 long.
    monkeypatch.chdir(tmp_path)
    name = "/".join(["a" * 64] * 4)
    Path(name).parent.mkdir(parents=True)
    write(tmp_path / f"{name}b", tone(9))
    assert len(f"{name}b") == 260
    assert audio.read(f"{name}b")[0].shape == (9,)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine: /a.mp3, /short (breaks off), anything else is a 404."""
    data = content(tone(6001), "mp3")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path in ("/a.mp3", "/short") and self.headers["User-Agent"] == "qwen3-tts-jax"
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Length", str(len(data) if is_known else 0))
            self.end_headers()
            if is_known:
                self.wfile.write(data[: 100 if self.path == "/short" else None])

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Handler) as host:
        thread = threading.Thread(target=host.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


def test_url(server: str):
    samples, rate = audio.read(f"{server}/a.mp3")
    assert rate == RATE
    np.testing.assert_array_equal(samples, audio.read(content(tone(6001), "mp3"))[0])


def test_urls_that_give_nothing(server: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OSError, match=r"^http://.*/nothing could not be downloaded: HTTP Error 404"):
        audio.read(f"{server}/nothing")
    with pytest.raises(OSError, match=r"^http://.*/short broke off after 100 of [\d,]+ bytes$"):
        audio.read(f"{server}/short")
    for scheme in ("http", "HTTP"):
        with pytest.raises(OSError, match=rf"^{scheme}:///a.wav could not be downloaded: "):
            audio.read(f"{scheme}:///a.wav")
    monkeypatch.setattr(audio, "_MAX_DOWNLOAD", 1000)
    with pytest.raises(OSError, match=r"/a.mp3 is larger than"):
        audio.read(f"{server}/a.mp3")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(audio, "_TIMEOUT", 0.1)
    start = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(OSError, match=r"^http://.* could not be downloaded: .*timed out"),
    ):
        audio.read(f"http://127.0.0.1:{silent.getsockname()[1]}/a.wav")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_float_arrays(dtype: str, channels: int | None):
    parts = [tone(501, 100 * (i + 1)).astype(dtype) for i in range(channels or 1)]
    array = parts[0] if channels is None else np.stack(parts, axis=1)
    samples, rate = audio.read((array, np.int64(8000)))
    assert (samples.dtype, rate, type(rate)) == (np.float32, 8000, int)
    np.testing.assert_allclose(samples, np.mean([np.float32(part) for part in parts], axis=0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integer_arrays_are_scaled(dtype: str):
    limits = np.iinfo(dtype)
    array = np.array([[limits.min, limits.min], [limits.max, 0], [limits.min // 2, limits.min // 2], [0, 0]], dtype)
    samples, _ = audio.read((array, 8000))
    np.testing.assert_allclose(samples, [-1, 0.5, -0.5, 0], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(audio.read((array[:, 0], 8000))[0][[0, 2, 3]], [-1, -0.5, 0])


def _bad(value: float) -> np.ndarray:
    samples = tone(7)
    samples[2:4] = value
    return samples


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere/a.wav", FileNotFoundError, r"^there is no file nowhere/a\.wav$"),
        (Path("nowhere.wav"), FileNotFoundError, r"^there is no file nowhere\.wav$"),
        ("", FileNotFoundError, "^there is no file "),
        ("x." * 150, FileNotFoundError, r"^there is no file (x\.){40}… \(300 characters\), nor is that base64$"),
        ("xxxx." * 60, FileNotFoundError, r"^there is no file .* \(300 characters\), nor is that base64$"),
        ("a\0b", OSError, "cannot be read: embedded null byte"),
        ("aaaa" * 70, ValueError, r"^a{80}… \(280 characters\) is not audio that can be read: "),
        ("data:audio/wav,abc", ValueError, "^data:audio/wav,abc is no data URL in base64$"),
        ("data:audio/wav;base64,abc", ValueError, "^data:audio/wav;base64,abc is not valid base64: "),
        ("data:audio/wav;base64,ab!cd", ValueError, "^data:audio/wav;base64,ab!cd is not valid base64: "),
        (b"", ValueError, "^the recording of 0 bytes is not audio that can be read: "),
        (b"RIFFxxxx" * 300, ValueError, "^the recording of 2,400 bytes is not audio that can be read: "),
        (content(tone(0)), ValueError, r"^the recording of \d+ bytes holds no samples$"),
        ((tone(0), 8000), ValueError, "^the recording holds no samples$"),
        ((np.zeros((0, 2), np.float32), 8000), ValueError, "^the recording holds no samples$"),
        ((_bad(np.nan), 8000), ValueError, "^the recording has samples that are not finite: 2 of 7$"),
        ((_bad(-np.inf), 8000), ValueError, "^the recording has samples that are not finite: 2 of 7$"),
        ((np.full(3, 1e300), 8000), ValueError, "^the recording has samples that are not finite: 3 of 3$"),
        (content(_bad(np.nan), "float.wav"), ValueError, "^the recording of .* that are not finite: 2 of 7$"),
        ((tone(7), 0), ValueError, "^the rate must be a positive whole number of samples per second, got 0$"),
        ((tone(7), -8000), ValueError, "^the rate must be a positive whole number .*, got -8000$"),
        ((tone(7), 8000.5), ValueError, "^the rate must be a positive whole number .*, got 8000.5$"),
        ((tone(7), None), ValueError, "^the rate must be a positive whole number .*, got None$"),
        ((np.zeros((2, 7)), 8000), ValueError, r"^samples must be \[N, channels\], got \[2, 7\]: transpose them$"),
        ((np.zeros((2, 7, 1)), 8000), ValueError, r"^samples must be \[N\] or \[N, channels\], got \[2, 7, 1\]$"),
        ((np.float32(1), 8000), ValueError, r"^samples must be \[N\] or \[N, channels\], got \[\]$"),
        ((np.zeros(7, np.uint8), 8000), ValueError, "^samples must be floats in ±1, int16 or int32, got uint8$"),
        ((np.zeros(7, np.int64), 8000), ValueError, "^samples must be floats in ±1, int16 or int32, got int64$"),
        ((np.zeros(7, bool), 8000), ValueError, "^samples must be floats in ±1, int16 or int32, got bool$"),
        (tone(7), TypeError, r"^an array is no recording: give a path, .* or a tuple \(samples, rate in Hz\)$"),
        ((tone(7), 8000, 1), TypeError, "^tuple is no recording: give a path, "),
        (None, TypeError, "^NoneType is no recording: give a path, "),
    ],
)
def test_what_cannot_be_read_is_named(source: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        audio.read(source)


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.mp3"])
def test_a_file_that_is_not_audio(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(ValueError, match=rf"{name} is not audio that can be read: "):
        audio.read(tmp_path / name)


def test_a_folder_is_not_a_file(tmp_path: Path):
    with pytest.raises(OSError, match="cannot be read: Is a directory"):
        audio.read(tmp_path)


# 44,100 → 24,000 has lengths whose quotient, rounded, makes librosa's ceil one more.
@pytest.mark.parametrize(
    ("source", "url", "name"),
    [
        ("http://a/b.wav", True, False), ("HTTPS://a/b.wav", True, False), ("data:audio/wav;base64,ab", False, False),
        ("https/b.wav", False, True), ("b.wav", False, True), ("ftp://a", False, True),
    ],
)  # fmt: skip
def test_what_names_a_file(source, url, name):
    assert (audio.is_url(source), audio.is_file_name(source)) == (url, name)


def test_a_whole_rate_may_be_a_float():
    _, rate = audio.read((tone(7), 8000.0))
    assert (rate, type(rate)) == (8000, int)


@pytest.mark.parametrize("new_rate", [8000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("length", [1, 2, 441, 44_100, 44_101])
def test_resampling_gives_the_length_of_librosa(new_rate: int, length: int):
    resampled = audio.resample(tone(length), 44_100, new_rate)
    assert resampled.dtype == np.float32
    assert len(resampled) == np.ceil(length * (new_rate / 44_100))


def test_resampling_keeps_the_tone():
    seconds = np.arange(16_000) / 16_000
    resampled = audio.resample(np.sin(2 * np.pi * 300 * seconds).astype(np.float32), 16_000, 24_000)
    expected = np.sin(2 * np.pi * 300 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], rtol=0, atol=1e-3)


def test_at_the_same_rate_samples_stay_as_they_are():
    samples = tone(77)
    assert audio.resample(samples, 8000, 8000) is samples


@pytest.mark.parametrize("samples", [0, 2**36 - 1])
def test_a_flac_file_of_unknown_or_absurd_length(samples: int, tmp_path: Path):
    data = bytearray(content(tone(5001), "flac"))
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.flac says that it has [\d,]{10,} samples, more than there is memory for"):
        audio.read(tmp_path / "a.flac")
