"""A trained codec in the official package: it loads the folder, hears and speaks the same."""

import jax
import numpy as np
import pytest

from qwen3_tts_jax import audio
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec.job import write_codec
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, finish_codec, start_codec
from tests.parity.codec_encoder_oracle import windowed_attention
from tests.parity.oracle import import_official, quiet
from tests.parity.test_speech_tokenizer_parity import RECORDING
from tests.train_codec import CODEC


@pytest.mark.parametrize("config", [CODEC, codec_shape("small")], ids=["one stage", "small"])
def test_the_official_package_reads_what_training_writes(config, tmp_path):
    recipe, params, rng = CodecRecipe(config), random_codec(config, 3), np.random.default_rng(1)
    state = start_codec(params, recipe)
    # As training leaves them: sums and usages, with codes that were hardly used.
    books = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), state.codebooks)
    for each in books.values():
        each["cluster_usage"] = rng.uniform(0.1, 3, each["cluster_usage"].shape).astype(np.float32)
    # So that it is not nearly silent.
    trained = {**state.trained, "decoder/conv_out/kernel": 10 * state.trained["decoder/conv_out/kernel"]}
    folder = write_codec(
        tmp_path / "codec", finish_codec(state.replace(codebooks=books, trained=trained), params, recipe), config
    )
    with quiet():
        official = import_official().Qwen3TTSTokenizer.from_pretrained(str(folder))
    ours = SpeechTokenizer.from_pretrained(folder)
    speech = audio.resample(*audio.read(RECORDING), config.sample_rate)[: 12 * config.frame_samples + 3]
    with quiet(), windowed_attention():
        expected = official.encode(speech, config.sample_rate).audio_codes[0].numpy()
    codes = ours.encode(speech, config.sample_rate)[0]
    assert codes.shape == (13, config.num_codebooks)
    assert len(np.unique(codes)) > 5
    np.testing.assert_array_equal(codes, expected)
    with quiet():
        expected_samples, rate = official.decode([{"audio_codes": codes}])
    assert rate == config.sample_rate
    (samples,), _ = ours.decode(codes)
    assert np.std(samples) > 1e-3
    np.testing.assert_allclose(samples, expected_samples[0], rtol=0, atol=1e-4)
