"""Kernels for many queries at once, in a stack: what they compute is what the portable form computes."""

import functools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import attention
from qwen3_tts_jax.cache import KVCache, WindowCache
from qwen3_tts_jax.config import ConfigError, TransformerConfig
from qwen3_tts_jax.devices import nvidia_capability
from qwen3_tts_jax.presets import preset

# As small and odd as kernels take them.
STACK = TransformerConfig(
    num_layers=1, width=24, mlp_width=24, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, norm_eps=1e-6
)
STEPS = 67
WINDOW = 10


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(len(shape) + shape[-1]).normal(size=shape), jnp.float32)


def inputs(cache, batch):
    """Queries, and what a cache makes of keys and values: its mask, all of them, and the slots before."""
    mask, past = cache.mask(STEPS), cache.past(STEPS)
    new = (drawn(batch, STEPS, STACK.num_kv_heads, STACK.head_dim + i)[..., : STACK.head_dim] for i in (0, 1))
    _, keys, values = cache.extend(0, *new)
    queries = drawn(batch, STEPS, STACK.num_kv_heads, STACK.num_heads // STACK.num_kv_heads, STACK.head_dim)
    return queries, keys, values, mask, past


def whole():
    return KVCache.zeros(STACK, 2, STEPS)


def window():
    """Rows that have seen nothing, less than a window, and more."""
    cache = WindowCache.zeros(replace(STACK, sliding_window=WINDOW), 3)
    keys, values = drawn(3, 2, STACK.head_dim, WINDOW - 1), drawn(3, 2, WINDOW - 1, STACK.head_dim)
    return cache.replace(keys=(keys,), values=(values,), length=jnp.asarray([0, 5, 40]))


def value_and_gradients(form, make):
    """What a form of attention computes in float32, and its gradients."""
    cache = make()
    *arrays, mask, past = inputs(cache, len(cache.values[0]))

    @jax.jit
    def compute(*arrays):
        value, pullback = jax.vjp(lambda *arrays: form(*arrays, mask, past=past), *arrays)
        return value, *pullback(jnp.cos(value))

    return compute(*arrays)


@functools.cache
def expected(make):
    return value_and_gradients(lambda *arrays, past: attention.portable(*arrays), make)


def assert_equal_the_portable_form(form, make):
    for one, other in zip(value_and_gradients(form, make), expected(make), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(("rows", "groups"), [(1, 3), (3, 3), (3, 1)])
def test_one_query_equals_the_portable_form(rows, groups):
    """With a mask of each row, and with one for all."""
    queries = drawn(rows, 1, 2, groups, 8)
    keys, values = drawn(rows, 2, 8, 11), drawn(rows, 2, 11, 8)
    lengths = jnp.asarray([4, 11, 7])[:rows]
    for mask in (jnp.arange(11) < lengths[:, None, None], jnp.arange(11)[None, None] < 5):
        portable = attention.portable(queries, keys, values, mask)
        for form in (attention._single_query, attention._single_query_on_cpu):
            for pieces in ([], [4], [2, 9]):
                pieces = tuple(jnp.split(keys, pieces, axis=3)), tuple(jnp.split(values, pieces, axis=2))
                np.testing.assert_allclose(form(queries, *pieces, mask), portable, rtol=1e-5, atol=1e-6)
    other = attention._single_query(queries, (keys,), (values,), mask[..., ::-1])
    assert not np.allclose(portable, other, atol=1e-2)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_query_on_a_cpu_is_computed_in_float32(groups):
    queries, keys, values = (
        x.astype(jnp.bfloat16) for x in (drawn(2, 1, 2, groups, 8), drawn(2, 2, 8, 40), drawn(2, 2, 40, 8))
    )
    mask = jnp.ones((2, 1, 40), bool)
    found = attention._single_query_on_cpu(queries, (keys,), (values,), mask)
    exact = attention.portable(*(x.astype(jnp.float32) for x in (queries, keys, values)), mask)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_pieces_are_summed_before_they_are_rounded():
    queries, keys, values = (
        x.astype(jnp.bfloat16) for x in (drawn(2, 1, 2, 3, 8), drawn(2, 2, 8, 40), drawn(2, 2, 40, 8))
    )
    mask = jnp.ones((2, 1, 40), bool)
    pieces = tuple(jnp.split(keys, 2, axis=3)), tuple(jnp.split(values, 2, axis=2))
    whole = attention._single_query(queries, (keys,), (values,), mask)
    found = attention._single_query(queries, *pieces, mask)
    assert found.dtype == jnp.bfloat16
    # Otherwise a quarter of them differ in the last place.
    assert np.mean(whole != found) < 0.02


@pytest.mark.parametrize("make", [whole, window])
def test_the_splash_kernel_equals_the_portable_form(make):
    assert_equal_the_portable_form(partial(attention.pallas, interpret=True), make)


@pytest.mark.parametrize(("length", "block", "padded"), [(64, 128, 128), (500, 512, 512), (513, 512, 1024)])
def test_lengths_are_padded_to_blocks(length, block, padded):
    assert attention._block(length) == (block, padded)


@pytest.fixture
def stand_in_for_cudnn(monkeypatch):
    """JAX's own form behind the arguments of cuDNN's, which are noted, with what it refuses."""
    noted = []
    ours = jax.nn.dot_product_attention

    def fused(queries, keys, values, *, implementation, **options):
        assert implementation == "cudnn"
        if "mask" in options:
            assert queries.shape[1] % 2 == keys.shape[1] % 2 == 0
        noted.append(sorted(options))
        return ours(queries, keys, values, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    return noted


@pytest.mark.parametrize(("make", "options"), [(whole, ["is_causal"]), (window, ["mask"])])
def test_what_is_asked_of_cudnn_is_the_portable_form(make, options, stand_in_for_cudnn):
    assert_equal_the_portable_form(attention.cudnn, make)
    assert stand_in_for_cudnn == [options]


def test_only_many_queries_of_which_the_last_ends_the_cache_go_to_a_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: calls.append(set(forms)))
    config = replace(STACK, attention="pallas")

    def forms(steps, past, config=config):
        array = jnp.zeros((1, steps))
        attention.attend(array, array, array, array, past=past, config=config)
        return calls.pop()

    assert forms(64, 0) == forms(64, 3) == {"cpu", "default", "tpu"}
    assert forms(64, 0, replace(STACK, attention="cudnn")) == {"cpu", "default", "cuda"}
    assert forms(63, 0) == forms(64, None) == forms(64, 0, STACK) == {"cpu", "default"}


def test_a_cache_tells_what_comes_before_its_next_inputs():
    cache = KVCache.zeros(STACK, 2, 9)
    assert (cache.past(9), cache.past(8)) == (0, None)
    windowed = replace(STACK, sliding_window=4)
    assert WindowCache.zeros(windowed, 1).past(5) == 3
    # A window of one would be taken for all that came before.
    assert WindowCache.zeros(replace(STACK, sliding_window=1), 1).past(5) is None


# What is chosen for a machine.

MODEL = preset("0.6B-CustomVoice")
GPU = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
OLD_GPU = SimpleNamespace(platform="gpu", device_kind="Tesla V100", compute_capability="7.0")
AMD_GPU = SimpleNamespace(platform="gpu", device_kind="MI300X", compute_capability="gfx942")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5e")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


def kernels(config):
    parts = (config.talker, config.code_predictor, config.codec.encoder, config.codec.decoder)
    return [part.transformer.attention for part in parts]


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        (GPU, 1, "cudnn"),
        (TPU, 1, "pallas"),
        (GPU, 2, "cudnn"),
        (TPU, 2, "xla"),
        (OLD_GPU, 1, "xla"),
        (AMD_GPU, 1, "xla"),
        (CPU, 1, "xla"),
    ],
)
def test_auto_takes_the_kernel_of_the_device_for_parts_in_bfloat16(monkeypatch, device, devices, expected):
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    config = MODEL.with_dtypes("bfloat16", "float32")
    assert kernels(attention.configure(config, "auto", devices)) == [expected, expected, "xla", "xla"]
    wide = replace(config.talker, transformer=replace(config.talker.transformer, head_dim=136))
    found = attention.configure(replace(config, talker=wide), "auto", devices)
    assert kernels(found) == ["xla", expected, "xla", "xla"]
    assert kernels(attention.configure(MODEL, "auto", devices)) == ["xla"] * 4
    assert kernels(attention.configure(config.with_attention(lambda _: "cudnn"), "xla", devices)) == ["xla"] * 4


def test_no_kernel_is_chosen_on_a_gpu_machine_whose_default_device_is_its_cpu(monkeypatch):
    cpu = jax.local_devices(backend="cpu")[0]
    monkeypatch.setattr(jax, "local_devices", lambda backend: [cpu if backend == "cpu" else GPU])
    config = MODEL.with_dtypes("bfloat16", "bfloat16")
    assert kernels(attention.configure(config, "auto")) == ["cudnn"] * 4
    for chosen in ("cpu", cpu):
        with jax.default_device(chosen):
            assert kernels(attention.configure(config, "auto")) == ["xla"] * 4
            assert nvidia_capability() is None


@pytest.mark.parametrize(("device", "kernel"), [(GPU, "cudnn"), (TPU, "pallas")])
def test_a_kernel_that_is_there_can_be_asked_for(monkeypatch, device, kernel):
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    config = MODEL.with_dtypes("bfloat16", "bfloat16")
    assert kernels(attention.configure(config, kernel)) == [kernel] * 4


@pytest.mark.parametrize(
    ("device", "choice", "dtype", "devices", "message"),
    [
        (CPU, "cudnn", "bfloat16", 1, "needs an NVIDIA GPU from Ampere on, and this is cpu"),
        (OLD_GPU, "cudnn", "bfloat16", 1, "needs an NVIDIA GPU from Ampere on, and this is Tesla V100"),
        (GPU, "pallas", "bfloat16", 1, "needs a TPU, and this is NVIDIA H200"),
        (GPU, "cudnn", "float32", 1, "the talker has float32 and heads of 128"),
        (TPU, "pallas", "bfloat16", 4, "is for one chip, and 4 devices share the work"),
        (CPU, "flash", "bfloat16", 1, 'must be "auto", "xla", "cudnn" or "pallas", got \'flash\''),
    ],
)
def test_a_kernel_that_cannot_be_used_is_refused(monkeypatch, device, choice, dtype, devices, message):
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    with pytest.raises(ConfigError, match=message):
        attention.configure(MODEL.with_dtypes(dtype), choice, devices)
