"""The folder of a batch job: what is finished in it, what may not change, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import audio, voice_file
from qwen3_tts_jax.batch import index as batch_index
from qwen3_tts_jax.batch import settings as batch_settings
from qwen3_tts_jax.batch.folder import JobFolder
from qwen3_tts_jax.batch.manifest import BadLine, Item
from qwen3_tts_jax.batch.plan import Task, plan
from qwen3_tts_jax.batch.settings import FolderError
from qwen3_tts_jax.batch.writer import Writer
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.shapes import SMALL
from tests.stand_in import items, result_of

CUSTOM, BASE = (SMALL[f"1.7B-{name}"] for name in ("CustomVoice", "Base"))
SETTINGS = {"seed": 0, "sampling": {"talker": {"top_k": 50}}}


@pytest.fixture
def tasks(tokenizer) -> list[Task]:
    return plan(items(4), CUSTOM, tokenizer, 0)[0]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_what_a_finished_item_leaves(tmp_path, tasks):
    folder = tmp_path / "out"
    result = replace(result_of(tasks[0]), seed=9, tries=2)
    codes = result.speech.codes
    with JobFolder(folder, "flac", save_codes=True) as job:
        job.begin(SETTINGS, tasks, [BadLine(9, None, "is not JSON")])
        job.add([result])
        job.add([replace(result_of(tasks[1]), speech=None, reason="why")])
        job.finish()
    done = {
        "id": "i0", "status": "done", "file": "i0.flac", "seconds": len(codes) * 12 / 24_000, "frames": len(codes),
        "finish_reason": "stop", "seed": 9, "tries": 2, "codes": "codes/i0.npy",
    }  # fmt: skip
    assert lines(folder) == [
        {"id": None, "line": 9, "status": "bad", "reason": "is not JSON"},
        done,
        {"id": "i1", "status": "failed", "reason": "why"},
    ]
    samples, rate = soundfile.read(folder / "i0.flac")
    np.testing.assert_allclose(samples, result.speech.samples, atol=1e-4)
    assert rate == 24_000
    found = np.load(folder / "codes/i0.npy")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, codes)
    # What is bad or failed is no longer true of the next job, until it is found again.
    with JobFolder(folder, "flac", save_codes=True) as job:
        job.begin(SETTINGS, tasks)
        assert job.finished == {"i0": done}
    assert lines(folder) == [done]


def begun(folder: Path, tasks: list[Task], finished: int = 2, **options) -> None:
    with JobFolder(folder, **options) as job:
        job.begin(SETTINGS, tasks)
        job.add(list(map(result_of, tasks[:finished])))


def test_settled_items_need_no_task(tmp_path, tasks):
    folder = tmp_path / "out"
    assert JobFolder(folder).settled() == {}
    begun(folder, tasks, finished=2)
    settled = JobFolder(folder).settled()
    assert list(settled) == ["i0", "i1"]
    assert settled["i1"].identity == tasks[1].identity
    assert settled["i1"].source == tasks[1].source
    with JobFolder(folder) as job:
        job.begin(SETTINGS, tasks[2:], unchanged=settled)
        assert list(job.finished) == ["i0", "i1"]
    # They are still known, and still told from others.
    assert JobFolder(folder).settled() == settled
    with JobFolder(folder) as job, pytest.raises(FolderError, match="i1 is not in the manifest"):
        job.begin(SETTINGS, tasks[2:], unchanged={"i0": settled["i0"]})
    (folder / "i0.wav").unlink()
    with JobFolder(folder) as job, pytest.raises(FolderError, match=r"files of i0 .* were removed"):
        job.begin(SETTINGS, tasks[2:], unchanged=settled)


@pytest.mark.parametrize(
    "torn", [b'{"id": "i2", "status": "do', b'{"id": "i2"', b"\xff\x00", b'{"id": "i2", "st\n', b"[]\n"]
)
def test_a_torn_line_counts_for_nothing_and_is_repaired(tmp_path, tasks, torn):
    begun(tmp_path / "out", tasks)
    index = tmp_path / "out/index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole + torn)
    with JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, tasks)
        assert list(job.finished) == ["i0", "i1"]
        assert index.read_bytes() == whole
        job.add([result_of(tasks[2])])
    assert [line["id"] for line in lines(tmp_path / "out")] == ["i0", "i1", "i2"]
    # A whole line without its end is not finished either: what comes next would be written behind it.
    index.write_bytes(index.read_bytes()[:-1])
    with JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, tasks)
        assert list(job.finished) == ["i0", "i1"]


def test_an_item_without_its_files_is_not_finished(tmp_path, tasks):
    begun(tmp_path / "out", tasks, 3, save_codes=True)
    (tmp_path / "out/i0.wav").unlink()
    (tmp_path / "out/codes/i1.npy").unlink()
    with JobFolder(tmp_path / "out", save_codes=True) as job:
        job.begin(SETTINGS, tasks)
        assert list(job.finished) == ["i2"]


def test_what_was_half_written_is_removed(tmp_path, tasks):
    begun(tmp_path / "out", tasks, save_codes=True)
    partial = "." + "0f" * 16 + ".partial"
    for folder in ("out", "out/codes"):
        (tmp_path / folder / partial).write_text("half")
    (tmp_path / "out/.mine").write_text("kept")
    with JobFolder(tmp_path / "out", save_codes=True) as job:
        job.begin(SETTINGS, tasks)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", ".mine", "codes", "i0.wav", "i1.wav", "index.jsonl", "job.json"
    ]  # fmt: skip
    assert len(list((tmp_path / "out/codes").iterdir())) == 2


@pytest.mark.parametrize("later", ["wav", "parquet"])
@pytest.mark.parametrize("first", ["wav", "parquet"])
def test_what_another_job_had_not_finished_is_removed(tmp_path, tasks, first, later):
    """Killed between the files of its first item and their line, it became one of other settings."""
    folder = tmp_path / "out"
    begun(folder, tasks, 2, audio_format=first, save_codes=True)
    (folder / "index.jsonl").write_text("")
    (folder / "mine.wav").write_text("kept")
    with JobFolder(folder, audio_format=later) as job:
        job.begin({"seed": 1}, tasks[2:])
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        ".lock", "index.jsonl", "job.json", "mine.wav"
    }  # fmt: skip


@pytest.mark.parametrize("lost", ["all", "rest"])
@pytest.mark.parametrize("audio_format", ["wav", "parquet"])
def test_an_index_that_lost_more_lines_than_a_kill_explains(tmp_path, tokenizer, audio_format, lost):
    folder, options = tmp_path / "out", {"audio_format": audio_format, "shard_items": 50}
    tasks, _ = plan(items(100), CUSTOM, tokenizer, 0)
    begun(folder, tasks, 100, **options)
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(b"" if lost == "all" else b"".join(whole.splitlines(keepends=True)[:20]))
    found = "2 shards" if audio_format == "parquet" else f"files of {100 if lost == 'all' else 80} items"
    for settings in (SETTINGS, {"seed": 1}) if lost == "all" else (SETTINGS,):
        message = refused(folder, settings, tasks, **options)
        assert f"{folder} holds {found} that index.jsonl does not list as finished, more than" in message
    index.write_bytes(whole)
    with JobFolder(folder, **options) as job:
        job.begin(SETTINGS, tasks)
        assert (len(job.finished), job.removed) == (100, 0)


def test_a_kill_between_a_shard_and_its_line(tmp_path, tasks, monkeypatch):
    folder, options = tmp_path / "out", {"audio_format": "parquet", "shard_items": 2}
    append = batch_index.append

    def killed(path: Path, *records: dict) -> None:
        if records[0]["status"] == "shard":
            raise KeyboardInterrupt
        append(path, *records)

    with monkeypatch.context() as patch:
        patch.setattr(batch_index, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            begun(folder, tasks, 2, **options)
    assert (folder / "data/train-00000.parquet").exists()
    begun(folder, tasks, 0, **options)
    assert [(line.get("id"), line["file"]) for line in lines(folder)[2:]] == [(None, "data/train-00000.parquet")]
    assert not list((folder / "spool").iterdir())


def test_a_killed_first_begin(tmp_path, tasks, monkeypatch):
    """Whatever it had written, it is no lost job; and there is no moment with job.json alone."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for module, name in ((batch_settings, "write"), (batch_index, "rewrite")):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                begun(folder, tasks, audio_format="parquet", save_codes=True)
        begun(folder, tasks, audio_format="parquet", save_codes=True)
        assert len(lines(folder)) == 2


def test_sound_without_a_job(tmp_path, tasks):
    """What a job that lost all it knows has made."""
    folder, options = tmp_path / "out", {"audio_format": "parquet", "shard_items": 2}
    begun(folder, tasks, 3, **options)
    index = (folder / "index.jsonl").read_bytes()
    (folder / "job.json").unlink()
    assert "holds no job but other files, such as data" in refused(folder, SETTINGS, tasks, **options)
    (folder / "index.jsonl").unlink()
    assert "holds no job but other files, such as data" in refused(folder, SETTINGS, tasks, **options)
    (folder / "data/train-00000.parquet").unlink()
    (folder / "spool/i2.flac").unlink()
    (folder / "index.jsonl").write_bytes(index)
    assert "holds no job but other files, such as index.jsonl" in refused(folder, SETTINGS, tasks, **options)


def test_a_finished_item_in_another_format_is_the_users(tmp_path, tasks):
    begun(tmp_path / "out", tasks, 2)
    (tmp_path / "out/i0.flac").write_text("kept")
    begun(tmp_path / "out", tasks, 0)
    assert (tmp_path / "out/i0.flac").exists()


def test_an_item_that_was_converted_by_hand_is_the_users(tmp_path, tasks):
    """The job makes it again, in its own format."""
    begun(tmp_path / "out", tasks, 2)
    (tmp_path / "out/i0.wav").rename(tmp_path / "out/i0.flac")
    with JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, tasks)
        assert (list(job.finished), job.removed) == (["i1"], 0)
    assert (tmp_path / "out/i0.flac").exists()


def test_only_a_job_of_shards_has_folders_of_shards(tmp_path, tasks):
    folder = tmp_path / "out"
    begun(folder, tasks, 1)
    (folder / "data").mkdir()
    (folder / "data" / "mine.parquet").write_text("kept")
    with JobFolder(folder) as job:
        job.begin(SETTINGS, tasks)
    assert (folder / "data" / "mine.parquet").exists()


def test_a_finished_item_whose_line_is_skipped(tmp_path, tasks):
    begun(tmp_path / "out", tasks, 2)
    message = r"1 finished item .*: i1: the reference cannot be read; use"
    with pytest.raises(FolderError, match=message), JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, [tasks[0], *tasks[2:]], [BadLine(2, "i1", "the reference cannot be read")])


def refused(folder: Path, settings: dict, tasks: list[Task], **options) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FolderError) as error, JobFolder(folder, **options) as job:
        job.begin(settings, tasks)
    assert {path: path.read_bytes() for path in before} == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_settings_are_named(tmp_path, tasks):
    folder = tmp_path / "out"
    begun(folder, tasks)
    other = {"seed": 1, "sampling": {"talker": {"top_k": 7}}}
    message = refused(folder, other, tasks)
    assert "other settings: seed was 0, is 1; sampling.talker.top_k was 50, is 7; use the same" in message
    assert 'format was "wav", is "flac"' in refused(folder, SETTINGS, tasks, audio_format="flac")
    assert "codes saved was false, is true" in refused(folder, SETTINGS, tasks, save_codes=True)


def test_a_job_that_finished_nothing_may_become_another(tmp_path, tasks):
    begun(tmp_path / "out", tasks, 0)
    with JobFolder(tmp_path / "out") as job:
        job.begin({"seed": 1}, tasks[:1])
        job.add([result_of(tasks[0])])
    assert "seed was 1, is 0" in refused(tmp_path / "out", SETTINGS, tasks)


def test_a_manifest_may_change_where_nothing_is_finished(tmp_path, tasks, tokenizer):
    folder = tmp_path / "out"
    begun(folder, tasks[:3])
    changed = [replace(item, text="Other.") if item.id in ("i0", "i2") else item for item in items(4)]
    other, _ = plan(changed, CUSTOM, tokenizer, 0)
    message = refused(folder, SETTINGS, other)
    assert 'i0: text was "A word. ", is "Other."; use another' in message
    assert "i2" not in message
    assert "2 finished items of" in refused(folder, SETTINGS, other[2:])
    assert "i1 is not in the manifest" in refused(folder, SETTINGS, [tasks[0], *tasks[2:]])
    # i2 changed and i3 is new, but neither was finished.
    with JobFolder(folder) as job:
        job.begin(SETTINGS, [*tasks[:2], *other[2:]])
        assert list(job.finished) == ["i0", "i1"]
        job.add([result_of(other[2])])
    assert "i2: text was" in refused(folder, SETTINGS, tasks)


def test_a_voice_file_that_changed(tmp_path, tokenizer):
    path = tmp_path / "v.safetensors"
    found = []
    for level in (1, 2):
        voice_file.save(VoicePrompt(np.full(56, level, np.float32)), path)
        found.append(plan([Item(1, "a", "Hi.", voice=str(path))], BASE, tokenizer, 0)[0])
    begun(tmp_path / "out", found[0], 1)
    assert "a: voice was" in refused(tmp_path / "out", SETTINGS, found[1])


def test_folders_that_are_no_place_for_a_job(tmp_path, tasks):
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/i0.wav").write_text("mine")
    assert "is a file, not a folder" in refused(tmp_path / "file", SETTINGS, tasks)
    assert "holds no job but other files, such as i0.wav" in refused(tmp_path / "foreign", SETTINGS, tasks)
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["i0.wav"]
    assert "does not exist; create it first" in refused(tmp_path / "no/out", SETTINGS, tasks)
    begun(tmp_path / "out", tasks)
    job = tmp_path / "out/job.json"
    whole = job.read_text()
    job.write_text(whole[: len(whole) // 2])
    assert "job.json is damaged" in refused(tmp_path / "out", SETTINGS, tasks)
    job.write_text(whole.replace('"version": 3', '"version": 4'))
    assert "job.json has version 4" in refused(tmp_path / "out", SETTINGS, tasks)


def test_one_that_cannot_be_written_takes_no_other_with_it(tmp_path, tasks):
    folder = tmp_path / "out"
    with JobFolder(folder) as job:
        job.begin(SETTINGS, tasks)
        (folder / "i1.wav").mkdir()
        with pytest.raises(FolderError, match=r"cannot write .*i1.wav"):
            job.add(list(map(result_of, tasks)))
        assert list(job.finished) == ["i0", "i2", "i3"]
    assert [line["id"] for line in lines(folder)] == ["i0", "i2", "i3"]


def test_a_second_job_is_kept_out(tmp_path, tasks):
    with JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, tasks)
        message = refused(tmp_path / "out", SETTINGS, tasks)
        assert f"another process ({os.getpid()}) is at work in {tmp_path / 'out'}: wait for it" in message
    begun(tmp_path / "out", tasks)


@pytest.mark.parametrize("fails", ["audio", "codes", "index"])
def test_a_disk_that_is_full_loses_nothing(tmp_path, tasks, monkeypatch, fails):
    folder = tmp_path / "out"
    begun(folder, tasks, save_codes=True)
    before = lines(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with JobFolder(folder, save_codes=True) as job:
        job.begin(SETTINGS, tasks)
        with monkeypatch.context() as patch:
            if fails == "audio":
                patch.setattr(Path, "write_bytes", full)
            elif fails == "codes":
                patch.setattr(np, "save", full)
            else:
                patch.setattr(batch_index, "append", full)
            name = "index.jsonl" if fails == "index" else "i2.wav"
            with pytest.raises(FolderError, match=rf"cannot write .*{name}: No space left on device"):
                job.add([result_of(tasks[2])])
        assert "i2" not in job.finished
    assert lines(folder) == before
    assert [path for path in folder.rglob("*.partial")] == []
    begun(folder, tasks, 3, save_codes=True)
    assert {line["id"] for line in lines(folder)} == {"i0", "i1", "i2"}


def test_results_are_written_while_others_are_made(tmp_path, tasks):
    folder = tmp_path / "out"
    with JobFolder(folder) as job, Writer(job) as writer:
        job.begin(SETTINGS, tasks)
        writer.put(result_of(tasks[0]))
        while not lines(folder):
            time.sleep(0.01)

    def interrupted():
        with JobFolder(folder) as job, Writer(job) as writer:
            job.begin(SETTINGS, tasks)
            writer.put(result_of(tasks[1]))
            raise KeyboardInterrupt

    # What was put is written, whatever comes then.
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [line["id"] for line in lines(folder)] == ["i0", "i1"]


def test_what_waits_is_written_in_groups_that_a_kill_explains(tmp_path, tasks, monkeypatch):
    counts = []

    def slow(_: JobFolder, results: list) -> None:
        counts.append(len(results))
        time.sleep(0.1)

    monkeypatch.setattr(JobFolder, "add", slow)
    # As if there were always one more.
    monkeypatch.setattr("qwen3_tts_jax.batch.writer.Queue", lambda _: Queue())
    result = result_of(tasks[0])
    with JobFolder(tmp_path / "out") as job, Writer(job) as writer:
        for _ in range(200):
            writer.put(result)
    assert sum(counts) == 200
    assert max(counts) == 64


@pytest.mark.parametrize("count", [1, 10_000])
def test_what_goes_wrong_while_others_are_made(tmp_path, tasks, monkeypatch, count):
    def write():
        with JobFolder(tmp_path / "out") as job, Writer(job) as writer:
            job.begin(SETTINGS, tasks)
            for number in range(count):
                # It is not found out only at the end.
                assert number < 1000
                writer.put(result_of(tasks[2]))
                time.sleep(0.001)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio, "write", full)
    with pytest.raises(FolderError, match=r"i2.wav: No space left"):
        write()
    assert lines(tmp_path / "out") == []
