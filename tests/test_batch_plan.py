"""The plan of a batch job: what items become, what cannot be spoken, and which are spoken together."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

from qwen3_tts_jax import Qwen3TTS, audio, voice_file
from qwen3_tts_jax.batch import speak
from qwen3_tts_jax.batch.manifest import Item
from qwen3_tts_jax.batch.plan import is_same, plan, source_of, weights_digest
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.command import write_model, write_recording
from tests.shapes import SMALL

CUSTOM, DESIGN, BASE = (SMALL[f"1.7B-{name}"] for name in ("CustomVoice", "VoiceDesign", "Base"))


def test_limits_grow_with_the_text(tokenizer):
    given = [
        Item(1, "a", "Good morning."),
        Item(2, "b", "Good morning, good morning."),
        Item(3, "c", "Hi.", max_seconds=0.1),
    ]
    a, b, c = plan(given, CUSTOM, tokenizer, 0)[0]
    assert (a.text_tokens, b.text_tokens) == (3, 6)
    assert (a.request.max_frames, b.request.max_frames) == (25 + 8 * 3, 25 + 8 * 6)
    assert c.request.max_frames == int(0.1 * CUSTOM.codec.frame_rate)
    (cut,), _ = plan(given[:1], replace(CUSTOM, max_new_tokens=40), tokenizer, 0)
    assert cut.request.max_frames == 39
    a, _, c = plan(given, CUSTOM, tokenizer, 0, max_seconds=0.2)[0]
    assert a.request.max_frames == int(0.2 * CUSTOM.codec.frame_rate)
    assert c.request.max_frames == int(0.1 * CUSTOM.codec.frame_rate)
    (endless,), _ = plan([Item(1, "a", "Hi.", max_seconds=1e308)], CUSTOM, tokenizer, 0)
    assert endless.request.max_frames == CUSTOM.talker.max_positions


def test_parts_of_a_text_have_limits_of_their_own(tokenizer):
    text = "Good morning. Good morning, good morning. Good morning."
    seconds = 40.5 / CUSTOM.codec.frame_rate
    given = [Item(1, "a", text), Item(2, "b", text, split=6), Item(3, "c", text, split=6, max_seconds=seconds)]
    whole, split, cut = plan(given, CUSTOM, tokenizer, 0)[0]
    assert whole.text_tokens == 12
    # In three parts, of 3, 6 and 3 tokens.
    assert split.text_tokens == 12
    assert split.request.max_frames == 3 * 25 + 8 * 12
    assert cut.request.max_frames == 40
    assert [task.size[0] for task in (whole, split, cut)] == [128, 96, 64]
    assert [task.identity["split"] for task in (whole, split)] == [None, 6]
    by_job, own = plan(given[:2], CUSTOM, tokenizer, 0, split=5)[0]
    assert (by_job.identity["split"], own.identity["split"]) == (5, 6)
    (unsplit,), _ = plan(given[:1], CUSTOM, tokenizer, 0, split=12)
    assert unsplit.identity == whole.identity


def test_defaults_of_the_kinds_of_base_model(tokenizer, tmp_path):
    voice_file.save(VoicePrompt(np.ones(56, np.float32)), tmp_path / "v.safetensors")
    (custom,), _ = plan([Item(1, "a", "Hi.")], CUSTOM, tokenizer, 5)
    assert (custom.request.speaker, custom.request.text_mode) == (next(iter(CUSTOM.prompt.speakers)), "all_at_once")
    (base,), _ = plan([Item(1, "a", "Hi.", voice=str(tmp_path / "v.safetensors"), seed=3)], BASE, tokenizer, 5)
    assert (base.request.speaker, base.request.text_mode) == (None, "as_it_comes")
    assert (custom.seed, base.seed) == (5, 3)


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        (CUSTOM, {"speaker": "nobody"}, "unknown speaker 'nobody'"),
        (CUSTOM, {"language": "klingon"}, "unknown language 'klingon'"),
        (CUSTOM, {"voice": "v.safetensors"}, "a custom_voice model clones no voices"),
        (CUSTOM, {"text": "word " * 33_000}, "speak it in parts"),
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
    tasks, bad = plan([Item(4, "x", **({"text": "Hi."} | fields))], config, tokenizer, 0)
    assert tasks == []
    assert [(line.line, line.id) for line in bad] == [(4, "x")]
    assert reason in bad[0].reason
    assert "\n" not in bad[0].reason


def test_a_recording_is_planned_with_as_many_frames_as_the_codec_makes(tokenizer, tmp_path, tokenizer_folder):
    model = Qwen3TTS.from_pretrained(write_model(tmp_path, "1.7B-Base", tokenizer_folder))
    for number, (seconds, rate) in enumerate([(1.0, 16_000), (0.7031, 44_100), (0.51, 44_100), (0.6, 24_000)]):
        path = tmp_path / f"{number}.wav"
        write_recording(path, seconds, rate)
        (task,), _ = plan([Item(1, "a", "Hi.", reference=str(path), reference_text="one")], BASE, tokenizer, 0)
        (voice,) = model.create_voice_clone_prompt(str(path), "one")
        assert task.request.voice.codes.shape == voice.codes.shape
        assert task.request.voice.text == "one"


def test_a_url_is_downloaded_once(tokenizer, tmp_path, monkeypatch):
    url = "https://example.org/me.wav"
    content = write_recording(tmp_path / "me.wav", 0.7, 22_050), 22_050
    sources = []

    def read(source):
        sources.append(source)
        return content if source == url else read_file(source)

    read_file = audio.read
    monkeypatch.setattr(audio, "read", read)
    given = [Item(n, f"i{n}", "Hi.", reference=url, reference_text="one") for n in (1, 2)]
    given.append(Item(3, "i3", "Hi.", reference=url, reference_text="two"))
    (first, second, _), _ = plan(given, BASE, tokenizer, 0, downloads=tmp_path / "kept")
    assert first.reference == second.reference
    samples, rate = first.reference.read()
    np.testing.assert_array_equal(samples, content[0])
    assert rate == 22_050
    assert sources == [url, first.reference.kept]
    # Where the file is not at hand the URL still is.
    first.reference.kept.unlink()
    np.testing.assert_array_equal(first.reference.read()[0], content[0])
    assert sources[2:] == [url]


def test_a_download_that_cannot_be_kept_is_downloaded_again(tokenizer, tmp_path, monkeypatch):
    url = "https://example.org/me.wav"
    content = write_recording(tmp_path / "me.wav", 0.7, 22_050), 22_050
    monkeypatch.setattr(audio, "read", lambda source: content)

    def full(path, *_, **__):
        path.write_bytes(b"half")
        raise soundfile.LibsndfileError(2, "System error.")

    monkeypatch.setattr(soundfile, "write", full)
    given = [Item(1, "a", "Hi.", reference=url, reference_text="one")]
    (task,), bad = plan(given, BASE, tokenizer, 0, downloads=tmp_path / "kept")
    assert (bad, list((tmp_path / "kept").iterdir())) == ([], [])
    np.testing.assert_array_equal(task.reference.read()[0], content[0])


def test_what_a_task_is_made_of(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    item = Item(1, "a", "Hi.", reference=str(path), reference_text="what")
    before = source_of(item, 0, None, None)
    assert is_same(json.loads(json.dumps(before)), source_of(replace(item, line=7), 0, None, None))
    for other in (replace(item, text="Hi!"), replace(item, reference_text="else"), replace(item, seed=0)):
        assert not is_same(before, source_of(other, 0, None, None))
    for defaults in ((1, None, None), (0, 2.0, None), (0, None, 9)):
        assert not is_same(before, source_of(item, *defaults))
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert not is_same(before, source_of(item, 0, None, None))
    path.unlink()
    assert is_same(before, source_of(item, 0, None, None))


def test_tasks_of_one_size_are_spoken_together_the_longest_first(tokenizer):
    texts = ["A word. " * (1 + i % 22) for i in range(60)]
    modes = ("all-at-once", "as-it-comes")
    given = [Item(i + 1, f"i{i}", text, text_mode=modes[i % 2]) for i, text in enumerate(texts)]
    tasks, _ = plan(given, CUSTOM, tokenizer, 0)
    groups = speak.schedule(tasks)
    assert sorted(task.id for group in groups for task in group) == sorted(item.id for item in given)
    sizes = [{task.size for task in group} for group in groups]
    assert [len(found) for found in sizes] == [1] * len(groups)
    assert len(set.union(*sizes)) == len(groups) > 4
    assert sizes == sorted(sizes, key=max, reverse=True)
    for group in groups:
        lengths = [task.text_tokens for task in group]
        assert lengths == sorted(lengths, reverse=True)
    random.Random(0).shuffle(tasks)
    again = speak.schedule(tasks)
    assert [[task.id for task in group] for group in again] == [[task.id for task in group] for group in groups]


def test_all_that_shapes_follow_from_is_in_the_size(tokenizer, tmp_path):
    voice_file.save(VoicePrompt(np.ones(56, np.float32)), tmp_path / "v.safetensors")

    def size(config=CUSTOM, frames: int = 32, text: str = "A word.", **fields):
        seconds = (frames + 0.5) / config.codec.frame_rate
        (task,), _ = plan([Item(1, "a", text, max_seconds=seconds, **fields)], config, tokenizer, 0)
        return task.size

    # 32 frames at most, a prompt of at most 32 tokens, no trailing text.
    assert size() == size(frames=1) == size(text="Others.", speaker="ryan") == (32, 32, 0, False)
    assert size(frames=33) == (64, 32, 0, False)
    assert size(text="A word. " * 20) == (32, 96, 0, False)
    assert size(text_mode="as-it-comes") == (32, 32, 32, False)
    assert size(BASE, voice=str(tmp_path / "v.safetensors")) == (32, 32, 32, True)


def test_the_digest_of_weights_tells_models_apart(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(bytes(3_000_000))
    whole = weights_digest(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("new")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "lock").touch()
    assert weights_digest(tmp_path / "a") == whole
    digests = {whole}
    for position in (0, 2_999_999):
        content = bytearray(3_000_000)
        content[position] = 1
        path.write_bytes(content)
        digests.add(weights_digest(tmp_path / "a"))
    path.write_bytes(bytes(3_000_001))
    digests.add(weights_digest(tmp_path / "a"))
    path.rename(path.with_name("other.safetensors"))
    assert len(digests | {weights_digest(tmp_path / "a")}) == 5


def test_the_digest_of_weights_is_of_the_model_alone(tmp_path):
    """Another's files in its folder do not count, and a codec that lies elsewhere does."""
    model, codec = tmp_path / "model", tmp_path / "codec"
    for folder in (model, codec):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
    (model / "speech_tokenizer").symlink_to(codec)
    digest = weights_digest(model)
    (model / "lines.jsonl").write_text("{}")
    (model / "out").mkdir()
    (model / "out" / "job.json").write_text("{}")
    assert weights_digest(model) == digest
    (codec / "model.safetensors").write_bytes(bytes(99) + b"\1")
    assert weights_digest(model) != digest
    (model / "params").mkdir()
    digest = weights_digest(model)
    (model / "params" / "talker").mkdir()
    (model / "params" / "talker" / "zarr.json").write_text("{}")
    assert weights_digest(model) != digest


def test_the_digest_of_weights_tells_apart_what_one_tensor_was_trained_to(tmp_path):
    """Of a file that is far larger than its ends, two of the tensors in its middle."""
    path = tmp_path / "model.safetensors"
    weights = {name: np.zeros((512, 512), np.float32) for name in "abcdefgh"}
    digests = set()
    for name in (None, "d", "e"):
        changed = weights if name is None else weights | {name: weights[name] + 1e-3}
        save_file(changed, path)
        digests.add(weights_digest(tmp_path))
    assert len(digests) == 3
    save_file(weights, path)
    assert weights_digest(tmp_path) in digests
