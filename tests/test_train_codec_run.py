"""The loop of training a codec: resumed after a kill, stopped by NaN, ended early; what each option does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.train.codec import forward
from qwen3_tts_jax.train.codec import run as codec_run
from qwen3_tts_jax.train.codec.codes import GivenCodes, cut_codes
from qwen3_tts_jax.train.codec.data import Clips
from qwen3_tts_jax.train.codec.discriminator import Discriminator
from qwen3_tts_jax.train.codec.forward import reconstruct, reconstruct_given
from qwen3_tts_jax.train.codec.loss import mel_loss
from qwen3_tts_jax.train.codec.run import Crops, evaluate_codec, fit_codec
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, codec_step, finish_codec, judge, start_codec
from qwen3_tts_jax.train.codec.teacher import HEAD, Features, Teacher
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import DivergedError, Schedule
from qwen3_tts_jax.train.state_files import RunError, latest
from tests.train_codec import CODEC, FRAME, FRAMES, clips, clips_with_codes, tones

STEPS = 6
# All that can be on is on, so that one compiled step serves most tests.
RECIPE = CodecRecipe(
    CODEC, OptimizerConfig(3e-3, STEPS, 1), dead_below=0.05, average=0.5, continuous_steps=1, unquantized=0.5,
    unquantized_steps=3, discriminator=Discriminator(512, fft_sizes=(128,), channels=2), teacher=Teacher(7),
)  # fmt: skip
CROPS = Crops(rows=4, samples=FRAMES * FRAME, starts=0.25, seed=3)


def features() -> Features:
    rng = np.random.default_rng(6)
    arrays = [rng.normal(size=(round(len(one) / CODEC.sample_rate * 1000), 7)) for one in clips().samples]
    return Features(tuple(array.astype(np.float32) for array in arrays), 1000.0)


def train(folder, recipe=RECIPE, data=None, report=None, validation=None, speak=None, **schedule):
    every = Schedule(**{"log": 1, "save": 2, "evaluate": 2} | schedule)
    return fit_codec(
        random_codec(CODEC), recipe, data or clips(), CROPS, folder, features=features(),
        validation=validation, schedule=every, report=report, speak=speak,
    )  # fmt: skip


def one_step(state, params, seed=0, recipe=RECIPE, step=None):
    if step is not None:
        state = state.replace(step=jax.numpy.int32(step))
    targets = np.random.default_rng(seed).normal(size=(4, FRAMES, 7)).astype(np.float32)
    return codec_step(state, params, tones(seed), jax.random.key(seed), recipe, targets=targets, against=True)


def killed(folder):
    """Runs in a process of its own: dies while it works on the steps after a checkpoint."""
    import signal

    train(folder, report=lambda numbers: numbers["step"] == 3 and os.kill(os.getpid(), signal.SIGKILL))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_to_the_same_codec(tmp_path):
    script = f"from tests.test_train_codec_run import killed; killed({str(tmp_path / 'killed')!r})"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode == -9, process.stderr.decode()
    assert latest(tmp_path / "killed" / "checkpoints").name == "00000002"

    steps = []
    resumed = train(tmp_path / "killed", report=lambda numbers: steps.append(numbers["step"]))
    assert steps == [3, 4, 5, 6]
    programs = codec_step._cache_size()
    whole = train(tmp_path / "whole")
    assert codec_step._cache_size() == programs
    mine, other = (jax.tree_util.tree_leaves_with_path(result.state) for result in (resumed, whole))
    for (path, leaf), (_, expected) in zip(mine, other, strict=True):
        np.testing.assert_array_equal(leaf, expected, err_msg=str(path))
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("killed", "whole")]
    assert losses[0] == losses[1]
    kept = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert kept == ["00000004", "00000006"]
    with pytest.raises(RunError, match=r"mel was 15\.0, is 7"):
        train(tmp_path / "whole", replace(RECIPE, mel=7.0))


@dataclass(frozen=True, eq=False)
class Broken(Clips):
    """Clips whose second step has a sample that is no number."""

    def cut(self, places, length):
        crops = super().cut(places, length)
        if places == self.places(1, CROPS.rows, length, CROPS.seed, CROPS.starts):
            crops[1, 7] = np.nan
        return crops


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    good = clips()
    data = Broken(good.recordings, good.samples, good.sample_rate)
    with pytest.raises(DivergedError, match=r"step 2: the loss is nan .* was data.jsonl line \d from 0.\d\d s, data"):
        train(tmp_path, data=data, save=0)
    assert latest(tmp_path / "checkpoints").name == "00000001"
    assert [line["step"] for line in log_of(tmp_path)] == [1]
    saved = train(tmp_path, save=0).state
    for leaf in jax.tree.leaves(saved):
        assert np.isfinite(leaf).all()


def test_the_best_by_validation_is_kept(tmp_path, monkeypatch):
    mels = iter([3.0, 2.0, 2.5, 2.25])
    monkeypatch.setattr(codec_run, "evaluate_codec", lambda *_: {"mel": next(mels), "perplexity": [4.0, 3.0]})
    spoken = []
    result = train(
        tmp_path, validation=clips(3, seed=9), log=0, save=0, evaluate=1, patience=2, sample=2,
        speak=lambda params, step: spoken.append((step, sorted(params))),
    )  # fmt: skip
    assert (result.ended_early, result.step, result.mel) == (True, 2, 2.0)
    assert [line["validation_mel"] for line in log_of(tmp_path)] == [3.0, 2.0, 2.5, 2.25]
    assert spoken == [(2, ["decoder", "encoder"]), (4, ["decoder", "encoder"])]


def test_when_the_discriminator_takes_part(tmp_path, monkeypatch):
    taken = []

    def step(state, *_, against, targets, **__):
        taken.append(against)
        assert targets.shape == (4, FRAMES, 7)
        return state.replace(step=state.step + 1), {"mel": 1.0, "finite": True}

    monkeypatch.setattr(codec_run, "codec_step", step)
    train(tmp_path, replace(RECIPE, discriminator=replace(RECIPE.discriminator, start=4)), save=0)
    assert taken == [False] * 4 + [True] * 2


def test_validation_is_of_the_recordings_alone():
    """Five recordings are two batches of four rows; what fills the second up does not count."""
    params, data = random_codec(CODEC), clips()
    state, _ = one_step(start_codec(params, RECIPE), params)
    numbers = evaluate_codec(state, params, RECIPE, data, CROPS)
    middle = [one[(len(one) - CROPS.samples) // 2 :][: CROPS.samples] for one in data.samples[:4]]
    last = np.pad(data.samples[4], (0, CROPS.samples - len(data.samples[4])))
    samples = [np.stack(rows).astype(np.float32) / 32_767 for rows in (middle, [last] * 4)]
    first, second = (judge(state, params, rows, RECIPE) for rows in samples)
    np.testing.assert_allclose(numbers["mel"], (4 * np.mean(first["mel"]) + second["mel"][0]) / 5, rtol=1e-5)
    codes = np.concatenate([first["codes"].reshape(-1, 5), second["codes"][0]])
    parts = np.bincount(codes[:, 1]) / len(codes)
    np.testing.assert_allclose(
        numbers["perplexity"][1], np.exp(-np.sum(parts * np.log(np.maximum(parts, 1e-9)))), rtol=1e-5
    )
    assert numbers["perplexity"][1] > 1.5


def test_a_phase_without_quantization():
    """While it lasts the decoder does not depend on the codebooks, which learn nevertheless."""
    params = random_codec(CODEC)

    def moved(step):
        """How much the loss changes with the codebooks."""
        values = []
        for sign in (1.0, -1.0):
            state = start_codec(params, RECIPE)
            drawn = jax.tree.map(
                lambda leaf, sign=sign: sign * jax.random.normal(jax.random.key(5), leaf.shape), state.codebooks
            )
            books = {kind: {**each, "cluster_usage": abs(each["cluster_usage"])} for kind, each in drawn.items()}
            before = np.array(books["acoustic"]["embedding_sum"])
            state, metrics = one_step(state.replace(codebooks=books), params, step=step)
            values.append(float(metrics["mel"]))
            assert not np.allclose(state.codebooks["acoustic"]["embedding_sum"], before)
        return abs(values[0] - values[1])

    first, some, every = moved(0), moved(1), moved(3)
    assert first < 1e-6
    assert some > 1e-5
    assert every > 1e-5
    assert some != every


def test_the_loss_is_the_sum_of_its_parts():
    params = random_codec(CODEC)
    state = start_codec(params, RECIPE)
    before = jax.tree.map(np.array, state.discriminator.params)
    weights = {"mel": 15, "spectral": 1, "waveform": 0.1, "commitment": 0.25, "teacher": 1} | {
        "adversarial": 1, "features": 2
    }  # fmt: skip
    for step in range(2):
        state, metrics = one_step(state, params, seed=step)
        expected = sum(weight * float(metrics[name]) for name, weight in weights.items())
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        assert all(float(metrics[name]) > 1e-4 for name in weights)
        # It learns in every second step.
        now = jax.tree.map(np.array, state.discriminator.params)
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (before, now)), strict=True)]
        assert all(same) if step == 1 else sum(same) < 0.2 * len(same)
        before = now
    assert metrics["perplexity"].shape == (CODEC.num_codebooks,)
    # The teacher's head is no part of the codec.
    assert HEAD in state.trained
    assert sorted(finish_codec(state, params, RECIPE)) == ["decoder", "encoder"]


def test_the_decoder_alone_learns():
    params = random_codec(CODEC)
    state, _ = one_step(start_codec(params, RECIPE), params)
    params = finish_codec(state, params, RECIPE)
    recipe = CodecRecipe(CODEC, RECIPE.optimizer, decoder_only=True)
    state = start_codec(params, recipe, fresh=False)
    state, _ = codec_step(state, params, tones(2), jax.random.key(1), recipe)
    trained = finish_codec(state, params, recipe)
    for mine, old in zip(jax.tree.leaves(trained["encoder"]), jax.tree.leaves(params["encoder"]), strict=True):
        np.testing.assert_array_equal(mine, old)
    books = [tree["decoder"]["quantizer"]["acoustic"]["embedding_sum"] for tree in (trained, params)]
    np.testing.assert_array_equal(*books)
    assert np.abs(books[0]).max() > 0
    assert not np.array_equal(trained["decoder"]["conv_out"]["kernel"], params["decoder"]["conv_out"]["kernel"])


GIVEN = CodecRecipe(
    CODEC, OptimizerConfig(1e-2, STEPS, 1), decoder_only=True, average=0.5,
    discriminator=Discriminator(512, start=3, fft_sizes=(128,), channels=2, weight=0.1, features=0.2),
)  # fmt: skip
GIVEN_CROPS = replace(CROPS, context=40)


@pytest.fixture(scope="module")
def learnt():
    """A codec whose codebooks a batch has filled."""
    params = random_codec(CODEC)
    state, _ = one_step(start_codec(params, RECIPE), params)
    return jax.tree.map(np.array, finish_codec(state, params, RECIPE))


@pytest.fixture
def no_encoder(monkeypatch):
    def refuse(*_):
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(forward, "encode_latents", refuse)


def from_codes(params, folder, **options):
    every = Schedule(log=1, save=2, evaluate=3)
    return fit_codec(
        params, GIVEN, clips_with_codes(), GIVEN_CROPS, folder, fresh=False, validation=clips_with_codes(3, seed=9),
        schedule=every, **options,
    )  # fmt: skip


def decoded(params, data):
    """What the decoder makes of all codes of each recording."""
    frames = max(map(len, data.codes))
    codes = np.stack([np.pad(one, ((0, frames - len(one)), (0, 0))) for one in data.codes])
    samples = jax.jit(lambda params, codes: decode(params, CODEC.decoder, codes))(params["decoder"], codes)
    return [np.array(row[: len(one) * FRAME]) for row, one in zip(samples, data.codes, strict=True)]


def test_given_codes_are_decoded_as_those_of_the_encoder(learnt):
    """Also where rows use fewer codebooks."""
    trees = jax.tree.map(jax.numpy.asarray, learnt)
    books, keep = start_codec(trees, GIVEN, fresh=False).codebooks, np.array([5, 3, 1, 2])
    expected, results = jax.jit(lambda samples: reconstruct(trees, books, CODEC, samples, keep))(tones(3))
    codes = np.concatenate([results[kind].codes for kind in ("semantic", "acoustic")], axis=-1)
    rows = np.pad(codes, ((0, 0), (0, 40), (0, 0)))
    given = GivenCodes(rows, np.zeros(4, np.int32), np.full(4, FRAMES, np.int32))
    made = jax.jit(lambda given: reconstruct_given(trees, books, CODEC, given, FRAMES, keep))(given)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert np.std(expected) > 1e-3


def test_crops_of_given_codes_are_pieces_of_the_whole(learnt):
    """From the recording's start, too near to it for the context, and far from it; silent after its end."""
    data = clips_with_codes()
    trees = jax.tree.map(jax.numpy.asarray, learnt)
    books = start_codec(trees, GIVEN, fresh=False).codebooks
    whole = decoded(learnt, data)
    firsts = [0, 5, 20, 200]
    places = [*[(0, first * FRAME) for first in firsts], (4, 0)]

    def crops(context):
        given = cut_codes(data, places, FRAMES, context)
        return jax.jit(lambda given: reconstruct_given(trees, books, CODEC, given, FRAMES, np.full(5, 5)))(given)

    made = crops(40)
    for row, first in enumerate(firsts):
        np.testing.assert_allclose(made[row], whole[0][first * FRAME :][: FRAMES * FRAME], atol=1e-5)
    end = len(data.codes[4]) * FRAME
    np.testing.assert_allclose(made[4, :end], whole[4], atol=1e-5)
    assert (made[4, end:] == 0).all()
    # Frames before matter; with few of them the first samples are others.
    assert np.abs(crops(3)[3] - made[3])[: 3 * FRAME].max() > 1e-4


def test_a_decoder_learns_from_given_codes(learnt, tmp_path, no_encoder):
    result = from_codes(learnt, tmp_path)
    log = [line for line in log_of(tmp_path) if "loss" in line]
    assert log[-1]["mel"] < 0.8 * log[0]["mel"]
    assert "commitment" not in log[0]
    assert [("discriminator" in line) for line in log] == [False] * 3 + [True] * 3
    judged = [line["validation_mel"] for line in log_of(tmp_path) if "validation_mel" in line]
    assert result.mel == min(judged)
    for mine, old in zip(jax.tree.leaves(result.params["encoder"]), jax.tree.leaves(learnt["encoder"]), strict=True):
        np.testing.assert_array_equal(mine, old)


def test_a_run_with_given_codes_goes_on_to_the_same_decoder(learnt, tmp_path, no_encoder):
    def stop(numbers):
        if numbers["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_codes(learnt, tmp_path / "stopped", report=stop)
    steps = []
    resumed = from_codes(learnt, tmp_path / "stopped", report=lambda numbers: steps.append(numbers["step"]))
    assert steps == [5, 6, 6]
    whole = from_codes(learnt, tmp_path / "whole")
    mine, other = (jax.tree_util.tree_leaves_with_path(result.state) for result in (resumed, whole))
    for (path, leaf), (_, expected) in zip(mine, other, strict=True):
        np.testing.assert_array_equal(leaf, expected, err_msg=str(path))
    with pytest.raises(RunError, match=r"crops was .*40\], is .*41\]"):
        fit_codec(learnt, GIVEN, clips_with_codes(), replace(CROPS, context=41), tmp_path / "whole", fresh=False)


def test_validation_by_given_codes(learnt):
    data = clips_with_codes()
    state = start_codec(learnt, GIVEN, fresh=False)
    numbers = evaluate_codec(state, learnt, GIVEN, data, GIVEN_CROPS)
    mels, heard = [], []
    distance = jax.jit(lambda made, target: mel_loss(made, target, CODEC.sample_rate))
    for (which, first), samples, made in zip(
        data.middles(CROPS.samples), data.samples, decoded(learnt, data), strict=True
    ):
        target = samples / np.float32(32_767)
        pieces = [one[first:][: CROPS.samples] for one in (made, target)]
        mels.append(float(distance(*[np.pad(one, (0, CROPS.samples - len(one)))[None] for one in pieces])))
        codes = data.codes[which][first // FRAME :][:FRAMES]
        heard.append(np.pad(codes, ((0, FRAMES - len(codes)), (0, 0))))
    np.testing.assert_allclose(numbers["mel"], np.mean(mels), rtol=1e-5)
    parts = np.bincount(np.concatenate(heard)[:, 2]) / FRAMES / 5
    np.testing.assert_allclose(numbers["perplexity"][2], np.exp(-np.sum(parts * np.log(parts))), rtol=1e-5)


def test_the_average_of_the_weights():
    params, path = random_codec(CODEC), "decoder/conv_out/kernel"
    state = start_codec(params, RECIPE)
    expected = np.array(state.trained[path])
    for step in range(3):
        state, _ = one_step(state, params, seed=step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array(state.trained[path])
    np.testing.assert_allclose(state.average[path], expected, rtol=1e-5)
    assert not np.allclose(state.trained[path], expected, rtol=1e-3)
    kernel = finish_codec(state, params, RECIPE)["decoder"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(kernel, state.average[path])


def test_shapes_to_start_from():
    for size, millions in (("small", 3.3), ("medium", 5.7)):
        shape = codec_shape(size)
        weights = jax.tree.leaves(random_codec(shape))
        assert round(sum(leaf.size for leaf in weights) / 1e6, 1) == millions
        assert (shape.frame_rate, shape.num_codebooks) == (12.5, 8)
    weights, others = random_codec(CODEC, 0), random_codec(CODEC, 1)
    kernel = weights["encoder"]["stage_0"]["conv"]["kernel"]
    np.testing.assert_allclose(np.std(kernel) * np.prod(kernel.shape[:2]) ** 0.5, 1, atol=0.1)
    assert not np.array_equal(kernel, others["encoder"]["stage_0"]["conv"]["kernel"])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dropout": 1.5}, "dropout must be a part"),
        ({"average": 1.0}, "average must be a part"),
        ({"continuous_steps": -1}, "continuous_steps must be 0 or more"),
        ({"decoder_only": True}, "all rows are quantized and there is no teacher"),
    ],
)
def test_refused_recipes(fields, match):
    with pytest.raises(ConfigError, match=match):
        replace(RECIPE, **fields)


def test_given_codes_are_for_the_decoder_alone(learnt):
    given = cut_codes(clips_with_codes(), [(0, 0)], FRAMES, 0)
    recipe = replace(GIVEN, decoder_only=False)
    with pytest.raises(ConfigError, match="the decoder alone"):
        codec_step(start_codec(learnt, recipe), learnt, tones(0, 1), jax.random.key(0), recipe, given=given)
