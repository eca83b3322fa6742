"""The recipe's decoder: what is compared, what stages give for crops, and a run that was interrupted."""

import json
import sys
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
import soundfile

from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec.codes import cut_codes
from qwen3_tts_jax.train.codec.data import Clips
from qwen3_tts_jax.train.codec.job import write_codec
from recipes.mini import crops, distances, pitch
from recipes.mini import decoder as recipe
from recipes.mini.durations import AHEAD
from tests.small_mini import codec, small

RATE, FRAME = 24_000, 1_200


def tone(hertz, count=RATE):
    return np.sin(2 * np.pi * hertz * np.arange(count) / RATE)[None].astype(np.float32) * 0.1


@pytest.mark.parametrize(("hertz", "band"), [(300, 0), (700, 1), (1500, 2), (3000, 3)])
def test_phase_distances(hertz, band):
    true, silence = tone(hertz), np.zeros((1, RATE), np.float32)
    off = jax.jit(partial(distances.phase_distances, true=true, rate=RATE))
    np.testing.assert_allclose(off(true), 0, atol=0.05)
    for loud in (0.5, 3.0):
        np.testing.assert_allclose(off(loud * true), 0, atol=0.05)
    assert off(-true)[band] == pytest.approx(2, abs=0.1)
    assert off(silence)[band] == pytest.approx(2**0.5, abs=0.05)
    # A quarter of a period late.
    late = np.roll(true, RATE // hertz // 4, axis=1)
    assert off(late)[band] == pytest.approx(2**0.5, abs=0.1)
    # It says nothing about magnitudes: neither louder nor quieter is better.
    slope = jax.jit(jax.grad(lambda gain: off(gain * late)[band]))(1.0)
    assert abs(slope) < 1e-3


def test_distance_at_changes():
    steady, burst = tone(500), np.zeros((1, RATE), np.float32)
    burst[:, 12_000:12_240] = np.random.default_rng(5).normal(size=240) * 0.1
    distance = partial(distances.distance_at_changes, rate=RATE)
    assert distance(steady + burst, steady + burst) == 0
    # A steady sound does not count, though it is there for a second.
    assert distance(2 * steady, steady) == 0
    without = distance(steady, steady + burst)
    assert without > 0.5
    # Nor what is wrong a tenth of a second from a change.
    late = np.roll(burst, 2_400, axis=1)
    assert distance(steady + burst + late, steady + burst) < 0.05 * without
    # Right before and after it, all counts.
    assert distance(steady + np.roll(burst, 200, axis=1), steady + burst) > 0.3 * without


def test_targets_of_read_outs():
    low, high = (
        {name: distances.read_out_target(tone(hertz), RATE, name) for name in ("low", "high")} for hertz in (400, 3_000)
    )
    assert {name: x.shape for name, x in low.items()} == {"low": (1, 2_000), "high": (1, 8_000)}
    times = (np.arange(2_000) * 12 + 6) / RATE
    np.testing.assert_allclose(low["low"][0, 50:-50], 0.1 * np.sin(2 * np.pi * 400 * times)[50:-50], atol=2e-3)
    assert np.abs(high["low"][:, 50:-50]).max() < 2e-3
    assert np.abs(high["high"]).max() > 0.3


def test_the_codebook_of_pitch_adds_its_features():
    params = codec()
    acoustic = params["decoder"]["quantizer"]["acoustic"]
    table = acoustic["embedding_sum"][-1] / acoustic["cluster_usage"][-1][:, None]
    assert acoustic["embedding_sum"].shape == (4, 512, 96)
    # Directions are at right angles, so that lengths and angles are those of the features.
    features = pitch.features(512)
    np.testing.assert_allclose(table @ table.T, features @ features.T, atol=1e-3)


def test_stages_of_crops_are_pieces_of_the_whole():
    config, params = small(), jax.tree.map(jax.numpy.asarray, codec())
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 512, (1, 90, 5)).astype(np.int32)
    clips = Clips((), (np.zeros(90 * FRAME, np.int16),), RATE, codes=(codes[0],), frame_samples=FRAME)

    @jax.jit
    def decoded(codes):
        kept = {}

        def catch(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.module.name in recipe._STAGES:
                kept[context.module.name] = result[0]
            return result

        with nn.intercept_methods(catch):
            return decode(params["decoder"], config.decoder, codes), kept

    samples, whole = decoded(codes)
    names = ("embedding_sum", "cluster_usage")
    books = {kind: {n: params["decoder"]["quantizer"][kind][n] for n in names} for kind in ("semantic", "acoustic")}
    places = [(0, 0), (0, 5 * FRAME), (0, 60 * FRAME)]
    given = cut_codes(clips, places, 8, 60)
    made, stages = jax.jit(lambda given: recipe.decode_crops_in_stages(params["decoder"], books, config, given, 8))(
        given
    )
    for row, (_, sample) in enumerate(places):
        first = sample // FRAME
        np.testing.assert_allclose(made[row], samples[0, sample:][: 8 * FRAME], atol=1e-5)
        for stage, x in stages.items():
            steps = recipe.steps_of(config, stage)
            assert steps == {"upsample_0": 20, "upsample_1": 100, "upsample_2": 400}[stage]
            np.testing.assert_allclose(x[row], whole[stage][0, first * steps :][: 8 * steps], atol=1e-4)


def test_speech_begins_behind_silence(monkeypatch):
    monkeypatch.setattr(crops, "sharpen", lambda samples, *_: samples)
    rng = np.random.default_rng(4)
    codes, silence = rng.integers(0, 512, (60, 5)), np.full((AHEAD, 5), 7)
    samples = rng.integers(1, 99, 60 * FRAME).astype(np.int16)
    clips = Clips((), (samples,), RATE, codes=(codes,), frame_samples=FRAME)
    clips = crops.behind_silence(clips, silence)
    config, length, silent = small(), recipe._FRAMES * FRAME, AHEAD * FRAME
    for front in (False, True):
        batch = recipe.batch_of(clips, 0, front, config)
        rows = batch["codes"] if front else batch["given"].codes
        frames = recipe._FRONT_FRAMES if front else recipe._FRAMES
        first = (rows[:, :AHEAD] == 7).all(axis=(1, 2))
        assert first.any()
        assert not first.all()
        for row in np.nonzero(first)[0]:
            np.testing.assert_array_equal(rows[row, AHEAD:frames], codes[: frames - AHEAD])
        if not front:
            made, before = batch["samples"], batch["given"].before
            for row in np.nonzero(before == 0)[0]:
                assert (made[row, :silent] == 0).all()
                np.testing.assert_allclose(made[row, silent:] * 32_767, samples[: length - silent], rtol=1e-4)
            for row in np.nonzero((before > 0) & (before < recipe._CONTEXT))[0]:
                begin = (before[row] - AHEAD) * FRAME
                np.testing.assert_array_equal(rows[row, :AHEAD], silence)
                np.testing.assert_allclose(made[row] * 32_767, samples[begin:][:length], rtol=1e-4)


@pytest.fixture
def work(tmp_path):
    folder, rng = tmp_path / "codes", np.random.default_rng(2)
    folder.mkdir()
    lines, codes = [], {}
    for number in range(6):
        own = pitch.on_grid(np.full(40 * 4, 120 + 20 * number, np.float32))
        soundfile.write(folder / f"{number}.flac", 0.01 * pitch.pulses(own, 3_000), RATE)
        codes[f"{number}"] = np.concatenate([rng.integers(0, 512, (40, 4)), own.codes[:, None]], 1).astype(np.int16)
        lines.append({"audio": f"{number}.flac", "codes": "codes.npz", "key": f"{number}", "speaker": "heart"})
    np.savez(folder / "codes.npz", **codes)
    np.savez(folder / "said.npz", **{key: np.concatenate([own[:AHEAD], own]) for key, own in codes.items()})
    (folder / "recordings-lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_codec(tmp_path / "start", codec(), small())
    return tmp_path


def run(work, output, monkeypatch, front, steps):
    options = ["--front-steps", f"{front}", "--steps", f"{steps}"]
    monkeypatch.setattr(sys, "argv", ["decoder", f"{work}", f"{output}", "--start", f"{work / 'start'}", *options])
    recipe.main()


def test_a_run_learns_and_goes_on_where_it_was_interrupted(work, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "_FRONT_FRAMES", 24)
    monkeypatch.setattr(recipe, "_FRAMES", 8)
    monkeypatch.setattr(recipe, "_SAVE", 2)
    monkeypatch.setattr(recipe, "_LOG", 1)
    run(work, work / "whole", monkeypatch, 10, 3)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    front = [line for line in lines if line["part"] == "front"]
    assert front[-1]["read_outs"] < 0.9 * front[0]["read_outs"]
    assert [len(line["phases"]) for line in lines if line["part"] == "all"] == [4] * 3

    save = recipe.Checkpoints.save

    def stop(checkpoints, state, step):
        save(checkpoints, state, step)
        if "all" in checkpoints.folder.parts:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(recipe.Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(work, work / "again", monkeypatch, 10, 3)
    run(work, work / "again", monkeypatch, 10, 3)
    first, second = (SpeechTokenizer.from_pretrained(work / name / "codec") for name in ("whole", "again"))
    jax.tree.map(np.testing.assert_array_equal, first.params["decoder"], second.params["decoder"])
    start = SpeechTokenizer.from_pretrained(work / "start")
    np.testing.assert_array_equal(
        first.params["decoder"]["quantizer"]["acoustic"]["embedding_sum"],
        start.params["decoder"]["quantizer"]["acoustic"]["embedding_sum"],
    )
    assert (
        np.abs(first.params["decoder"]["conv_out"]["kernel"] - start.params["decoder"]["conv_out"]["kernel"]).max() > 0
    )
