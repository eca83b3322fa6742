"""Voices against the official `create_voice_clone_prompt`, and the official demo's files."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_jax import audio, convert, hf_config, torch_file
from qwen3_tts_jax.voice_prompt import VoicePrompt, check_voice
from qwen3_tts_jax.voices import load, load_all, make_voices
from tests.golden_voice import PATH, items
from tests.golden_x_vector import speech_like
from tests.parity.make_voice_golden import demo_payload
from tests.shapes import SMALL

RECORDING = Path(__file__).parents[1] / "golden" / "recording.flac"
BASES = ("0.6B-Base", "1.7B-Base")
TEXT = "What the recording says."

# The official package reads files with librosa, which tries readers of old formats.
reads_files = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ours(checkpoint):
    """ours(variant, recordings, texts): voices of the checkpoint that official(variant) has loaded."""

    @cache
    def params(variant):
        config = hf_config.read_folder(checkpoint(variant)).with_dtypes("float32")
        return config, convert.load_params(checkpoint(variant), config, parts=["speaker_encoder", "codec/encoder"])

    def make(variant, recordings, texts):
        config, tree = params(variant)
        # On a CPU the official codec attends to everything before.
        return make_voices(tree, config, [audio.read(source) for source in recordings], texts, sliding_window=False)

    return make


def _equal(voice, item):
    expected = item.ref_spk_embedding.float().numpy()
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(voice.x_vector, expected, rtol=0, atol=1e-5)
    if item.ref_code is None:
        assert voice.codes is None
        assert voice.text is None
    else:
        np.testing.assert_array_equal(voice.codes, item.ref_code.numpy())
        assert voice.text == item.ref_text
        assert len(np.unique(voice.codes)) > 10


def _sound(rate, seconds=1.3, seed=0):
    return audio.resample(speech_like(int(seconds * 24_000), seed), 24_000, rate)


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("variant", BASES)
def test_rates(official, ours, variant, rate):
    recording = (_sound(rate), rate)
    [item] = official(variant).create_voice_clone_prompt(recording, TEXT)
    [voice] = ours(variant, [recording], [TEXT])
    _equal(voice, item)
    check_voice(voice, SMALL[variant])


@reads_files
@pytest.mark.parametrize("variant", BASES)
def test_a_list_of_recordings_some_of_the_x_vector_alone(official, ours, variant):
    """Files of one channel and of two, samples of several rates."""
    recordings = [(_sound(16_000, 0.9, 1), 16_000), str(RECORDING), (_sound(44_100, 1.1, 2), 44_100)]
    expected = official(variant).create_voice_clone_prompt(recordings, [TEXT, None, "Third."], [False, True, False])
    voices = ours(variant, recordings, [TEXT, None, "Third."])
    assert [item.ref_code is None for item in expected] == [False, True, False]
    for voice, item in zip(voices, expected, strict=True):
        _equal(voice, item)


@reads_files
@pytest.mark.parametrize("variant", BASES)
def test_stereo_files(official, ours, variant, tmp_path):
    import soundfile

    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([_sound(22_050), 0.5 * _sound(22_050, seed=3)], axis=1), 22_050, subtype="FLOAT")
    [item] = official(variant).create_voice_clone_prompt(str(path), TEXT)
    [voice] = ours(variant, [path], [TEXT])
    _equal(voice, item)


@pytest.mark.parametrize("in_context", [True, False])
def test_a_file_of_the_demo(official, tmp_path, in_context):
    import torch

    made = official("1.7B-Base").create_voice_clone_prompt(
        (_sound(24_000), 24_000), TEXT if in_context else None, x_vector_only_mode=not in_context
    )
    path = tmp_path / "voice.pt"
    torch.save({"items": [asdict(item) for item in made]}, path)
    voice = load(path)
    np.testing.assert_array_equal(voice.x_vector, made[0].ref_spk_embedding.numpy())
    if in_context:
        np.testing.assert_array_equal(voice.codes, made[0].ref_code.numpy())
        assert voice.text == TEXT
    else:
        assert voice.codes is None
    check_voice(voice, SMALL["1.7B-Base"])


def test_the_golden_file_is_what_torch_saves(tmp_path):
    import torch

    torch.save(demo_payload(), tmp_path / "voices.pt")
    for path in (PATH, tmp_path / "voices.pt"):
        loaded = torch.load(path, weights_only=True)["items"]
        for ours_, theirs, expected in zip(torch_file.read(path)["items"], loaded, items(), strict=True):
            for key, value in theirs.items():
                if isinstance(value, torch.Tensor):
                    np.testing.assert_array_equal(ours_[key], (value.float() if key != "ref_code" else value).numpy())
                    np.testing.assert_array_equal(ours_[key], expected[key])
                else:
                    assert ours_[key] == value == expected[key]
        assert [type(voice) for voice in load_all(path)] == [VoicePrompt] * 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_that_torch_saves_of_plain_data(tmp_path, protocol):
    import torch

    torch.manual_seed(0)
    dtypes = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
    content = {
        **{name: (100 * torch.rand(3, 4)).to(getattr(torch, name)).T[1:] for name in dtypes},
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "gradient": torch.randn(2, requires_grad=True),
        "plain": [None, True, (1, -2, 3, 2**40, 300, 70_000), 1.5, "ä" * 300, {}, [], (), {"a": ("b",)}],
    }  # fmt: skip
    path = tmp_path / "data.pt"
    torch.save(content, path, pickle_protocol=protocol)
    got = torch_file.read(path)
    assert list(got) == list(content)
    assert got["plain"] == content["plain"]
    for key, value in content.items():
        if key != "plain":
            expected = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
            assert got[key].dtype == expected.dtype
            np.testing.assert_array_equal(got[key], expected)


def test_what_torch_saves_beyond_plain_data_is_refused(tmp_path):
    import torch

    path = tmp_path / "data.pt"
    for content in (torch.nn.Linear(2, 3), torch.nn.Parameter(torch.ones(2)), np.ones(3), torch.ones(2).to_sparse()):
        torch.save({"items": content}, path)
        with pytest.raises(torch_file.TorchFileError, match="refused"):
            torch_file.read(path)
    torch.save({"items": []}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(torch_file.TorchFileError, match=r"before 1\.6"):
        torch_file.read(path)
