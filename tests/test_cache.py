"""Both caches through the transformer: any split of the input gives what one pass gives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.cache import KVCache, WindowCache
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


def empty(config, batch, capacity, start=None):
    if config.sliding_window is not None:
        return WindowCache.zeros(config, batch)
    start = jnp.zeros(batch, jnp.int32) if start is None else jnp.asarray(start, jnp.int32)
    return KVCache.zeros(config, start, capacity)


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
    assert int(cache.length) == 11


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["full", "window"])
def test_the_future_cannot_change_the_past(config):
    run, x = model(config), inputs(1, 9)
    before, _ = run(x, empty(config, 1, 9))
    after, _ = run(x.at[:, 6].multiply(-1.0), empty(config, 1, 9))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert jnp.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3


def test_a_window_forgets():
    """Two layers with a window of 4 see 3 + 3 positions back, and no further."""
    run, x = model(WINDOWED), inputs(1, 12)
    before, _ = run(x, empty(WINDOWED, 1, 12))
    after, _ = run(x.at[:, 2].multiply(-1.0), empty(WINDOWED, 1, 12))
    changed = jnp.abs(before - after).max(axis=(0, 2)) > 1e-4
    assert changed.tolist() == [False] * 2 + [True] * 7 + [False] * 3


def test_left_padding_changes_nothing():
    run, x = model(CONFIG), inputs(1, 8)
    alone, _ = run(x, empty(CONFIG, 1, 8))
    padded = jnp.concatenate([inputs(1, 5, seed=9), x], axis=1)
    shifted, _ = run(padded, empty(CONFIG, 1, 13, start=[5]))
    np.testing.assert_allclose(shifted[:, 5:], alone, atol=2e-5)


def test_growing_keeps_what_was_written():
    run, x = model(CONFIG), inputs(2, 7)
    whole, _ = run(x, empty(CONFIG, 2, 7, start=[0, 2]))
    _, cache = run(x[:, :5], empty(CONFIG, 2, 5, start=[0, 2]))
    y, cache = run(x[:, 5:], cache.grow(19))
    assert cache.capacity == 19
    np.testing.assert_allclose(y, whole[:, 5:], atol=2e-5)
