"""Sound files ↔ files of codes: what the commands `codec …` do."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import typer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.audio import is_url
from qwen3_tts_jax.cli.console import check_output, plain_messages, refuse, refusing
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.files import check_folder, completed, require_absent
from qwen3_tts_jax.voice_prompt import codes_problem

_CODES_ENDINGS = (".npz", ".safetensors")
_SOUND_ENDINGS = (".wav", ".flac", ".ogg")
_OTHER_SOUND_ENDINGS = (".mp3", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".au", ".webm", ".mp4")
_RATES = ("sample_rate", "frame_rate")
# A safetensors file keeps its metadata under this name.
_RESERVED = (*_RATES, "__metadata__")
# What the libraries raise for damaged files and for files of another kind.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


def encode_files(recordings: Sequence[str], output: Path, source: Source, quiet: bool) -> None:
    """Recordings (paths or URLs) → a file of codes."""
    from qwen3_tts_jax import audio

    check_output(output, *_CODES_ENDINGS)
    names = _names(recordings)
    sounds = []
    for recording in recordings:
        with refusing(ValueError, OSError):
            sounds.append(audio.read(recording))
    with plain_messages():
        folder = source.codec_folder()
        config = _config(folder)
        with refusing(ConfigError):
            config.require_encoder()
        with ProgressLine(1 / config.frame_rate, quiet) as progress:
            tokenizer = _load(folder, progress)
            codes = tokenizer.encode(sounds, progress=progress)
        with refusing(OSError):
            _write(output, dict(zip(names, codes, strict=True)), config)
    frames = sum(map(len, codes))
    typer.echo(
        f"{output}: {len(codes)} recording{'s' * (len(codes) > 1)}, {frames} frames of {config.num_codebooks} codes, "
        f"{frames / config.frame_rate:.2f} s"
    )


def decode_file(path: Path, output: Path, source: Source, quiet: bool) -> None:
    """A file of codes → a sound file, or one per recording in a folder."""
    from qwen3_tts_jax import audio

    codes, rates = _read(path)
    files = _sound_files(path, list(codes), output)
    with plain_messages():
        at_hand = source.config_at_hand() if source.published() else None
        if at_hand is not None:
            _check(path, codes, rates, at_hand.codec)
        folder = source.codec_folder()
        config = _config(folder)
        _check(path, codes, rates, config)
        with ProgressLine(1 / config.frame_rate, quiet) as progress:
            sounds, sample_rate = _load(folder, progress).decode(list(codes.values()), progress=progress)
        with refusing(OSError):
            for file, samples in zip(files, sounds, strict=True):
                file.parent.mkdir(exist_ok=True)
                audio.write(file, samples, sample_rate)
    for file, samples in zip(files, sounds, strict=True):
        typer.echo(f"{file}: {len(samples) / sample_rate:.2f} s of audio")


def _config(folder: Path) -> CodecConfig:
    with refusing(ConfigError, FileNotFoundError):
        return hf_config.read_codec(folder)


def _load(folder: Path, progress: ProgressLine) -> Any:
    from qwen3_tts_jax.compile_cache import keep_compiled
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer

    keep_compiled()
    with refusing(CheckpointError):
        return SpeechTokenizer.from_pretrained(folder, progress=progress)


def _names(recordings: Sequence[str]) -> list[str]:
    """What the recordings are called in a file of codes: their own names without the endings."""
    names: dict[str, str] = {}
    for recording in recordings:
        path = urlsplit(recording).path if is_url(recording) else recording
        name = Path(path).stem
        if not name or name in _RESERVED:
            refuse(f"{recording} cannot be kept under the name {name!r}: rename it")
        if name in names:
            refuse(f"{names[name]} and {recording} would both be kept under the name {name!r}: rename one")
        names[name] = recording
    return list(names)


def _sound_files(path: Path, names: Sequence[str], output: Path) -> list[Path]:
    """The files to write; refuses an output that leaves them open, or would replace files that it does not name."""
    if output.suffix.lower() in _SOUND_ENDINGS and not output.is_dir():
        if len(names) > 1:
            refuse(f"{path} holds {len(names)} recordings and {output} is one file: give a folder with -o")
        with refusing(OSError):
            check_folder(output.parent)
        return [output]
    if output.suffix.lower() in _OTHER_SOUND_ENDINGS and not output.is_dir():
        refuse(f"{output}: the ending {output.suffix!r} is not supported, use one of {', '.join(_SOUND_ENDINGS)}")
    if output.exists() and not output.is_dir():
        refuse(f"{output} is neither a folder nor a sound file ({', '.join(_SOUND_ENDINGS)})")
    for name in names:
        # A name with a path in it could lead out of the folder.
        if name in ("", ".", "..") or set(name) & set("/\\:\0"):
            refuse(f"{path} holds a recording that is called {name!r}, which is no file's name")
    with refusing(OSError):
        check_folder(output if output.is_dir() else output.parent)
    files = [output / f"{name}.wav" for name in names]
    with refusing(FileExistsError):
        for file in files:
            require_absent(file)
    return files


def _write(path: Path, codes: Mapping[str, np.ndarray], config: CodecConfig) -> None:
    """Writes codes int32 [T, Q] by name; the file appears under its name only once it is complete."""
    rates = {name: getattr(config, name) for name in _RATES}
    with completed(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            temporary.write_bytes(serialize(dict(codes), {name: str(rate) for name, rate in rates.items()}))
        else:
            # np.savez cannot take recordings that are named like its own arguments.
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, array in {**codes, **rates}.items():
                    with archive.open(f"{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Codes by name, and the rates that the file gives, if any."""
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        refuse(f"{path} is no file of codes: its name must end in {' or '.join(readers)}")
    try:
        arrays, known = reader(path)
        rates = {name: float(known[name]) for name in _RATES if name in known}
    except FileNotFoundError:
        refuse(f"there is no file {path}")
    except _UNREADABLE as error:
        refuse(f"{path} cannot be read as codes: {getattr(error, 'strerror', None) or error}")
    if not arrays:
        refuse(f"{path} holds no codes")
    return arrays, rates


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        arrays = {}
        for file in archive.namelist():
            with archive.open(file) as entry:
                arrays[file.removesuffix(".npy")] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays, {name: arrays.pop(name) for name in _RATES if name in arrays}


def _read_npy(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As `batch --save-codes` writes them."""
    with path.open("rb") as file:
        return {path.stem: np.lib.format.read_array(file, allow_pickle=False)}, {}


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _check(path: Path, codes: Mapping[str, np.ndarray], rates: Mapping[str, float], config: CodecConfig) -> None:
    """Refuses what this codec cannot decode."""
    for name, rate in rates.items():
        if rate != getattr(config, name):
            refuse(f"{path} has codes of another codec: its {name} is {rate:g}, this one's {getattr(config, name):g}")
    for name, array in codes.items():
        problem = codes_problem(array, config.num_codebooks, config.decoder.codebook_size)
        if problem:
            refuse(f"{name} in {path} does not fit this codec: its codes {problem}")
