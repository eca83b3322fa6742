"""Programs may have JAX compute in 64 bits by default (jax_enable_x64): nothing here changes with that."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from qwen3_tts_jax import Qwen3TTS
from qwen3_tts_jax.config import SamplingConfig
from qwen3_tts_jax.convert.rules import all_rules, select
from qwen3_tts_jax.sampling import process_logits
from qwen3_tts_jax.speaker_encoder import x_vector
from qwen3_tts_jax.train.alignment import AlignmentConfig
from qwen3_tts_jax.train.codec.start import random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, codec_step, start_codec
from qwen3_tts_jax.train.lora import LoraConfig
from qwen3_tts_jax.train.loss import Batch
from qwen3_tts_jax.train.new_model import new_params
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.regularization import Regularization
from qwen3_tts_jax.train.step import Recipe, start, train_step
from tests.drawn_tree import drawn_tree
from tests.golden_x_vector import speech_like
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint
from tests.train_codec import CODEC, tones
from tests.train_model import CUSTOM_VOICE, own_params, prompts, random_codes


@pytest.fixture
def _wide():
    with jax.enable_x64(True):
        yield


def test_a_cloned_voice_and_its_speech_are_the_same(tmp_path, tokenizer_folder):
    folder = write_small_checkpoint(tmp_path, SMALL["1.7B-Base"], tokenizer_folder)
    recordings = [(speech_like(24_000), 24_000), (speech_like(13_000, 1), 24_000)]

    def speak():
        model = Qwen3TTS.from_pretrained(folder, dtype="float32")
        voices = model.create_voice_clone_prompt(recordings, ref_text=["The first.", "The second."])
        wavs, _ = model.generate_voice_clone(["One.", "Two."], voice_clone_prompt=voices, max_new_tokens=5, seed=3)
        return voices, wavs

    voices, wavs = speak()
    with jax.enable_x64(True):
        wide_voices, wide_wavs = speak()
    for voice, wide in zip(voices, wide_voices, strict=True):
        assert wide.x_vector.dtype == np.float32
        np.testing.assert_allclose(wide.x_vector, voice.x_vector, atol=1e-6)
        np.testing.assert_array_equal(wide.codes, voice.codes)
    for wav, wide in zip(wavs, wide_wavs, strict=True):
        assert wide.dtype == np.float32
        np.testing.assert_allclose(wide, wav, atol=1e-5)


def test_lengths_of_64_bits_are_taken():
    model = SMALL["1.7B-Base"]
    params = drawn_tree(select(all_rules(model), model, ["speaker_encoder"]))["speaker_encoder"]
    mel = np.random.default_rng(0).normal(size=(2, 23, 128)).astype(np.float32)
    encode = jax.jit(x_vector, static_argnums=1)
    with jax.enable_x64(True):
        wide = encode(params, model.speaker_encoder, mel, jnp.array([16, 23]))
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, encode(params, model.speaker_encoder, mel, jnp.array([16, 23])), atol=1e-6)


def test_logits_of_64_bits_are_taken():
    logits = np.random.default_rng(0).normal(size=(2, 9))
    config = SamplingConfig(temperature=0.7, top_k=4, top_p=0.8)
    with jax.enable_x64(True):
        wide = process_logits(jnp.asarray(logits), config)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, process_logits(jnp.asarray(logits, jnp.float32), config), atol=1e-6)


@pytest.mark.usefixtures("_wide")
def test_weights_are_drawn_in_32_bits():
    leaves = flatten_dict(new_params(SMALL["0.6B-CustomVoice"]), sep="/")
    assert {path: leaf.dtype for path, leaf in leaves.items() if leaf.dtype != jnp.float32} == {}


@pytest.mark.usefixtures("_wide")
def test_a_codec_learns_in_32_bits():
    params, recipe = random_codec(CODEC, 4), CodecRecipe(CODEC)
    state = start_codec(params, recipe)
    after, metrics = jax.eval_shape(partial(codec_step, recipe=recipe), state, params, tones(0), jax.random.key(0))
    assert dtypes(after) == dtypes(state)
    assert metrics["mel"].dtype == jnp.float32


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"lora": LoraConfig(2)},
        {"optimizer": OptimizerConfig(1e-2, 10, 2, kind="muon"), "average": 0.9},
        {
            "regularization": Regularization(0.1, 0.1, 0.1, 0.1, predictor_share=0.5),
            "alignment": AlignmentConfig(0.5, guide=0.2),
        },
    ],
    ids=["plain", "lora", "muon", "helped"],
)
def test_a_talker_learns_in_32_bits(changed):
    recipe = replace(Recipe(CUSTOM_VOICE, optimizer=OptimizerConfig(1e-2, 10, 0)), **changed)
    state, frozen = start(own_params(), recipe)
    batch = Batch(prompts("speaker"), random_codes((9, 4, 6), seed=5), np.ones(3, bool))
    batches = jax.tree.map(lambda leaf: leaf[None], batch)
    after, metrics = jax.eval_shape(partial(train_step, recipe=recipe), state, frozen, batches)
    wide = [path for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.dtype == np.float64]
    # Optax keeps Muon's three coefficients as they come, and rounds them to a matrix's dtype.
    assert [path for path in map(jax.tree_util.keystr, wide) if not path.endswith(".ns_coeffs")] == []
    assert dtypes(after) == dtypes(state)
    assert metrics["gradient_norm"].dtype == jnp.float32


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)
