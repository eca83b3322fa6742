"""A codec that learns spectra before its decoder learns to speak: each way alone, and the run through all of them."""

import json
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.codec.encoder import encode
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.train.checkpoints import CHECKPOINTS
from qwen3_tts_jax.train.codec import job as codec_job
from qwen3_tts_jax.train.codec.data import Clips, Recording
from qwen3_tts_jax.train.codec.job import PHASES, prepare_codec, run_codec
from qwen3_tts_jax.train.codec.run import CodecResult, Crops
from qwen3_tts_jax.train.codec.spectra import hear, spectra, spectra_per_frame
from qwen3_tts_jax.train.codec.spectral import (
    SpectralRecipe,
    finish_spectra,
    spectral_optimizer,
    spectral_recipes,
    start_spectra,
)
from qwen3_tts_jax.train.codec.spectral_run import evaluate_spectra, fit_spectra
from qwen3_tts_jax.train.codec.spectral_step import judge_spectra, spectral_step
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, finish_codec, start_codec
from qwen3_tts_jax.train.codec.teacher import HEAD, Teacher
from qwen3_tts_jax.train.codec.training import CodecTraining
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import DivergedError, Schedule
from qwen3_tts_jax.train.state_files import RunError, latest
from tests.command import assert_refused, run, write_recording
from tests.train_codec import CODEC

# Frames of 20 ms, two latents each.
SHAPE = replace(
    CODEC, encoder=replace(CODEC.encoder, strides=(12, 20)), decoder=replace(CODEC.decoder, upsample_rates=(12, 20))
)
FRAME, FRAMES, LEARN, TEACH = SHAPE.frame_samples, 20, 100, 100
HEARS, SPEAKS = (
    replace(recipe, dead_below=0.05, dropout=0.5) for recipe in spectral_recipes(SHAPE, LEARN, TEACH, 1e-2)
)


def voices(seed, rows=8, frames=FRAMES):
    """Samples float32 [rows, frames · 480]: a little noise and five tones in turn, high or low, loud or not."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / SHAPE.sample_rate
    which = np.repeat(rng.integers(0, 4, (rows, 5)), len(time) // 5, axis=1)
    pitch, level = np.where(which % 2, 400, 3000), np.where(which // 2, 0.5, 0.05)
    return (level * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.normal(size=which.shape)).astype(np.float32)


def clips(rows=5, seed=0):
    samples = [np.round(row * 32_767).astype(np.int16) for row in voices(seed, rows, 40)]
    recordings = tuple(Recording(f"data.jsonl line {i + 1}", f"{i}.wav") for i in range(rows))
    return Clips(recordings, tuple(row[: len(row) - 3001 * i] for i, row in enumerate(samples)), SHAPE.sample_rate)


def learn(state, params, recipe, taught=None):
    losses = []
    for step in range(recipe.optimizer.steps):
        key = jax.random.key(step)
        state, metrics = spectral_step(
            state, params, voices(step), key, recipe, taught=taught, alone=step < recipe.alone
        )
        losses.append({name: float(np.mean(value)) for name, value in metrics.items()})
    return state, losses


@pytest.fixture(scope="module")
def params():
    return random_codec(SHAPE)


@pytest.fixture(scope="module")
def heard(params):
    """The last state of an encoder of spectra, and its losses."""
    return learn(start_spectra(params, HEARS), params, HEARS)


@pytest.fixture(scope="module")
def spoken(params, heard):
    """The last state of an encoder of samples, and its losses."""
    return learn(start_spectra(params, SPEAKS, heard[0]), params, SPEAKS, heard[0].trained)


def test_spectra_of_frames():
    mini = replace(codec_shape("medium"), decoder=replace(codec_shape("medium").decoder, upsample_rates=(5, 5, 4, 3)))
    assert [spectra_per_frame(shape) for shape in (SHAPE, codec_shape("small"), mini)] == [2, 8, 4]
    # 24 windows of 40 ms every 10 ms; the tone begins in the middle of frame 6, at 130 ms.
    time = np.arange(12 * FRAME) / 24_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time) * (time >= 0.13)).astype(np.float32)[None]
    mel, low = spectra(jnp.asarray(tone), SHAPE)
    assert mel.shape == (1, 24, 80)
    assert low.shape == (1, 12, 160)
    np.testing.assert_allclose(mel[0, :11], np.log(2e-3), atol=1e-2)
    loud = np.asarray(mel[0].max(axis=-1))
    assert (loud[14:] > loud.max() - 0.5).all()
    # Bins of 12.5 Hz, the first at 12.5.
    assert (np.argmax(low[0, 8:11], axis=-1) == 79).all()


def test_an_encoder_of_spectra_hears_no_future():
    samples = voices(0, 2)
    changed = samples.copy()
    changed[:, 7 * FRAME :] = 0.1
    ours, theirs = (np.asarray(hear(jnp.asarray(one), SHAPE)) for one in (samples, changed))
    np.testing.assert_array_equal(ours[:, :7], theirs[:, :7])
    assert np.abs(ours[:, 7] - theirs[:, 7]).max() > 0.1
    # What is to be said does look ahead, by half a window.
    assert not np.array_equal(spectra(samples, SHAPE)[0][:, 13], spectra(changed, SHAPE)[0][:, 13])


def test_long_chains_start_orthogonal(params, heard):
    trained = {path: np.asarray(leaf) for path, leaf in start_spectra(params, SPEAKS, heard[0]).trained.items()}
    first = {path: np.asarray(leaf) for path, leaf in start_spectra(params, HEARS).trained.items()}
    kernel = trained["encoder/stage_1/conv/kernel"].reshape(-1, trained["encoder/stage_1/conv/kernel"].shape[-1])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(kernel.shape[1]), atol=1e-5)
    for path in ("decoder/pre_conv/kernel", "decoder/latent_upsample_0/transposed_conv/kernel"):
        last = first[path][-1]
        small = min(last.shape)
        gram = last @ last.T if last.shape[0] == small else last.T @ last
        np.testing.assert_allclose(gram, np.eye(small), atol=1e-5)
    weight = first["decoder/quantizer/acoustic/output_projection/weight"]
    np.testing.assert_allclose(weight.T @ weight, np.eye(6) * weight.shape[0] / 6, atol=1e-4)
    np.testing.assert_array_equal(
        first["decoder/transformer/layers_0/mlp/down/weight"],
        params["decoder"]["transformer"]["layers_0"]["mlp"]["down"]["weight"],
    )
    # An encoder of spectra knows nothing of samples, and the other goes on with what comes after it.
    assert not any("encoder/stage" in path for path in first)
    assert not any(path.startswith("spectral") for path in trained)
    np.testing.assert_array_equal(trained["readout/weight"], heard[0].trained["readout/weight"])
    assert not any("conv_in" in path or "upsample_0/residual" in path for path in first)


def distances(state, params, recipe, count=5):
    judged = judge_spectra(state, params, voices(1000), recipe, count)
    return float(judged["mel"].mean()), float(judged["low"].mean()), judged["codes"]


def test_spectra_are_learnt_and_more_codebooks_are_better(params, heard):
    state, losses = heard
    before = distances(start_spectra(params, HEARS), params, HEARS)
    after, half, one = (distances(state, params, HEARS, count) for count in (5, 3, 1))
    assert after[0] < 0.4 * before[0], (after[0], before[0])
    assert after[1] < 0.7 * before[1]
    assert max(after[0], half[0]) < one[0] - 0.01
    used = [len(np.unique(after[2][..., q])) for q in range(5)]
    assert min(used) > 4, used
    assert np.mean([each["mel"] for each in losses[-10:]]) < 0.4 * losses[0]["mel"]


def test_the_loss_is_the_sum_of_its_parts(params, heard, spoken):
    expected = [
        {"mel": 1, "low": 0.5, "commitment": 0.25},
        {"latents": 1},
        {"mel": 1, "low": 0.5, "commitment": 0.25, "latents": 1},
    ]
    for losses, weights in zip((heard[1][7], spoken[1][3], spoken[1][-1]), expected, strict=True):
        total = sum(weight * losses[name] for name, weight in weights.items())
        np.testing.assert_allclose(losses["loss"], total, rtol=1e-5)


def test_the_encoder_of_samples_learns_what_that_of_spectra_makes(params, heard, spoken):
    state, losses = spoken
    assert np.mean([each["latents"] for each in losses[-10:]]) < 0.4 * losses[0]["latents"]
    ours, first = distances(state, params, SPEAKS), distances(start_spectra(params, SPEAKS, heard[0]), params, SPEAKS)
    assert ours[0] < 0.6 * first[0], (ours[0], first[0])
    # With the codebooks of the end both make the same codes far more often than by chance, most of all the first.
    theirs = distances(heard[0].replace(codebooks=state.codebooks), params, HEARS)[2]
    agree, chance = [], []
    for q in range(2):
        a, b = np.asarray(ours[2][..., q]).ravel(), np.asarray(theirs[..., q]).ravel()
        agree.append(np.mean(a == b))
        chance.append(np.sum(np.bincount(a, minlength=32) * np.bincount(b, minlength=32)) / len(a) ** 2)
    assert (np.array(agree) > 4 * np.array(chance)).all(), (agree, chance)


def test_alone_the_encoder_alone_learns(params, heard):
    state = start_spectra(params, SPEAKS, heard[0])
    before = {path: np.array(leaf) for path, leaf in state.trained.items()}
    books = jax.tree.map(np.array, state.codebooks)
    state, _ = spectral_step(state, params, voices(0), jax.random.key(0), SPEAKS, taught=heard[0].trained, alone=True)
    changed = {path for path, leaf in state.trained.items() if not np.array_equal(leaf, before[path])}
    assert changed
    assert all(path.startswith("encoder/") and "quantizer" not in path for path in changed)
    jax.tree.map(np.testing.assert_array_equal, state.codebooks, books)
    state, _ = spectral_step(state, params, voices(0), jax.random.key(0), SPEAKS, taught=heard[0].trained)
    assert not np.array_equal(state.trained["readout/weight"], before["readout/weight"])
    assert not np.array_equal(state.codebooks["acoustic"]["embedding_sum"], books["acoustic"]["embedding_sum"])


def test_the_codec_says_the_codes_that_were_learnt(params, spoken):
    trees, samples = finish_spectra(spoken[0], params, SPEAKS), voices(1000)
    codes = jax.jit(partial(encode, config=SHAPE))(trees["encoder"], samples=samples)
    np.testing.assert_array_equal(codes, distances(spoken[0], params, SPEAKS)[2])
    ours, theirs = (trees[part]["quantizer"]["acoustic"]["embedding_sum"] for part in ("decoder", "encoder"))
    np.testing.assert_array_equal(ours, theirs[: len(ours)])
    kernel = params["decoder"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(trees["decoder"]["conv_out"]["kernel"], kernel)
    assert not np.array_equal(trees["decoder"]["pre_conv"]["kernel"], params["decoder"]["pre_conv"]["kernel"])


def test_a_teacher_of_features(params):
    recipe = replace(HEARS, teacher=Teacher(7, 0.5))
    state = start_spectra(params, recipe)
    head = np.array(state.trained[HEAD])
    targets = np.random.default_rng(0).normal(size=(8, FRAMES, 7)).astype(np.float32)
    state, metrics = spectral_step(state, params, voices(0), jax.random.key(0), recipe, targets=targets)
    parts = metrics["mel"] + 0.5 * metrics["low"] + 0.25 * metrics["commitment"] + 0.5 * metrics["teacher"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-5)
    # Of the first step all codes stand for 0; the next moves the head.
    state, _ = spectral_step(state, params, voices(1), jax.random.key(1), recipe, targets=targets)
    assert not np.array_equal(state.trained[HEAD], head)
    assert HEAD in start_spectra(params, replace(recipe, hears="samples"), state).trained


def test_validation_is_of_the_recordings_alone(params, heard):
    """Five recordings are two batches of four rows; what fills the second up does not count."""
    data, crops = clips(), Crops(4, FRAMES * FRAME)
    numbers = evaluate_spectra(heard[0], params, HEARS, data, crops)
    middles = data.cut(data.middles(crops.samples), crops.samples)
    rows = [judge_spectra(heard[0], params, np.stack([row] * 4), HEARS, 5) for row in middles]
    np.testing.assert_allclose(numbers["mel"], np.mean([row["mel"][0] for row in rows]), rtol=1e-4)
    halves = [judge_spectra(heard[0], params, np.stack([row] * 4), HEARS, 2)["mel"][0] for row in middles]
    np.testing.assert_allclose(numbers["half_mel"], np.mean(halves), rtol=1e-4)
    assert len(numbers["perplexity"]) == 5


@dataclass(frozen=True, eq=False)
class Broken(Clips):
    """Clips whose third step has a sample that is no number."""

    def cut(self, places, length):
        crops = super().cut(places, length)
        if places == self.places(2, 4, length, 0, 0.1):
            crops[1, 7] = np.nan
        return crops


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(params, tmp_path):
    recipe = replace(HEARS, optimizer=spectral_optimizer(4))
    good = clips()
    data = Broken(good.recordings, good.samples, good.sample_rate)
    crops, schedule = Crops(4, FRAMES * FRAME), Schedule(log=1, save=0)
    with pytest.raises(DivergedError, match=r"step 3: the loss is nan .* was data.jsonl line \d from 0.\d\d s, data"):
        fit_spectra(params, recipe, data, crops, tmp_path, schedule=schedule)
    assert latest(tmp_path / CHECKPOINTS).name == "00000002"
    state = fit_spectra(params, recipe, good, crops, tmp_path, schedule=schedule)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def job(output, **changes):
    spectral = tuple(replace(recipe, **changes) for recipe in spectral_recipes(SHAPE, 3, 5))
    recipe = CodecRecipe(SHAPE, OptimizerConfig(1e-3, 3, 1), decoder_only=True)
    training = CodecTraining(
        recipe, batch_seconds=0.4, crop_seconds=0.2, spectral=spectral, schedule=Schedule(log=1, save=2)
    )
    return prepare_codec(output.parent / "recordings", output, training)


def test_a_killed_run_goes_on_to_the_same_codec(tmp_path):
    (tmp_path / "recordings").mkdir()
    for i in range(3):
        write_recording(tmp_path / "recordings" / f"{i}.wav", 0.6 + 0.1 * i, seed=i)
    done = []

    def go_on(until=None):
        """Without time to save: as killed."""

        def report(numbers):
            done.append((numbers.get("phase"), numbers["step"]))
            if done[-1] == until:
                raise KeyboardInterrupt

        run_codec(job(tmp_path / "killed"), report=report)

    with pytest.raises(KeyboardInterrupt):
        go_on(until=("samples", 4))
    where = tmp_path / "killed" / PHASES
    assert [latest(where / name / CHECKPOINTS).name for name in ("spectra", "samples")] == ["00000003", "00000002"]
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        go_on(until=(None, 3))
    go_on()
    assert done == [("samples", 3), ("samples", 4), ("samples", 5), (None, 1), (None, 2), (None, 3), (None, 3)]
    run_codec(job(tmp_path / "whole"))
    written = [(tmp_path / name / "codec" / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert written[0] == written[1]
    logs = []
    for name in ("killed", "whole"):
        files = [tmp_path / name / "log.jsonl", *sorted((tmp_path / name / PHASES).glob("*/log.jsonl"))]
        logs.append([json.loads(line)["loss"] for file in files for line in file.read_text().splitlines()])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 11

    (tmp_path / "whole" / "codec").rename(tmp_path / "codec")
    with pytest.raises(RunError, match=r"spectra.*low was 0\.5, is 0\.7"):
        job(tmp_path / "whole", low=0.7)


def test_what_a_run_is_told(tmp_path, monkeypatch):
    """By default, and of a teacher: only spectra are learnt with it."""
    told, state = [], None

    def spectra_of(params, recipe, data, crops, folder, **options):
        nonlocal state
        told.append((recipe, folder.name, options))
        state = start_spectra(params, recipe, options["taught"])
        return state

    def fit(params, recipe, data, crops, folder, **options):
        told.append((recipe, params, options))
        state = start_codec(params, recipe, fresh=options["fresh"])
        return CodecResult(finish_codec(state, params, recipe), state, recipe.optimizer.steps, 0.5, False)

    monkeypatch.setattr(codec_job, "fit_spectra", spectra_of)
    monkeypatch.setattr(codec_job, "fit_codec", fit)
    (tmp_path / "recordings").mkdir()
    write_recording(tmp_path / "recordings" / "0.wav", 0.7)
    np.save(tmp_path / "0.npy", np.ones((35, 4), np.float32))
    result = run(
        "train", "codec", tmp_path / "recordings", "-o", tmp_path / "run", "--steps", 7, "--encoder-steps", 30,
        "--spectral-rate", 0.002, "--dropout", 0.5, "--features", tmp_path, "--feature-rate", 50, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, (result.exception, result.stderr)
    (first, one, _), (second, two, options), (recipe, params, last) = told
    assert (one, two, first.hears, second.hears) == ("spectra", "samples", "spectra", "samples")
    assert [each.optimizer.steps for each in (first, second, recipe)] == [800, 30, 7]
    assert [each.optimizer.learning_rate for each in (first, second, recipe)] == [0.002, 0.002, 1e-3]
    assert [each.dropout for each in (first, second, recipe)] == [0.5] * 3
    assert (first.alone, second.alone) == (0, 12)
    assert first.teacher == second.teacher == Teacher(4)
    assert recipe.teacher is None
    assert recipe.decoder_only
    assert options["features"].rate == 50
    assert last["features"] is None
    assert not last["fresh"]
    expected = state.trained["encoder/conv_out/kernel"]
    np.testing.assert_array_equal(params["encoder"]["conv_out"]["kernel"], expected)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--start", "x", "--spectral-steps", 5), "--spectral-steps are for a codec from nothing"),
        (("--continuous-steps", 5), "are for a codec that learns from samples: --spectral-steps 0"),
        (("--unquantized", 0.5), "are for a codec that learns from samples: --spectral-steps 0"),
        (("--config", "SHAPE"), "frames of 8 samples at 24000 Hz with 2 latents"),
    ],
)
def test_refused_options(options, part, tmp_path):
    (tmp_path / "shape.json").write_text(json.dumps(hf_export.codec_to_hf(CODEC)))
    soundfile.write(tmp_path / "0.wav", np.full(20_000, 0.1), 24_000)
    options = [tmp_path / "shape.json" if one == "SHAPE" else one for one in options]
    assert_refused(run("train", "codec", tmp_path, "-o", tmp_path / "run", "--steps", 1, *options), part)
    assert not (tmp_path / "run").exists()


def test_refused_recipes_and_data(tmp_path):
    with pytest.raises(ConfigError, match="dropout must be a part"):
        SpectralRecipe(SHAPE, dropout=2)
    with pytest.raises(ConfigError, match="shares its codebooks: codebook_dim is 6 and 7"):
        SpectralRecipe(replace(SHAPE, decoder=replace(SHAPE.decoder, codebook_dim=7)))
    # Of 106 samples the even parts are 53 ms long, or 1.
    with pytest.raises(ConfigError, match="hold no whole spectra"):
        spectra_per_frame(replace(SHAPE, sample_rate=1000, decoder=replace(SHAPE.decoder, upsample_rates=(53,))))
    recipe = CodecRecipe(SHAPE, decoder_only=True)
    with pytest.raises(ConfigError, match="the decoder alone of the same codec"):
        CodecTraining(CodecRecipe(SHAPE), spectral=(HEARS, SPEAKS))
    with pytest.raises(ConfigError, match="from spectra and then from samples"):
        CodecTraining(recipe, spectral=(HEARS,))
    with pytest.raises(ConfigError, match="for a start from nothing"):
        CodecTraining(recipe, spectral=(HEARS, SPEAKS), start=tmp_path)
    write_recording(tmp_path / "0.wav", 0.6)
    np.save(tmp_path / "0.npy", np.zeros((30, 5), np.int32))
    (tmp_path / "data.jsonl").write_text(json.dumps({"audio": "0.wav", "codes": "0.npy"}) + "\n")
    with pytest.raises(ConfigError, match="line 1 has codes"):
        prepare_codec(tmp_path / "data.jsonl", tmp_path / "run", CodecTraining(recipe, spectral=(HEARS, SPEAKS)))
