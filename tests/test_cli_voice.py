"""The commands `voice save`, `voice show` and `voice blend`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import convert, hf_config, voice_file, voices
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests import golden_voice
from tests.command import assert_refused, run, write_models, write_recording


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), tokenizer_folder, "1.7B-Base", "1.7B-CustomVoice")


@pytest.fixture
def model(models: Path) -> Path:
    return models / "1.7B-Base"


@pytest.fixture(autouse=True)
def folder(folder: Path) -> Path:
    """The current one, with a recording."""
    write_recording(folder / "me.wav", 0.755)
    return folder


def _facts(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_save_and_show(model):
    Path("says.txt").write_text("one\ntwo\n")
    options = ["--reference-text-file", "says.txt", "--name", "Me \x1b[2J"]
    result = run("voice", "save", "me.wav", "-m", model, "-o", "me.safetensors", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stdout == "me.safetensors: an x-vector and 76 frames of 0.76 s, for models of size 1b7\n"
    assert result.stderr == ""
    saved = voice_file.load("me.safetensors")
    assert saved.text == "one\ntwo"

    config = hf_config.read_folder(model)
    params = convert.load_checkpoint(model, config, ("speaker_encoder", "codec/encoder"))
    (made,) = voices.make_voices(params, config, [soundfile.read("me.wav", dtype="float32")], ["one\ntwo"])
    np.testing.assert_array_equal(saved.codes, made.codes)
    np.testing.assert_array_equal(saved.x_vector, made.x_vector)
    assert len(np.unique(saved.codes)) > 10

    shown = run("voice", "show", "me.safetensors")
    assert shown.exit_code == 0
    assert shown.stdout == _facts(
        # Without what would steer a terminal.
        "name         Me  [2J",
        "model size   1b7",
        "x-vector     56 wide",
        "codes        76 frames of 5 codes",
        "recording    0.76 s",
        "text         one two",
        "made by      qwen3-tts-jax 0.1.0",
    )

    result = run("voice", "save", "me.wav", "--x-vector-only", "-m", model, "-o", "alone.safetensors", "-q")
    assert result.stdout == "alone.safetensors: the x-vector alone of 0.76 s, for models of size 1b7\n"
    alone = voice_file.load("alone.safetensors")
    assert alone.codes is None
    np.testing.assert_array_equal(alone.x_vector, made.x_vector)
    lines = run("voice", "show", "alone.safetensors").stdout.splitlines()
    assert lines[:3] == ["model size   1b7", "x-vector     56 wide", "codes        none: x-vector only"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "alone.safetensors", "me.safetensors", "me.wav", "says.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["me.wav", "-o", "x.safetensors"], "--reference-text is missing"),
        (["me.wav", "-o", "x.safetensors", "--text", "a", "--x-vector-only"], "takes no --reference-text"),
        (
            ["me.wav", "-o", "x.safetensors", "--reference-text", "a", "--text-file", "a"],
            "with --reference-text or with --reference-text-file, not both",
        ),
        (["me.wav", "-o", "x.safetensors", "-t", "!?"], "without a letter"),
        (["absent.wav", "-o", "x.safetensors", "-t", "a"], "there is no file absent.wav"),
        (["me.wav", "-o", "x.pt", "-t", "a"], "cannot write 'x.pt': the name must end in .safetensors"),
        (["me.wav", "-o", "absent/x.safetensors", "-t", "a"], "the folder absent does not exist"),
        (["me.wav", "-o", "here.safetensors", "-t", "a"], "here.safetensors is a folder"),
    ],
)
def test_save_refuses_before_loading(model, folder, no_weights, arguments, part):
    Path("here.safetensors").mkdir()
    before = sorted(folder.iterdir())
    assert_refused(run("voice", "save", *arguments, "--model", model), part)
    assert sorted(folder.iterdir()) == before


def test_save_needs_a_base_model(models, no_weights):
    for model in (models / "1.7B-CustomVoice", "1.7B-CustomVoice"):
        result = run("voice", "save", "absent.wav", "-o", "x.safetensors", "-m", model, "--offline")
        assert_refused(result, "custom_voice model: use it with `say`; `voice save` needs a base model")
    empty = Path("empty")
    empty.mkdir()
    assert_refused(run("voice", "save", "me.wav", "-t", "a", "-o", "x.safetensors", "-m", empty), "empty is no model")


def test_save_passes_warnings_on(model, monkeypatch):
    def make_voices(*_):
        warnings.warn("check the text", UserWarning, stacklevel=1)
        return [VoicePrompt(np.ones(56, np.float32))]

    monkeypatch.setattr(voices, "make_voices", make_voices)
    result = run("voice", "save", "me.wav", "-t", "a", "-o", "x.safetensors", "-m", model)
    assert result.stderr == "warning: check the text\n"


def test_show_a_file_of_the_official_demo():
    assert run("voice", "show", golden_voice.PATH).stdout == _facts(
        "voice        1 of 2",
        "x-vector     6 wide",
        "codes        7 frames of 5 codes",
        "text         Grüß Gott, 你好.",
        "voice        2 of 2",
        "x-vector     6 wide",
        "codes        none: x-vector only",
    )


def test_show_refuses():
    assert_refused(run("voice", "show", "absent.pt"), "there is no voice file absent.pt")
    assert_refused(run("voice", "show", "me.wav"), "me.wav is no voice file")
    assert_refused(run("voice", "show", "."), ". is a folder")


def _save(name: str, width: int = 5, **known: str) -> VoicePrompt:
    random = np.random.default_rng(len(name))
    voice = VoicePrompt(random.standard_normal(width).astype(np.float32), random.integers(0, 9, (3, 2), np.int32), "a")
    voice_file.save(voice, name, **known)
    return voice


def test_blend():
    a = _save("a.safetensors")
    b = _save("bb.safetensors", model_size="1b7", model_type="base")
    result = run("voice", "blend", "a.safetensors", "bb.safetensors", "--weight", "0.25", "-o", "c.safetensors")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "c.safetensors: 0.75 of a.safetensors and 0.25 of bb.safetensors\n"
    blended = voice_file.load("c.safetensors")
    assert blended.codes is None
    np.testing.assert_array_equal(blended.x_vector, voices.blend(a, b, 0.25).x_vector)
    known = voice_file.describe("c.safetensors")
    assert (known["model_size"], known["model_type"], known["name"]) == ("1b7", "base", None)

    run("voice", "blend", "bb.safetensors", "a.safetensors", "-o", "d.safetensors", "--name", "Both")
    np.testing.assert_array_equal(voice_file.load("d.safetensors").x_vector, voices.blend(b, a, 0.5).x_vector)
    known = voice_file.describe("d.safetensors")
    assert (known["model_size"], known["name"]) == ("1b7", "Both")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.safetensors", "a.safetensors", "--weight", "1.5"], "the weight of a blend must be from 0"),
        (["a.safetensors", "wide.safetensors"], "their x-vectors have widths 5 and 6"),
        (["a.safetensors", "absent.pt"], "there is no voice file absent.pt"),
        ([str(golden_voice.PATH), "a.safetensors"], "holds 2 voices where one is needed"),
    ],
)
def test_blend_refuses(folder, arguments, part):
    _save("a.safetensors")
    _save("wide.safetensors", 6)
    before = sorted(folder.iterdir())
    assert_refused(run("voice", "blend", *arguments, "-o", "c.safetensors"), part)
    assert_refused(run("voice", "blend", "a.safetensors", "a.safetensors", "-o", "c.txt"), "end in .safetensors")
    replaced = run("voice", "blend", "a.safetensors", "wide.safetensors", "-o", folder / "a.safetensors")
    assert_refused(replaced, "a.safetensors is one of the two voices")
    assert sorted(folder.iterdir()) == before


def test_show_does_not_import_jax(folder):
    _save("a.safetensors")
    program = (
        "import sys\n"
        "from qwen3_tts_jax.cli.main import app\n"
        "app(['voice', 'show', 'a.safetensors'], standalone_mode=False)\n"
        "print(sorted({'jax', 'flax', 'soundfile'} & set(sys.modules)))\n"
    )
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert lines.splitlines()[-1] == "[]"
