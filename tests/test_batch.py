"""The batch job beneath its command: what items are planned, how they are batched, and the folder of a job."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import Qwen3TTS, Request, batch, voice_file
from qwen3_tts_jax.batch_folder import FolderError, JobFolder
from qwen3_tts_jax.generate import generate_chunk, prefill_compiled
from qwen3_tts_jax.manifest import BadLine, Item
from qwen3_tts_jax.synthesis import Speech, codec_step
from qwen3_tts_jax.text import TextTokenizer
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.command import one_layer, write_model, write_recording
from tests.shapes import SMALL

CUSTOM, DESIGN, BASE = (SMALL[f"1.7B-{name}"] for name in ("CustomVoice", "VoiceDesign", "Base"))
SETTINGS = {"seed": 0, "sampling": {"talker": {"top_k": 50}}}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder)


def items(count: int) -> list[Item]:
    return [Item(i + 1, f"i{i}", "A word. " * (1 + i % 4), max_seconds=0.5, speaker="ryan") for i in range(count)]


# Plans.


def test_limits_grow_with_the_text(tokenizer):
    given = [
        Item(1, "a", "Good morning."),
        Item(2, "b", "Good morning, good morning."),
        Item(3, "c", "Hi.", max_seconds=0.1),
    ]
    a, b, c = batch.plan(given, CUSTOM, tokenizer, 0)[0]
    assert (a.text_tokens, b.text_tokens) == (3, 6)
    assert (a.request.max_frames, b.request.max_frames) == (25 + 8 * 3, 25 + 8 * 6)
    assert c.request.max_frames == int(0.1 * CUSTOM.codec.frame_rate)
    (cut,), _ = batch.plan(given[:1], replace(CUSTOM, max_new_tokens=40), tokenizer, 0)
    assert cut.request.max_frames == 39
    a, _, c = batch.plan(given, CUSTOM, tokenizer, 0, max_seconds=0.2)[0]
    assert a.request.max_frames == int(0.2 * CUSTOM.codec.frame_rate)
    assert c.request.max_frames == int(0.1 * CUSTOM.codec.frame_rate)
    (endless,), _ = batch.plan([Item(1, "a", "Hi.", max_seconds=1e308)], CUSTOM, tokenizer, 0)
    assert endless.request.max_frames == CUSTOM.talker.max_positions


def test_defaults_of_the_kinds_of_models(tokenizer, tmp_path):
    voice_file.save(VoicePrompt(np.ones(56, np.float32)), tmp_path / "v.safetensors")
    (custom,), _ = batch.plan([Item(1, "a", "Hi.")], CUSTOM, tokenizer, 5)
    assert (custom.request.speaker, custom.request.text_mode) == (next(iter(CUSTOM.prompt.speakers)), "all_at_once")
    (base,), _ = batch.plan([Item(1, "a", "Hi.", voice=str(tmp_path / "v.safetensors"), seed=3)], BASE, tokenizer, 5)
    assert (base.request.speaker, base.request.text_mode) == (None, "as_it_comes")
    assert (custom.seed, base.seed) == (5, 3)


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        (CUSTOM, {"speaker": "nobody"}, "unknown speaker 'nobody'"),
        (CUSTOM, {"language": "klingon"}, "unknown language 'klingon'"),
        (CUSTOM, {"voice": "v.safetensors"}, "a custom_voice model clones no voices"),
        (CUSTOM, {"text": "word " * 33_000}, "split the text"),
        (DESIGN, {}, "instruct is missing"),
        (DESIGN, {"instruct": "a man", "speaker": "ryan"}, "has no speakers"),
        (BASE, {}, "there is no voice to clone"),
        (BASE, {"voice": "absent.safetensors"}, "there is no voice file absent.safetensors"),
        (BASE, {"voice": "me.wav"}, "me.wav is no voice file"),
        (BASE, {"voice": "narrow.safetensors"}, "x-vector has shape [48]"),
        (BASE, {"reference": "absent.wav", "reference_text": "a"}, "there is no file absent.wav"),
        (BASE, {"reference": "narrow.safetensors", "reference_text": "a"}, "is not audio"),
        (BASE, {"reference": "short.wav", "reference_text": "a"}, "the reference is too short"),
        (BASE, {"reference": "me.wav", "reference_text": "…"}, "has a text without a letter"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_a_model_cannot_speak(tokenizer, tmp_path, monkeypatch, config, fields, reason):
    monkeypatch.chdir(tmp_path)
    write_recording(Path("me.wav"))
    write_recording(Path("short.wav"), 0.3)
    voice_file.save(VoicePrompt(np.ones(48, np.float32)), "narrow.safetensors")
    tasks, bad = batch.plan([Item(4, "x", **({"text": "Hi."} | fields))], config, tokenizer, 0)
    assert tasks == []
    assert [(line.line, line.id) for line in bad] == [(4, "x")]
    assert reason in bad[0].reason
    assert "\n" not in bad[0].reason


def test_a_recording_is_planned_with_as_many_frames_as_the_codec_makes(tokenizer, tmp_path, models):
    model = Qwen3TTS.from_pretrained(models / "1.7B-Base")
    for number, (seconds, rate) in enumerate([(1.0, 16_000), (0.7031, 44_100), (0.6, 24_000)]):
        path = tmp_path / f"{number}.wav"
        write_recording(path, seconds, rate)
        (task,), _ = batch.plan([Item(1, "a", "Hi.", reference=str(path), reference_text="one")], BASE, tokenizer, 0)
        (voice,) = model.create_voice_clone_prompt(str(path), "one")
        assert task.request.voice.codes.shape == voice.codes.shape
        assert task.request.voice.text == "one"


# Numbers and schedules.


def test_utterance_numbers_are_stable_and_of_31_bits():
    # Pinned: another number is other speech of an old manifest.
    assert batch.utterance_number(0, "a") == 1324999421
    assert batch.utterance_number(7, "ü") == 1438972736
    numbers = [batch.utterance_number(0, f"i{i}") for i in range(2000)]
    assert len(set(numbers)) == 2000
    assert 2**30 < max(numbers) < 2**31
    assert min(numbers) >= 0


def test_batches_hold_one_shape_and_similar_lengths(tokenizer):
    texts = ["A word. " * (1 + i % 23) for i in range(40)]
    modes = ("all-at-once", "as-it-comes")
    given = [Item(i + 1, f"i{i}", text, text_mode=modes[i % 2]) for i, text in enumerate(texts)]
    tasks, _ = batch.plan(given, CUSTOM, tokenizer, 0)
    batches = batch.schedule(tasks, 4)
    assert sorted(task.id for tasks in batches for task in tasks) == sorted(item.id for item in given)
    for found in batches:
        assert 1 <= len(found) <= 4
        assert len({task.shape for task in found}) == 1
    assert len({found[0].shape for found in batches}) > 2
    # All batches but the last of each shape are full.
    for found, after in pairwise(batches):
        assert len(found) == 4 or found[0].shape != after[0].shape
    lengths = [task.text_tokens for found in batches for task in found if task.shape == batches[0][0].shape]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(task.text_tokens for task in tasks)
    random.Random(0).shuffle(tasks)
    assert [[task.id for task in found] for found in batch.schedule(tasks, 4)] == [
        [task.id for task in found] for found in batches
    ]


# The real thing.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("1.7B-CustomVoice", "1.7B-Base"):
        write_model(folder, name, tokenizer_folder, eos_boost=1.0)
    return folder


def codes_of(model, tasks, size: int = 3) -> dict[str, np.ndarray]:
    results = list(batch.run(model, tasks, model.config.generation, size))
    assert [result.reason for result in results] == [None] * len(tasks)
    return {result.task.id: result.speech.codes for result in results}


def test_order_and_company_cannot_be_heard(tokenizer, models):
    model = Qwen3TTS.from_pretrained(models / "1.7B-CustomVoice")
    given = [replace(item, max_seconds=None) for item in items(5)]
    tasks, _ = batch.plan([*given, replace(given[1], id="other", seed=9)], model.config, tokenizer, 2)
    whole = codes_of(model, tasks)
    assert len({len(codes) for codes in whole.values()}) > 1
    # The same text in other draws, of another id and another seed.
    assert whole["other"].shape != whole["i1"].shape or (whole["other"] != whole["i1"]).any()
    for part in (tasks[::-1][:4], tasks[2:3], [tasks[5], tasks[0]]):
        for name, codes in codes_of(model, part).items():
            np.testing.assert_array_equal(codes, whole[name])
    other_seed = batch.plan(given, model.config, tokenizer, 3)[0]
    assert any(
        codes.shape != whole[name].shape or (codes != whole[name]).any()
        for name, codes in codes_of(model, other_seed).items()
    )
    alone = model.synthesize([tasks[1].request], seed=0, utterances=[batch.utterance_number(2, "i1")])
    np.testing.assert_array_equal(alone[0].codes, whole["i1"])


def test_filled_batches_are_computed_in_one_shape(models):
    model = Qwen3TTS.from_pretrained(models / "1.7B-CustomVoice")
    request = Request("Hi.", speaker="ryan", max_frames=3)

    def compiled(count: int, **options) -> list[int]:
        model.synthesize([request] * count, batch_size=5, **options)
        return [function._cache_size() for function in (prefill_compiled, generate_chunk, codec_step)]

    whole = compiled(5)
    assert compiled(1, fill=True) == compiled(2, fill=True) == compiled(4, fill=True)
    assert [after - before for before, after in zip(whole, compiled(1, fill=True), strict=True)] == [1, 1, 1]
    with pytest.raises(ValueError, match="2 requests have 1 utterance numbers; give one for each"):
        model.synthesize([request] * 2, utterances=[7])


def test_cloned_voices_and_one_that_is_lost(tokenizer, models, tmp_path, monkeypatch):
    model = Qwen3TTS.from_pretrained(models / "1.7B-Base")
    for name in ("me", "lost", "changed"):
        write_recording(tmp_path / f"{name}.wav")
    (voice,) = model.create_voice_clone_prompt(str(tmp_path / "me.wav"), "one two")
    voice_file.save(voice, tmp_path / "me.safetensors")
    common = {"text": "Hello.", "max_seconds": 0.06, "seed": 1}
    recorded = {"reference": str(tmp_path / "me.wav")}
    given = [
        Item(1, "heard", reference_text="one two", **recorded, **common),
        Item(2, "kept", voice=str(tmp_path / "me.safetensors"), **common),
        Item(3, "alone", x_vector_only=True, **recorded, **common),
        Item(4, "lost", reference=str(tmp_path / "lost.wav"), reference_text="one two", **common),
        Item(5, "changed", reference=str(tmp_path / "changed.wav"), reference_text="one two", **common),
        Item(6, "kept alone", voice=str(tmp_path / "me.safetensors"), x_vector_only=True, **common),
    ]
    tasks, bad = batch.plan(given, model.config, tokenizer, 0)
    assert bad == []
    (tmp_path / "lost.wav").unlink()
    write_recording(tmp_path / "changed.wav", seed=1)
    # One number for all, so that the same voice makes the same codes.
    monkeypatch.setattr(batch, "utterance_number", lambda seed, name: 5)
    results = {result.task.id: result for result in batch.run(model, tasks, model.config.generation, 2)}
    assert "there is no file" in results["lost"].reason
    assert "changed.wav has changed since the job began" in results["changed"].reason
    for pair in (("heard", "kept"), ("alone", "kept alone")):
        a, b = (results[name].speech for name in pair)
        assert 0 < len(a.codes) <= 6
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.samples, b.samples)
    assert results["heard"].speech.samples.shape != results["alone"].speech.samples.shape or (
        np.abs(results["heard"].speech.samples - results["alone"].speech.samples).max() > 1e-3
    )


# Failures.


class Fake:
    """In the place of the model, one whose speech is a function of the utterance's number."""

    params = None

    def __init__(self, bad: str | None = None, silent: str | None = None):
        self.config, self.bad, self.nan, self.sizes = one_layer(CUSTOM), bad, silent, []

    def synthesize(self, requests, sampling, seed, *, batch_size, utterances, fill, progress):
        assert fill
        assert seed == 0
        self.sizes.append(len(requests))
        if any(request.text == self.bad for request in requests):
            raise ValueError("cannot be\nspoken")
        return [
            speech(number, np.nan if request.text == self.nan else 0.25)
            for request, number in zip(requests, utterances, strict=True)
        ]


def speech(number: int = 5, level: float = 0.25) -> Speech:
    codes = np.random.default_rng(number).integers(0, 50, (3, 16), np.int32)
    return Speech(np.full(36, level, np.float32), 24_000, codes, "stop")


def test_an_item_that_fails_takes_no_other_with_it(tokenizer):
    tasks, _ = batch.plan(items(6), CUSTOM, tokenizer, 0)
    model = Fake(bad=tasks[1].request.text, silent=tasks[2].request.text)
    reasons = {result.task.id: result.reason for result in batch.run(model, tasks, CUSTOM.generation, 6)}
    assert reasons == {
        "i0": None, "i1": "cannot be spoken", "i2": "the model made samples that are not finite",
        "i3": None, "i4": None, "i5": "cannot be spoken",
    }  # fmt: skip
    assert model.sizes == [6, 1, 1, 1, 1, 1, 1]


# The folder.


@pytest.fixture
def tasks(tokenizer) -> list[batch.Task]:
    return batch.plan(items(4), CUSTOM, tokenizer, 0)[0]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_what_a_finished_item_leaves(tmp_path, tasks):
    folder = tmp_path / "out"
    with JobFolder(folder, "flac", save_codes=True) as job:
        job.begin(SETTINGS, tasks, [BadLine(9, None, "is not JSON")])
        job.add(tasks[0], speech())
        job.add_failure(tasks[1], "why")
    done = {
        "id": "i0", "status": "done", "file": "i0.flac", "seconds": 36 / 24_000, "frames": 3,
        "finish_reason": "stop", "seed": 0, "codes": "codes/i0.npy",
    }  # fmt: skip
    assert lines(folder) == [
        {"id": None, "line": 9, "status": "bad", "reason": "is not JSON"},
        done,
        {"id": "i1", "status": "failed", "reason": "why"},
    ]
    samples, rate = soundfile.read(folder / "i0.flac")
    np.testing.assert_allclose(samples, 0.25, atol=1e-4)
    assert rate == 24_000
    codes = np.load(folder / "codes/i0.npy")
    assert codes.dtype == np.int16
    np.testing.assert_array_equal(codes, speech().codes)
    # What is bad or failed is no longer true of the next job, until it is found again.
    with JobFolder(folder, "flac", save_codes=True) as job:
        job.begin(SETTINGS, tasks)
        assert job.finished == {"i0": done}
    assert lines(folder) == [done]


def begun(folder: Path, tasks: list[batch.Task], finished: int = 2, **options) -> None:
    with JobFolder(folder, **options) as job:
        job.begin(SETTINGS, tasks)
        for task in tasks[:finished]:
            job.add(task, speech())


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
        job.add(tasks[2], speech())
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


def refused(folder: Path, settings: dict, tasks: list[batch.Task], **options) -> str:
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


def test_a_manifest_may_change_where_nothing_is_finished(tmp_path, tasks, tokenizer):
    folder = tmp_path / "out"
    begun(folder, tasks[:3])
    changed = [replace(item, text="Other.") if item.id in ("i0", "i2") else item for item in items(4)]
    other, _ = batch.plan(changed, CUSTOM, tokenizer, 0)
    message = refused(folder, SETTINGS, other)
    assert 'i0: text was "A word. ", is "Other."; use another' in message
    assert "i2" not in message
    assert "2 finished items of" in refused(folder, SETTINGS, other[2:])
    assert "i1 is not in the manifest" in refused(folder, SETTINGS, [tasks[0], *tasks[2:]])
    # i2 changed and i3 is new, but neither was finished.
    with JobFolder(folder) as job:
        job.begin(SETTINGS, [*tasks[:2], *other[2:]])
        assert list(job.finished) == ["i0", "i1"]
        job.add(other[2], speech())
    assert "i2: text was" in refused(folder, SETTINGS, tasks)


def test_a_voice_file_that_changed(tmp_path, tokenizer):
    path = tmp_path / "v.safetensors"
    found = []
    for level in (1, 2):
        voice_file.save(VoicePrompt(np.full(56, level, np.float32)), path)
        found.append(batch.plan([Item(1, "a", "Hi.", voice=str(path))], BASE, tokenizer, 0)[0])
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
    job.write_text(whole.replace('"version": 1', '"version": 2'))
    assert "job.json has version 2" in refused(tmp_path / "out", SETTINGS, tasks)


def test_a_second_job_is_kept_out(tmp_path, tasks):
    with JobFolder(tmp_path / "out") as job:
        job.begin(SETTINGS, tasks)
        message = refused(tmp_path / "out", SETTINGS, tasks)
        assert f"another job is at work in {tmp_path / 'out'} (process {os.getpid()})" in message
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
                patch.setattr(soundfile.SoundFile, "write", full)
            elif fails == "codes":
                patch.setattr(Path, "replace", full)
            else:
                patch.setattr(JobFolder, "_append", full)
            with pytest.raises(FolderError, match=r"cannot write .*i2.wav: No space left on device"):
                job.add(tasks[2], speech())
        assert "i2" not in job.finished
    assert lines(folder) == before
    assert [path for path in folder.rglob("*.partial")] == []
    begun(folder, tasks, 3, save_codes=True)
    assert {line["id"] for line in lines(folder)} == {"i0", "i1", "i2"}
