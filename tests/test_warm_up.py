"""The command `warmup`: what it has compiled, later commands need not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_jax import audio
from qwen3_tts_jax.cli.programs import _request
from qwen3_tts_jax.presets import preset
from tests.command import assert_refused, run, write_model

MAIN = "from qwen3_tts_jax.cli.main import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer_folder):
    return write_model(tmp_path_factory.mktemp("warm"), "1.7B-CustomVoice", tokenizer_folder, eos_boost=1)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Every program is kept, however soon it was compiled."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(environment, *arguments, folder=None, text=b""):
    result = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        input=text,
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
    ours = ("prefill", "insert", "generate", "empty_batch", "decode_step", "set_text", "grow", "encode", "padded_x")
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


def test_a_stream_compiles_nothing_for_text_that_is_piped_into_it(model, environment, warmed):
    before = kept(environment)
    options = ["--text-mode", "as-it-comes", "--stream", "--quiet", "--max-seconds", "0.02"]
    command(environment, "say", "--model", model, *options, text=b"Piped, word by word.")
    assert kept(environment) == before


def test_streams_side_by_side_compile_nothing_that_was_announced(model, environment, tmp_path):
    environment = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    options = ["--tokens", "8", "--max-seconds", "0.02", "--no-stream", "--streams", "3"]
    assert "3 streams at a time, from 1 token on" in command(environment, "warmup", model, *options).decode()
    before = kept(environment)
    script = f"""
from qwen3_tts_jax import Qwen3TTS, Request, keep_compiled
keep_compiled()
batch = Qwen3TTS.from_pretrained({str(model)!r}).stream_batch(batch_size=3)
for count in range(8):
    batch.add(Request("the " * (1 + count), speaker="ryan", max_frames=6 + count))
batch.add(Request("", speaker="ryan", text_mode="as_it_comes", max_frames=9), pieces=iter(["the "] * 7))
while batch:
    batch.step()
"""
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert kept(environment) == before


def test_cloning_from_a_recording_compiles_nothing_that_was_announced(environment, tmp_path, tokenizer_folder):
    """With int8 weights."""
    model = write_model(tmp_path / "model", "1.7B-Base", tokenizer_folder)
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, 24_000).astype(np.float32)
    for name, seconds in (("announced", 0.9), ("like_it", 1.0)):
        audio.write(tmp_path / f"{name}.wav", noise[: int(seconds * 24_000)], 24_000)
    options = ["--weights", "int8", "--max-seconds", "0.02", "--reference-text", "What I say."]
    environment = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    reference = ["--reference", tmp_path / "announced.wav"]
    command(environment, "warmup", model, "--tokens", 2, "--no-stream", *options, *reference)
    announced = kept(environment)
    names = {name.partition("-")[0] for name in announced}
    assert names >= {"jit_padded_x_vectors", "jit_encode_step", "jit_prefill", "jit_generate"}
    command(
        environment,
        "clone",
        "One",
        "--model",
        model,
        *options,
        "--reference",
        tmp_path / "like_it.wav",
        folder=tmp_path,
    )
    assert kept(environment) == announced


def test_a_stream_that_outgrows_its_cache_compiles_nothing(environment, warmed):
    names = [name.partition("-")[0] for name in kept(environment)]
    assert names.count("jit_grow") == 1
    # One for the cache that a stream starts with, one for the larger.
    assert names.count("jit_generate_at_most") == 2


def test_limits_lose_no_frame_to_rounding():
    assert _request(preset("0.6B-CustomVoice"), 2.32, None, None, None).max_frames == 29


def test_the_table_counts_programs(environment, warmed, model):
    *rows, total = warmed.splitlines()
    assert rows[0].split() == ["for", "seconds", "compiled", "were", "there"]
    counts = [list(map(int, row.split()[-2:])) for row in rows[1:]]
    names = [" ".join(row.split()[:-3]) for row in rows[1:]]
    assert names[0] == "one utterance, from 1 token on"
    assert {name.partition(",")[0] for name in names[:-1]} == {"one utterance", "batches of 3", "stream"}
    assert names[-1] == "stream of a text that is still being written"
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
        (["--reference", "me.wav"], "--reference is for base models; this is a custom_voice model"),
        (["--dtype", "float16"], "dtype of the talker must be auto, float32 or bfloat16; got 'float16'"),
        (["--max-seconds", "0"], "--max-seconds must be a number above 0, got 0"),
        (["--text-mode", "as-it-comes"], "compiled programs are not kept"),
    ],
)
def test_what_cannot_be_spoken_is_refused(model, options, message):
    assert_refused(run("warmup", model, *options), message)
