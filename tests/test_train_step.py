"""The loss teaches what generation says; one optimizer step, whole or accumulated, full or low-rank."""

import hashlib
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from qwen3_tts_jax import generate as g
from qwen3_tts_jax.config import ConfigError, GenerationConfig
from qwen3_tts_jax.prompt import Request, batch_plans, plan_prompt
from qwen3_tts_jax.train.codec.teacher import Teacher
from qwen3_tts_jax.train.codec.training import CodecTraining
from qwen3_tts_jax.train.lora import (
    LoraConfig,
    LoraError,
    fingerprint,
    init_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from qwen3_tts_jax.train.loss import Batch, LossConfig, LossParts, loss, total
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Schedule
from qwen3_tts_jax.train.regularization import Regularization
from qwen3_tts_jax.train.score import code_logits_of, log_probability, teacher_force
from qwen3_tts_jax.train.sft import SftConfig
from qwen3_tts_jax.train.step import Recipe, assemble, evaluate, start, train_step
from qwen3_tts_jax.train.talker_job import TalkerTraining
from tests.train_model import CUSTOM_VOICE, Letters, Q, own_params, params, random_codes

LENGTHS = (9, 6, 8, 4, 7, 5, 9, 3)
CODES = random_codes(LENGTHS, seed=21)
STEPS = 150
RECIPE = Recipe(
    CUSTOM_VOICE,
    optimizer=OptimizerConfig(learning_rate=4e-3, steps=STEPS, warmup_steps=10, weight_decay=0.0),
    remat=False,
)
GREEDY = GenerationConfig.greedy(repetition_penalty=1.0)


def utterances():
    """Eight, no two of which share text, speaker, language and way of reading."""
    texts = ("One.", "Two and three.", "Four!", "What is five?", "Six", "Seven, eight.", "Nine to ten", "Eleven?")
    plans = [
        plan_prompt(
            Request(text, language, ("ryan", "eric")[i % 2], text_mode=("all_at_once", "as_it_comes")[i // 2 % 2]),
            Letters(), CUSTOM_VOICE,
        )
        for i, (text, language) in enumerate(zip(texts, ("english", "german", "auto", "chinese") * 2, strict=True))
    ]  # fmt: skip
    return Batch(batch_plans(plans, tts_pad=CUSTOM_VOICE.prompt.tts_pad), CODES, np.ones(8, bool))


def stacked(batch, parts=1):
    return jax.tree.map(lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), batch)


@partial(jax.jit, static_argnums=2)
def greedy_codes(tree, prompts, frames):
    rows = prompts.text_ids.shape[0]
    keys, limits = g.utterance_keys(0, jnp.arange(rows)), jnp.full(rows, 99)
    state = g.prefill(tree, CUSTOM_VOICE, prompts, keys, limits, prompts.text_ids.shape[1] + frames)
    return g.generate(tree, CUSTOM_VOICE, GREEDY, state, frames)


@cache
def overfitted():
    """The state after STEPS steps, the losses of all, and what was frozen."""
    state, frozen = start(own_params(), RECIPE)
    batches, losses = stacked(utterances()), []
    for _ in range(STEPS):
        state, metrics = train_step(state, frozen, batches, RECIPE)
        losses.append(float(metrics["loss"]))
    return assemble(state.trained, frozen, RECIPE), losses, metrics


def test_eight_utterances_are_learnt_by_heart():
    tree, losses, metrics = overfitted()
    assert losses[0] > 5
    assert losses[-1] < 0.05
    assert metrics["codes"].shape == (Q,)
    state, codes = greedy_codes(tree, utterances().prompts, max(LENGTHS) + 3)
    assert state.ended.all()
    np.testing.assert_array_equal(codes[:, : max(LENGTHS)], CODES)
    assert (codes[:, max(LENGTHS) :] == -1).all()


def official_targets_loss(tree, batch):
    """The official script's loss: labels shifted twice, the predictor behind the frame that it predicts."""
    forced = teacher_force(tree, CUSTOM_VOICE, batch.prompts, batch.codes)
    codes, there = batch.codes, batch.codes >= 0
    counts = there[..., 0].sum(axis=1)
    # Code 0: the state that should predict frame t is told of t + 1, the last one of the end.
    told = np.concatenate([codes[:, 1:, 0], np.full((len(codes), 1), -1)], axis=1)
    told[np.arange(len(codes)), counts - 1] = CUSTOM_VOICE.prompt.codec_eos
    first = log_probability(forced.logits[:, :-1], jnp.maximum(told, 0)) * there[..., 0]
    # The predictor reads the state that has seen the frame, and output q is told of code q + 1.
    logits = code_logits_of(tree, CUSTOM_VOICE, forced.hidden[:, 1:], codes)
    rest = log_probability(logits[:, :, :-1], jnp.maximum(codes[..., 2:], 0)) * there[..., 2:]
    return -jnp.sum(first) / counts.sum() - jnp.sum(rest) / counts.sum() / (Q - 2)


def test_the_official_scripts_targets_teach_something_else():
    batch, optimizer = utterances(), RECIPE.optimizer.optimizer()

    @jax.jit
    def step(tree, state):
        value, gradient = jax.value_and_grad(official_targets_loss)(tree, batch)
        updates, state = optimizer.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    tree = {part: params()[part] for part in ("talker", "code_predictor")}
    state = optimizer.init(tree)
    for _ in range(STEPS):
        tree, state, value = step(tree, state)
    assert value < 0.05, "their loss looks as healthy as ours"
    wrong = jax.jit(loss, static_argnums=1)(tree, CUSTOM_VOICE, batch)[0]
    assert wrong > 3
    _, codes = greedy_codes(tree, batch.prompts, max(LENGTHS) + 3)
    equal = np.mean(np.asarray(codes)[:, : max(LENGTHS)][CODES >= 0] == CODES[CODES >= 0])
    assert equal < 0.3


def test_accumulated_batches_are_one_batch():
    """Unevenly filled: rows of one frame weigh as their frames do."""
    batch = utterances()
    state, frozen = start(own_params(), RECIPE)
    _, whole = train_step(state, frozen, stacked(batch), RECIPE)
    state, _ = start(own_params(), RECIPE)
    state, parts = train_step(state, frozen, stacked(batch, 2), RECIPE)
    for name in ("loss", "codes", "end", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=2e-4, err_msg=name)
    assert state.step == 1


def test_a_loss_that_is_not_finite_leaves_the_state():
    state, frozen = start(own_params(), RECIPE)
    before = jax.tree.map(np.asarray, state)
    batch = stacked(utterances())
    broken = jax.tree.map(lambda leaf: leaf, state)
    norm = broken.trained["talker/transformer/norm/scale"].at[0].set(jnp.nan)
    broken = broken.replace(trained=broken.trained | {"talker/transformer/norm/scale": norm})
    after, metrics = train_step(broken, frozen, batch, RECIPE)
    assert not metrics["finite"]
    assert after.step == 0
    for path, leaf in before.trained.items():
        if path != "talker/transformer/norm/scale":
            np.testing.assert_array_equal(after.trained[path], leaf)


def test_weights_of_the_loss():
    parts = LossParts(jnp.array([4.0, 6.0, 8.0, 10.0, 12.0]), jnp.float32(3.0), jnp.float32(2.0), jnp.float32(1.0))

    def of(**weights):
        return float(total(parts, parts.frames, parts.ends, LossConfig(**weights)))

    assert of() == pytest.approx((4 + 3) / 3 + (6 + 8 + 10 + 12) / 4 / 2)
    assert of(end=0) == pytest.approx(4 / 2 + 9 / 2)
    assert of(code_0=0, codebooks=(3, 1, 0, 0)) == pytest.approx((3 * 6 + 8) / 4 / 2)
    assert of(codes=0, end=2) == pytest.approx((4 + 6) / 4)
    for weights, match in (({"codes": -1}, "codes"), ({"codebooks": (1, 2)}, "2 weights of codebooks")):
        with pytest.raises(ConfigError, match=match):
            replace(RECIPE, loss=LossConfig(**weights))


def test_rows_without_frames_and_without_an_end_count_nowhere():
    batch = utterances()
    codes = batch.codes.copy()
    codes[3:] = -1
    ended = np.array([True, False, False, *[True] * 5])
    evaluated = evaluate(*_trained(), Batch(batch.prompts, codes, ended), RECIPE)
    assert evaluated.frames == sum(LENGTHS[:3])
    assert evaluated.ends == 1


def _trained():
    state, frozen = start(own_params(), RECIPE)
    return state.trained, frozen


LORA = LoraConfig(rank=4, alpha=8.0, modules=("attention", "mlp/down"))


def test_lora_trains_its_adapters_and_new_speakers_alone(tmp_path):
    recipe = replace(RECIPE, lora=LORA, speaker_rows=(650,), model=CUSTOM_VOICE)
    state, frozen = start(own_params(), recipe, seed=1)
    before = {path: np.asarray(leaf) for path, leaf in frozen.items()}
    merged = flat(assemble(state.trained, frozen, recipe))
    for path, leaf in before.items():
        np.testing.assert_array_equal(merged[path], leaf, err_msg=path)
    batches, losses = stacked(utterances()), []
    for _ in range(25):
        state, metrics = train_step(state, frozen, batches, recipe)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    base = {part: params()[part] for part in ("talker", "code_predictor")}
    file = save_adapters(tmp_path / "lora.safetensors", state.trained["lora"], LORA, fingerprint(base))
    adapters, config, speakers = load_adapters(file, base)
    assert config == LORA
    assert speakers == {}
    merged = merge_adapters(base, adapters, config)
    value, _ = jax.jit(loss, static_argnums=1)(merged, CUSTOM_VOICE, utterances())
    assert value < losses[-1] * 1.02
    changed = [
        path for path, leaf in flat(merged).items() if not np.array_equal(leaf, flat(base)[path])
    ]  # fmt: skip
    assert all("/attention/" in path or "/mlp/down/" in path for path in changed)
    assert any("code_predictor" in path for path in changed)
    other = jax.tree.map(lambda leaf: leaf * 1.5, base)
    with pytest.raises(LoraError, match="trained on another base"):
        load_adapters(file, other)
    with pytest.raises(LoraError, match="cannot be read"):
        load_adapters(tmp_path / "missing", base)
    save_file(load_file(file), file, {"kind": "qwen3_tts_jax.lora"})
    with pytest.raises(LoraError, match="of an earlier version of this package"):
        load_adapters(file, base)
    with pytest.raises(LoraError, match="no weight of a transformer lies in 'mlps'"):
        init_adapters(jax.random.key(0), base, LoraConfig(modules=("mlps",)))


def test_a_fingerprint_is_of_the_ends_of_leaves_and_copies_no_more(monkeypatch):
    rng = np.random.default_rng(0)
    tree = {"a": {"weight": rng.standard_normal((3, 50, 7), np.float32)}, "b": rng.standard_normal(5, np.float32)}
    digest = hashlib.sha256()
    for path, leaf in (("a/weight", tree["a"]["weight"]), ("b", tree["b"])):
        ends = np.concatenate([leaf.reshape(-1)[:64], leaf.reshape(-1)[-64:]])
        digest.update(f"{path} {leaf.shape}\n".encode() + ends.astype(jnp.bfloat16).astype(np.float32).tobytes())
    assert fingerprint(tree) == fingerprint(jax.tree.map(jnp.asarray, tree)) == digest.hexdigest()[:32]
    # Nothing is made op by op, each on a copy of its own.
    monkeypatch.setattr(jnp, "ravel", lambda leaf: leaf if isinstance(leaf, jax.core.Tracer) else pytest.fail("eager"))
    fingerprint({"c": jnp.ones(999)})


def flat(tree):
    return flatten_dict(tree, sep="/")


def test_what_cannot_be_trained():
    with pytest.raises(ConfigError, match="nothing to freeze in 'talk'"):
        start(own_params(), replace(RECIPE, frozen=("talk",)))
    with pytest.raises(ConfigError, match="everything is frozen"):
        start(own_params(), replace(RECIPE, frozen=("talker", "code_predictor")))
    for arguments, match in (
        ({"learning_rate": 0}, "learning rate"), ({"steps": 5, "warmup_steps": 5}, "warm-up"), ({"clip": 0}, "norm"),
        ({"clip": np.nan}, "largest norm must be above 0, got nan"), ({"weight_decay": -1}, "decay must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            OptimizerConfig(**arguments)
    for config, arguments, match in (
        (LossConfig, {"codebooks": (1.0, np.nan)}, "weights of codebooks"),
        (Regularization, {"noise": 1.0}, "noise must be a part"),
        (Regularization, {"predictor_share": 0.0}, "a part of the frames"),
        (Schedule, {"save": -1}, "save must be 0 or a number of steps"),
        (SftConfig, {"batch_size": 0}, "batches must be at least 1"),
        (SftConfig, {"batch_seconds": np.inf}, "seconds of a batch"),
        (SftConfig, {"buckets": 0}, "buckets must be at least 1"),
        (TalkerTraining, {"batch_seconds": np.inf}, "above 0 seconds"),
        (TalkerTraining, {"buckets": 0}, "of at least 1 bucket"),
        (CodecTraining, {"crop_seconds": np.nan}, "crop_seconds must be above 0, got nan"),
        (CodecTraining, {"context_seconds": -1}, "cannot be -1 s of context"),
        (Teacher, {"width": 4, "weight": np.nan}, "weight of the teacher must be above 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            config(**arguments)
    for config in (SftConfig, TalkerTraining, CodecTraining):
        for seed in (-1, 2**31, 0.5):
            with pytest.raises(ValueError, match="seed must be"):
                config(seed=seed)


def test_the_learning_rate_warms_up_and_falls():
    schedule = OptimizerConfig(learning_rate=1.0, steps=100, warmup_steps=10, final_rate=0.1).schedule()
    rates = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, atol=1e-6)
    assert (np.diff(rates[10:]) < 0).all()
    np.testing.assert_allclose(rates[100], 0.1, atol=1e-6)
