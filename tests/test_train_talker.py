"""The command `train talker`: from texts and codes to a model that speaks, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.train import train_app
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request
from qwen3_tts_jax.text.phonemes import UNITS
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train import talker_job
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer
from qwen3_tts_jax.train.new_model import new_params, read_new_config
from qwen3_tts_jax.train.progress import DivergedError
from qwen3_tts_jax.utterances import spoken_as
from tests.command import assert_failed, assert_refused, write_model, write_recording
from tests.train_model import random_codes

SIZES = {
    "talker": {"num_layers": 2, "width": 24, "mlp_width": 40, "num_heads": 3, "head_dim": 8},
    "code_predictor": {
        "num_layers": 1, "width": 20, "mlp_width": 26, "num_heads": 2, "num_kv_heads": 1, "head_dim": 10
    },
    "languages": ["english", "Welsh"],
}  # fmt: skip
TEXTS = ("One.", "Two!", "Three, four.", "Five", "Nothing but six.", "Seven?")
SHORT = ("--steps", 2, "--batch-seconds", 0.3, "--buckets", 1, "--log-every", 1, "--evaluate-every", 2)


def run(*arguments):
    return CliRunner().invoke(train_app, ["talker", *map(str, arguments)])


@pytest.fixture(scope="module")
def codec(tmp_path_factory, tokenizer_folder):
    """240 samples a frame, 5 codebooks of 37 codes."""
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-Base", tokenizer_folder) / "speech_tokenizer"


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sizes(folder, **changed):
    path = folder / "talker.json"
    path.write_text(json.dumps({name: value for name, value in (SIZES | changed).items() if value is not None}))
    return path


@pytest.fixture
def data(tmp_path):
    """Six lines: codes in a .npz file, one in a .npy file, and one recording."""
    codes = [random_codes((3 + i,), seed=i) for i in range(6)]
    np.savez(tmp_path / "codes.npz", **{f"clip {i}": each for i, each in enumerate(codes)})
    np.save(tmp_path / "one.npy", codes[4].astype(np.int64))
    write_recording(tmp_path / "one.wav", 0.6)
    rows = [{"text": text, "speaker": ("Ann", "bob")[i % 2], "codes": "codes.npz", "key": f"clip {i}"}
            for i, text in enumerate(TEXTS)]  # fmt: skip
    rows[3] |= {"language": "welsh"}
    rows[4] = {"text": TEXTS[4], "speaker": "ann", "codes": "one.npy"}
    rows[5] = {"text": TEXTS[5], "speaker": "bob", "audio": "one.wav"}
    return write_lines(tmp_path / "data.jsonl", *rows)


def test_a_model_from_nothing_speaks(data, codec, tmp_path):
    output = tmp_path / "run"
    held_out = write_lines(tmp_path / "held-out.jsonl", *map(json.loads, data.read_text().splitlines()[:3]))
    helped = ("--noise", 0.2, "--noise-0", 0.1, "--forget", 0.1, "--dropout", 0.1, "--predictor-share", 0.5)
    helped += ("--alignment", 0.2, "--average", 0.9, "--end-weight", 3, "--codebook-weights", "3,2,1,1")
    options = ("--config", write_sizes(tmp_path), "--codec", codec, "--validation", held_out, "--sample-every", 2)
    result = run(data, "-o", output, *options, *SHORT, *helped)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "encoded 1 of 1 recordings" in result.stderr
    assert "warning" not in result.stderr
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 2]
    # Six frames of weights near nothing: every code is as likely as any other.
    assert log[0]["codes"][1:] == pytest.approx([np.log(37)] * 4, abs=0.1)
    assert log[0]["codes"][0] == pytest.approx(np.log(37 + 1024), abs=0.1)
    assert log[0]["alignment"] > 0
    assert abs(log[2]["text_gap"]) < 0.1
    assert log[2]["text_gap"] != 0
    assert list((output / "samples").iterdir()) == [output / "samples" / "step-000002.wav"]

    model = Qwen3TTS.from_pretrained(output / "model")
    assert model.config.model_type == "custom_voice"
    assert model.get_supported_speakers() == ["ann", "bob"]
    assert model.get_supported_languages() == ["auto", "english", "welsh"]
    assert model.config.talker.text_vocab_size == 264
    speech = model.synthesize([Request("Hello.", speaker="Ann", language="Welsh", max_frames=3)])[0]
    assert speech.codes.shape[1] == 5
    assert np.isfinite(speech.samples).all()
    assert_refused(run(data, "-o", output, *options, *SHORT), "model is there already")


def test_a_run_starts_from_another_s_weights(data, codec, tmp_path):
    options = ("--config", write_sizes(tmp_path), "--codec", codec, "--learning-rate", 1e-9, *SHORT)
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(data, "-o", first, *options, "--seed", 1).exit_code == 0
    result = run(data, "-o", second, *options, "--start", first / "model")
    assert result.exit_code == 0, (result.exception, result.stderr)
    # At such a rate nothing is learnt.
    theirs, ours = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert theirs.keys() == ours.keys()
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight, atol=1e-7, rtol=0, err_msg=name)
    other = ("-o", tmp_path / "other", *options, "--start")
    shutil.rmtree(second / "model")
    weights = load_file(first / "model" / "model.safetensors")
    save_file({name: -weight for name, weight in weights.items()}, first / "model" / "model.safetensors")
    again = run(data, "-o", second, *options, "--start", first / "model", "--quiet")
    assert_refused(again, "00000002 is of another run: base was")
    another = shutil.copytree(codec, tmp_path / "codec") / "model.safetensors"
    save_file({name: -weight for name, weight in load_file(another).items()}, another)
    again = ("-o", second, *options, "--start", first / "model", "--quiet")
    assert_refused(run(data, *again, "--codec", another.parent), "00000002 is of another run: codec ")
    with np.load(tmp_path / "codes.npz") as codes:
        np.savez(tmp_path / "codes.npz", **{name: array[::-1] for name, array in codes.items()})
    assert_refused(run(data, *again), "00000002 is of another run: data ")
    more = write_lines(tmp_path / "more.jsonl", {"text": "Hi.", "speaker": "cy", "codes": "one.npy"})
    assert_refused(run(more, *other, first / "model"), "cannot start from", "prompt.speakers.cy is None there")
    assert_refused(run(data, *other, tmp_path / "none"), "none")
    write_sizes(tmp_path, talker=SIZES["talker"] | {"mlp_width": 44})
    assert_refused(run(data, *other, first / "model"), "talker.transformer.mlp_width is 40 there and 44 here")


@pytest.mark.parametrize(("mode", "read"), [("as-it-comes", "as_it_comes"), ("both", "all_at_once")])
def test_samples_are_read_as_what_is_learnt(mode, read, data, codec, tmp_path, monkeypatch):
    """In its text mode, and as it is written: a tokenizer of phonemes is given phonemes."""
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer", UNITS)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"phonemes": "en-us"}))
    shutil.copy(local_folder(MINI) / "durations.json", tokenizer)
    asked = []

    def synthesize(self, requests, *, seed):
        spoken = spoken_as(requests[0], self.tokenizer)
        asked.extend((each.text, each.text_mode, each.max_frames) for each in spoken)
        return [SimpleNamespace(samples=np.zeros(24, np.float32), sample_rate=2400)]

    monkeypatch.setattr(Qwen3TTS, "synthesize", synthesize)
    common = ("--config", write_sizes(tmp_path), "--codec", codec, "--tokenizer", tokenizer, "--text-mode", mode)
    result = run(data, "-o", tmp_path / "run", *common, *SHORT, "--sample-every", 2)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert asked == [(TEXTS[0], read, 2 * 3 + 12)]


def test_held_out_speakers_are_learnt_ones(data, codec, tmp_path):
    held_out = write_lines(tmp_path / "held-out.jsonl", {"text": "Hi.", "speaker": "Zed", "codes": "one.npy"})
    common = (data, "-o", tmp_path / "run", "--codec", codec, "--validation", held_out, "--config")
    result = run(*common, write_sizes(tmp_path), *SHORT)
    assert_refused(result, "held-out.jsonl line 1: nothing is learnt of the speaker 'Zed'; there are ann, bob")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"text": "Hi.", "codes": "codes.npz", "key": "clip 0"}, ["line 1 has no speaker"]),
        ({"text": "Hi.", "speaker": "ann"}, ["line 1 has no audio"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "audio": "one.wav"}, ["has audio and codes"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "none.npy"}, ["codes", "none.npy is not there"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "codes.npz"}, ["a .npz file of codes needs a key"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "codes.npz", "key": "x"}, ["codes.npz x cannot be read", "x"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.wav"}, ["codes must be a .npy or .npz file"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "wide.npy"}, ["whole numbers [T, 5]", "int64 [4, 6]"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "large.npy"}, ["codes from 0 to 37", "0 … 36"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "empty.npy"}, ["has no frames"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "broken.npy"}, ["broken.npy cannot be read"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "instruct": "loud"}, ["does not read"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "language": "german"}, ["unknown language 'german'"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "durations": "1 1 2"}, ["durations must be a list"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "durations": [1, 3]}, ["2 durations are of 4", "3 ids"]),
        ({"text": "Hi.", "speaker": "ann", "codes": "one.npy", "durations": [1, 1, 1]}, ["3 durations are of 3"]),
        ({"text": "Hi." * 28, "speaker": "ann", "codes": "one.npy"}, ["too long", "the model has 100"]),
    ],
)
def test_refused_lines(row, parts, data, codec, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((4, 6), np.int64))
    np.save(tmp_path / "large.npy", np.arange(38 * 5).reshape(38, 5) % 38)
    np.save(tmp_path / "empty.npy", np.zeros((0, 5), np.int64))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    lines = write_lines(tmp_path / "bad.jsonl", row)
    sizes = write_sizes(tmp_path, max_positions=100)
    result = run(lines, "-o", tmp_path / "run", "--config", sizes, "--codec", codec)
    assert_refused(result, "bad.jsonl line 1", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"talker": None}, ["talker must be an object with num_layers"]),
        ({"layers": 3}, ["unknown key 'layers'"]),
        ({"talker": SIZES["talker"] | {"depth": 3}}, ["talker: unknown key 'depth'"]),
        ({"talker": SIZES["talker"] | {"width": "24"}}, ["talker: width must be a number, got '24'"]),
        ({"talker": SIZES["talker"] | {"num_kv_heads": 2}}, ["talker: num_attention_heads (3) must be a multiple"]),
        ({"text_width": 0}, ["text_width must be a whole number above 0"]),
        ({"languages": "english"}, ["languages must be a list of names"]),
        ({"speakers": ["ann"]}, ["no speaker 'bob'"]),
        ({"speakers": [f"s{i}" for i in range(900)]}, ["900 speakers do not fit: there is room for 752"]),
    ],
)
def test_refused_sizes(changed, parts, data, codec, tmp_path):
    result = run(data, "-o", tmp_path / "run", "--config", write_sizes(tmp_path, **changed), "--codec", codec)
    assert_refused(result, *parts)


def test_refused_options(data, codec, tmp_path, tokenizer_folder):
    common = (data, "-o", tmp_path / "run", "--config", write_sizes(tmp_path), "--codec", codec)
    for options, part in (
        (("--noise", 1), "--noise must be 0 … below 1, got 1"),
        (("--dropout", 0.999), "dropout must be 0, or 1/256 to 255/256 once rounded to 256ths, got 0.999"),
        (("--predictor-share", 0), "--predictor-share must be above 0 … 1, got 0"),
        (("--alignment", 0.1, "--alignment-layer", 2), "layer 2, the talker has 2"),
        (("--alignment", 0.1, "--text-mode", "both"), "all at once"),
        (("--alignment", 0.1, "--tokenizer", tokenizer_folder), "text vocabularies of up to 4096"),
        (("--guide", 0.1), "--guide does nothing without --alignment"),
        (("--alignment-steps", 5), "--alignment-steps does nothing without --alignment"),
        (("--patience", 2), "--patience does nothing without --validation"),
        (("--codebook-weights", "1,x"), "numbers with commas"),
        (("--codebook-weights", "1,1"), "2 weights of codebooks for codes 1 … 4"),
        (("--tokenizer", tmp_path), "vocab.json is missing"),
        (("--cache", data), "data.jsonl is a file, not a folder"),
        (("--seed", -1), "--seed must be 0 … 2147483647, got -1"),
    ):
        assert_refused(run(*common, *options), part)
    assert_refused(run(*common[:-1], tmp_path), "config.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DivergedError("step 3: the loss is nan"), "the loss is nan; `export RUN --checkpoint last` makes a model of"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 bytes"), "choose a smaller --batch-seconds, or --remat"),
    ],
)
def test_what_helps_after_a_failure(error, line, data, codec, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(talker_job, "run_talker", fail)
    result = run(data, "-o", tmp_path / "run", "--config", write_sizes(tmp_path), "--codec", codec)
    assert_failed(result, line)


def test_what_is_refused_leaves_nothing_for_tensorboard(data, codec, tmp_path, monkeypatch):
    writers = SimpleNamespace(SummaryWriter=lambda folder: Path(folder).mkdir(parents=True))
    common = (data, "-o", tmp_path / "run", "--config", write_sizes(tmp_path), "--codec", codec, "--tensorboard")
    for module, options, part in (
        (writers, ("--codebook-weights", "1,1"), "2 weights of codebooks"),
        (None, (), "tensorboardX"),
    ):
        monkeypatch.setitem(sys.modules, "tensorboardX", module)
        assert_refused(run(*common, *options), part)
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_of_bytes(tmp_path):
    tokenizer = TextTokenizer.from_folder(write_byte_tokenizer(tmp_path))
    for text in ("Hello, world: 3 + 4!", "naïve 中文 😀", "\tTwo\nlines "):
        assert tokenizer.assistant(text)[3:-5] == list(text.encode())
    frame = tokenizer.assistant("")
    assert frame == [257, 262, 10, 258, 10, 257, 262, 10]


def test_first_weights(codec, tmp_path):
    config = read_new_config(write_sizes(tmp_path), write_byte_tokenizer(tmp_path), hf_config.read_codec(codec))
    params = new_params(config, seed=1)
    layer = params["talker"]["transformer"]["layers_1"]
    assert np.std(layer["attention"]["qkv"]["weight"]) == pytest.approx(0.02, rel=0.1)
    assert np.std(layer["mlp"]["down"]["weight"]) == pytest.approx(0.02 / 2, rel=0.1)
    assert np.std(params["code_predictor"]["transformer"]["layers_0"]["attention"]["o"]["weight"]) == pytest.approx(
        0.02 / np.sqrt(2), rel=0.1
    )
    assert (np.asarray(layer["mlp_norm"]["scale"]) == 1).all()
    assert not np.array_equal(
        params["talker"]["codec_head"]["weight"], new_params(config, 2)["talker"]["codec_head"]["weight"]
    )
