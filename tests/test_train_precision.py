"""What is float32 is multiplied in float32, also where JAX's default would be less: TF32 on GPUs, bfloat16 on TPUs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import source_info_util
from jax.extend.core import jaxprs_in_params

from qwen3_tts_jax.train.alignment import AlignmentConfig
from qwen3_tts_jax.train.codec.discriminator import Discriminator
from qwen3_tts_jax.train.codec.spectral import spectral_recipes, start_spectra
from qwen3_tts_jax.train.codec.spectral_step import spectral_step
from qwen3_tts_jax.train.codec.start import random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, codec_step, start_codec
from qwen3_tts_jax.train.codec.teacher import Teacher
from qwen3_tts_jax.train.lora import LoraConfig
from qwen3_tts_jax.train.loss import Batch
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.regularization import Regularization
from qwen3_tts_jax.train.step import Recipe, start, train_step
from tests.train_codec import CODEC, FRAMES, tones
from tests.train_model import CUSTOM_VOICE, own_params, prompts, random_codes


def rough_products(jaxpr):
    """Where products and convolutions of float32 are written that may be computed in less."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            precisions = np.ravel(equation.params["precision"])
            wide = all(variable.aval.dtype == jnp.float32 for variable in equation.invars)
            if wide and not all(one == jax.lax.Precision.HIGHEST for one in precisions):
                found.append(source_info_util.summarize(equation.source_info))
        for inner in jaxprs_in_params(equation.params):
            found += rough_products(inner)
    return sorted(set(found))


def of_talker(**changed):
    recipe = replace(Recipe(CUSTOM_VOICE, optimizer=OptimizerConfig(steps=100)), **changed)
    state, frozen = start(own_params(), recipe)
    batch = Batch(prompts("speaker"), random_codes((9, 4, 6), seed=5), np.ones(3, bool))
    return train_step.trace(state, frozen, jax.tree.map(lambda leaf: leaf[None], batch), recipe)


def of_codec():
    recipe = CodecRecipe(CODEC, discriminator=Discriminator(512, fft_sizes=(128,), channels=2), teacher=Teacher(7))
    params, targets = random_codec(CODEC), np.ones((4, FRAMES, 7), np.float32)
    state = start_codec(params, recipe)
    return codec_step.trace(state, params, tones(0), jax.random.key(0), recipe, targets=targets, against=True)


def of_spectra():
    """Of an encoder of samples that learns from one of spectra; Muon's own products may be rough."""
    shape = replace(
        CODEC, encoder=replace(CODEC.encoder, strides=(12, 20)), decoder=replace(CODEC.decoder, upsample_rates=(12, 20))
    )
    first, second = (
        replace(one, teacher=Teacher(7), optimizer=replace(one.optimizer, kind="adamw"))
        for one in spectral_recipes(shape)
    )
    params = random_codec(shape)
    taught = start_spectra(params, first)
    samples = np.zeros((2, 20 * shape.frame_samples), np.float32)
    return spectral_step.trace(
        start_spectra(params, second, taught), params, samples, jax.random.key(0), second,
        taught=taught.trained, targets=np.ones((2, 20, 7), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    "step",
    [
        of_talker,
        lambda: of_talker(lora=LoraConfig(2), model=CUSTOM_VOICE.with_dtypes("bfloat16")),
        lambda: of_talker(
            regularization=Regularization(predictor_share=0.5), alignment=AlignmentConfig(0.5, steps=9, guide=1.0)
        ),
        of_codec,
        of_spectra,
    ],
    ids=["plain", "lora", "helped", "codec", "spectra"],
)
def test_float32_is_multiplied_as_such(step):
    assert rough_products(step().jaxpr.jaxpr) == []
