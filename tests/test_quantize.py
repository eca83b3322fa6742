"""int8 weights: what they are, that the model uses them, and what stays as it is."""

import gc
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax import Qwen3TTS, Request
from qwen3_tts_jax.convert.rules import model_rules
from qwen3_tts_jax.layers import multiply_int8
from qwen3_tts_jax.quantize import _quantize_weight, quantize
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint

CONFIG = SMALL["1.7B-CustomVoice"]


def widened(tree):
    """The float tree that an int8 tree stands for."""
    leaves = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        if path.endswith("/weight_int8"):
            layer = path.removesuffix("/weight_int8")
            scale = flatten_dict(tree, sep="/")[f"{layer}/scale"]
            leaves[f"{layer}/weight"] = leaf.astype(jnp.float32) * scale[..., None]
        elif not (
            path.endswith("/scale") and f"{path.removesuffix('scale')}weight_int8" in flatten_dict(tree, sep="/")
        ):
            leaves[path] = leaf
    return unflatten_dict(leaves, sep="/")


def test_every_weight_is_within_half_a_step_and_each_output_uses_the_whole_range():
    params = drawn_tree(model_rules(CONFIG), seed=4)
    before, after = flatten_dict(params, sep="/"), flatten_dict(quantize(params), sep="/")
    layers = [path.removesuffix("/weight_int8") for path in after if path.endswith("/weight_int8")]
    stacks = CONFIG.talker.transformer.num_layers + CONFIG.code_predictor.transformer.num_layers
    assert len(layers) == 4 * stacks
    for layer in layers:
        weight, values, scale = before[f"{layer}/weight"], after[f"{layer}/weight_int8"], after[f"{layer}/scale"]
        assert (values.dtype, scale.dtype) == (jnp.int8, jnp.float32)
        assert values.shape == weight.shape
        assert scale.shape == weight.shape[:-1]
        np.testing.assert_array_equal(jnp.abs(values).max(axis=-1), 127)
        assert (np.abs(values * scale[..., None] - weight) <= 0.5001 * scale[..., None]).all()
    kept = [path for path in before if f"{path.removesuffix('/weight')}/weight_int8" not in after]
    assert all(after[path] is before[path] for path in kept)
    assert len(after) == len(kept) + 2 * len(layers)


def test_one_float_weight_at_a_time_is_held_while_a_model_loads(tmp_path, tokenizer_folder, monkeypatch):
    folder = write_small_checkpoint(tmp_path, CONFIG, tokenizer_folder)
    expected = quantize(Qwen3TTS.from_pretrained(folder, dtype="float32").params)
    gc.collect()
    before, held = sum(leaf.nbytes for leaf in jax.live_arrays()), []

    def noted(weight):
        made = _quantize_weight(weight)
        held.append(sum(leaf.nbytes for leaf in jax.live_arrays()) - before)
        return made

    monkeypatch.setattr("qwen3_tts_jax.quantize._quantize_weight", noted)
    params = Qwen3TTS.from_pretrained(folder, dtype="float32", weights="int8").params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    largest = max(leaf.nbytes for path, leaf in flatten_dict(params).items() if path[-1] == "weight_int8")
    assert max(held) < sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + 2 * 4 * largest
    assert len(held) == 4 * (CONFIG.talker.transformer.num_layers + CONFIG.code_predictor.transformer.num_layers)


def test_a_row_of_zeros_stays_zero():
    layer = {"o": {"weight": jnp.zeros((3, 5)).at[1].set(2.0)}}
    tree = quantize({"talker": {"transformer": layer}})["talker"]["transformer"]["o"]
    np.testing.assert_array_equal(tree["weight_int8"], jnp.zeros((3, 5)).at[1].set(127))
    assert jnp.isfinite(tree["scale"]).all()


def test_the_model_speaks_as_its_widened_weights_do(tmp_path, tokenizer_folder):
    folder = write_small_checkpoint(tmp_path, CONFIG, tokenizer_folder)
    requests = [Request(text, speaker="ryan", max_frames=9) for text in ("One.", "Two, and a little more.", "Three!")]
    model = Qwen3TTS.from_pretrained(folder, dtype="float32", weights="int8")
    assert quantize(model.params).keys() == model.params.keys()
    float_model = Qwen3TTS.from_pretrained(folder, dtype="float32")
    wide = Qwen3TTS(model.config, widened(model.params), model.tokenizer)
    speeches, expected, exact = (m.synthesize(requests, seed=2) for m in (model, wide, float_model))
    for speech, other in zip(speeches, expected, strict=True):
        np.testing.assert_array_equal(speech.codes, other.codes)
        np.testing.assert_allclose(speech.samples, other.samples, atol=1e-5)
    assert any(a.codes.tobytes() != b.codes.tobytes() for a, b in zip(speeches, exact, strict=True))

    def size(model):
        stacks = [model.params[part]["transformer"] for part in ("talker", "code_predictor")]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(stacks))

    assert 0.25 < size(model) / size(float_model) < 0.3


@pytest.mark.parametrize("rows", [1, 2, 64, 65])
def test_products_are_as_exact_as_in_float32(rows):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 300)) * 10.0 ** rng.uniform(-6, 6, (rows, 1))
    # Rows with one number that is far beyond the others, and one of zeros.
    x[:, 7] *= 100
    x[-1] *= rows == 1
    x, weight = x.astype(np.float32), rng.integers(-127, 128, (2, 11, 300)).astype(np.int8)
    found = jax.jit(multiply_int8)(x.reshape(rows, 1, 300), weight)
    assert (found.shape, found.dtype) == ((rows, 1, 2, 11), jnp.float32)
    expected = x.astype(np.float64) @ weight.reshape(22, 300).T.astype(np.float64)
    # Half a step of the last digit for each product, and what float32 makes of the sums.
    sizes, weights = np.abs(x).astype(np.float64), np.abs(weight.reshape(22, 300).T).astype(np.float64)
    half = sizes.max(axis=1, keepdims=True) / (127 * 254**2) / 2
    allowed = half * weights.sum(axis=0) + 5e-7 * (sizes @ weights)
    assert (np.abs(found.reshape(rows, 22) - expected) <= allowed).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="known of XLA for x86 alone")
@pytest.mark.parametrize(("rows", "widened"), [(1, False), (64, False), (65, True)])
def test_few_rows_need_no_wider_weights(rows, widened):
    shapes = jax.ShapeDtypeStruct((rows, 80), jnp.float32), jax.ShapeDtypeStruct((2, 48, 80), jnp.int8)
    program = jax.jit(multiply_int8).lower(*shapes).compile().as_text()
    assert ("f32[96,80]" in program or "f32[2,48,80]" in program) is widened
    assert "s32[96,80]" not in program


def test_gradients_are_those_of_widened_weights():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 20)).astype(np.float32), rng.integers(-127, 128, (7, 20)).astype(np.int8)

    def loss(product):
        return jax.grad(lambda x: jnp.sum(jnp.sin(product(x))))(x)

    expected = loss(lambda x: x @ weight.T.astype(np.float32))
    np.testing.assert_allclose(loss(lambda x: multiply_int8(x, weight)), expected, rtol=1e-3, atol=1e-2)
    assert np.abs(expected).max() > 10


def test_what_is_no_number_stays_none():
    weight = np.ones((3, 4), np.int8)
    x = np.array([[1, 2, np.nan, 3], [1, 2, 3, 4], [np.inf, 1, 1, 1]], np.float32)
    found = multiply_int8(x, weight)
    assert not np.isfinite(found[0]).any()
    assert not np.isfinite(found[2]).any()
    np.testing.assert_allclose(found[1], 10, rtol=1e-6)
