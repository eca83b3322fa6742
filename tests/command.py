"""Runs the command in tests, in this process or in one of its own, on small models."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from typer.testing import CliRunner, Result

from qwen3_tts_jax.cli.main import app
from qwen3_tts_jax.config import ModelConfig
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The environment of a process whose standard output is buffered, as it is by default."""


def run(*arguments: object, text: bytes = b"") -> Result:
    """Runs a command in this process; `text` is its standard input."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=text)


def of_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many virtual CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


# A shell that starts the tests in the background has them ignore interrupts, and so what they start.
HEAR_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def start(*arguments: object, **options: Any) -> subprocess.Popen:
    """Starts a command in a process of its own, its output in pipes."""
    program = f"{HEAR_INTERRUPTS}from qwen3_tts_jax.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": BUFFERED} | options
    )


def assert_refused(result: Result, *parts: str) -> None:
    """It ended with status 2 and one line on standard error that has all `parts`."""
    assert result.exit_code == 2, (result.exception, result.stderr)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def assert_failed(result: Result, *parts: str) -> None:
    """It ended with status 1 and one line on standard error that has all `parts`."""
    assert result.exit_code == 1, (result.exception, result.stderr)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def one_layer(config: ModelConfig) -> ModelConfig:
    """The same model with one layer per stack, which compiles sooner."""

    def cut(part):
        return replace(part, transformer=replace(part.transformer, num_layers=1))

    codec = replace(config.codec, decoder=cut(config.codec.decoder), encoder=cut(config.codec.encoder))
    return replace(config, talker=cut(config.talker), code_predictor=cut(config.code_predictor), codec=codec)


def write_model(folder: Path, name: str, tokenizer_folder: Path, **options: Any) -> Path:
    """A checkpoint of one of `SMALL` in `folder`/`name`."""
    return write_small_checkpoint(folder / name, one_layer(SMALL[name]), tokenizer_folder, **options)


def write_models(folder: Path, tokenizer_folder: Path, *names: str, **options: Any) -> Path:
    """The folder, with a checkpoint per name of `SMALL`."""
    for name in names:
        write_model(folder, name, tokenizer_folder, **options)
    return folder


def write_recording(path: Path, seconds: float = 1.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise over a tone as a sound file, which is returned as it is read again: float32 [N]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (150 + 40 * seed) * time) + 0.05 * noise, rate)
    return soundfile.read(path, dtype="float32")[0]
