"""The batch job beneath its command: company that is not heard, failures, and speech that is made again."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, codec_decoding, decode_state, generate, voice_file, voices
from qwen3_tts_jax.batch import speak
from qwen3_tts_jax.batch.manifest import Item
from qwen3_tts_jax.batch.plan import Reference, Task, plan
from qwen3_tts_jax.prompt import MAX_SEED
from qwen3_tts_jax.speech import Speech
from tests.command import write_models, write_recording
from tests.shapes import SMALL
from tests.stand_in import StandIn, items, speech_of

CUSTOM = SMALL["1.7B-CustomVoice"]


def test_utterance_numbers_are_stable_and_of_31_bits():
    # Pinned: another number is other speech of an old manifest.
    assert speak.utterance_number(0, "a") == 1324999421
    assert speak.utterance_number(7, "ü") == 1438972736
    numbers = [speak.utterance_number(0, f"i{i}") for i in range(2000)]
    assert len(set(numbers)) == 2000
    assert 2**30 < max(numbers) < 2**31
    assert min(numbers) >= 0


# The real thing.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_models(
        tmp_path_factory.mktemp("models"), tokenizer_folder, "1.7B-CustomVoice", "1.7B-Base", eos_boost=1.0
    )


def programs() -> list[int]:
    compiled = (
        generate.prefill_compiled,
        decode_state.insert_compiled,
        generate.generate_chunk,
        codec_decoding.codec_step,
    )
    return [function._cache_size() for function in compiled]


def codes_of(model, tasks, size: int = 3) -> dict[str, np.ndarray]:
    results = list(speak.run(model, tasks, model.config.generation, size))
    assert [result.reason for result in results] == [None] * len(tasks)
    return {result.task.id: result.speech.codes for result in results}


def test_order_and_company_cannot_be_heard(tokenizer, models):
    model = Qwen3TTS.from_pretrained(models / "1.7B-CustomVoice")
    given = [replace(item, max_seconds=None) for item in items(5)]
    tasks, _ = plan([*given, replace(given[1], id="other", seed=9)], model.config, tokenizer, 2)
    whole = codes_of(model, tasks)
    assert len({len(codes) for codes in whole.values()}) > 1
    # The same text in other draws, of another id and another seed.
    assert whole["other"].shape != whole["i1"].shape or (whole["other"] != whole["i1"]).any()
    assert len(speak.schedule(tasks)) > 1
    compiled = programs()
    for part in (tasks[::-1][:4], tasks[2:3], [tasks[5], tasks[0]]):
        for name, codes in codes_of(model, part).items():
            np.testing.assert_array_equal(codes, whole[name])
    # What is left of a size is computed in its shapes.
    assert programs() == compiled
    other_seed = plan(given, model.config, tokenizer, 3)[0]
    assert any(
        codes.shape != whole[name].shape or (codes != whole[name]).any()
        for name, codes in codes_of(model, other_seed).items()
    )
    alone = model.synthesize([tasks[1].request], seed=0, utterances=[speak.utterance_number(2, "i1")])
    np.testing.assert_array_equal(alone[0].codes, whole["i1"])


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
    tasks, bad = plan(given, model.config, tokenizer, 0)
    assert bad == []
    (tmp_path / "lost.wav").unlink()
    write_recording(tmp_path / "changed.wav", seed=1)
    # One number for all, so that the same voice makes the same codes.
    monkeypatch.setattr(speak, "utterance_number", lambda seed, name: 5)
    results = {result.task.id: result for result in speak.run(model, tasks, model.config.generation, 2)}
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


# Failures and retries.


@pytest.fixture
def stand_in(models: Path) -> StandIn:
    return StandIn(models / "1.7B-CustomVoice")


def test_an_item_that_fails_takes_no_other_with_it(tokenizer, stand_in):
    given = [*items(6), Item(7, "nan", "NaN", max_seconds=0.5)]
    tasks, _ = plan(given, CUSTOM, tokenizer, 0)
    stand_in.refused = tasks[1].request.text
    results = list(speak.run(stand_in, tasks, CUSTOM.generation, 3))
    assert {result.task.id: result.reason for result in results} == {
        "i0": None, "i1": "cannot be spoken", "i2": None, "i3": None, "i4": None, "i5": "cannot be spoken",
        "nan": "the model made samples that are not finite",
    }  # fmt: skip
    assert all((result.speech is None) == (result.reason is not None) for result in results)
    # All in one call, then each in its own.
    assert [len(texts) for texts in stand_in.calls] == [7, 1, 1, 1, 1, 1, 1, 1]


def test_a_lack_of_memory_ends_the_job_with_advice(tokenizer, stand_in, monkeypatch):
    def failing(message: str):
        def synthesize_each(*_, **__):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(stand_in, "synthesize_each", synthesize_each)
        tasks, _ = plan(items(2), CUSTOM, tokenizer, 0)
        return lambda: list(speak.run(stand_in, tasks, CUSTOM.generation, 3))

    with pytest.raises(speak.JobError, match="not enough memory for a batch of 3: choose a smaller --batch-size"):
        failing("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.")()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        failing("INTERNAL: other")()


def test_a_group_is_spoken_in_parts_of_bounded_size(tokenizer, stand_in, monkeypatch):
    monkeypatch.setattr(speak, "_FEWEST", 5)
    monkeypatch.setattr(speak, "_ROUNDS", 2)
    tasks, _ = plan(items(13), CUSTOM, tokenizer, 0)
    for batch_size, counts in ((2, [5, 5, 3]), (4, [8, 5])):
        stand_in.calls.clear()
        results = list(speak.run(stand_in, tasks, CUSTOM.generation, batch_size))
        assert sorted(result.task.id for result in results) == sorted(task.id for task in tasks)
        assert [len(texts) for texts in stand_in.calls] == counts


def test_few_recordings_are_heard_before_the_first_of_them_speaks(tokenizer, stand_in, monkeypatch):
    monkeypatch.setattr(speak, "_FEWEST", 100)
    monkeypatch.setattr(speak, "_ROUNDS", 2)
    heard = []

    def make_voices(params, config, recordings, texts):
        heard.append(recordings)
        return [None]

    monkeypatch.setattr(voices, "make_voices", make_voices)
    monkeypatch.setattr(Reference, "read", lambda reference: reference.source)
    tasks, _ = plan(items(13), CUSTOM, tokenizer, 0)
    # The first three share a recording.
    sources = [0, 0, 0, *range(1, 11)]
    tasks = [replace(task, reference=Reference(str(n), None, "")) for task, n in zip(tasks, sources, strict=True)]
    seen = []
    for result in speak.run(stand_in, tasks, CUSTOM.generation, 2):
        seen.append((result.task.id, len(heard)))
    assert len({name for name, _ in seen}) == 13
    assert len(heard) == 11
    counts = [len(texts) for texts in stand_in.calls]
    assert max(counts) <= 6
    assert seen[0][1] <= 4
    # Voices that are made already do not count.
    ready, waiting = dict.fromkeys(task.reference for task in tasks), deque(speak._Try(task, 0) for task in tasks)
    assert len(speak._next_part(waiting, ready, 10, 2)) == 10


def test_seeds_of_retries_are_stable():
    # Pinned: another seed is other speech of an old manifest.
    assert [speak.retry_seed(7, retry) for retry in range(3)] == [7, 1834632687, 193445516]
    seeds = {speak.retry_seed(seed, retry) for seed in range(30) for retry in range(30)}
    assert len(seeds) == 900
    assert 0 <= min(seeds) <= max(seeds) <= MAX_SEED


def test_speech_that_was_cut_is_made_again(tokenizer, stand_in, monkeypatch):
    monkeypatch.setattr(speak, "_FEWEST", 10)
    given = [replace(item, text=f"{item.text} length") for item in items(30)]
    tasks, _ = plan(given, CUSTOM, tokenizer, 3)

    def run(retries: int) -> dict[str, speak.Result]:
        results = list(speak.run(stand_in, tasks, CUSTOM.generation, 3, retries=retries))
        assert len({result.task.id for result in results}) == len(results) == 30
        return {result.task.id: result for result in results}

    once, again = run(0), run(2)
    assert {result.tries for result in once.values()} == {1}
    assert {result.tries for result in again.values()} == {1, 2, 3}
    for name, result in again.items():
        seeds = [speak.retry_seed(3, retry) for retry in range(3)]
        reasons = [stand_in_speech(result.task, seed).finish_reason for seed in seeds]
        tries = reasons.index("stop") + 1 if "stop" in reasons else 3
        assert (result.tries, result.seed) == (tries, seeds[tries - 1])
        # What the seed says in a manifest.
        np.testing.assert_array_equal(result.speech.codes, stand_in_speech(result.task, result.seed).codes)
        if once[name].speech.finish_reason == "stop":
            np.testing.assert_array_equal(result.speech.codes, once[name].speech.codes)
    assert {result.speech.finish_reason for result in again.values()} == {"stop", "length"}


def stand_in_speech(task: Task, seed: int) -> Speech:
    return speech_of(task.request, speak.utterance_number(seed, task.id))
