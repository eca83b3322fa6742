"""Options of the commands that train: what is wrong with them, or with files, is told before a model is looked for."""

from typing import get_args, get_type_hints

import numpy as np
import pytest

from qwen3_tts_jax.cli_train import codec, sft, talker
from tests.command import assert_refused, run

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
