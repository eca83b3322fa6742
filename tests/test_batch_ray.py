"""A batch job on a Ray cluster: one of two workers is killed, and the results are those of a job without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command import write_model
from tests.jobs import ROOT

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray[data]")

# In a process of its own: Ray warns of much, and its workers import the stand-in by name.
_PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path

from qwen3_tts_jax.batch import index as batch_index
from qwen3_tts_jax.cli import batch_job
from qwen3_tts_jax.pipeline import Qwen3TTS
from tests.command import run
from tests.jobs import contents, index, rows, write
from tests.stand_in import StandIn, load_in_worker

batch_job._load_elsewhere = load_in_worker
Qwen3TTS.from_pretrained = StandIn
os.environ["STAND_IN_WORKERS"] = str(Path("workers").absolute())
Path("workers").mkdir()
write(*rows(40, "Item {} of some length. "), {"id": "bad", "text": "NaN"})
job = ["batch", "m.jsonl", "-m", sys.argv[1], "--save-codes", "--batch-size", "2", "--retry", "1"]
killed = []

def kill_one():
    while True:
        time.sleep(0.01)
        started = sorted(Path("workers").iterdir())
        if len(started) == 2 and len(batch_index.read(Path("out/index.jsonl"))) >= 5:
            killed.append(int(started[0].name))
            os.kill(killed[0], signal.SIGKILL)
            return

threading.Thread(target=kill_one, daemon=True).start()
result = run(*job, "-o", "out", "--engine", "ray", "--workers", "2", "-q")
assert result.exit_code == 1, (result.exception, result.stderr)
assert "failed: bad: the model made samples that are not finite" in result.stderr, result.stderr
assert "40 of 41 items" in result.stdout, result.stdout
assert len(killed) == 1
assert len(list(Path("workers").iterdir())) == 3, list(Path("workers").iterdir())
assert run(*job, "-o", "whole").exit_code == 1
assert contents("out") == contents("whole")
assert len(contents("out")) == 80
assert index("out") == index("whole")
again = run(*job, "-o", "out", "--engine", "ray", "--workers", "1", "-q")
assert "40 were finished before" in again.stdout, again.stdout
"""


def test_a_worker_that_is_killed(tmp_path: Path, tokenizer_folder: Path):
    model = write_model(tmp_path, "1.7B-CustomVoice", tokenizer_folder)
    command = [sys.executable, "-c", _PROGRAM, model]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RAY_ADDRESS": "local"}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stderr


_DEADLY = """
import sys
from qwen3_tts_jax.cli import batch_job
from tests.command import run
from tests.jobs import rows, write
from tests.stand_in import deadly

batch_job._load_elsewhere = deadly
write(*rows(2))
result = run("batch", "m.jsonl", "-m", sys.argv[1], "-o", "out", "--engine", "ray", "-q")
assert result.exit_code == 1, (result.exception, result.stderr)
assert "error: a worker failed" in result.stderr, result.stderr
"""


def test_a_part_that_kills_every_worker_is_given_up(tmp_path: Path, tokenizer_folder: Path):
    model = write_model(tmp_path, "1.7B-CustomVoice", tokenizer_folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", _DEADLY, model]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr
