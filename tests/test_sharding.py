"""Meshes: the same codes as on one device, laid out as promised, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_tts_jax import sharding
from tests.command import of_devices
from tests.shapes import SMALL
from tests.sharded_speech import MESHES


@pytest.fixture(scope="module")
def spoken():
    """What eight virtual devices say: all meshes in one process, for the start and the compiling take a while."""
    # Warnings are errors: one says that a donated buffer could not be used, which is a copy of the cache.
    command = [sys.executable, "-W", "error", "-m", "tests.sharded_speech"]
    result = subprocess.run(command, env=of_devices(8), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_the_codes_of_one_device(spoken, mesh):
    assert spoken["different_rows"] == 8
    assert spoken["meshes"][mesh]["equal"]


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_lie_over_data_and_heads_over_model(spoken, mesh):
    (data, model), found = MESHES[mesh], spoken["meshes"][mesh]
    rows, heads = "data" if data > 1 else None, "model" if model > 1 else None
    assert found["keys"] == found["values"] == [rows, heads, None, None]
    for name, spec in found["rows"].items():
        assert spec == [rows] + [None] * (len(spec) - 1), name
    assert found["cache_bytes"] * data * model == spoken["cache_bytes"]
    # An empty batch is made in parts: a whole one might not fit on a device.
    assert found["parts_of_empty"] == pytest.approx(data * model, rel=0.05)


def test_the_model_axis_divides_the_parameters(spoken):
    held = {mesh: found["params_bytes"] for mesh, found in spoken["meshes"].items()}
    assert held["8x1"] == spoken["params_bytes"]
    assert held["4x2"] == held["1x2"]
    assert held["2x4"] < held["4x2"] < spoken["params_bytes"]


def test_chunks_after_the_first_use_its_program(spoken):
    assert [found["programs"] for found in spoken["meshes"].values()] == [1] * len(MESHES)


def test_rows_that_cannot_be_shared_evenly_are_computed_by_all(spoken):
    assert spoken["uneven"]["equal"]
    assert spoken["uneven"]["rows"]["hidden"] == [None, None]


def test_int8_weights_are_shared_as_floats_are(spoken):
    """With the scales of what each device holds."""
    assert spoken["int8"]["equal"]
    assert spoken["int8"]["programs"] == 1
    assert spoken["int8_bytes"] < spoken["params_bytes"]
    saved = spoken["params_bytes"] - spoken["meshes"]["4x2"]["params_bytes"]
    assert 0.2 * saved < spoken["int8_bytes"] - spoken["int8"]["params_bytes"] < saved


def test_rows_are_refilled_on_a_mesh_too(spoken):
    """By one program: what is inserted leaves the state where it was."""
    programs = {"prefill": 1, "insert": 1, "generate": 1}
    assert spoken["in_turns"] == {"equal": True, "spoken": 11, "programs": programs}


def test_steps_of_streams_and_recordings_use_one_program(spoken):
    assert spoken["in_steps"]["equal"]
    assert spoken["in_steps"]["largest_error"] < 1e-5
    assert spoken["in_steps"]["programs"] == {"generate_at_most": 1, "decode_step": 1, "encode_step": 1}


def test_streams_side_by_side(spoken):
    """In chunks of 1 and of 3 frames, which the decoder takes as 2 and 1."""
    assert spoken["side_by_side"]["equal"] == [True] * 9
    assert spoken["side_by_side"]["largest_error"] < 1e-5
    assert spoken["side_by_side"]["programs"] == {"generate_at_most": 1, "set_text": 1, "decode_step": 2}


@pytest.mark.parametrize("devices", [3, 4])
def test_devices_share_prompts_and_the_codec(spoken, devices):
    """Each has one row of its own, also of the last few; so samples do not depend on company."""
    found = spoken["shared"][str(devices)]
    assert found["prefill_compiled"] == [[devices, 1]]
    assert len(found["codec_step"]) > 2
    assert found["codec_step"] == [[devices, 1]] * len(found["codec_step"])
    assert found["as_alone"]
    assert found["largest_error"] < 1e-5


@pytest.mark.parametrize("kind", ["published", "converted"])
def test_a_checkpoint_is_loaded_straight_to_its_devices(spoken, kind):
    assert spoken["loaded"][kind]


def test_split_axes_hold_whole_heads():
    """Every device has its key/value heads, and the query heads and inputs of the output layer that belong to them."""
    mesh = sharding.make_mesh(1, 1)
    place = sharding.placement(mesh, SMALL["1.7B-VoiceDesign"])
    for path, shape, spec in (
        ("talker/transformer/layers_0/attention/qkv/weight", (3, 48, 56), ("model",)),
        ("talker/transformer/layers_0/attention/o/weight", (56, 72), (None, "model")),
        ("code_predictor/transformer/layers_1/mlp/gate_up/weight", (2, 54, 40), (None, "model")),
        ("code_predictor/transformer/layers_1/mlp/down/weight", (40, 54), (None, "model")),
        ("talker/transformer/layers_0/attention/qkv/weight_int8", (3, 48, 56), ("model",)),
        ("talker/transformer/layers_0/mlp/gate_up/scale", (2, 80), (None, "model")),
        ("talker/transformer/layers_0/mlp/down/scale", (56,), ()),
        ("talker/text_projection/fc1/bias", (12,), ("model",)),
        ("talker/text_projection/fc2/bias", (56,), ()),
        ("code_predictor/codec_heads/weight", (4, 41, 40), ()),
        ("talker/text_embedding/embedding", (151_936, 12), ("model",)),
        ("talker/codec_embedding/embedding", (1065, 56), ()),
        ("talker/transformer/norm/scale", (56,), ()),
        ("codec/decoder/transformer/layers_0/attention/o/weight", (24, 30), ()),
        ("speaker_encoder/fc/kernel", (1, 48, 48), ()),
    ):
        assert place(path, shape) == NamedSharding(mesh, PartitionSpec(*spec)), path


def test_one_device_needs_nothing():
    params = {"talker": {"codec_head": {"weight": jnp.ones((4, 3))}}}
    batch = {"ids": np.ones((3, 2), np.int32)}
    assert sharding.mesh_of(params) is None
    assert sharding.place_batch(params, batch) is batch
    assert sharding.whole_rows(params, 3) == 3


def test_rows_are_rounded_up_to_the_data_axis(monkeypatch):
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    monkeypatch.setattr(sharding, "mesh_of", lambda params: mesh)
    assert [sharding.whole_rows({}, rows) for rows in (1, 4, 5)] == [4, 4, 8]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 1), "sizes of at least 1 (data may be -1), got data=0, model=1"),
        ((1, 0), "got data=1, model=0"),
        ((-2, 1), "got data=-2, model=1"),
        ((2, 1), "a mesh of 2 x 1 needs 2 devices; there are 1"),
        ((-1, 3), "1 devices cannot be shared out in groups of model=3"),
    ],
)
def test_a_mesh_without_its_devices_is_refused(size, message):
    with pytest.raises(ValueError, match=r".") as error:
        sharding.make_mesh(*size, devices=jax.devices()[:1])
    assert message in str(error.value)


def test_all_devices_of_this_process_by_default(monkeypatch):
    here = jax.local_devices()
    monkeypatch.setattr(jax, "devices", lambda: [*here, *here])
    assert list(sharding.make_mesh().devices.flat) == here


def test_no_device_of_another_platform_than_the_default_devices(monkeypatch):
    cpus, gpu = jax.local_devices(), SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: cpus if backend == "cpu" else [gpu, gpu])
    for chosen in ("cpu", cpus[0]):
        with jax.default_device(chosen):
            assert list(sharding.make_mesh().devices.flat) == cpus


def test_heads_that_cannot_be_shared_are_named():
    config = SMALL["1.7B-Base"]  # 2 and 4 key/value heads
    for size in (1, 2):
        sharding.check_mesh(jax.sharding.AbstractMesh((1, size), ("data", "model")), config)
    with pytest.raises(ValueError, match=r"^the talker has 2 key/value heads, which model=4 .*: choose model=1 or 2$"):
        sharding.check_mesh(jax.sharding.AbstractMesh((1, 4), ("data", "model")), config)
    with pytest.raises(ValueError, match=r"^the code predictor has 1 key/value heads, which model=3 .* model=1$"):
        sharding.check_mesh(jax.sharding.AbstractMesh((1, 3), ("data", "model")), SMALL["1.7B-CustomVoice"])


def test_another_mesh_is_refused():
    mesh = jax.make_mesh((1,), ("batch",), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"the mesh has the axes \('batch',\), not .*make_mesh"):
        sharding.shard_params({}, SMALL["1.7B-Base"], mesh)
