"""The command `clone`: the voices that it takes and refuses, and one utterance from end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import hf_config, hf_export, voice_file
from qwen3_tts_jax.cli.voices import Recording
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests import golden_voice
from tests.command import assert_refused, run, write_models, write_recording

X_VECTOR_WIDTH = 56
FRAME_SAMPLES = 240  # at 24 kHz
SAYS = "one two"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_models(
        tmp_path_factory.mktemp("models"),
        tokenizer_folder,
        "1.7B-Base",
        "0.6B-Base",
        "1.7B-CustomVoice",
        "1.7B-VoiceDesign",
    )


@pytest.fixture
def model(models: Path) -> Path:
    return models / "1.7B-Base"


@pytest.fixture(autouse=True)
def folder(folder: Path) -> Path:
    """The current one, with recordings and a voice of the model."""
    write_recording(folder / "me.wav", 1.005)
    random = np.random.default_rng(5)
    codes = random.integers(0, 32, (7, 5), np.int32)
    voice_file.save(VoicePrompt(_x_vector(random), codes, SAYS), folder / "me.safetensors")
    return folder


def _x_vector(random: np.random.Generator, width: int = X_VECTOR_WIDTH) -> np.ndarray:
    return random.standard_normal(width).astype(np.float32)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list:
    """In the place of the model, one that notes the requests; voices are made of the first samples."""
    noted = []

    class Silence:
        params = "the weights"

        def __init__(self, folder, *, dtype, attention, weights, progress):
            self.config = hf_config.read_folder(folder)

        def synthesize(self, requests, sampling, seed, progress):
            noted.extend(requests)
            codes = np.zeros((2, self.config.talker.num_codebooks), np.int32)
            return [Speech(np.zeros(2 * FRAME_SAMPLES, np.float32), 24_000, codes, "stop")]

        def stream(self, request, sampling, seed, *, pieces):
            noted.append(request)
            speeches = self.synthesize([], sampling, seed, None)
            return (speech for speech in speeches)

    def make_voices(params, config, recordings, texts):
        assert params == "the weights"
        ((samples, rate),), (text,) = recordings, texts
        codes = None if text is None else np.full((2, 5), rate, np.int32)
        return [VoicePrompt(samples[:X_VECTOR_WIDTH], codes, text)]

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", Silence)
    monkeypatch.setattr("qwen3_tts_jax.voices.make_voices", make_voices)
    return noted


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no voice to clone", "--reference", "--voice"]),
        (["--reference", "me.wav", "--voice", "me.safetensors"], ["two voices to clone"]),
        (["--reference", "me.wav"], ["--reference-text is missing", "--x-vector-only"]),
        (["--reference", "me.wav", "-t", "a", "--reference-text-file", "a.txt"], ["--reference-text-file, not both"]),
        (["--reference", "me.wav", "-t", "a", "--x-vector-only"], ["--x-vector-only", "takes no --reference-text"]),
        (["--reference", "me.wav", "--reference-text-file", "a.txt", "--x-vector-only"], ["takes no --reference-text"]),
        (["--reference", "me.wav", "--reference-text-file", "absent.txt"], ["cannot read absent.txt: No such file"]),
        (["--reference", "me.wav", "-t", " "], ["the recording has a text without a letter"]),
        (["--reference", "absent.wav", "-t", "a"], ["there is no file absent.wav"]),
        (["--reference", "me.safetensors", "-t", "a"], ["me.safetensors is not audio"]),
        (["--reference", ".", "-t", "a"], [". cannot be read"]),
        (["--reference", "short.wav", "-t", "a"], ["the recording is too short: 0.300 s"]),
        (["--reference", "silent.wav", "--x-vector-only"], ["the recording is silent"]),
        (["--voice", "me.safetensors", "-t", "a"], ["--voice takes no --reference-text"]),
        (["--voice", "me.safetensors", "--reference-text-file", "a"], ["--voice takes no --reference-text"]),
        (["--voice", "absent.safetensors"], ["there is no voice file absent.safetensors"]),
        (["--voice", "me.wav"], ["me.wav is no voice file"]),
        (["--voice", "narrow.safetensors"], ["x-vector has shape [48]", "make the voice again"]),
        (["--voice", str(golden_voice.PATH)], ["voices.pt holds 2 voices where one is needed"]),
        (["--voice", "me.safetensors", "--language", "klingon"], ["unknown language 'klingon'"]),
        (["--voice", "me.safetensors", "-o", "x.mp3"], [".mp3"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_refusals_before_loading(folder, model, no_weights, arguments, parts):
    write_recording(Path("short.wav"), 0.3)
    soundfile.write("silent.wav", np.zeros(16_000), 16_000)
    voice_file.save(VoicePrompt(_x_vector(np.random.default_rng(0), 48)), "narrow.safetensors")
    before = sorted(folder.iterdir())
    assert_refused(run("clone", "Hello.", *arguments, "--model", model), *parts)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["1.7B-CustomVoice", "1.7B-VoiceDesign"])
def test_models_of_the_wrong_type(models, no_weights, name):
    command = {"1.7B-CustomVoice": "say", "1.7B-VoiceDesign": "design"}[name]
    parts = [f"model: use it with `{command}`", "`clone` needs a base model, such as 0.6B-Base or 1.7B-Base"]
    # Whatever the voice: without a model for it that need not be looked at.
    for model in (models / name, name):
        assert_refused(run("clone", "Hello.", "--reference", "absent.wav", "--model", model, "--offline"), *parts)


def test_a_model_whose_type_is_known_after_its_download(models, no_weights, monkeypatch):
    monkeypatch.setattr("qwen3_tts_jax.convert.hub.snapshot_download", lambda *_, **__: models / "1.7B-CustomVoice")
    for command in (["clone", "Hello.", "-r", "me.wav"], ["voice", "save", "me.wav", "-o", "x.safetensors"]):
        result = run(*command, "--x-vector-only", "--model", "someone/tuned")
        assert_refused(result, "someone/tuned is a custom_voice model: use it with `say`")


def test_a_recording_too_long_for_the_context_is_refused_before_loading(model, no_weights, tmp_path):
    config = hf_config.read_folder(model)
    small = Path(shutil.copytree(model, tmp_path / "small"))

    def refused(max_positions: int) -> str:
        top, _, _ = hf_export.to_hf(replace(config, talker=replace(config.talker, max_positions=max_positions)))
        (small / "config.json").write_text(json.dumps(top))
        result = run("clone", "Hello.", "-m", small, "--reference", "me.wav", "-t", SAYS)
        assert_refused(result, f"context of {max_positions}", "reference frames 101")
        return result.stderr

    # 1.005 s at 100 frames a second, and a frame to speak.
    assert " 110 tokens" in refused(110)


def test_a_prompt_is_checked_with_as_many_frames_as_the_codec_makes(model):
    config = hf_config.read_folder(model)
    for frames in (7, 14, 55):
        recording = Recording(np.zeros(frames * config.codec.frame_samples, np.float32), 24_000, SAYS)
        assert len(recording.stand_in(config).codes) == frames


def test_the_voice_of_a_file(model, calls):
    voice = voice_file.load("me.safetensors")
    result = run("clone", "Hello.", "-m", model, "--voice", "me.safetensors", "-o", "a.wav")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("a.wav: 0.02 s of audio in ")
    assert run("clone", "-m", model, "-v", "me.safetensors", "--x-vector-only", text=b"Hi.").exit_code == 0
    whole, alone = calls
    assert (whole.text, whole.language, whole.speaker, whole.text_mode) == ("Hello.", "auto", None, "as_it_comes")
    np.testing.assert_array_equal(whole.voice.codes, voice.codes)
    assert whole.voice.text == SAYS
    assert (alone.text, alone.voice.codes, alone.voice.text) == ("Hi.", None, None)
    for request in calls:
        np.testing.assert_array_equal(request.voice.x_vector, voice.x_vector)


def test_the_voice_of_a_recording(model, calls):
    samples, _ = soundfile.read("me.wav", dtype="float32")
    Path("says.txt").write_text("three\n")
    for text in (["-t", SAYS], ["--reference-text-file", "says.txt"], ["--x-vector-only"]):
        result = run("clone", "Hello.", "-m", model, "-r", "me.wav", *text, "--text-mode", "all-at-once", "--quiet")
        assert result.exit_code == 0, (result.exception, result.stderr)
    assert [request.voice.text for request in calls] == [SAYS, "three", None]
    assert {request.text_mode for request in calls} == {"all_at_once"}
    for request in calls:
        np.testing.assert_array_equal(request.voice.x_vector, samples[:X_VECTOR_WIDTH])
    # The rate.
    assert calls[0].voice.codes[0, 0] == 16_000


def test_a_cloned_voice_as_a_stream(model, calls):
    assert run("clone", "Hello.", "-m", model, "-r", "me.wav", "-t", SAYS, "--stream", "--raw").stdout_bytes == bytes(
        960
    )
    assert run("clone", "-m", model, "-v", "me.safetensors", "--stream", text=b"Hello.").exit_code == 0
    assert [(request.text, request.voice.text) for request in calls] == [("Hello.", SAYS), ("", SAYS)]


def test_the_sound_is_that_of_the_library(model):
    tts = Qwen3TTS.from_pretrained(model)
    (samples,), rate = tts.generate_voice_clone(
        "Hello.", "english", ref_audio="me.wav", ref_text=SAYS, seed=3, max_new_tokens=21
    )
    assert run("voice", "save", "me.wav", "-t", SAYS, "-m", model, "-o", "saved.safetensors").exit_code == 0
    options = ["-m", model, "-l", "english", "--seed", "3", "--max-seconds", "0.2"]
    for number, voice in enumerate((["-r", "me.wav", "-t", SAYS], ["-v", "saved.safetensors"])):
        result = run("clone", "Hello.", *options, *voice, "-o", f"{number}.wav")
        assert result.exit_code == 0, (result.exception, result.stderr)
        written, written_rate = soundfile.read(f"{number}.wav", dtype="float32")
        assert written_rate == rate
        assert 0 < len(written) <= 20 * FRAME_SAMPLES
        np.testing.assert_allclose(written, samples, atol=2 / 32768)
    assert np.abs(samples).max() > 0.01
