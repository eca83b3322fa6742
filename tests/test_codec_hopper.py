"""The kernels for Hopper GPUs, run by Pallas' interpreter: the same samples as the modules of the decoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.codec import conv, decoder, hopper
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.convert.rules import codec_rules
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # Before JAX 0.11 it is not public.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

BATCH = 8

step = jax.jit(decoder.decode_step, static_argnums=1)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "product", partial(hopper.product, interpret=InterpretGPUParams()))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def decibels(found: jax.Array, expected: jax.Array) -> float:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


def rows_of(x: jax.Array) -> jax.Array:
    """[B, T, C] → [T·B, C]."""
    return x.swapaxes(0, 1).reshape(-1, x.shape[-1])


@pytest.mark.parametrize(("taps", "dilation", "inputs", "outputs"), [(7, 9, 64, 96), (2, 1, 32, 64), (1, 1, 32, 192)])
def test_a_product_is_the_convolution(taps, dilation, inputs, outputs):
    x = normal(0, BATCH, 32 + (taps - 1) * dilation, inputs)
    kernel, bias = normal(1, taps, inputs, outputs) / 10, normal(2, outputs)
    expected = rows_of(conv._convolve(x, kernel, dilation) + bias)
    given = *hopper.halves(rows_of(x)), kernel, bias
    assert decibels(hopper.product(*given, shift=dilation * BATCH), expected) > 95
    residual = normal(3, *expected.shape)
    assert decibels(hopper.product(*given, shift=dilation * BATCH, residual=residual), expected + residual) > 95
    rates = jnp.exp(normal(4, outputs) / 3), jnp.exp(normal(5, outputs) / 3)
    high, low = hopper.product(*given, shift=dilation * BATCH, rates=rates)
    assert high.dtype == low.dtype == jnp.bfloat16
    expected = expected + jnp.sin(expected * rates[0]) ** 2 * rates[1]
    assert decibels(high.astype(jnp.float32) + low.astype(jnp.float32), expected) > 95


CODEC = SMALL["1.7B-CustomVoice"].codec
# Of 8 samples a frame; widths that tiles divide.
CONFIG = replace(
    CODEC.decoder,
    latent_width=32,
    decoder_channels=128,
    upsample_rates=(2,),
    latent_upsample_rates=(2, 2),
    three_pass=True,
)


def test_a_stream_by_kernels_is_that_of_the_modules():
    rules = [rule for rule in codec_rules(replace(CODEC, decoder=CONFIG)) if rule.part == "codec/decoder"]
    params = jax.tree.map(jnp.asarray, drawn_tree(rules)["codec"]["decoder"])
    kernels = replace(CONFIG, hopper=True)
    codes = np.random.default_rng(0).integers(0, CONFIG.codebook_size, (BATCH, 8, CONFIG.num_codebooks))
    assert hopper.fits(kernels, BATCH, 4 * 4)
    expected, found = (decoder.initial_state(CONFIG, BATCH) for _ in range(2))
    for start in (0, 4):
        chunk = jnp.asarray(codes[:, start : start + 4], jnp.int32)
        expected, samples = step(params, CONFIG, expected, chunk)
        found, same = step(params, kernels, found, chunk)
        assert same.shape == samples.shape
        assert float(jnp.abs(samples).max()) > 0.01
        assert decibels(same, samples) > 60
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "batch", "steps"),
    [
        (CONFIG, 4, 32),
        (CONFIG, 8, 4),
        (replace(CONFIG, decoder_channels=160), 8, 16),
        (replace(CONFIG, latent_width=40), 8, 16),
        (replace(CONFIG, decoder_channels=64), 8, 16),
    ],
)
def test_other_shapes_are_left_to_the_modules(config, batch, steps):
    assert hopper.fits(CONFIG, 8, 16)
    assert not hopper.fits(config, batch, steps)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """JAX's default device has the capability that is asked for."""
    gpu = type("Device", (), {"compute_capability": request.param, "device_kind": "Some GPU"})()
    monkeypatch.setattr(jax, "local_devices", lambda backend: [gpu])


@pytest.mark.parametrize(
    ("device", "dtype", "options", "taken"),
    [
        ("9.0", "bfloat16_3x", {}, True),
        ("9.0", "bfloat16_3x", {"kernels": False}, False),
        ("9.0", "bfloat16_3x", {"devices": 2}, False),
        ("9.0", "float32", {}, False),
        ("9.0", "bfloat16", {}, False),
        ("8.0", "bfloat16_3x", {}, False),
        ("10.0", "bfloat16_3x", {}, False),
        ("gfx942", "bfloat16_3x", {}, False),
        ("7.5", "float32", {}, False),
    ],
    indirect=["device"],
)
def test_kernels_are_for_three_passes_on_one_hopper_gpu(device, dtype, options, taken):
    assert hopper.configure(CODEC.with_dtype(dtype), **options).decoder.hopper is taken


@pytest.mark.parametrize("device", ["9.0"], indirect=True)
def test_another_dtype_forgets_the_kernels(device):
    codec = hopper.configure(CODEC.with_dtype("bfloat16_3x"))
    assert not codec.with_dtype("float32").decoder.hopper


@pytest.mark.parametrize("device", ["7.5"], indirect=True)
def test_three_passes_need_units_for_bfloat16(device):
    with pytest.raises(ConfigError, match=r"from Ampere on, and this is Some GPU: use codec=float32"):
        hopper.configure(CODEC.with_dtype("bfloat16_3x"))
