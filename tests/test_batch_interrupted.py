"""Batch jobs that are killed, interrupted, kept out or left without room: a clear end, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwen3_tts_jax import Qwen3TTS
from qwen3_tts_jax.batch import index as batch_index
from qwen3_tts_jax.batch.folder import JobFolder
from tests.command import assert_refused, run, start, write_model
from tests.jobs import ROOT, contents, formatted, index, rows, start_stand_in, wait_for_items, write
from tests.stand_in import StandIn

pytestmark = pytest.mark.usefixtures("folder")

FORMATS = ["wav", pytest.param("parquet", marks=pytest.mark.skipif(not find_spec("pyarrow"), reason="needs pyarrow"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-CustomVoice", tokenizer_folder, eos_boost=1.0)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", StandIn)


def test_two_jobs_in_one_folder(model, no_weights):
    write(*rows(1))
    with JobFolder(Path("out")):
        result = run("batch", "m.jsonl", "-o", "out", "-m", model)
        assert_refused(result, f"another process ({os.getpid()}) is at work in out: wait for it")


def test_a_full_disk_ends_the_job_with_one_line(model, monkeypatch):
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", partial(StandIn, pause=0.005))
    write(*rows(30))
    add = batch_index.append

    def append(path, *records):
        if batch_index.read(path):
            raise OSError(28, "No space left on device")
        add(path, *records)

    with monkeypatch.context() as patch:
        patch.setattr(batch_index, "append", append)
        result = run("batch", "m.jsonl", "-o", "out", "-m", model)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    finished = len(index())
    assert f"No space left on device; {finished} of 30 items are finished, and the same command" in result.stderr
    assert 0 < finished < 30
    result = run("batch", "m.jsonl", "-o", "out", "-m", model)
    assert result.exit_code == 0
    assert f"{finished} were finished before" in result.stdout
    assert len(index()) == 30


# In a file system of its own, which is full, and then cannot be written.
_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from qwen3_tts_jax.pipeline import Qwen3TTS
from tests.command import run
from tests.jobs import contents, formatted, index, rows, write
from tests.stand_in import StandIn

Qwen3TTS.from_pretrained = StandIn
write(*rows(24))
job = ["batch", "m.jsonl", "-m", sys.argv[1], "--save-codes", *formatted(sys.argv[2], 20)]
full = run(*job, "-o", "disk/out")
assert full.exit_code == 1, (full.exception, full.stderr)
assert full.stderr.count("\\n") == 1 and ": No space left on device; " in full.stderr, full.stderr
finished = int(full.stderr.split(" of 24 items are finished")[0].split()[-1])
assert 0 < finished < 24, full.stderr
again = run(*job, "-o", "disk/out")
assert again.exit_code in (1, 2) and "No space left on device" in again.stderr, again.stderr
subprocess.run(["mount", "-o", "remount,size=8m", "disk"], check=True)
more = run(*job, "-o", "disk/out")
assert more.exit_code == 0, (more.exception, more.stderr)
before = int(more.stdout.split(" were finished before")[0].split()[-1])
assert finished <= before < 24, (finished, more.stdout)
assert run(*job, "-o", "whole").exit_code == 0
assert contents("disk/out") == contents("whole")
assert index("disk/out").keys() == index("whole").keys()
assert not list(Path("disk").rglob("*.partial"))
subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
for out in ("disk/out", "disk/new"):
    refused = run(*job, "-o", out)
    assert refused.exit_code == 2, refused.stderr
    assert refused.stderr == f"error: cannot write into the folder {out}: Read-only file system\\n", refused.stderr
"""


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_disk_that_fills_up(folder, model, audio_format):
    (folder / "disk").mkdir()
    own_disk = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=100k none disk && exec "$@"', "sh"]
    try:
        subprocess.run([*own_disk, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")
    command = [*own_disk, sys.executable, "-c", _SMALL_DISK, str(model), audio_format]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_job_that_is_killed_again_and_again(model, stand_in, audio_format):
    count = 80
    write(*rows(count, "Item {} is of some length. "))
    options = ["--save-codes", "--batch-size", "5", "--retry", "1", *formatted(audio_format, 7)]
    moments, kills, finished = random.Random(3), 0, {}
    for _ in range(5):
        process = start_stand_in(model, "out", *options, pause=0.02)
        wait_for_items(process, len(finished) + moments.randrange(1, 12))
        time.sleep(moments.random() * 0.01)
        kills += process.poll() is None
        process.kill()
        _, errors = process.communicate()
        assert errors == b"" or errors.startswith(b"removed files of "), errors
        before, finished = finished, batch_index.read(Path("out/index.jsonl"))
        assert finished.keys() > before.keys()
    assert kills >= 3
    assert len(finished) < count
    resumed = run("batch", "m.jsonl", "-m", model, *options, "-o", "out")
    assert f"{count} of {count} items" in resumed.stdout
    assert f"; {len(finished)} were finished before" in resumed.stdout
    assert "were finished before" not in run("batch", "m.jsonl", "-m", model, *options, "-o", "whole").stdout
    assert contents("out") == contents("whole")
    assert len(contents("out")) == (count if audio_format == "parquet" else 2 * count)
    assert without_shards(index("out")) == without_shards(index("whole"))
    assert {record["tries"] for record in index("out").values()} == {1, 2}


def test_sound_without_an_index_is_not_removed_unsaid(model, stand_in):
    write(*rows(3))
    job = ["batch", "m.jsonl", "-o", "out", "-m", model]
    assert run(*job).stderr == ""
    whole = contents("out")
    lines = Path("out/index.jsonl").read_text().splitlines(keepends=True)
    Path("out/index.jsonl").unlink()
    assert_refused(run(*job), "out has lost index.jsonl, which tells what is finished: restore it, or choose another")
    assert contents("out") == whole
    # As a kill leaves it between the files of two items and their lines.
    Path("out/index.jsonl").write_text(lines[0])
    again = run(*job)
    assert again.stderr == "removed files of 2 items that index.jsonl does not list as finished\n"
    assert "1 were finished before" in again.stdout
    assert contents("out") == whole


def without_shards(records: dict[str, dict]) -> dict[str, dict]:
    """In which shard an item lies depends on when it was finished."""
    return {
        name: {key: value for key, value in record.items() if key != "file" or not value.startswith("data/")}
        for name, record in records.items()
    }


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_is_finished(model, number, status):
    write(*rows(200))
    process = start_stand_in(model, "out", "--batch-size", "5")
    wait_for_items(process, 3)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == status
    assert stdout == b""
    assert b"Traceback" not in stderr
    finished = len(index())
    assert 3 <= finished < 200
    assert stderr.decode() == (
        f"interrupted; {finished} of 200 items are finished, and the same command resumes from there\n"
    )


def test_the_speech_of_a_killed_job_is_that_of_a_whole_one(model):
    """With the true model, and the rest of the manifest in another order."""
    write(*rows(7))
    options = ["-m", model, "--batch-size", "2", "--save-codes"]
    process = start("batch", "m.jsonl", "-o", "out", *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_items(process, 1)
    process.kill()
    process.wait()
    before = contents("out")
    finished = len(index())
    assert 1 <= finished < 7
    write(*rows(7)[::-1])
    result = run("batch", "m.jsonl", "-o", "out", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert f"{finished} were finished before" in result.stdout
    assert run("batch", "m.jsonl", "-o", "whole", *options).exit_code == 0
    whole = contents("whole")
    assert contents("out") == whole
    assert before.items() <= whole.items()
    assert len(whole) == 14
    assert index("out") == index("whole")
