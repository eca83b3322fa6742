"""Files of voices: what is saved is loaded, bit by bit; every other file is refused in one line that names it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as serialize

from qwen3_tts_jax import torch_file
from qwen3_tts_jax.voice_file import FORMAT, describe, load, load_all, save
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.golden_voice import PATH, items

RANDOM = np.random.RandomState(0)
X_VECTOR = RANDOM.standard_normal(6).astype(np.float32)
CODES = RANDOM.randint(0, 2048, (7, 5)).astype(np.int32)
TEXT = "Grüß Gott,\n「你好」 \U0001f600"
GOOD = {"x_vector": X_VECTOR, "codes": CODES}
METADATA = {"format": FORMAT, "version": "1", "text": TEXT}


def _equal(got, expected):
    assert got.x_vector.dtype == np.float32
    np.testing.assert_array_equal(got.x_vector, expected.x_vector)
    assert got.text == expected.text
    assert (got.codes is None) == (expected.codes is None)
    if got.codes is not None:
        assert got.codes.dtype == np.int32
        np.testing.assert_array_equal(got.codes, expected.codes)


@pytest.mark.parametrize(
    "voice",
    [
        VoicePrompt(X_VECTOR),
        VoicePrompt(X_VECTOR, CODES, TEXT),
        VoicePrompt(RANDOM.standard_normal((6, 2)).astype(np.float32)[:, 1], CODES.T, TEXT),
    ],
    ids=["x-vector", "in context", "views"],
)
def test_what_is_saved_is_loaded(tmp_path, voice):
    path = tmp_path / "anna.voice"
    save(VoicePrompt(X_VECTOR + 1), path)
    save(voice, str(path))  # over the older file
    _equal(load(path), voice)
    _equal(load_all(str(path))[0], voice)
    assert [file.name for file in tmp_path.iterdir()] == ["anna.voice"]


def test_what_is_known_of_a_voice(tmp_path):
    path = tmp_path / "anna.safetensors"
    save(VoicePrompt(X_VECTOR, CODES, TEXT), path, name="Anna", model_size="0b6", model_type="base", seconds=3.25)
    known = describe(path)
    assert known.pop("tool").startswith("qwen3-tts-jax ")
    assert known == {
        "format": "qwen3-tts-jax voice", "name": "Anna", "model_size": "0b6", "model_type": "base", "seconds": 3.25,
        "x_vector_width": 6, "frames": 7, "codebooks": 5, "text": TEXT,
    }  # fmt: skip
    with safe_open(path, "numpy") as file:
        assert file.metadata()["version"] == "1"
    save(VoicePrompt(X_VECTOR), path)
    known = describe(path)
    assert {key for key, value in known.items() if value is not None} == {"format", "tool", "x_vector_width"}


def _demo(monkeypatch, tmp_path, content):
    """A .pt file of `content`."""
    path = tmp_path / "voice.pt"
    path.write_bytes(torch_file.MAGIC[0])
    monkeypatch.setattr(torch_file, "read", lambda _: content)
    return path


def test_golden_file_of_the_official_demo(monkeypatch, tmp_path):
    first, second = items()
    voices = load_all(PATH)
    _equal(voices[0], VoicePrompt(first["ref_spk_embedding"], first["ref_code"], first["ref_text"]))
    _equal(voices[1], VoicePrompt(second["ref_spk_embedding"]))
    assert len(voices) == 2
    for read in (load, describe):
        with pytest.raises(ValueError, match=r"voices\.pt holds 2 voices where one is needed: .*load_all"):
            read(PATH)
    path = _demo(monkeypatch, tmp_path, {"items": [first]})
    _equal(load(path), voices[0])
    known = describe(path)
    assert (known["format"], known["frames"], known["seconds"]) == ("torch", 7, None)


@pytest.mark.parametrize(
    ("changes", "in_context"),
    [
        ({}, True),
        ({"icl_mode": False}, False),
        ({"icl_mode": True, "x_vector_only_mode": True}, True),
        ({"icl_mode": None, "x_vector_only_mode": True}, False),
        ({"icl_mode": None, "x_vector_only_mode": None}, True),
        ({"icl_mode": False, "ref_code": None, "ref_text": None}, False),
    ],
)
def test_modes_of_the_official_demo(monkeypatch, tmp_path, changes, in_context):
    item = {key: value for key, value in (items()[0] | changes).items() if value is not None or "mode" not in key}
    voice = load(_demo(monkeypatch, tmp_path, {"items": [item]}))
    assert (voice.codes is not None) == in_context
    assert voice.text == (item["ref_text"] if in_context else None)


def _item(**changes):
    return {"items": [items()[0] | changes]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not of voices"),
        ({"model": 1}, "not of voices"),
        ({"items": []}, "not of voices"),
        ({"items": {}}, "not of voices"),
        ({"items": [3]}, "not of voices"),
        (_item(ref_spk_embedding=None), "ref_spk_embedding is no tensor of floats"),
        (_item(ref_spk_embedding=CODES[0]), "ref_spk_embedding is no tensor of floats"),
        (_item(ref_spk_embedding=X_VECTOR[None]), r"x-vector is float32 \[1, 6\], not float32 \[D\]"),
        (_item(ref_spk_embedding=X_VECTOR[:0]), r"x-vector is float32 \[0\]"),
        (_item(ref_spk_embedding=X_VECTOR * np.float32(np.nan)), "x-vector is not finite"),
        (_item(ref_code=None), "in context, but ref_code is no tensor of integers"),
        (_item(ref_code=X_VECTOR), "in context, but ref_code is no tensor of integers"),
        (_item(ref_code=CODES - 5000), "its codes are -"),
        (_item(ref_code=CODES.astype(np.int64) + 2**31), "its codes are 2"),
        (_item(ref_code=CODES[0]), r"codes are int32 \[5\], not int32 \[T, Q\]"),
        (_item(ref_code=CODES[:0]), r"codes are int32 \[0, 5\]"),
        (_item(ref_text=None), "codes but no transcript: make the voice again"),
        (_item(ref_text=" \n"), "codes but no transcript"),
        (_item(ref_text=7), "codes but no transcript"),
        ({"items": [items()[1], _item(ref_text=None)["items"][0]]}, r"^item 1 of .*voice\.pt has codes but no"),
    ],
)
def test_other_torch_files(monkeypatch, tmp_path, content, message):
    path = _demo(monkeypatch, tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_all(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, None, "is a safetensors file, but not of a voice"),
        (GOOD, METADATA | {"format": "pt"}, "is a safetensors file, but not of a voice"),
        (GOOD, METADATA | {"version": "2"}, "has version '2' of the voice format .* reads 1: install a newer one"),
        (GOOD, {"format": FORMAT, "text": TEXT}, "has version None"),
        ({"codes": CODES}, METADATA, "a voice has the tensors"),
        ({**GOOD, "more": X_VECTOR}, METADATA, "a voice has the tensors"),
        (GOOD | {"x_vector": X_VECTOR.astype(np.float16)}, METADATA, "this has .*F16"),
        (GOOD | {"codes": CODES.astype(np.int64)}, METADATA, "this has .*I64"),
        (GOOD | {"x_vector": X_VECTOR[None]}, METADATA, r"x-vector is float32 \[1, 6\]"),
        (GOOD | {"x_vector": X_VECTOR + np.float32(np.inf)}, METADATA, "x-vector is not finite"),
        (GOOD | {"codes": CODES[0]}, METADATA, r"codes are int32 \[5\]"),
        (GOOD | {"codes": CODES - 3000}, METADATA, "it has the code -"),
        (GOOD, {"format": FORMAT, "version": "1"}, "codes but no transcript"),
        (GOOD, METADATA | {"text": " "}, "codes but no transcript"),
        ({"x_vector": X_VECTOR}, METADATA, "a transcript but no codes"),
    ],
)
def test_other_safetensors_files(tmp_path, tensors, metadata, message):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(serialize(tensors, metadata))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} ")


def test_seconds_that_are_no_number(tmp_path):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(serialize(GOOD, METADATA | {"seconds": "long"}))
    _equal(load(path), VoicePrompt(X_VECTOR, CODES, TEXT))
    with pytest.raises(ValueError, match=r"voice\.safetensors is broken: its seconds are 'long'"):
        describe(path)


def test_every_cut_is_noticed(tmp_path):
    path = tmp_path / "voice.safetensors"
    save(VoicePrompt(X_VECTOR, CODES, TEXT), path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is no voice file, or it is cut short or damaged"):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="cut short or damaged"):
        load(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "voice"
    for content in (b"RIFF\x24\0\0\0WAVEfmt ", b"not a voice at all", json.dumps({"x_vector": []}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no voice file"):
            load(path)
    path.write_bytes(torch_file.MAGIC[0] + b"no archive")
    with pytest.raises(torch_file.TorchFileError, match=r"no file of torch\.save"):
        load(path)
    path.write_bytes(torch_file.MAGIC[1] + b"an old one")
    with pytest.raises(torch_file.TorchFileError, match=r"before 1\.6"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no voice file .*missing"):
        load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError, match="is a folder, not a voice file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        (VoicePrompt(X_VECTOR.astype(np.float64)), r"float64 \[6\], not float32 \[D\]"),
        (VoicePrompt(X_VECTOR * np.float32(np.nan)), "not finite"),
        (VoicePrompt(X_VECTOR, CODES.astype(np.int64), TEXT), r"int64 \[7, 5\], not int32"),
        (VoicePrompt(X_VECTOR, CODES - 3000, TEXT), "has the code -"),
        (VoicePrompt(X_VECTOR, CODES, " "), "codes but no transcript"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, voice, message):
    with pytest.raises(ValueError, match=message):
        save(voice, tmp_path / "voice")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; create it first"):
        save(VoicePrompt(X_VECTOR), tmp_path / "missing" / "voice")
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        save(VoicePrompt(X_VECTOR), tmp_path)


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "voice"
    save(VoicePrompt(X_VECTOR), path)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(VoicePrompt(X_VECTOR, CODES, TEXT), path)
    assert [file.name for file in tmp_path.iterdir()] == ["voice"]
    _equal(load(path), VoicePrompt(X_VECTOR))


def test_voices_are_read_without_jax_and_torch():
    program = (
        "import sys; from qwen3_tts_jax.voice_file import load_all; voices = load_all(sys.argv[1]); "
        "print(len(voices), {'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(PATH)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 set()"
