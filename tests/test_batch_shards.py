"""A batch job of Parquet shards: what is in them, that Hugging Face `datasets` opens them, and interruptions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax.batch import index as batch_index
from qwen3_tts_jax.batch import shards as batch_shards
from qwen3_tts_jax.batch.folder import JobFolder
from qwen3_tts_jax.batch.manifest import BadLine
from qwen3_tts_jax.batch.plan import Task, plan
from qwen3_tts_jax.batch.settings import FolderError
from tests.shapes import SMALL
from tests.stand_in import items, result_of

parquet = pytest.importorskip("pyarrow.parquet")

COUNT, PER_SHARD = 8, 3


@pytest.fixture
def tasks(tokenizer) -> list[Task]:
    return plan(items(COUNT), SMALL["1.7B-CustomVoice"], tokenizer, 0)[0]


def open_folder(folder: Path) -> JobFolder:
    return JobFolder(folder, "parquet", save_codes=True, shard_items=PER_SHARD)


def work(folder: Path, tasks: list[Task], count: int = COUNT) -> None:
    """Goes on with a job until `count` items are finished, and to the end if that is all."""
    with open_folder(folder) as job:
        job.begin({"seed": 0}, tasks)
        left = [task for task in tasks if task.id not in job.finished]
        for task in left[: count - len(job.finished)]:
            job.add([result_of(task)])
        if count == COUNT:
            job.finish()


def shards(folder: Path) -> dict[str, list[dict]]:
    return {path.name: parquet.read_table(path).to_pylist() for path in sorted((folder / "data").iterdir())}


def records(folder: Path) -> dict[str, dict]:
    return batch_index.read(folder / "index.jsonl")


def assert_whole(folder: Path, tasks: list[Task]) -> None:
    """Every item is in one shard once, the index knows which, and nothing else is left."""
    found = shards(folder)
    where = {row["id"]: name for name, rows in found.items() for row in rows}
    rows = {row["id"]: row for rows in found.values() for row in rows}
    assert sum(map(len, found.values())) == COUNT
    assert list(found) == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    assert set(rows) == {task.id for task in tasks}
    for task in tasks:
        row, speech = rows[task.id], result_of(task).speech
        assert row["text"] == task.request.text
        np.testing.assert_array_equal(row["codes"], speech.codes)
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        np.testing.assert_allclose(samples, speech.samples, atol=1e-4)
        assert rate == 24_000
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert {record["id"]: record["file"] for record in index} == {name: f"data/{at}" for name, at in where.items()}
    assert len(index) == COUNT
    assert list((folder / "spool").iterdir()) == []


def test_what_is_in_a_shard(tmp_path, tasks):
    work(tmp_path / "out", tasks)
    assert_whole(tmp_path / "out", tasks)
    found = shards(tmp_path / "out")
    assert [len(rows) for rows in found.values()] == [3, 3, 2]
    row = found["train-00000.parquet"][1]
    speech = result_of(tasks[1]).speech
    assert {name: value for name, value in row.items() if name not in ("audio", "codes")} == {
        "id": "i1", "text": "A word. A word. ", "language": "auto", "speaker": "ryan", "instruct": None,
        "finish_reason": "stop", "seconds": round(speech.seconds, 6), "frames": len(speech.codes), "seed": 0,
        "tries": 1,
    }  # fmt: skip
    assert row["audio"]["path"] == "i1.flac"
    schema = parquet.read_schema(tmp_path / "out/data/train-00000.parquet")
    assert str(schema.field("codes").type) == "list<element: list<element: int16>>"


def test_items_of_the_spool_need_no_task(tmp_path, tasks):
    """Their shard is made from what job.json has of them."""
    work(tmp_path / "out", tasks, PER_SHARD + 1)
    settled = open_folder(tmp_path / "out").settled()
    assert list(settled) == [task.id for task in tasks[: PER_SHARD + 1]]
    with open_folder(tmp_path / "out") as job:
        job.begin({"seed": 0}, tasks[PER_SHARD + 1 :], unchanged=settled)
        for task in tasks[PER_SHARD + 1 :]:
            job.add([result_of(task)])
        job.finish()
    assert_whole(tmp_path / "out", tasks)


def test_a_group_of_rows_ends_before_it_is_too_large_to_read(tmp_path, monkeypatch):
    columns = dict.fromkeys(("text", "language", "speaker", "instruct", "finish_reason", "seconds"))
    numbers = {"frames": 1, "seed": 0, "tries": 1}
    rows = [
        {"id": f"i{i}", "audio": {"bytes": bytes(size), "path": "a.flac"}, **columns, **numbers}
        for i, size in enumerate((10, 90, 30, 200, 50, 20))
    ]
    monkeypatch.setattr(batch_shards, "_GROUP_BYTES", 100)
    batch_shards.write(tmp_path / "a.parquet", rows, 24_000, with_codes=False)
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    groups = [file.read_row_group(i, ["id"]).column("id").to_pylist() for i in range(file.num_row_groups)]
    assert groups == [["i0", "i1"], ["i2", "i3"], ["i4", "i5"]]


def test_shards_are_written_as_they_are_full_and_gone_on_with(tmp_path, tasks):
    folder = tmp_path / "out"
    for count, full in ((2, 0), (4, 1), (5, 1), (7, 2)):
        work(folder, tasks, count)
        assert [len(rows) for rows in shards(folder).values()] == [PER_SHARD] * full
        assert len(records(folder)) == count
        assert len(list((folder / "spool").iterdir())) == 2 * (count - PER_SHARD * full)
    work(folder, tasks)
    assert_whole(folder, tasks)
    # A shard that is lost is made again, and one that comes later has a name of its own.
    (folder / "data/train-00000.parquet").unlink()
    work(folder, tasks)
    assert sorted(name for name in shards(folder)) == [f"train-0000{n}.parquet" for n in (1, 2, 3)]
    assert len(records(folder)) == COUNT


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["spooled", "shard", "line", "one removed"])
def test_a_kill_while_a_shard_is_made(tmp_path, tasks, monkeypatch, moment):
    folder = tmp_path / "out"
    append, unlink = batch_index.append, Path.unlink
    shard_lines = removed = 0

    def appending(path, record):
        nonlocal shard_lines
        if record["status"] == "shard":
            shard_lines += 1
            if moment == "shard":
                raise Killed
            append(path, record)
            if moment == "line":
                raise Killed
        else:
            append(path, record)

    def unlinking(path, missing_ok=False):
        nonlocal removed
        unlink(path, missing_ok)
        if path.parent.name == "spool" and path.suffix in (".flac", ".npy"):
            removed += 1
            if moment == "one removed":
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(batch_index, "append", appending)
        patch.setattr(Path, "unlink", unlinking)
        if moment == "spooled":
            patch.setattr(JobFolder, "_write_shard", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            work(folder, tasks)
    assert len(records(folder)) == PER_SHARD
    assert (shard_lines, removed) == {"spooled": (0, 0), "shard": (1, 0), "line": (1, 0), "one removed": (1, 1)}[moment]
    work(folder, tasks)
    assert_whole(folder, tasks)


def test_a_disk_that_is_full_loses_nothing(tmp_path, tasks, monkeypatch):
    folder = tmp_path / "out"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter, "write_table", full)
        with pytest.raises(FolderError, match=r"cannot write .*train-00000.parquet: No space left on device"):
            work(folder, tasks)
    assert len(records(folder)) == PER_SHARD
    assert list((folder / "data").iterdir()) == []
    work(folder, tasks)
    assert_whole(folder, tasks)


def test_lines_that_are_bad_or_failed_stay_in_the_index(tmp_path, tasks):
    with open_folder(tmp_path / "out") as job:
        job.begin({"seed": 0}, tasks, [BadLine(9, None, "is not JSON")])
        job.add([result_of(tasks[0]), replace(result_of(tasks[1]), speech=None, reason="why")])
        job.finish()
    lines = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [(line["id"], line["status"]) for line in lines] == [("i0", "done"), (None, "bad"), ("i1", "failed")]
    assert lines[0]["file"] == "data/train-00000.parquet"


# In a process of its own: the package warns of much.
_PROGRAM = """
import io, json, sys
import soundfile
from datasets import Audio, load_dataset

for source in ({"path": "parquet", "data_files": sys.argv[1] + "/data/*.parquet"}, {"path": sys.argv[1]}):
    dataset = load_dataset(**source, split="train", cache_dir=sys.argv[2])
    feature = dataset.features["audio"]
    assert isinstance(feature, Audio) and feature.sampling_rate == 24_000, feature
    rows = list(dataset.cast_column("audio", Audio(decode=False)))
    sounds = {row["id"]: soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0].tolist() for row in rows}
    try:
        decoded = {row["id"]: row["audio"]["array"].tolist() for row in dataset}
    except ImportError as error:
        print(f"not decoded: {error}", file=sys.stderr)
    else:
        assert decoded == sounds
    codes = {row["id"]: row["codes"] for row in rows}
    print(json.dumps({"sounds": sounds, "codes": codes}))
"""


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs the package datasets")
def test_datasets_open_them_as_sound(tmp_path, tasks):
    work(tmp_path / "out", tasks)
    command = [sys.executable, "-c", _PROGRAM, tmp_path / "out", tmp_path / "cache"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    both = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(both) == 2
    for found in both:
        assert set(found["sounds"]) == set(found["codes"]) == {task.id for task in tasks}
        for task in tasks:
            speech = result_of(task).speech
            np.testing.assert_allclose(found["sounds"][task.id], speech.samples, atol=1e-4)
            np.testing.assert_array_equal(found["codes"][task.id], speech.codes)
