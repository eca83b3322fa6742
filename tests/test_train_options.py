"""Options of the commands that train: what is wrong with them, or with files, is told before a model is looked for."""

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from qwen3_tts_jax.cli.train_codec import codec
from qwen3_tts_jax.cli.train_sft import sft
from qwen3_tts_jax.cli.train_talker import talker
from tests.command import assert_refused, run, write_recording

ARGUMENTS = {
    "sft": ("none.jsonl", "-o", "run", "--validation", "none.jsonl"),
    "talker": ("none.jsonl", "-o", "run", "--config", "none.json", "--codec", "none", "--validation", "none.jsonl"),
    "codec": ("none.jsonl", "-o", "run", "--validation", "none.jsonl"),
}
# What options do nothing without.
NEEDED = {
    "lora_alpha": ("--lora", 2), "buckets": ("--batch-seconds", 9), "guide": ("--alignment", 0.1),
    "alignment_layer": ("--alignment", 0.1), "alignment_steps": ("--alignment", 0.1),
    "teacher_weight": ("--feature-rate", 50), "discriminator_every": ("--discriminator-start", 0),
    "discriminator_seconds": ("--discriminator-start", 0),
}  # fmt: skip
ABOVE_ZERO = {
    "steps", "encoder_steps", "batch_size", "buckets", "accumulate", "discriminator_every", "batch_seconds",
    "crop_seconds", "discriminator_seconds", "learning_rate", "spectral_rate", "lora_alpha", "feature_rate",
    "teacher_weight", "clip", "predictor_share",
}  # fmt: skip


def numbers():
    for command in (sft, talker, codec):
        for name, kind in get_type_hints(command).items():
            kinds = {kind, *get_args(kind)}
            if kinds & {int, float}:
                yield command.__name__, name, float in kinds


def test_all_numbers_are_known():
    found = [name for _, name, _ in numbers()]
    assert len(found) > 60
    assert set(found) >= ABOVE_ZERO | NEEDED.keys()


@pytest.mark.parametrize(("command", "name", "real"), list(numbers()))
def test_refused_numbers(command, name, real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = f"--{name.replace('_', '-')}"
    values = [-1, 10**30, *[np.nan, -np.inf] * real, *[0] * (name in ABOVE_ZERO), *[np.inf] * (real and name != "clip")]
    if name == "clip":
        # Without an end gradients are not clipped.
        values.remove(10**30)
    needed = NEEDED.get(name, ()) if (command, name) != ("talker", "buckets") else ()
    for value in values:
        result = run("train", command, *ARGUMENTS[command], *needed, option, value)
        assert_refused(result, f"error: {option} must be ", ", got ")
    assert list(tmp_path.iterdir()) == []


def test_refused_weights_of_codebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for weights in ("1,nan", "1,-1", "1,inf"):
        result = run("train", "talker", *ARGUMENTS["talker"], "--codebook-weights", weights)
        assert_refused(result, "error: --codebook-weights must be 0 … 1000000, got ")


@pytest.mark.parametrize("command", ARGUMENTS)
def test_patience_needs_evaluations(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", command, *ARGUMENTS[command], "--patience", 1, "--evaluate-every", 0)
    assert_refused(result, "error: --patience does nothing with --evaluate-every 0: leave it out")


MISSING = ("0.6B-Base", "someone/something")
OFFLINE = {
    "sft": ("--model",), "talker": ("--config", "talker.json", "--codec"), "codec": ("--steps", 1, "--start")
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data, and no model to be had."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_recording(tmp_path / "0.wav")
    row = {"audio": "0.wav", "text": "Hello.", "speaker": "anna"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "wrong.jsonl").write_text('{"audio": "0.wav", ')
    stack = {"num_layers": 1, "width": 8, "mlp_width": 8, "num_heads": 1, "head_dim": 8}
    (tmp_path / "talker.json").write_text(json.dumps({"talker": stack, "code_predictor": stack}))
    return tmp_path


@pytest.mark.parametrize("model", MISSING)
@pytest.mark.parametrize("command", OFFLINE)
def test_files_come_before_a_download(command, model, place):
    common = ("-o", "run", *OFFLINE[command], model)
    assert_refused(run("train", command, "data.jsonl", *common), f"{model!r} is not a folder, and")
    for files, part in (
        (("none.jsonl",), "none.jsonl"),
        (("wrong.jsonl",), "wrong.jsonl line 1 is not JSON"),
        (("data.jsonl", "--validation", "none.jsonl"), "none.jsonl"),
        (("data.jsonl", "--cache", "0.wav"), "0.wav is a file, not a folder"),
        (("data.jsonl", "-o", "0.wav"), "0.wav is a file, not a folder"),
    ):
        result = run("train", command, *common, *files)
        assert_refused(result, part)
        assert model not in result.stderr
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("command", "options", "part"),
    [
        ("sft", ("--freeze", "taker"), "nothing to freeze in 'taker'"),
        ("sft", ("--lora", 2, "--lora-modules", "mpl"), "no weight of a transformer lies in 'mpl'"),
        ("talker", ("--codebook-weights", "1,1"), "2 weights of codebooks for codes 1 … 15"),
        ("talker", ("--start", "none"), "none"),
        ("talker", ("--config", "none.json"), "none.json"),
        ("codec", ("--crop-seconds", 0.01), "pieces of 0.01 s are too short"),
        ("codec", ("--discriminator-start", 0, "--discriminator-seconds", 9), "the discriminator cannot hear 9 s"),
    ],
)
def test_options_of_a_published_model_come_before_its_download(command, options, part, place):
    result = run("train", command, "data.jsonl", "-o", "run", *OFFLINE[command], MISSING[0], *options)
    assert_refused(result, part)
    assert MISSING[0] not in result.stderr


def test_adapters_come_before_the_download_of_their_base(place):
    common = ("-o", "merged", "--model", MISSING[0])
    assert_refused(run("train", "merge", "data.jsonl", *common), "data.jsonl cannot be read")
    save_file({"weight": np.zeros(2)}, place / "other.safetensors")
    assert_refused(run("train", "merge", "other.safetensors", *common), "other.safetensors holds no LoRA")
