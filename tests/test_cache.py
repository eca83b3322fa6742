"""Both caches through the transformer: any split of the input gives what one pass gives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.cache import KVCache, StagedCache, WindowCache
from qwen3_tts_jax.config import TransformerConfig
from qwen3_tts_jax.transformer import Transformer

CONFIG = TransformerConfig(
    num_layers=2, width=20, mlp_width=28, num_heads=6, num_kv_heads=3, head_dim=6,
    rope_theta=1e4, norm_eps=1e-6, qk_norm=True,
)  # fmt: skip
WINDOWED = replace(CONFIG, norm="layer", mlp="gelu", layer_scale=True, final_norm=False, sliding_window=4)


def model(config):
    """A stack with every parameter re-drawn, so that no 0 or 1 of the initialisation hides a mistake."""
    module = Transformer(config)
    x = jnp.zeros((1, 1, config.width))
    tree = jax.eval_shape(module.init, jax.random.key(0), x, empty(config, 1, 1))["params"]
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), jnp.float32) for leaf in leaves]
    return jax.jit(lambda x, cache: module.apply({"params": structure.unflatten(params)}, x, cache))


def empty(config, batch, capacity):
    if config.sliding_window is not None:
        return WindowCache.zeros(config, batch)
    return KVCache.zeros(config, batch, capacity)


def inputs(batch, steps, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, steps, CONFIG.width)), jnp.float32)


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["full", "window"])
@pytest.mark.parametrize("splits", [(1,) * 11, (3, 1, 7), (10, 1)])
def test_any_split_equals_one_pass(config, splits):
    run, x = model(config), inputs(2, 11)
    whole, _ = run(x, empty(config, 2, 11))
    cache, pieces, first = empty(config, 2, 17), [], 0
    for steps in splits:
        y, cache = run(x[:, first : first + steps], cache)
        pieces.append(y)
        first += steps
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=2e-5)
    assert cache.length.tolist() == [11, 11]


@pytest.mark.parametrize(("norm", "parameters"), [("rms", {"scale"}), ("layer", {"scale", "bias"})])
def test_the_last_norm_is_of_the_kind_of_the_others(norm, parameters):
    config = replace(CONFIG, norm=norm)
    x = jnp.zeros((1, 1, config.width))
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), x, empty(config, 1, 1))["params"]
    assert set(tree["norm"]) == set(tree["layers_0"]["mlp_norm"]) == parameters


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["full", "window"])
def test_the_future_cannot_change_the_past(config):
    run, x = model(config), inputs(1, 9)
    before, _ = run(x, empty(config, 1, 9))
    after, _ = run(x.at[:, 6].multiply(-1.0), empty(config, 1, 9))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert jnp.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3


@pytest.mark.parametrize("devices", [1, 2])
def test_a_cache_that_is_written_once_for_a_chunk(devices):
    """Rows of different lengths see what they would see, and in the end have what they would have."""
    run, x = model(CONFIG), inputs(2, 9)
    _, cache = run(x[:, :4], empty(CONFIG, 2, 9))
    cache = cache.replace(length=jnp.asarray([4, 2]))
    staged = StagedCache.after(cache, CONFIG, 5)
    for step in range(4, 9):
        expected, cache = run(x[:, step : step + 1], cache)
        y, staged = run(x[:, step : step + 1], staged)
        np.testing.assert_allclose(y, expected, atol=2e-5)
    merged = staged.merged(devices)
    assert merged.length.tolist() == cache.length.tolist() == [9, 7]
    for row, length in enumerate((9, 7)):
        for layer in range(CONFIG.num_layers):
            np.testing.assert_allclose(
                merged.keys[layer][row, ..., :length], cache.keys[layer][row, ..., :length], atol=2e-5
            )
            np.testing.assert_allclose(
                merged.values[layer][row, :, :length], cache.values[layer][row, :, :length], atol=2e-5
            )


def test_a_window_forgets():
    """Two layers with a window of 4 see 3 + 3 positions back, and no further."""
    run, x = model(WINDOWED), inputs(1, 12)
    before, _ = run(x, empty(WINDOWED, 1, 12))
    after, _ = run(x.at[:, 2].multiply(-1.0), empty(WINDOWED, 1, 12))
    changed = jnp.abs(before - after).max(axis=(0, 2)) > 1e-4
    assert changed.tolist() == [False] * 2 + [True] * 7 + [False] * 3


def test_padding_on_the_right_is_overwritten_and_never_seen():
    """Rows of 5 and 8 in a batch of 8 go on, each from its own end, as they do alone."""
    run, x = model(CONFIG), inputs(2, 11)
    alone, _ = run(x[:1, :8], empty(CONFIG, 1, 8))
    whole, _ = run(x[1:], empty(CONFIG, 1, 11))
    y, cache = run(x[:, :8], empty(CONFIG, 2, 12))
    np.testing.assert_allclose(y[0], alone[0], atol=2e-5)
    cache = cache.replace(length=jnp.asarray([5, 8], jnp.int32))
    rest = jnp.stack([x[0, 5:8], x[1, 8:11]])
    for step in range(3):
        y, cache = run(rest[:, step : step + 1], cache)
        np.testing.assert_allclose(y[0, 0], alone[0, 5 + step], atol=2e-5)
        np.testing.assert_allclose(y[1, 0], whole[0, 8 + step], atol=2e-5)
    assert cache.length.tolist() == [8, 11]


def test_a_row_is_replaced_without_the_others():
    run, x = model(CONFIG), inputs(3, 9)
    whole, _ = run(x, empty(CONFIG, 3, 9))
    _, cache = run(x[:, :6], empty(CONFIG, 3, 9))
    _, new = run(x[1:, :4], empty(CONFIG, 2, 4))
    # Row 1 of `new` goes into row 0; row 0 of it, with a number beyond the batch, nowhere.
    cache = cache.insert(jnp.asarray([3, 0]), new)
    assert cache.length.tolist() == [4, 6, 6]
    y, _ = run(jnp.stack([x[2, 4:5], x[1, 6:7], x[2, 6:7]]), cache)
    np.testing.assert_allclose(y[:, 0], [whole[2, 4], whole[1, 6], whole[2, 6]], atol=2e-5)


def test_growing_keeps_what_was_written():
    run, x = model(CONFIG), inputs(2, 7)
    whole, _ = run(x, empty(CONFIG, 2, 7))
    _, cache = run(x[:, :5], empty(CONFIG, 2, 5))
    y, cache = run(x[:, 5:], cache.grow(19))
    assert cache.capacity == 19
    np.testing.assert_allclose(y, whole[:, 5:], atol=2e-5)
