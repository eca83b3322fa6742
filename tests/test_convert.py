"""Checkpoint files ↔ parameter trees: lossless both ways."""

import hashlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file

from qwen3_tts_jax.convert import CheckpointError, export_safetensors, load_params
from qwen3_tts_jax.convert.load import _aligned_empty
from qwen3_tts_jax.convert.rules import all_rules, codec_rules, compute_dtype, model_rules, select, tree_shapes
from qwen3_tts_jax.convert.transforms import CONV, CONV_TRANSPOSE, IDENTITY, SQUEEZE
from qwen3_tts_jax.presets import PRESETS, preset
from tests.draw import draw
from tests.drawn_tree import drawn_tree
from tests.safetensors_folder import CODEC, all_parts, edit, small, write

# SHA-256 over the sorted lines "name\tdtype\tshape" of the published files, and their numbers of values.
PUBLISHED = {
    "0.6B-Base": (914_643_008, "89add3f0a8bde6bbb8d2bd8748d7086b72a8b9d2384df53998e087d1264493c4"),
    "0.6B-CustomVoice": (905_788_672, "f3c6c8ddb0088455e58d2bd4ad485b26753e55b2fe2d609aecb72b61b1c39a00"),
    "1.7B-Base": (1_928_677_440, "c9d4dcfae3142f8a694f83b1d1006b863e4b8dddb6dbf02779a7d9dd6de1b444"),
    "1.7B-CustomVoice": (1_916_676_352, "fe440a2145508e030a750f610843a745b22c8a16b799ee0ba9e37fb7f75d1025"),
    "1.7B-VoiceDesign": (1_916_676_352, "fe440a2145508e030a750f610843a745b22c8a16b799ee0ba9e37fb7f75d1025"),
}
PUBLISHED_CODEC = (170_557_441, "e91ed56359e1e7999a8114c11215c7abccf80ff956f99cb1e575f0ff848a4aff")


@pytest.fixture(scope="module")
def custom_voice(tmp_path_factory):
    config = small("1.7B-CustomVoice")
    return write(tmp_path_factory.mktemp("checkpoint") / "custom_voice", config), config


def assert_equal_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        left, right = np.asarray(found[name]), np.asarray(expected[name])
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        assert left.tobytes() == right.tobytes(), name


def digest(rules, dtype):
    lines = sorted(f"{name}\t{dtype}\t{list(shape)}" for rule in rules for name, shape in rule.torch.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count(rules):
    return sum(math.prod(shape) for rule in rules for shape in rule.torch.values())


@pytest.mark.parametrize("name", PRESETS)
def test_rules_are_the_published_tensor_lists(name):
    rules = model_rules(preset(name))
    assert (count(rules), digest(rules, "BF16")) == PUBLISHED[name]
    codec = codec_rules(preset(name).codec)
    assert (count(codec), digest(codec, "F32")) == PUBLISHED_CODEC
    paths = [rule.flax for rule in [*rules, *codec]]
    assert len(set(paths)) == len(paths)


def test_transforms_by_example():
    tensor = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert CONV.apply(tensor)[4, 2, 1] == tensor[1, 2, 4]
    assert CONV_TRANSPOSE.apply(tensor)[4, 1, 2] == tensor[1, 2, 4]
    assert SQUEEZE.apply(tensor[:, :, :1])[1, 2] == tensor[1, 2, 0]
    for transform, example in (
        (CONV, tensor), (CONV, tensor[:, :1]), (CONV_TRANSPOSE, tensor), (SQUEEZE, tensor[:, :, :1]),
        (IDENTITY, tensor), (IDENTITY, tensor[0]), (IDENTITY, tensor[0, 0]),
    ):  # fmt: skip
        assert transform.apply(example).shape == transform.shape(example.shape)
        np.testing.assert_array_equal(transform.invert(transform.apply(example)), example)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("dtype", "shards"), [("bfloat16", 1), ("float32", 3)])
def test_files_to_tree_to_files_is_lossless(tmp_path, name, dtype, shards):
    config = small(name).with_dtypes(dtype)
    folder = write(tmp_path / "in", config, dtype, shards)
    params = load_params(folder, config, all_parts(config))
    export_dtype = None
    if config.speaker_encoder is not None:
        # Loaded in float32 always, so that only the file's dtype gives it back.
        export_dtype = dtype
    written = export_safetensors(tmp_path / "out", params, config, export_dtype)
    assert written == [tmp_path / "out" / "model.safetensors", tmp_path / "out" / CODEC]
    originals = {k: v for file in sorted(folder.glob("model*.safetensors")) for k, v in load_file(file).items()}
    assert_equal_bits(load_file(tmp_path / "out" / "model.safetensors"), originals)
    assert_equal_bits(load_file(tmp_path / "out" / CODEC), load_file(folder / CODEC))
    with safe_open(written[0], "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("name", PRESETS)
def test_tree_to_files_to_tree_is_lossless(tmp_path, name):
    config = small(name)
    params = drawn_tree(all_rules(config))
    export_safetensors(tmp_path, params, config)
    loaded = load_params(tmp_path, config, all_parts(config))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert_equal_bits(flatten_dict(loaded, sep="/"), flatten_dict(params, sep="/"))


def test_leaves_are_where_the_model_looks_for_them(custom_voice):
    folder, config = custom_voice
    config = config.with_dtypes("float32")
    params = load_params(folder, config, all_parts(config))
    main, codec = load_file(folder / "model.safetensors"), load_file(folder / CODEC)
    talker = params["talker"]["transformer"]["layers_1"]
    qkv, attention = talker["attention"]["qkv"]["weight"], config.talker.transformer
    groups, size = attention.num_heads // attention.num_kv_heads, attention.head_dim
    for name, first, count in (("q", 0, groups), ("k", groups, 1), ("v", groups + 1, 1)):
        tensor = main[f"talker.model.layers.1.self_attn.{name}_proj.weight"].astype(np.float32)
        for head, weight in enumerate(tensor.reshape(-1, size, tensor.shape[1])):
            start = size * (first + head % count)
            np.testing.assert_array_equal(qkv[head // count, start : start + size], weight)
    for half, name in enumerate(("gate", "up")):
        tensor = main[f"talker.model.layers.1.mlp.{name}_proj.weight"].astype(np.float32)
        np.testing.assert_array_equal(talker["mlp"]["gate_up"]["weight"][half], tensor)
    embeddings = params["code_predictor"]["codec_embeddings"]["embedding"]
    name = "talker.code_predictor.model.codec_embedding.11.weight"
    np.testing.assert_array_equal(embeddings[11], main[name])
    kernel = params["codec"]["decoder"]["upsample_1"]["transposed_conv"]["kernel"]
    expected = codec["decoder.decoder.2.block.1.conv.weight"]
    np.testing.assert_array_equal(kernel[3], expected[:, :, 3])
    kernel = params["codec"]["encoder"]["stage_1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[2], codec["encoder.encoder.layers.6.conv.weight"][:, :, 2].T)


def test_dtypes(tmp_path):
    config = small("1.7B-Base").with_dtypes("float32", "bfloat16")
    folder = write(tmp_path, config, "bfloat16")
    leaves = flatten_dict(load_params(folder, config, all_parts(config)), sep="/")
    tables = {path for path in leaves if path.endswith(("/embedding", "_sum", "_usage", "/initialized"))}
    for path, leaf in leaves.items():
        in_file, computed = (jnp.float32, jnp.bfloat16) if path.startswith("codec/") else (jnp.bfloat16, jnp.float32)
        assert leaf.dtype == (in_file if path in tables else computed), path
    assert {rule.flax for rule in all_rules(config) if compute_dtype(config, rule) is None} == tables
    assert len(tables) == 3 + 4 + 6


def test_half_precision_files(tmp_path):
    config = small("1.7B-VoiceDesign").with_dtypes("float32")
    folder = write(tmp_path, config, "float16")
    leaves = flatten_dict(load_params(folder, config, ["talker"]), sep="/")
    head = draw("talker.codec_head.weight", leaves["talker/codec_head/weight"].shape)
    np.testing.assert_array_equal(leaves["talker/codec_head/weight"], head.astype(np.float16).astype(np.float32))
    assert leaves["talker/codec_embedding/embedding"].dtype == jnp.float16


def test_stacked_tables_of_mixed_dtypes_lose_nothing(tmp_path):
    config = small("1.7B-VoiceDesign").with_dtypes("bfloat16")
    folder = write(tmp_path, config, "bfloat16")
    name = "talker.code_predictor.model.codec_embedding.2.weight"
    exact = draw(name, (41, 56))
    edit(folder / "model.safetensors", lambda tensors: tensors.update({name: exact}))
    table = load_params(folder, config, ["code_predictor"])["code_predictor"]["codec_embeddings"]["embedding"]
    np.testing.assert_array_equal(table[2], exact)


def test_cpu_arrays_take_over_the_memory_that_was_read_into():
    array = _aligned_empty((1000, 33), np.dtype(jnp.bfloat16))
    assert array.shape == (1000, 33)
    adopted = jax.device_put(array, jax.devices("cpu")[0])
    assert adopted.unsafe_buffer_pointer() == array.ctypes.data


def test_only_the_selected_parts_are_read(custom_voice):
    folder, config = custom_voice
    calls = []
    parts = ("code_predictor", "codec/decoder")
    params = load_params(folder, config, parts, progress=lambda *call: calls.append(call))
    rules = select(all_rules(config), config, parts)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, tree_shapes(rules))
    assert set(params) == {"code_predictor", "codec"}
    assert set(params["codec"]) == {"decoder"}
    sizes = {"code_predictor": 2, "codec/decoder": 4}
    total = sum(sizes[rule.part] * math.prod(shape) for rule in rules for shape in rule.torch.values())
    assert [call[1] for call in calls] == [total] * len(calls)
    done = [0, *(call[0] for call in calls)]
    assert done[-1] == total
    assert min(np.diff(done)) > 0


def test_large_tensors_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen3_tts_jax.convert.safetensors_file._PIECE", 100)
    config = small("0.6B-CustomVoice").with_dtypes("float32")
    folder = write(tmp_path, config, "bfloat16")
    found = load_params(folder, config, ("talker", "codec/decoder"))
    rules = select(all_rules(config), config, ("talker", "codec/decoder"))
    for path, leaf in flatten_dict(drawn_tree(rules), sep="/").items():
        loaded = flatten_dict(found, sep="/")[path]
        rounded = leaf.astype(jnp.bfloat16) if path.startswith("talker") else leaf
        np.testing.assert_array_equal(loaded.astype(jnp.float32), rounded.astype(np.float32), err_msg=path)


def test_export_writes_the_files_whose_parts_are_there(tmp_path):
    config = small("1.7B-Base")
    params = drawn_tree(all_rules(config))
    assert export_safetensors(tmp_path / "codec", {"codec": params["codec"]}, config) == [tmp_path / "codec" / CODEC]
    assert not (tmp_path / "codec" / "model.safetensors").exists()
    main = {part: params[part] for part in ("talker", "code_predictor", "speaker_encoder")}
    (file,) = export_safetensors(tmp_path / "main", main, config, dtype="bfloat16")
    assert file == tmp_path / "main" / "model.safetensors"
    assert {str(tensor.dtype) for tensor in load_file(file).values()} == {"bfloat16"}
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(FileExistsError, match=r"main/model\.safetensors is there already"):
        export_safetensors(tmp_path / "main", main, config)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda leaves: leaves.pop("talker/codec_head/weight"), "talker/codec_head/weight [1085, 56] is missing"),
        (
            lambda leaves: leaves.update({"talker/lora/weight": np.zeros((2, 3))}),
            "talker/lora/weight [2, 3] is surplus: this model has no such tensor",
        ),
        (
            lambda leaves: leaves.update({"talker/codec_head/weight": np.zeros((56, 1085), np.float32)}),
            "talker/codec_head/weight has shape [56, 1085], expected [1085, 56]",
        ),
        (
            lambda leaves: leaves.update({"talker/transformer/norm/scale": np.zeros(56, np.int8)}),
            "talker/transformer/norm/scale has dtype int8, expected one of float32, bfloat16, float16",
        ),
        (
            lambda leaves: [leaves.pop(path) for path in list(leaves) if path.startswith("code_predictor/")],
            "code_predictor/codec_heads/weight [15, 61, 56] is missing",
        ),
    ],
    ids=["missing", "surplus", "misshapen", "dtype", "missing part"],
)
def test_export_refuses_a_tree_that_does_not_fit(tmp_path, change, problem):
    config = small("0.6B-CustomVoice")
    leaves = flatten_dict(drawn_tree(model_rules(config)), sep="/")
    change(leaves)
    with pytest.raises(CheckpointError) as caught:
        export_safetensors(tmp_path / "out", unflatten_dict(leaves, sep="/"), config)
    assert problem in caught.value.problems
    assert not (tmp_path / "out").exists()


def test_export_of_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no part is there; there are talker"):
        export_safetensors(tmp_path, {}, small("1.7B-Base"))


def test_a_failed_export_leaves_no_file(tmp_path, monkeypatch):
    def fail(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("qwen3_tts_jax.convert.export.save_file", fail)
    config = small("1.7B-VoiceDesign")
    with pytest.raises(OSError, match="No space left"):
        export_safetensors(tmp_path, drawn_tree(model_rules(config)), config)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
