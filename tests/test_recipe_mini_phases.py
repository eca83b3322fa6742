"""The recipe's talker: a start for phases, and recordings that it says anew."""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.convert import load_checkpoint
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer
from qwen3_tts_jax.train.codec.job import write_codec
from qwen3_tts_jax.train.new_model import new_params, read_new_config
from qwen3_tts_jax.train.score import teacher_force
from qwen3_tts_jax.train.step import PARTS
from qwen3_tts_jax.train.talker_job import write_model
from recipes.mini import phases, pitch, predicted
from recipes.mini.durations import AHEAD
from tests.small_mini import codec, small

SIZES = {
    "talker": {"num_layers": 2, "width": 48, "mlp_width": 64, "num_heads": 3, "head_dim": 16},
    "code_predictor": {"num_layers": 1, "width": 24, "mlp_width": 32, "num_heads": 2, "head_dim": 12},
    "speakers": ["heart", "henry"],
}
COUNT = 24


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """WORK with codes of some lines whose pitch glides, and a model with weights larger than first ones."""
    work, rng = tmp_path_factory.mktemp("work"), np.random.default_rng(3)
    (work / "codes").mkdir()
    texts, recordings, said, own = [], [], {}, {}
    for number in range(COUNT):
        frames, key = int(rng.integers(40, 100)), f"heart-{number}"
        hertz = rng.uniform(90, 300) + 60 * np.sin(np.arange(frames * 4) / rng.uniform(15, 40))
        hertz[: 4 * (1 + AHEAD)] = 0
        codes = np.concatenate([rng.integers(0, 512, (frames, 4)), pitch.on_grid(hertz).codes[:, None]], axis=1)
        said[key], own[key] = codes.astype(np.int16), codes[AHEAD:].astype(np.int16)
        texts.append({"text": "".join(rng.choice(list("abcdefg"), frames)), "key": key, "speaker": "heart"})
        recordings.append({"audio": f"{number}.flac", "codes": "codes.npz", "key": key, "speaker": "heart"})
    for name, rows in (("texts", texts), ("recordings", recordings)):
        (work / "codes" / f"{name}-lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(work / "codes" / "said.npz", **said)
    np.savez(work / "codes" / "codes.npz", **own)
    write_codec(work / "codec", codec(), small())
    (work / "sizes.json").write_text(json.dumps(SIZES))
    tokenizer = write_byte_tokenizer(work / "tokenizer")
    config = read_new_config(work / "sizes.json", tokenizer, small())
    params = jax.tree.map(lambda x: x if x.ndim < 2 else 5 * x, new_params(config, 4))
    write_model(work / "model", params, config, tokenizer, work / "codec", "float32")
    return work


def loaded(folder):
    config = hf_config.read_folder(folder).with_dtypes("float32")
    return config, jax.tree.map(np.asarray, load_checkpoint(folder, config, PARTS))


@pytest.fixture(scope="module")
def started(work):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["phases", *map(str, (work, work / "model", work / "phases"))])
        context.setattr(phases, "_FRAMES", (0, 112))
        phases.main()
    return work / "phases"


def test_what_the_predictor_is_handed_asks_for_codes_that_follow(work, started):
    lines = [json.loads(line) for line in (work / "codes" / "texts-lines.jsonl").read_text().splitlines()]
    codes, voiced = np.load(work / "codes" / "said.npz"), np.arange(1, 511)
    (_, old), (config, new) = (loaded(folder) for folder in (work / "model", started))
    handed, asked = (
        jax.tree.map(np.subtract, *(tree["code_predictor"][name] for tree in (new, old)))
        for name in ("projection", "codec_heads")
    )
    sixths, ends = pitch.parts_of(voiced)
    tokenizer, right, all_given = TextTokenizer.from_folder(started), [], []
    force = jax.jit(partial(teacher_force, config=config))
    for _, prompts, batch in predicted.batches(range(COUNT), lines, codes, tokenizer, config):
        hidden = force(new, prompts=prompts, codes=jnp.asarray(batch)).hidden[:, 1:-1]
        goes_on = (batch[:, 1:, -1] > 0) & (batch[:, :-1, -1] > 0)
        given = hidden[goes_on] @ handed["weight"].T + handed["bias"]
        all_given.append(given)
        wanted = given @ asked["weight"][-1, voiced].T
        # Of the codes that could come next, those whose sixths lead from the last frame's phase to their own.
        before = pitch.parts_of(batch[:, :-1, -1][goes_on])[1]
        follows = (before[:, None] + sixths) % pitch.LEVELS == ends
        right.append(np.where(follows, wanted, np.inf).min(axis=1) > np.where(follows, -np.inf, wanted).max(axis=1))
    assert np.concatenate(right).mean() > 0.9
    np.testing.assert_allclose(np.concatenate(all_given).mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(asked["weight"][:-1], 0)


def test_the_start_changes_little_else(work, started):
    (_, old), (_, new) = (loaded(folder) for folder in (work / "model", started))
    tables = [tree["code_predictor"]["codec_embeddings"]["embedding"] for tree in (old, new)]
    np.testing.assert_array_equal(tables[1][:-1], tables[0][:-1])
    added = tables[1][-1] - tables[0][-1]
    _, ends = pitch.parts_of(np.arange(1, 511))
    np.testing.assert_allclose(np.linalg.norm(added[:511], axis=1), phases._STRENGTH, rtol=1e-3)
    for phase in range(pitch.LEVELS):
        of_phase = added[1:511][ends == phase]
        np.testing.assert_allclose(of_phase, np.broadcast_to(of_phase[0], of_phase.shape), atol=1e-4)
    directions = np.concatenate([added[:1], added[1 : 1 + pitch.LEVELS]]) / phases._STRENGTH
    np.testing.assert_allclose(directions @ directions.T, np.eye(pitch.LEVELS + 1), atol=1e-4)
    for number in range(2):
        before, layer = (tree["talker"]["transformer"][f"layers_{number}"] for tree in (old, new))
        for norm, part, name in (("attention_norm", "attention", "qkv"), ("mlp_norm", "mlp", "gate_up")):
            read = layer[part][name]["weight"] * layer[norm]["scale"]
            np.testing.assert_allclose(read @ directions.T, 0, atol=1e-4)
            # All other directions are read as they were, louder in the first layers.
            others = np.linalg.svd(directions)[2][pitch.LEVELS + 1 :]
            factor = layer[norm]["scale"] / before[norm]["scale"]
            were = before[part][name]["weight"] * before[norm]["scale"] * factor
            np.testing.assert_allclose(read @ others.T, were @ others.T, atol=1e-4)
    np.testing.assert_array_equal(old["talker"]["codec_head"]["weight"], new["talker"]["codec_head"]["weight"])


def test_recordings_said_anew_keep_their_pitch(work, monkeypatch):
    monkeypatch.setattr(predicted, "export_run", lambda *_: (work / "model", "last"))
    monkeypatch.setattr(sys, "argv", ["predicted", f"{work}", f"{work}", "--count", "10"])
    predicted.main()
    made, own = (np.load(work / "codes" / f"{name}.npz") for name in ("predicted", "codes"))
    rows = [json.loads(line) for line in (work / "codes" / "recordings-predicted.jsonl").read_text().splitlines()]
    assert len(made) == 10
    assert sum(row["codes"] == "predicted.npz" for row in rows) == 10
    assert sum(row["codes"] == "codes.npz" for row in rows) == 2
    for key, codes in made.items():
        assert codes.shape == own[key].shape
        np.testing.assert_array_equal(codes[:, -1], own[key][:, -1])
        assert (codes[:, :-1] != own[key][:, :-1]).mean() > 0.5
        assert 0 <= codes.min() <= codes.max() < 512
