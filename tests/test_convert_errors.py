"""Every mismatch between files and config is named, all at once, before weights are read."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.convert import CheckpointError, load_params
from qwen3_tts_jax.hf_config import read_folder
from tests.safetensors_folder import CODEC, edit, small, write


@pytest.fixture(scope="module")
def custom_voice(tmp_path_factory):
    config = small("1.7B-CustomVoice")
    return write(tmp_path_factory.mktemp("checkpoint") / "custom_voice", config), config


@pytest.fixture
def editable(custom_voice, tmp_path):
    """The folder of a checkpoint with hard links to the same weights, and its config."""
    folder, config = custom_voice
    (tmp_path / "edit" / "speech_tokenizer").mkdir(parents=True)
    for name in ("model.safetensors", CODEC):
        (tmp_path / "edit" / name).hardlink_to(folder / name)
    return tmp_path / "edit", config


def test_unknown_parts_are_refused(custom_voice):
    folder, config = custom_voice
    with pytest.raises(ValueError, match="unknown part 'codec'; there are talker"):
        load_params(folder, config, ["codec"])
    with pytest.raises(ValueError, match="custom_voice model has no speaker_encoder"):
        load_params(folder, config, ["speaker_encoder"])


def test_every_problem_of_both_files_is_reported_at_once(editable):
    folder, config = editable

    def spoil_main(tensors):
        del tensors["talker.codec_head.weight"]
        tensors["talker.extra.weight"] = np.zeros((2, 3), np.float32)
        tensors["talker.model.norm.weight"] = np.zeros(5, np.float32)
        tensors["talker.code_predictor.model.norm.weight"] = np.zeros(36, np.int32)

    def spoil_codec(tensors):
        del tensors["encoder.downsample.conv.weight"]
        tensors["decoder.pre_conv.conv.weight"] = tensors["decoder.pre_conv.conv.weight"].transpose(1, 0, 2).copy()

    edit(folder / "model.safetensors", spoil_main)
    edit(folder / CODEC, spoil_codec)
    with pytest.raises(CheckpointError) as caught:
        load_params(folder, config, ["talker"])
    main, codec = "model.safetensors: ", f"{CODEC}: "
    assert sorted(caught.value.problems) == sorted(
        [
            f"{main}talker.codec_head.weight [1077, 48] is missing",
            f"{main}talker.extra.weight [2, 3] is surplus: this model has no such tensor",
            f"{main}talker.model.norm.weight has shape [5], expected [48]",
            f"{main}talker.code_predictor.model.norm.weight has dtype I32, expected one of F32, BF16, F16",
            f"{codec}encoder.downsample.conv.weight [27, 27, 4] is missing",
            f"{codec}decoder.pre_conv.conv.weight has shape [12, 20, 3], expected [20, 12, 3]",
        ]
    )
    assert str(caught.value).startswith(f"{folder}: 6 problems\n")
    for problem in caught.value.problems:
        assert problem in str(caught.value)


def test_a_long_list_of_problems_is_cut_in_the_message_only(custom_voice):
    folder, _ = custom_voice
    with pytest.raises(CheckpointError, match=r"… and \d+ more") as caught:
        load_params(folder, small("1.7B-VoiceDesign"), ["talker"])
    assert len(str(caught.value).splitlines()) == 42
    assert len(caught.value.problems) > 100


def problems_of(folder, config):
    with pytest.raises(CheckpointError) as caught:
        load_params(folder, config, ["talker"])
    return list(caught.value.problems)


@pytest.mark.parametrize("cut", [1, 4000])
def test_truncated_files_are_named_with_their_sizes(editable, cut):
    folder, config = editable
    data = (folder / CODEC).read_bytes()
    (folder / CODEC).unlink()
    (folder / CODEC).write_bytes(data[:-cut])
    expected = f"{CODEC} has {len(data) - cut:,} bytes, but its header says {len(data):,}: download it again"
    assert problems_of(folder, config) == [expected]


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>",
        b"[1,2]",
        b'{"":1',
        b"\xff\xff\xff\xff\xff",
        b'{"a": {"dtype": "F32", "shape": [null], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a":' * 100_000,
    ],
)
def test_files_that_are_no_safetensors(editable, broken):
    folder, config = editable
    for name in ("model.safetensors", CODEC):
        (folder / name).unlink()
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    (folder / CODEC).write_bytes(len(broken).to_bytes(8, "little") + broken)
    assert problems_of(folder, config) == [
        "model.safetensors has 22 bytes: it is no safetensors file or it is truncated",
        f"{CODEC} is no safetensors file: its header cannot be read",
    ]


def test_a_header_that_contradicts_itself(editable):
    folder, config = editable
    data = (folder / CODEC).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["decoder.pre_conv.conv.bias"]["shape"] = [21]
    new = json.dumps(header).encode()
    (folder / CODEC).unlink()
    (folder / CODEC).write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])
    assert problems_of(folder, config) == [f"{CODEC} has a broken header: decoder.pre_conv.conv.bias [21] has 80 bytes"]


def test_absent_files_say_what_is_there_instead(editable):
    folder, config = editable
    (folder / "model.safetensors").unlink()
    (folder / CODEC).unlink()
    assert problems_of(folder, config) == ["model.safetensors is missing", f"{CODEC} is missing"]
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "speech_tokenizer" / "blob.incomplete").write_bytes(b"x")
    assert problems_of(folder, config) == [
        "model.safetensors is missing and blob.incomplete is an unfinished download: download again",
        f"{CODEC} is missing and blob.incomplete is an unfinished download: download again",
    ]
    (folder / "speech_tokenizer" / "blob.incomplete").unlink()
    assert problems_of(folder, config) == [
        "model.safetensors is missing; pytorch_model.bin cannot be read: safetensors files are needed",
        f"{CODEC} is missing",
    ]
    assert problems_of(folder / "nowhere", config) == ["there is no such folder"]


def test_an_unfinished_download_in_the_hugging_face_cache(editable, tmp_path):
    folder, config = editable
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot / CODEC).unlink()
    (tmp_path / "models--x" / "blobs").mkdir()
    (tmp_path / "models--x" / "blobs" / "836b.incomplete").write_bytes(b"x")
    (problem,) = problems_of(snapshot, config)
    assert "836b.incomplete is an unfinished download" in problem


def test_sharded_checkpoints_are_checked_shard_by_shard(tmp_path):
    config = small("1.7B-VoiceDesign")
    folder = write(tmp_path, config, shards=3)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first, second, third = (f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))
    moved = next(name for name, file in weight_map.items() if file == first)
    tensor = load_file(folder / first)[moved]
    edit(folder / second, lambda tensors: tensors.update({moved: tensor}))
    weight_map |= {"talker.ghost": second}
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / third).unlink()
    assert problems_of(folder, config) == [
        f"{second}: {moved} is in another shard too",
        f"{second}: talker.ghost is missing, though the index says it is here",
        f"{third} is missing",
    ]
    for content in ('{"weights": {}}', "{", "[]", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        assert problems_of(folder, config) == ["model.safetensors.index.json is not the index of a sharded checkpoint"]


def test_files_that_may_not_be_read(editable, monkeypatch):
    folder, config = editable

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert problems_of(folder, config) == [
        "model.safetensors cannot be read: Permission denied",
        f"{CODEC} cannot be read: Permission denied",
    ]
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: Permission denied"):
        read_folder(folder)
