"""What helps training: noise, fewer frames, alignment, averages, buckets of lengths, bfloat16 over float32."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.prompt import Request, batch_plans, plan_prompt
from qwen3_tts_jax.train.alignment import AlignmentConfig, alignment_loss, guide_loss, init_readout, spoken_ids
from qwen3_tts_jax.train.batches import Batches
from qwen3_tts_jax.train.buckets import BucketedBatches
from qwen3_tts_jax.train.examples import Example
from qwen3_tts_jax.train.lines import Line
from qwen3_tts_jax.train.loss import Batch
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.regularization import Regularization, corrupt, drop_out
from qwen3_tts_jax.train.step import Recipe, start, train_step
from tests.train_model import CUSTOM_VOICE, TEXTS, Letters, Q, V, own_params, params, prompts, random_codes

LENGTHS = (9, 4, 6)
CODES = random_codes(LENGTHS, seed=5)
PLAIN = Recipe(CUSTOM_VOICE, optimizer=OptimizerConfig(1e-2, 10, 0, weight_decay=0.0), remat=False)
HELPED = replace(
    PLAIN,
    regularization=Regularization(predictor_share=1.0),
    alignment=AlignmentConfig(0.5, steps=1),
    average=0.9,
)


def batch():
    return Batch(prompts("speaker"), CODES, np.ones(3, bool))


@cache
def stepped(recipe):
    """Numbers of two steps, and the states: before, after one, after two."""
    state, frozen = start(own_params(), recipe)
    batches = jax.tree.map(lambda leaf: leaf[None], batch())
    states, metrics = [jax.tree.map(np.asarray, state)], []
    for _ in range(2):
        state, numbers = train_step(state, frozen, batches, recipe)
        states.append(jax.tree.map(np.asarray, state))
        metrics.append(numbers)
    return metrics, states


def test_help_that_spoils_nothing_changes_nothing_but_the_alignment():
    """The readout of the first step starts near even odds; in the second, `steps` has passed."""
    (plain, _), (helped, later) = stepped(PLAIN)[0], stepped(HELPED)[0]
    for name in ("codes", "end"):
        np.testing.assert_allclose(helped[name], plain[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(helped["loss"], plain["loss"] + 0.5 * helped["alignment"], rtol=1e-5)
    assert 1 < helped["alignment"] < 30
    assert later["alignment"] == 0


def test_the_average_follows_the_weights():
    first, second, third = stepped(HELPED)[1]
    for path, leaf in third.average.items():
        # Decays of 1/10 and 2/11, as long as they are below 0.9.
        expected = first.trained[path] * 0.1 + second.trained[path] * 0.9
        expected = expected * 2 / 11 + third.trained[path] * 9 / 11
        np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)
    assert third.kept is third.average
    assert stepped(PLAIN)[1][2].kept is stepped(PLAIN)[1][2].trained


def test_steps_in_bfloat16_move_the_masters_as_steps_in_float32():
    wide, narrow = (
        stepped(replace(PLAIN, model=CUSTOM_VOICE.with_dtypes(dtype)))[1] for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in narrow[1].trained.values()} == {np.dtype("float32")}
    # Adam's first moments are the gradients; its steps would only have their signs.
    moments = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(states[1].optimizer[1].mu)])
        for states in (wide, narrow)
    ]
    cosine = np.dot(*moments) / np.prod([np.linalg.norm(each) for each in moments])
    assert cosine > 0.998
    moves = [np.concatenate([np.ravel(states[2].trained[path] - states[0].trained[path]) for path in wide[0].trained])
             for states in (wide, narrow)]  # fmt: skip
    assert np.dot(*moves) / np.prod([np.linalg.norm(each) for each in moves]) > 0.95
    # A master holds what bfloat16 would round away.
    path = "talker/transformer/norm/scale"
    assert (narrow[2].trained[path] != narrow[2].trained[path].astype(jnp.bfloat16)).mean() > 0.9


def test_what_is_corrupted():
    codes = np.asarray(random_codes((140, 130, 136), seed=1))
    recipe = Regularization(noise=0.3, noise_0=0.1, forget=0.2, predictor_share=0.5)
    seen = corrupt(jax.random.key(1), codes, CUSTOM_VOICE, recipe)
    there = codes[..., 0] >= 0
    changed = (np.asarray(seen.predictor) != codes)[there]
    assert changed[:, 0].mean() == pytest.approx(0.1 * (1 - 1 / V), abs=0.05)
    assert changed[:, 1:].mean() == pytest.approx(0.3 * (1 - 1 / V), abs=0.05)
    assert (np.asarray(seen.predictor)[~there] == -1).all()
    assert np.asarray(seen.predictor)[there].min() >= 0
    assert np.asarray(seen.predictor).max() < V
    forgotten = (np.asarray(seen.talker) == -1).all(axis=-1)[there]
    assert forgotten.mean() == pytest.approx(0.2, abs=0.08)
    kept = np.asarray(seen.talker)[there][~forgotten]
    np.testing.assert_array_equal(kept, np.asarray(seen.predictor)[there][~forgotten])
    assert seen.chosen.shape == (210,)
    assert len(set(np.asarray(seen.chosen).tolist())) == 210
    assert there.reshape(-1)[np.asarray(seen.chosen)].all()
    other = corrupt(jax.random.key(2), codes, CUSTOM_VOICE, recipe)
    assert set(np.asarray(other.chosen).tolist()) != set(np.asarray(seen.chosen).tolist())
    for wrong in ({"noise": 1.0}, {"dropout": -0.1}, {"dropout": 0.001}, {"dropout": 0.999}, {"predictor_share": 0}):
        with pytest.raises(ConfigError):
            Regularization(**wrong)


def test_dropout_keeps_the_mean():
    x = jnp.ones((50, 400))
    dropped = drop_out(jax.random.key(0), "talker/transformer/layers_0/mlp", x, 0.25)
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert drop_out(jax.random.key(0), "talker/transformer/layers_0", x, 0.25) is x
    for part in (1 / 256, 255 / 256):
        recipe = Regularization(dropout=part)
        dropped = drop_out(jax.random.key(0), "talker/transformer/layers_0/mlp", x, recipe.dropout)
        assert (dropped == 0).mean() == pytest.approx(part, abs=0.002)


def test_ids_of_the_text_that_is_said():
    ids, counts = spoken_ids(CUSTOM_VOICE, prompts("speaker"))
    for row, text in enumerate(TEXTS):
        assert np.asarray(ids)[row, : counts[row]].tolist() == Letters()._ids(text)


def readout_of(spelled, frames, per_frame=2):
    """States and a readout that spell out ids, one per output, with a blank (0) behind each."""
    config = AlignmentConfig(outputs=per_frame)
    size = CUSTOM_VOICE.talker.text_vocab_size + 1
    outputs = np.zeros(frames * per_frame, int)
    outputs[: 2 * len(spelled) : 2] = np.array(spelled) + 1
    width = CUSTOM_VOICE.talker.transformer.width
    states = np.zeros((1, 80, width), np.float32)
    weight = np.zeros((per_frame * size, width), np.float32)
    start_at = int(prompts("speaker").lengths[1])
    for frame in range(frames):
        states[0, start_at + frame, frame] = 1
        for output in range(per_frame):
            weight[output * size + outputs[frame * per_frame + output], frame] = 5
    return config, {"alignment/weight": weight, "alignment/bias": np.zeros(per_frame * size, np.float32)}, states


def test_the_alignment_reads_the_text_off_the_frames():
    """A readout that spells the text costs nothing; of another text it costs much; what does not fit is left out."""
    ids = Letters()._ids(TEXTS[1])
    one = jax.tree.map(lambda leaf: leaf[1:2], prompts("speaker"))
    codes = np.zeros((1, len(ids), Q), np.int32)
    config, readout, states = readout_of(ids, len(ids))
    speech = Batch(one, codes, np.ones(1, bool))
    assert alignment_loss(readout, CUSTOM_VOICE, config, speech, states) < 1e-3
    _, wrong, _ = readout_of([*ids[1:], ids[0]], len(ids))
    assert alignment_loss(wrong, CUSTOM_VOICE, config, speech, states) > 5
    # Two of six letters are beyond the frames: no path leads through.
    few = Batch(one, np.where(np.arange(len(ids))[:, None] < 2, codes, -1), np.ones(1, bool))
    assert alignment_loss(readout, CUSTOM_VOICE, config, few, states) == 0
    fresh = init_readout(jax.random.key(0), CUSTOM_VOICE, config)
    assert fresh["alignment/weight"].shape == (2 * 212, 56)
    for wrong_config, match in (
        (AlignmentConfig(layer=1), "layer 1, the talker has 1"),
        (AlignmentConfig(0), "weight"),
    ):
        with pytest.raises(ConfigError, match=match):
            wrong_config.check(CUSTOM_VOICE)


def rotated(vector, position, theta):
    """Rotary position by complex numbers: the halves of a vector are real and imaginary parts."""
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def test_a_guided_head_pays_for_what_it_attends_to_far_from_its_place():
    """Against a loop over rows, frames and slots; the longest text is much longer than the zone.

    Where it is known which id a frame says, the zone is that id and its neighbours.
    """
    texts = ("a" * 80, "b" * 31, "c" * 6)
    requests = [Request(text, "english", speaker="ryan", text_mode="all_at_once") for text in texts]
    plans = [plan_prompt(request, Letters(), CUSTOM_VOICE) for request in requests]
    some = batch_plans(plans, tts_pad=CUSTOM_VOICE.prompt.tts_pad)
    codes = random_codes((30, 12, 5), seed=7)
    stack = CUSTOM_VOICE.talker.transformer
    slots = some.text_ids.shape[1] + codes.shape[1]
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((3, slots, stack.num_heads, stack.head_dim)).astype(np.float32)
    keys = rng.standard_normal((3, slots, stack.num_kv_heads, stack.head_dim)).astype(np.float32)
    places = np.full(codes.shape[:2], -1, np.int32)
    places[0, :30] = np.repeat(np.arange(80), [3] * 10 + [0] * 70)
    losses, known = [], []
    ids = CUSTOM_VOICE.prompt
    for row in range(3):
        prompt = some.text_ids[row, : some.lengths[row]].tolist()
        first = prompt.index(ids.tts_bos) + 1
        count = prompt.index(ids.tts_eos) - first
        frames = int((codes[row, :, 0] >= 0).sum())
        for frame in range(frames):
            query_at = len(prompt) - 1 + frame
            query = rotated(queries[row, query_at, 0], query_at, stack.rope_theta)
            weights = np.array(
                [np.exp(query @ rotated(keys[row, slot, 0], slot, stack.rope_theta) / stack.head_dim**0.5)
                 for slot in range(query_at + 1)]
            )  # fmt: skip
            middle = (frame + 0.5) / frames * count
            near = [first + i for i in range(count) if abs(i + 0.5 - middle) <= 3 + 0.1 * count]
            losses.append(-np.log(weights[near].sum() / weights.sum()))
            place = places[row, frame]
            if place >= 0:
                near = [first + i for i in range(count) if abs(i - place) <= 1]
            known.append(-np.log(weights[near].sum() / weights.sum()))
    speech = Batch(some, codes, np.ones(3, bool))
    by_key = queries.reshape(3, slots, stack.num_kv_heads, -1, stack.head_dim)
    heads = np.concatenate([by_key, keys[..., None, :]], axis=-2)
    np.testing.assert_allclose(guide_loss(CUSTOM_VOICE, speech, heads), np.mean(losses), rtol=1e-4)
    found = guide_loss(CUSTOM_VOICE, speech._replace(places=places), heads)
    np.testing.assert_allclose(found, np.mean(known), rtol=1e-4)


def test_a_step_with_a_guide_turns_the_attention():
    guided = replace(PLAIN, alignment=AlignmentConfig(1e-6, guide=100.0, steps=10))
    (first, second), _ = stepped(guided)
    assert second["guide"] < first["guide"]
    np.testing.assert_allclose(first["loss"], stepped(PLAIN)[0][0]["loss"] + 100 * first["guide"], rtol=1e-4)
    with pytest.raises(ConfigError, match="guide"):
        AlignmentConfig(guide=-1.0).check(CUSTOM_VOICE)


def test_muon_steps_have_equal_singular_values_and_the_size_of_adamws():
    muon = replace(PLAIN, optimizer=OptimizerConfig(1e-2, 10, 0, weight_decay=0.0, kind="muon"))
    before, after, _ = stepped(muon)[1]
    matrices = 0
    for path, leaf in before.trained.items():
        step = after.trained[path] - leaf
        if "/transformer/layers_" in path and path.endswith("/weight"):
            matrices += 1
            singular = np.linalg.svd(step.reshape(-1, step.shape[-1]), compute_uv=False)
            # Three texts do not reach every direction; Newton-Schulz leaves those reached between 0.7 and 1.2.
            reached = singular[singular > 1e-3 * singular[0]]
            assert len(reached) > len(singular) / 4, path
            size = 0.2 * 1e-2 * np.sqrt(max(step.size // step.shape[-1], step.shape[-1]))
            assert reached[0] == pytest.approx(size, rel=0.3), path
            assert np.median(reached) > 0.6 * size, path
        else:
            # As the first of AdamW with Nesterov momentum: all of one size, where there is a gradient.
            assert np.abs(step).max() == pytest.approx(1e-2 * (1 + 0.9 / 1.9), rel=0.05), path
    assert matrices == 4 * (
        CUSTOM_VOICE.talker.transformer.num_layers + CUSTOM_VOICE.code_predictor.transformer.num_layers
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_weights_and_kernels_decay(kind):
    """Without a gradient nothing else moves, and they do by rate times decay."""
    optimizer = OptimizerConfig(1e-2, 10, 0, weight_decay=0.5, kind=kind).optimizer()
    leaves = jax.tree.map(jnp.asarray, flatten_dict(params()["talker"], sep="/"))
    steps, _ = optimizer.update(jax.tree.map(jnp.zeros_like, leaves), optimizer.init(leaves), leaves)
    for path, step in steps.items():
        decayed = path.endswith(("/weight", "/kernel"))
        np.testing.assert_allclose(step, -1e-2 * 0.5 * leaves[path] * decayed, rtol=1e-5, err_msg=path)


def examples(count=23):
    lengths = np.random.default_rng(3).integers(3, 40, count)
    return [
        Example(Line(f"line {i}", Path("a.wav"), "x" * int(length), speaker="ryan"), random_codes((int(length),), i))
        for i, length in enumerate(lengths)
    ]


def buckets(**changed):
    given = {"batch_frames": 96, "count": 3, "seed": 4} | changed
    return BucketedBatches(examples(), Letters(), CUSTOM_VOICE, **given)


def test_durations_become_places():
    given = examples(3)
    frames = [len(each.codes) for each in given]
    line = replace(given[1].line, durations=(2, 0, frames[1] - 3, 1))
    given[1] = replace(given[1], line=line)
    data = BucketedBatches(given, Letters(), CUSTOM_VOICE, batch_frames=200, count=1)
    batch, chosen = data.of_step(0)
    assert {each.line.where for each in chosen} >= {"line 0", "line 1"}
    for row, each in zip(batch.places[0], chosen, strict=False):
        expected = [0, 0] + [2] * (frames[1] - 3) + [3] if each.line.where == "line 1" else []
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert (row[len(expected) :] == -1).all()
    # Of another text nothing is known.
    assert all((each.places == -1).all() for each in data.in_order(other_texts=True))
    assert buckets().of_step(0)[0].places is None


def test_buckets_of_lengths():
    data = buckets()
    assert 1 < len(data.shapes) <= 3
    assert all(rows * frames <= 96 for rows, _, frames in data.shapes)
    assert [frames for *_, frames in data.shapes] == sorted({frames for *_, frames in data.shapes})
    seen, shapes = [], set()
    for step in range(3 * data.steps_per_epoch):
        batch, chosen = data.of_step(step)
        shapes.add((batch.codes.shape[1], batch.prompts.text_ids.shape[2], batch.codes.shape[2]))
        for row, example in enumerate(chosen):
            np.testing.assert_array_equal(batch.codes[0, row, : len(example.codes)], example.codes)
            assert (batch.codes[0, row, len(example.codes) :] == -1).all()
        seen += [example.line.where for example in chosen]
    assert shapes == set(data.shapes)
    counts = [seen.count(example.line.where) for example in examples()]
    assert min(counts) >= 2
    assert max(counts) <= 4
    filled = np.mean([np.mean(data.of_step(step)[0].codes[..., 0] >= 0) for step in range(data.steps_per_epoch)])
    assert filled > 0.6  # of one shape for all, half
    again = buckets().of_step(7)
    np.testing.assert_array_equal(again[0].codes, data.of_step(7)[0].codes)
    assert buckets(seed=5).of_step(7)[1] != again[1]
    assert {rows for rows, *_ in buckets(multiple=4).shapes} <= {4, 8, 12, 16, 20}
    assert data.of_step(2)[0].codes.shape[0] == 1
    assert buckets(accumulate=2).of_step(2)[0].codes.shape[0] == 2
    with pytest.raises(ConfigError, match="at least one frame"):
        buckets(batch_frames=0)


@pytest.mark.parametrize("bucketed", [False, True])
def test_a_step_puts_its_data_in_order_once(bucketed, monkeypatch):
    """Not once for every row."""
    data = buckets(count=1, accumulate=3)
    if not bucketed:
        data = Batches(examples(), Letters(), CUSTOM_VOICE, batch_size=6)
    drawn, make = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(tuple(seed)) or make(seed))
    assert len(data.of_step(0)[1]) == 6
    assert len(drawn) == len(set(drawn)) == 1 + bucketed


def test_all_held_out_examples_once_and_with_other_texts():
    data = buckets()
    for other in (False, True):
        batches = data.in_order(other_texts=other)
        frames = [int((each.codes[..., 0] >= 0).sum()) for each in batches]
        assert sum(frames) == sum(len(example.codes) for example in examples())
    ours, swapped = (data.in_order(other_texts=other) for other in (False, True))
    np.testing.assert_array_equal(ours[0].codes, swapped[0].codes)
    assert (ours[0].prompts.lengths != swapped[0].prompts.lengths).any()


def test_a_clip_alone_in_its_bucket_has_another_text_too():
    some = [
        Example(Line(text, None, text, speaker="ryan"), random_codes((frames,)))
        for text, frames in (("ab", 8), ("cd", 10), ("ef", 12))
    ]
    data = BucketedBatches(some, Letters(), CUSTOM_VOICE, batch_frames=16, count=3)
    assert len(data.shapes) == 3
    for ours, swapped, text in zip(data.in_order(), data.in_order(other_texts=True), ("ef", "ab", "cd"), strict=True):
        np.testing.assert_array_equal(ours.codes, swapped.codes)
        changed = swapped.prompts.text_ids[0][ours.prompts.text_ids[0] != swapped.prompts.text_ids[0]]
        assert changed.tolist() == Letters()._ids(text)
