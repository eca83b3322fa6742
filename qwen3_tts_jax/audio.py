"""Sound files and other recordings ↔ samples."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import math
import operator
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from qwen3_tts_jax.files import check_place, completed

AudioLike = str | Path | bytes | tuple[np.ndarray, int]
"""A recording: the path of a file; text that is an http or https URL or base64, raw or as a data URL; the bytes of
a file; or samples, float or PCM of 16 or 32 bits, [N] or [N, channels], with their rate in Hz."""

# (format, subtype) of libsndfile by the ending of a file's name
_FORMATS: Mapping[str, tuple[str, str]] = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
}

# libsndfile's Vorbis encoder keeps a whole call's samples on the stack, and overflows it on long audio.
_BLOCK = 1 << 16

# The official package takes any longer text without a path separator for base64; no sound file is as short.
_MIN_BASE64 = 256
_MAX_DOWNLOAD = 200_000_000
_TIMEOUT = 30.0  # seconds without an answer
_SHOWN = 80


def read(source: AudioLike) -> tuple[np.ndarray, int]:
    """Reads a recording of any kind as mono; formats include WAV, FLAC, OGG and MP3.

    Channels are averaged. A text is a path if a file of that name exists, unless it is a URL. Downloads are
    limited to 200 MB.

    Args:
        source: see `AudioLike`.

    Returns:
        Samples float32 [N] with N > 0, ±1 at full scale, and their rate in Hz.

    Raises:
        FileNotFoundError: there is no such file, nor is the text a URL or base64.
        OSError: a file or URL that cannot be read.
        ValueError: not audio, no samples, samples that are not finite, or an impossible array or rate.
        TypeError: another kind of object, such as samples without their rate.
    """
    if isinstance(source, tuple) and len(source) == 2:
        name = "the recording"
        samples, rate = _from_array(source[0]), _rate(source[1])
    elif isinstance(source, bytes):
        name = f"the recording of {len(source):,} bytes"
        samples, rate = _decode(io.BytesIO(source), name)
    elif isinstance(source, str | Path):
        name = _shortened(str(source))
        with _open(source) as stream:
            samples, rate = _decode(stream, name)
    else:
        kind = "an array" if isinstance(source, np.ndarray) else f"{type(source).__name__}"
        raise TypeError(
            f"{kind} is no recording: give a path, a URL, base64, the bytes of a file or a tuple (samples, rate in Hz)"
        )
    if samples.ndim == 2:
        samples = np.mean(samples, axis=1)
    problem = samples_problem(samples)
    if problem:
        raise ValueError(f"{name} {problem}")
    return samples, rate


def samples_problem(samples: np.ndarray) -> str | None:
    """Why an array cannot be a recording, in words that follow its name in a message; None if it can.

    Args:
        samples: floats [N], N > 0, all finite.
    """
    if samples.ndim != 1 or samples.dtype.kind != "f":
        return f"must be mono floats [N] in ±1, got {samples.dtype} {list(samples.shape)}; audio.read gives that"
    if len(samples) == 0:
        return "holds no samples"
    bad = np.count_nonzero(~np.isfinite(samples))
    return f"has samples that are not finite: {bad} of {len(samples)}" if bad else None


def is_url(source: str) -> bool:
    """Whether a text names a recording to download."""
    return source[:8].lower().startswith(("http://", "https://"))


def is_file_name(source: str) -> bool:
    """Whether a text names a file, and neither something to download nor a data URL."""
    return not is_url(source) and not source.startswith("data:")


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples float32 [N] at `rate` Hz → float32 [ceil(N · new_rate / rate)] at `new_rate` Hz.

    In soxr's high quality, padded with zeros to that length, as `librosa.resample` does for the official
    package: the samples are equal bit for bit.
    """
    if rate == new_rate:
        return samples
    resampled = soxr.resample(samples, rate, new_rate, quality="HQ")
    return np.pad(resampled, (0, resampled_length(len(samples), rate, new_rate) - len(resampled)))


def resampled_length(count: int, rate: int, new_rate: int) -> int:
    """How many samples `resample` makes of `count`."""
    # The quotient is rounded before the product, as in librosa: now and then that gives one sample more.
    return math.ceil(count * (new_rate / rate))


def _open(source: str | Path) -> BinaryIO:
    """The content of a file, a URL, or base64."""
    if isinstance(source, str):
        if source.startswith("data:"):
            return io.BytesIO(_from_data_url(source))
        if is_url(source):
            return io.BytesIO(_download(source))
    path = os.path.expanduser(source)
    if isinstance(source, str) and len(source) > _MIN_BASE64 and not os.path.exists(path):
        try:
            return io.BytesIO(base64.b64decode("".join(source.split()), validate=True))
        except ValueError:
            raise FileNotFoundError(f"there is no file {_shortened(source)}, nor is that base64") from None
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {_shortened(str(source))}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{_shortened(str(source))} cannot be read: {reason}") from None


def _from_data_url(url: str) -> bytes:
    header, _, data = url.partition(",")
    if not header.endswith(";base64"):
        raise ValueError(f"{_shortened(url)} is no data URL in base64")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{_shortened(url)} is not valid base64: {error}") from None


def _download(url: str) -> bytes:
    # Some hosts refuse urllib's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "qwen3-tts-jax"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            content = response.read(_MAX_DOWNLOAD + 1)
            announced = int(response.headers.get("Content-Length") or len(content))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OSError(f"{_shortened(url)} could not be downloaded: {error}") from None
    if len(content) > _MAX_DOWNLOAD:
        raise OSError(f"{_shortened(url)} is larger than {_MAX_DOWNLOAD // 1_000_000} MB: download it yourself")
    if len(content) < announced:
        raise OSError(f"{_shortened(url)} broke off after {len(content):,} of {announced:,} bytes")
    return content


def _decode(stream: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    try:
        # Not `soundfile.read`, which seeks to the start: after that MP3 differs in the last bit from what librosa,
        # and so the official package, reads from a file.
        with soundfile.SoundFile(stream) as file:
            return _samples_of(file, name), file.samplerate
    except (soundfile.SoundFileError, TypeError) as error:  # a TypeError says that .raw files have no header
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise ValueError(f"{name} is not audio that can be read: {reason}") from None


def _samples_of(file: soundfile.SoundFile, name: str) -> np.ndarray:
    try:
        return file.read(dtype="float32")
    except (MemoryError, ValueError):
        # A FLAC file that was written into a pipe has no length in its header.
        raise ValueError(
            f"{name} says that it has {file.frames:,} samples, more than there is memory for: write it again"
        ) from None


def _from_array(samples: np.ndarray) -> np.ndarray:
    """Float32 [N] or [N, channels]."""
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples must be [N] or [N, channels], got {list(samples.shape)}")
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0:
        raise ValueError(f"samples must be [N, channels], got {list(samples.shape)}: transpose them")
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    if samples.dtype.kind != "f":
        raise ValueError(f"samples must be floats in ±1, int16 or int32, got {samples.dtype}")
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return samples.astype(np.float32)


def _rate(rate: int) -> int:
    try:
        number = int(rate) if isinstance(rate, float) and rate.is_integer() else operator.index(rate)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"the rate must be a positive whole number of samples per second, got {rate!r}")
    return number


def _shortened(text: str) -> str:
    # A path is needed whole; base64 is not.
    return text if len(text) <= _MIN_BASE64 else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def check_writable(path: str | Path) -> None:
    """Checks, before long work, that `write(path, …)` will be able to put its file there.

    Raises:
        ValueError: the name's ending is not that of a supported format.
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: `path` is a folder.
        PermissionError: no file can be created in the folder.
    """
    path = Path(path)
    _format_of(path)
    check_place(path)


def write(path: str | Path, samples: np.ndarray, sample_rate: int, *, sync: bool = False) -> None:
    """Writes mono samples as WAV or FLAC (16-bit PCM) or OGG (Vorbis), as the name's ending says.

    The file appears under its name only once it is complete.

    Args:
        path: a name that ends in .wav, .flac or .ogg.
        samples: floats [N] in ±1; louder ones are clipped.
        sample_rate: in Hz.
        sync: return only once the file is on the disk.

    Raises:
        ValueError: `samples` are not floats [N] or not finite, or as `check_writable`.
        OSError: as `check_writable`, or the disk is full.
    """
    path = Path(path)
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"samples must be floats of shape [N], got {samples.dtype} of shape {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples for {path} are not finite"
        )
    file_format, subtype = _format_of(path)
    clipped = np.clip(samples.astype(np.float32), -1.0, 1.0)
    # In memory first: not every encoder of libsndfile reports a full disk.
    content = io.BytesIO()
    with soundfile.SoundFile(
        content, "w", samplerate=sample_rate, channels=1, format=file_format, subtype=subtype
    ) as file:
        for start in range(0, len(clipped), _BLOCK):
            file.write(clipped[start : start + _BLOCK])
    try:
        with completed(path, sync=sync) as temporary:
            # Not a view of it: the error of a full disk would keep that, and the content could not be freed.
            temporary.write_bytes(content.getvalue())
    except OSError:
        # Says more if the folder is the reason. Asked beforehand, it would cost two more disk operations per file.
        check_writable(path)
        raise


def _format_of(path: Path) -> tuple[str, str]:
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise ValueError(
            f"cannot write {path.name!r}: the ending {ending!r} is not supported, use one of {', '.join(_FORMATS)}"
        )
    return _FORMATS[ending]
