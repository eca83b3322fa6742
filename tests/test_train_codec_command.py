"""The command `train codec`: from recordings to a codec that encodes and decodes, and what it refuses."""

import json
import os
import signal

import jax
import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import audio, hf_config, hf_export
from qwen3_tts_jax.files import locked_folder
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec import job as codec_job
from qwen3_tts_jax.train.codec.job import write_codec
from qwen3_tts_jax.train.codec.quantizer import share_codebooks
from qwen3_tts_jax.train.codec.run import CodecResult
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from qwen3_tts_jax.train.codec.step import finish_codec, start_codec
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.interrupts import Interrupted
from qwen3_tts_jax.train.progress import DivergedError
from qwen3_tts_jax.train.state_files import RunError, save_state
from tests.command import assert_failed, assert_refused, run, write_recording
from tests.train_codec import CODEC

SHORT = ("--spectral-steps", 0, "--steps", 2, "--batch-seconds", 0.2, "--crop-seconds", 0.1, "--log-every", 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        write_recording(folder / f"{i}.wav", 0.6 + 0.1 * i, seed=i)
    return folder


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "shape.json"
    path.write_text(json.dumps(hf_export.codec_to_hf(CODEC)))
    return path


def train(*arguments):
    return run("train", "codec", *arguments)


def test_a_codec_from_recordings(recordings, shape, tmp_path):
    output = tmp_path / "run"
    result = train(
        recordings, "-o", output, "--config", shape, *SHORT, "--validation", recordings, "--sample-every", 2,
        "--save-every", 1,
    )  # fmt: skip
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stdout.startswith(f"{output / 'codec'}: done, the state after step 2, mel distance ")
    assert "decoded 3 of 3 recordings" in result.stderr
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 2]
    assert [line["audio_seconds"] for line in log[:2]] == [0, pytest.approx(0.2)]
    assert log[0]["compiling"] > log[1]["seconds"] > log[0]["seconds"] == 0
    assert "compiling" not in log[1]
    lines = result.stderr.splitlines()
    first, second = (next(line for line in lines if line.startswith(f"step {i} of 2: loss")) for i in (1, 2))
    assert lines.index("compiling step 1 of 2") < lines.index(first)
    assert first.endswith(f", lr 0.001, compiled in {log[0]['compiling']:.0f} s")
    assert second.endswith(f", {0.2 / log[1]['seconds']:,.1f} s of audio per s")
    assert len(log[2]["validation_perplexity"]) == 5
    assert log[2]["validation_mel"] == pytest.approx(float(result.stdout.split()[-1]), abs=1e-3)

    names = sorted(path.name for path in (output / "samples").iterdir())
    assert names == [f"{name}-{i}.wav" for name in ("recording", "step-000002") for i in range(3)]
    codec = SpeechTokenizer.from_pretrained(output / "codec")
    assert codec.config == CODEC
    assert json.loads((output / "codec" / "preprocessor_config.json").read_text())["sampling_rate"] == 24_000
    codes = codec.encode(str(recordings / "0.wav"))[0]
    assert codes.shape == (1800, 5)
    assert len(np.unique(codes[:, 1])) > 3
    samples, rate = codec.decode(codes)
    sample, _ = audio.read(output / "samples" / "step-000002-0.wav")
    # Training keeps 16 bits of a recording, which now and then is another code.
    assert np.mean(np.abs(samples[0][: len(sample)] - sample) > 2e-4) < 0.05
    assert rate == 24_000

    assert_refused(train(recordings, "-o", output, "--config", shape, *SHORT), "codec is there already")


def test_what_a_run_is_told(recordings, shape, tmp_path, monkeypatch):
    """Of the options, without training: a codec to go on from, its decoder alone, a discriminator, a teacher."""
    told = []

    def fit(params, recipe, data, crops, folder, **options):
        told.append((params, recipe, data, crops, options))
        state = start_codec(params, recipe, fresh=False)
        return CodecResult(finish_codec(state, params, recipe), state, recipe.optimizer.steps, 0.5, True)

    monkeypatch.setattr(codec_job, "fit_codec", fit)
    features = tmp_path / "features"
    features.mkdir()
    for i in range(3):
        np.save(features / f"{i}.npy", np.ones((30 + 5 * i, 4), np.float32))
    result = train(
        recordings, "-o", tmp_path / "one", "--config", shape, *SHORT, "--seed", 5, "--features", features,
        "--feature-rate", 50, "--teacher-weight", 0.5, "--unquantized", 0.5, "--continuous-steps", 1, "--average", 0.9,
        "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stdout == f"{tmp_path / 'one' / 'codec'}: ended early, the state after step 2, mel distance 0.500\n"
    assert result.stderr == ""
    params, recipe, data, crops, options = told[0]
    assert (recipe.teacher.width, recipe.teacher.weight, options["features"].rate) == (4, 0.5, 50.0)
    assert (recipe.unquantized, recipe.unquantized_steps, recipe.continuous_steps, recipe.average) == (0.5, 1, 1, 0.9)
    assert (crops.rows, crops.samples, crops.seed, options["fresh"]) == (2, 2400, 5, True)
    assert [len(one) for one in data.samples] == [14_400, 16_800, 19_200]
    assert options["validation"] is None
    assert "base" not in options["settings"]

    result = train(
        recordings, "-o", tmp_path / "two", "--start", tmp_path / "one" / "codec", "--decoder-only", *SHORT,
        "--discriminator-start", 1, "--discriminator-kind", "least-squares", "--discriminator-seconds", 0.09, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, (result.exception, result.stderr)
    again, recipe, _, _, options = told[1]
    assert recipe.decoder_only
    assert recipe.codec == CODEC
    assert not options["fresh"]
    found = recipe.discriminator
    assert (found.samples, found.start, found.every, found.kind) == (2160, 1, 2, "least-squares")
    kernel = params["decoder"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(again["decoder"]["conv_out"]["kernel"], kernel)
    assert options["settings"]["base"] == fingerprint(again)
    built_in = train(
        recordings, "-o", tmp_path / "three", "--size", "medium", "--spectral-steps", 0, "--steps", 1, "--quiet"
    )
    assert built_in.exit_code == 0, (built_in.exception, built_in.stderr)
    assert told[2][1].codec == codec_shape("medium") == hf_config.read_codec(tmp_path / "three" / "codec")


def test_a_decoder_from_given_codes(recordings, shape, tmp_path, monkeypatch):
    """What a run is told of lines with codes, what it samples, and which of them it refuses."""
    told = []

    def fit(params, recipe, data, crops, folder, **options):
        told.append((params, recipe, data, crops, options))
        agreed = codec_job.describe_codec(recipe, crops) | options["settings"]
        state = start_codec(params, recipe, fresh=False)
        save_state(folder / "checkpoints", "00000001", state, agreed)
        options["speak"](params, 2)
        raise OSError("the power went off")

    rng, start = np.random.default_rng(0), random_codec(CODEC, 3)
    for kind in ("semantic", "acoustic"):
        quantizer = start["encoder"]["quantizer"][kind]
        quantizer["embedding_sum"] = rng.normal(size=quantizer["embedding_sum"].shape).astype(np.float32)
    write_codec(tmp_path / "codec", share_codebooks(start, 5), CODEC)
    codes = [rng.integers(0, 32, (1800 + 300 * i, 5)) for i in range(3)]

    def lines(name, numbers):
        for i in numbers:
            np.save(tmp_path / f"{i}.npy", codes[i])
        rows = [{"audio": str(recordings / f"{i}.wav"), "codes": f"{i}.npy"} for i in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    monkeypatch.setattr(codec_job, "fit_codec", fit)
    data, held_out = lines("data.jsonl", (0, 1)), lines("held.jsonl", (2,))
    output = tmp_path / "run"
    arguments = (data, "-o", output, "--start", tmp_path / "codec", *SHORT, "--quiet", "--context-seconds", 0.05)
    alone = (*arguments, "--decoder-only", "--validation", held_out, "--sample-every", 1)
    assert_failed(train(*alone), "the power went off")
    params, recipe, clips, crops, options = told.pop()
    assert recipe.decoder_only
    assert (crops.samples, crops.context, clips.frame_samples) == (2400, 150, 8)
    for given, expected in zip((*clips.codes, *options["validation"].codes), codes, strict=True):
        np.testing.assert_array_equal(given, expected)
    sample, _ = audio.read(output / "samples" / "step-000002-0.wav")
    expected = SpeechTokenizer(CODEC, params).decode(codes[2])[0][0]
    np.testing.assert_allclose(sample, expected, atol=2e-4)
    assert np.std(expected) > 1e-3

    assert_refused(train(*arguments), "data.jsonl line 1 has codes: the decoder alone", "--decoder-only")
    assert_refused(train(*alone, "--validation", recordings), "0.wav has no codes, and others have")
    assert_refused(train(*alone, "--context-seconds", 0.1), "of another run: crops was")
    codes[1][7, 3] ^= 1
    lines("data.jsonl", (0, 1))
    assert_refused(train(*alone), "of another run: data was")
    assert told == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--start", "x", "--config", "y"), "--start brings its own shape"),
        (("--decoder-only",), "--decoder-only needs --start"),
        (("--features", "x"), "--features needs --feature-rate"),
        (("--teacher-weight", 2), "--teacher-weight does nothing without --feature-rate"),
        (("--discriminator-every", 1), "--discriminator-every does nothing without --discriminator-start"),
        (("--size", "small"), "--size does nothing with --config"),
        (("--encoder-steps", 1), "--encoder-steps does nothing where no spectra are learnt"),
        (("--patience", 2), "--patience does nothing without --validation"),
        (("--feature-rate", 50), "0.wav has no features"),
        (("--config", "none.json"), "none.json"),
        (("--crop-seconds", 0.08), "pieces of 0.08 s are too short"),
        (("--batch-seconds", 0.04), "a batch of 0.04 s holds no piece of 0.1 s"),
        (("--dropout", 2), "--dropout must be 0 … 1, got 2"),
        (("--discriminator-start", 0, "--discriminator-seconds", 0.01), "must hear at least 2048 samples, got 240"),
        (("--discriminator-start", 0), "the discriminator cannot hear 0.75 s of pieces of 0.1 s"),
        (("--crop-seconds", "nan"), "--crop-seconds must be above 0 … 86400, got nan"),
        (("--validation", "none.jsonl"), "none.jsonl is no folder"),
        (("--cache", "/proc/none/cache"), "cannot write into the folder /"),
        (("--seed", -1), "--seed must be 0 … 2147483647, got -1"),
    ],
)
def test_refused_options(options, part, recordings, shape, tmp_path):
    chosen = () if {"--start", "--config"} & set(options) else ("--config", shape)
    assert_refused(train(recordings, "-o", tmp_path / "run", *chosen, *SHORT, *options), part)
    assert not (tmp_path / "run").exists()


def test_refused_recordings_and_shapes(recordings, shape, tmp_path):
    other = json.loads(shape.read_text())
    other["decoder_config"]["codebook_dim"] += 2
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused = train(recordings, "-o", tmp_path / "run", "--config", tmp_path / "other.json", *SHORT)
    assert_refused(refused, "codebook_dim is 6 and 7")
    (tmp_path / "broken.json").write_text("{")
    refused = train(recordings, "-o", tmp_path / "run", "--config", tmp_path / "broken.json", *SHORT)
    assert_refused(refused, "broken.json is not valid JSON")
    soundfile.write(tmp_path / "silent.wav", np.zeros(20_000), 24_000)
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps({"audio": "silent.wav"}) + "\n")
    refused = train(lines, "-o", tmp_path / "run", "--config", shape, *SHORT, "--quiet")
    assert_refused(refused, "data.jsonl line 1: ", "is silent")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_with_other_data_is_refused(recordings, shape, tmp_path, monkeypatch):
    output = tmp_path / "run"

    def fit(params, recipe, data, crops, folder, *, settings, **_):
        agreed = codec_job.describe_codec(recipe, crops) | settings
        save_state(folder / "checkpoints", "00000001", start_codec(params, recipe), agreed)
        raise OSError("the power went off")

    monkeypatch.setattr(codec_job, "fit_codec", fit)
    assert_failed(train(recordings, "-o", output, "--config", shape, *SHORT, "--quiet"), "the power went off")
    write_recording(tmp_path / "other.wav")
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps({"audio": "other.wav"}) + "\n")
    assert_refused(train(lines, "-o", output, "--config", shape, *SHORT), "of another run: data was")
    changed = train(recordings, "-o", output, "--config", shape, *SHORT, "--learning-rate", 0.5)
    assert_refused(changed, "of another run: optimizer.learning_rate was 0.001, is 0.5;")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Interrupted(signal.SIGINT, "after step 7"), 130, "stopped after step 7; the same command goes on\n"),
        (Interrupted(signal.SIGTERM, "after step 7"), 143, "stopped after step 7; the same command goes on\n"),
        (DivergedError("step 3: the loss is nan"), 1, "error: step 3: the loss is nan\n"),
        (OSError(28, "No space left on device", "log.jsonl"), 1, "error: log.jsonl: No space left on device\n"),
        (RunError("it is of another run"), 2, "error: it is of another run\n"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes."), 1,
            "error: there is not enough memory: choose a smaller --batch-seconds\n",
        ),
        (jax.errors.JaxRuntimeError("INTERNAL: something else"), None, ""),
        (ValueError("operands could not be broadcast together"), None, ""),
    ],
)  # fmt: skip
def test_how_a_command_ends(error, status, line, recordings, shape, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr(codec_job, "fit_codec", fit)
    result = train(recordings, "-o", tmp_path / "run", "--config", shape, *SHORT, "--quiet")
    if status is None:
        # An error of the program keeps its traceback.
        assert result.exception is error
    else:
        assert (result.exit_code, result.stderr) == (status, line)


def test_two_commands_do_not_train_in_one_folder(recordings, shape, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    with locked_folder(output):
        result = train(recordings, "-o", output, "--config", shape, *SHORT)
    assert_refused(result, f"another process ({os.getpid()}) is at work in {output}: wait for it")
