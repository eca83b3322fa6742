"""Random checkpoints: the official package runs them whole, and their weights can be drawn again without it."""

import numpy as np
import pytest
import safetensors.numpy

from qwen3_tts_jax import hf_config
from tests.draw import draw
from tests.parity.oracle import quiet
from tests.parity.random_checkpoint import write_random_checkpoint
from tests.shapes import SMALL

GREEDY = {"max_new_tokens": 7, "do_sample": False, "subtalker_dosample": False}
TEXTS = ["Hello, world.", "Ein zweiter Satz."]


@pytest.mark.parametrize("variant", SMALL)
def test_official_package_speaks(official, variant):
    config, model = SMALL[variant], official(variant)
    with quiet():
        if config.model_type == "custom_voice":
            wavs, rate = model.generate_custom_voice(
                text=TEXTS, speaker=["serena", "eric"], language=["English", "auto"], **GREEDY
            )
        elif config.model_type == "voice_design":
            wavs, rate = model.generate_voice_design(
                text=TEXTS, instruct=["A calm voice.", "Angry."], language=["English", "auto"], **GREEDY
            )
        else:
            noise = 0.3 * np.random.RandomState(0).standard_normal(7200).astype(np.float32)
            wavs, rate = model.generate_voice_clone(
                text=TEXTS, language=["English", "auto"], ref_audio=(noise, 24_000), ref_text="Hi.", **GREEDY
            )
    assert rate == config.codec.sample_rate
    for wav in wavs:
        assert len(wav) == 6 * config.codec.frame_samples
        assert np.isfinite(wav).all()
        assert np.std(wav) > 0.02
        assert np.mean(np.abs(wav) >= 1) < 0.01
    assert np.abs(wavs[0] - wavs[1]).max() > 0.02


@pytest.mark.parametrize("variant", SMALL)
def test_files_hold_the_config_and_the_drawn_weights(checkpoint, variant):
    folder = checkpoint(variant, dtype="float32", seed=3)
    assert hf_config.read_folder(folder) == SMALL[variant]
    for file in (folder / "model.safetensors", folder / "speech_tokenizer" / "model.safetensors"):
        for name, values in safetensors.numpy.load_file(file).items():
            assert values.dtype == np.float32, name
            np.testing.assert_array_equal(values, draw(name, values.shape, 3), err_msg=name)


def test_eos_boost_makes_speech_end_at_different_frames(official):
    model = official("0.6B-CustomVoice", eos_boost=1.0)
    frames = SMALL["0.6B-CustomVoice"].codec.frame_samples
    with quiet():
        wavs, _ = model.generate_custom_voice(
            text=[*TEXTS, "Third", "One two three four, and five"],
            speaker=["serena", "eric", "ryan", "dylan"],
            language=["English", "auto", "auto", "Chinese"],
            **{**GREEDY, "max_new_tokens": 30},
        )
    lengths = [len(wav) // frames for wav in wavs]
    assert sum(length < 29 for length in lengths) >= 3
    assert len(set(lengths)) >= 3


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_random_checkpoint(tmp_path, SMALL["0.6B-Base"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float16"):
        write_random_checkpoint(tmp_path, SMALL["0.6B-Base"], dtype="float16")
