"""Orbax checkpoints: the same tree again, from a folder that needs no other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.convert import CheckpointError, load_checkpoint, load_params
from qwen3_tts_jax.convert import orbax_checkpoint as orbax
from qwen3_tts_jax.convert.check import MARKER
from qwen3_tts_jax.convert.rules import SYNTHESIS_PARTS, all_rules, select
from qwen3_tts_jax.quantize import quantize, quantize_leaf
from tests.command import of_devices
from tests.drawn_tree import drawn_tree
from tests.safetensors_folder import all_parts, small, write

CONFIG = small("1.7B-Base")


def write_json(folder, config):
    top, codec, generation = hf_export.to_hf(config)
    (folder / "config.json").write_text(json.dumps(top))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "speech_tokenizer" / "config.json").write_text(json.dumps(codec))
    (folder / "merges.txt").write_text("a b\n")
    (folder / "chat_template.jinja").write_text("{{ text }}\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A bfloat16 checkpoint in the published layout."""
    folder = write(tmp_path_factory.mktemp("source") / "published", CONFIG)
    write_json(folder, CONFIG)
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """All its parts, in float32, as an Orbax checkpoint."""
    params = load_params(source, CONFIG, all_parts(CONFIG))
    return orbax.save(tmp_path_factory.mktemp("converted") / "deep" / "model", params, CONFIG, source)


@pytest.fixture
def editable(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "edit")


def assert_equal_trees(found, expected):
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert isinstance(found[path], jax.Array)
        assert found[path].dtype == leaf.dtype, path
        # Programs are compiled apart for arrays that are committed to a device.
        assert found[path].committed == leaf.committed, path
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_the_tree_comes_back(source, converted):
    params = load_params(source, CONFIG, all_parts(CONFIG))
    assert params["talker"]["text_embedding"]["embedding"].dtype == jnp.bfloat16
    assert_equal_trees(orbax.load(converted, CONFIG, all_parts(CONFIG)), params)
    assert_equal_trees(load_checkpoint(converted, CONFIG), load_params(source, CONFIG))


DEVICES = """
import sys
import jax
from qwen3_tts_jax.convert import load_checkpoint
from tests.safetensors_folder import small

def placed():
    trees = [load_checkpoint(folder, small("1.7B-Base"), ["code_predictor"]) for folder in sys.argv[1:]]
    return [sorted({device.id for leaf in jax.tree.leaves(tree) for device in leaf.devices()}) for tree in trees]

print(placed())
for chosen in (jax.devices()[1], "cpu"):
    with jax.default_device(chosen):
        print(placed())
jax.config.update("jax_default_device", jax.devices()[1])
print(placed())
"""


def test_both_kinds_of_folder_load_onto_the_default_device(source, converted):
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", DEVICES, str(source), str(converted)],
        capture_output=True, text=True, cwd=root, check=True, env=of_devices(2),
    )  # fmt: skip
    assert child.stdout.splitlines() == ["[[0], [0]]", "[[1], [1]]", "[[0], [0]]", "[[1], [1]]"]


def test_weights_are_rounded_as_they_are_read(converted):
    rounded = load_checkpoint(converted, CONFIG, finish=quantize_leaf)
    assert any(path.endswith("/weight_int8") for path in flatten_dict(rounded, sep="/"))
    assert_equal_trees(rounded, quantize(load_checkpoint(converted, CONFIG)))


def test_the_folder_needs_no_other(source, converted):
    assert hf_config.read_folder(converted) == CONFIG
    names = {str(path.relative_to(converted)) for path in converted.rglob("*") if path.is_file()}
    small_files = {name for name in names if not name.startswith("params/")}
    assert small_files == {
        MARKER, "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
        "speech_tokenizer/config.json",
    }  # fmt: skip
    assert json.loads((converted / MARKER).read_text()) == {
        "format": 2,
        "dtypes": {
            "talker": ["bfloat16", "float32"],
            "code_predictor": ["bfloat16", "float32"],
            "speaker_encoder": ["float32"],
            "codec/encoder": ["float32"],
            "codec/decoder": ["float32"],
        },
    }
    assert [path.name for path in converted.parent.iterdir()] == ["model"]


def test_other_dtypes_are_cast(source, converted):
    config = CONFIG.with_dtypes("bfloat16")
    assert_equal_trees(orbax.load(converted, config), load_params(source, config))


def test_unselected_parts_are_not_read(editable):
    shutil.rmtree(editable / "params" / "codec" / "encoder")
    shutil.rmtree(editable / "params" / "talker")
    calls = []
    params = orbax.load(
        editable, CONFIG, ("code_predictor", "codec/decoder"), progress=lambda *call: calls.append(call)
    )
    rules = select(all_rules(CONFIG), CONFIG, ("code_predictor", "codec/decoder"))
    assert flatten_dict(params, sep="/").keys() == {rule.flax for rule in rules}
    assert len(calls) == 2
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert calls[-1] == (total, total)
    assert 0 < calls[0][0] < calls[0][1] == total
    with pytest.raises(CheckpointError, match="talker"):
        orbax.load(editable, CONFIG, ("talker",))


def test_every_difference_to_the_config_is_named(converted):
    other = small("1.7B-VoiceDesign")
    with pytest.raises(CheckpointError) as caught:
        orbax.load(converted, other, ("talker", "code_predictor"))
    assert "talker/codec_head/weight has shape [1061, 56], expected [1065, 56]" in caught.value.problems
    assert "code_predictor/projection/weight has shape [44, 56], expected [40, 56]" in caught.value.problems


# In a process of its own: a restore that fails leaves Orbax's other reads behind, whose end is an
# exception that nobody awaits.
READ_DAMAGED = """
import shutil
import sys
from pathlib import Path
from qwen3_tts_jax.convert import CheckpointError, orbax_checkpoint
from tests.safetensors_folder import small

chunk = Path(sys.argv[1]) / "params/codec/decoder/conv_out.bias/c/0"
truncate = lambda: chunk.write_bytes(chunk.read_bytes()[:-3])
for damage in (truncate, chunk.unlink, lambda: shutil.rmtree(chunk.parents[1])):
    damage()
    try:
        orbax_checkpoint.load(sys.argv[1], small("1.7B-Base"), ["codec/decoder"])
    except CheckpointError as error:
        print(*error.problems)
"""


def test_damage_is_named(editable):
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        [sys.executable, "-c", READ_DAMAGED, str(editable)], capture_output=True, text=True, cwd=root, check=True
    )
    truncated, missing, no_array = child.stdout.splitlines()
    assert truncated.startswith("codec/decoder cannot be read: DATA_LOSS: ")
    assert missing.startswith("codec/decoder cannot be read: NOT_FOUND: ")
    assert "conv_out.bias/c/0" in truncated
    assert "conv_out.bias/c/0" in missing
    assert no_array == "codec/decoder is missing or damaged: convert the checkpoint again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"{MARKER} is missing: this is no converted checkpoint"),
        ("[]", f"{MARKER} is broken"),
        ("{", f"{MARKER} is broken"),
        ('{"format": 3, "dtypes": {}}', "has format 3, this version reads 2"),
        ('{"format": 2, "dtypes": {"talker": []}}', "code_predictor was not converted; there are talker"),
    ],
)
def test_the_marker_is_checked(tmp_path, content, message):
    if content is not None:
        (tmp_path / MARKER).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        orbax.load(tmp_path, CONFIG, SYNTHESIS_PARTS)


def test_nothing_is_overwritten_and_nothing_wrong_is_written(source, converted, tmp_path, monkeypatch):
    params = drawn_tree(all_rules(CONFIG))
    with pytest.raises(FileExistsError, match="is there already"):
        orbax.save(converted, params, CONFIG, source)
    incomplete = {**params, "talker": {"codec_head": params["talker"]["codec_head"]}}
    with pytest.raises(CheckpointError, match=r"talker/transformer/norm/scale .* is missing"):
        orbax.save(tmp_path / "out", incomplete, CONFIG, source)
    integers = {"talker": {**params["talker"], "codec_head": {"weight": np.zeros((1061, 56), np.int8)}}}
    with pytest.raises(CheckpointError, match="talker/codec_head/weight has dtype int8"):
        orbax.save(tmp_path / "out", integers, CONFIG, source)
    with pytest.raises(CheckpointError, match="no part is there"):
        orbax.save(tmp_path / "out", {}, CONFIG, source)
    other = tmp_path / "other"
    (other / "speech_tokenizer").mkdir(parents=True)
    write_json(other, small("1.7B-VoiceDesign"))
    with pytest.raises(CheckpointError, match="describe another model"):
        orbax.save(tmp_path / "out", params, CONFIG, other)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(orbax.ocp.Checkpointer, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        orbax.save(tmp_path / "out", params, CONFIG, source)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
