"""The command `warmup`: what it has compiled, later commands need not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import assert_refused, run, write_model

MAIN = "from qwen3_tts_jax.cli import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer_folder):
    return write_model(tmp_path_factory.mktemp("warm"), "1.7B-CustomVoice", tokenizer_folder, eos_boost=1)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Every program is kept, however soon it was compiled."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(environment, *arguments, folder=None):
    result = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def kept(environment):
    """Names of the programs of the model that are kept."""
    files = Path(environment["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache")
    ours = ("prefill", "insert", "generate", "empty_batch", "decode_step", "set_text", "grow")
    return {file.name for file in files if any(file.name.startswith(f"jit_{name}") for name in ours)}


@pytest.fixture(scope="module")
def warmed(model, environment):
    """What the command printed."""
    assert kept(environment) == set()
    options = ["--tokens", 12, "--max-seconds", 0.02, "--batch-size", 3]
    return command(environment, "warmup", model, *options).decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("say", "Hi.", "-o", "short.wav"),
        ("say", "A longer text, announced as well.", "-o", "long.wav"),
        ("say", "One that is heard at once.", "--stream"),
        ("batch", "lines.jsonl", "-o", "job", "--batch-size", "3"),
    ],
    ids=["short", "long", "stream", "batch"],
)
def test_later_commands_compile_nothing_that_was_announced(model, environment, warmed, tmp_path, arguments):
    (tmp_path / "lines.jsonl").write_text('{"text": "One."}\n{"text": "Two, three, four."}\n', encoding="utf-8")
    before = kept(environment)
    assert before
    command(environment, *arguments, "--model", model, "--max-seconds", "0.02", folder=tmp_path)
    assert kept(environment) == before


def test_what_was_not_announced_is_compiled(model, environment, warmed, tmp_path):
    before = kept(environment)
    command(environment, "say", "Hi.", "--model", model, "--max-seconds", "0.02", "--greedy", folder=tmp_path)
    assert {name.partition("-")[0] for name in kept(environment) - before} == {"jit_generate"}


def test_the_table_counts_programs(environment, warmed, model):
    *rows, total = warmed.splitlines()
    assert rows[0].split() == ["for", "seconds", "compiled", "were", "there"]
    counts = [list(map(int, row.split()[-2:])) for row in rows[1:]]
    names = [" ".join(row.split()[:-3]) for row in rows[1:]]
    assert names[0] == "one utterance, from 1 token on"
    assert {name.partition(",")[0] for name in names} == {"one utterance", "batches of 3", "stream"}
    compiled, found = (sum(column) for column in zip(*counts, strict=True))
    assert total.startswith(f"{compiled} programs compiled in ")
    assert f", {found} were there; {environment['JAX_COMPILATION_CACHE_DIR']} holds " in total
    assert compiled >= len(rows) - 1
    again = command(
        environment, "warmup", model, "--tokens", 3, "--max-seconds", 0.02, "--no-stream", "--quiet"
    ).decode()
    assert again.startswith("0 programs compiled in ")
    assert again.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voice", "me.safetensors"], "--voice is for base models; this is a custom_voice model"),
        (["--max-seconds", "0"], "--max-seconds must be a number above 0, got 0"),
        (["--text-mode", "as-it-comes"], "compiled programs are not kept"),
    ],
)
def test_what_cannot_be_spoken_is_refused(model, options, message):
    assert_refused(run("warmup", model, *options), message)
