"""Teacher forcing in one pass against decoding step by step, over all kinds of prompts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import generate as g
from qwen3_tts_jax import sampling
from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.config import GenerationConfig, SamplingConfig
from qwen3_tts_jax.talker import Talker
from qwen3_tts_jax.train.score import entropy, log_probability, score, scores, teacher_force
from tests.train_model import BASE, KINDS, Q, V, params, prompts, random_codes

SAMPLED = GenerationConfig(
    talker=SamplingConfig(temperature=1.2, top_k=20, repetition_penalty=1.3),
    code_predictor=SamplingConfig(temperature=1.1, top_p=0.9, top_k=30),
)
PENALISED = GenerationConfig(talker=SamplingConfig(temperature=0.7, top_k=0, repetition_penalty=1.5))
LENGTHS = (7, 3, 5)
CODES = random_codes(LENGTHS, seed=5)
CODES[1, 1, 0] = CODES[1, 0, 0]  # a code that the repetition penalty knows
EOS = BASE.prompt.codec_eos

forced_compiled = jax.jit(teacher_force, static_argnums=1, static_argnames=("capture", "edit", "remat"))
score_compiled = jax.jit(score, static_argnums=(1, 4))
scores_compiled = jax.jit(scores, static_argnums=(1, 3))


@partial(jax.jit, static_argnums=1)
def first_state(tree, config, batch):
    rows, slots = batch.text_ids.shape
    return g.prefill(tree, config, batch, g.utterance_keys(5, jnp.arange(rows)), jnp.full(rows, 99), slots + 20)


@partial(jax.jit, static_argnums=1)
def step(tree, config, state, codes):
    """One frame as decoding makes it: the logits of its codes 1 … Q − 1, and the next state."""
    predictor = partial(CodePredictor(config.code_predictor).apply, {"params": tree["code_predictor"]})
    known = jnp.maximum(codes, 0)
    code_0 = Talker(config.talker).apply({"params": tree["talker"]}, known[:, 0], method=Talker.embed_code)
    cache = KVCache.zeros(config.code_predictor.transformer, codes.shape[0], Q)
    hidden, cache = predictor(jnp.stack([state.hidden, code_0], axis=1), cache)
    logits = [predictor(hidden[:, -1], 1, method=CodePredictor.logits)]
    for q in range(2, Q):
        x = predictor(q - 1, known[:, q - 1], method=CodePredictor.embed_code)
        hidden, cache = predictor(x[:, None], cache)
        logits.append(predictor(hidden[:, -1], q, method=CodePredictor.logits))
    return jnp.stack(logits, axis=1), g.advance(tree, config, state, codes)


def stepwise(tree, batch, codes):
    """Logits of code 0 [B, T + 1, V] and of the others [B, T, Q − 1, V'], one position after the other."""
    state = first_state(tree, BASE, batch)
    first, rest = [state.logits], []
    for frame in range(codes.shape[1]):
        logits, state = step(tree, BASE, state, jnp.asarray(codes[:, frame]))
        rest.append(logits)
        first.append(state.logits)
    return np.stack(first, axis=1), np.stack(rest, axis=1)


@pytest.mark.parametrize("text_mode", ["all_at_once", "as_it_comes"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_equals_steps(kind, text_mode):
    batch = prompts(kind, text_mode)
    first, rest = stepwise(params(), batch, CODES)
    forced = forced_compiled(params(), BASE, batch, CODES)
    for row, count in enumerate(LENGTHS):
        np.testing.assert_allclose(forced.logits[row, : count + 1], first[row, : count + 1], atol=1e-4)
        np.testing.assert_allclose(forced.code_logits[row, :count], rest[row, :count], atol=1e-4)
    known = jnp.maximum(CODES, 0)
    of_first = log_probability(jnp.asarray(first[:, :-1]), known[..., 0])
    expected = np.concatenate([of_first[..., None], log_probability(jnp.asarray(rest), known[..., 1:])], axis=-1)
    actual = score_compiled(params(), BASE, batch, CODES)
    np.testing.assert_allclose(actual, np.where(CODES >= 0, expected, 0.0), atol=1e-4)
    assert (np.asarray(actual)[CODES >= 0] < 0).all()


def test_padding_and_company_do_not_matter():
    expected = score_compiled(params(), BASE, prompts("in-context"), CODES)
    padded = prompts("in-context", length=63)
    np.testing.assert_allclose(score_compiled(params(), BASE, padded, CODES), expected, atol=1e-5)
    alone = jax.tree.map(lambda leaf: leaf[1:2], padded)
    np.testing.assert_allclose(score_compiled(params(), BASE, alone, CODES[1:2, :3]), expected[1:2, :3], atol=1e-5)


@pytest.mark.parametrize("kind", ["speaker", "in-context"])
def test_draws_from_the_scored_distributions_are_what_was_generated(kind):
    """Sampling transform, end of speech and all: the same keys draw the same codes from one pass."""
    batch = prompts(kind, "as_it_comes")
    head = params()["talker"]["codec_head"]["weight"]
    tree = params() | {"talker": params()["talker"] | {"codec_head": {"weight": head.at[EOS].mul(2.5)}}}
    keys = g.utterance_keys(5, jnp.arange(3))
    state, codes = jax.jit(g.generate, static_argnums=(1, 2, 4))(
        tree, BASE, SAMPLED, first_state(tree, BASE, batch), 20
    )
    counts = np.sum(np.asarray(codes)[..., 0] >= 0, axis=1)
    assert state.ended.any()
    assert len(set(counts)) > 1

    forced = forced_compiled(tree, BASE, batch, codes)
    plain, drawn = scores_compiled(forced, BASE, codes), scores_compiled(forced, BASE, codes, SAMPLED)
    assert np.isfinite(drawn.codes).all()
    assert np.abs(drawn.codes - plain.codes).max() > 0.1
    assert np.isfinite(drawn.end)[np.asarray(state.ended)].all()

    seen = np.zeros((3, 21, BASE.talker.codec_vocab_size), bool)
    for frame in range(20):
        seen[:, frame + 1] = seen[:, frame]
        seen[np.arange(3), frame + 1, np.asarray(codes)[:, frame, 0]] = True

    def draw(frame):
        frame_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, frame)

        def keys_of(q):
            return jax.vmap(jax.random.fold_in, (0, None))(frame_keys, q)

        allowed = g.allowed_codes(BASE, frame[None])
        heard = jnp.asarray(seen)[:, frame]
        drawn = [sampling.draw(forced.logits[:, frame], keys_of(0), SAMPLED.talker, heard, allowed)]
        for q in range(1, Q):
            drawn.append(sampling.draw(forced.code_logits[:, frame, q - 1], keys_of(q), SAMPLED.code_predictor))
        return jnp.stack([codes for codes, _ in drawn], axis=1)

    redrawn = np.asarray(jax.lax.map(draw, jnp.arange(20))).swapaxes(0, 1)
    for row, count in enumerate(counts):
        np.testing.assert_array_equal(redrawn[row, :count], codes[row, :count])
        if state.ended[row]:
            assert redrawn[row, count, 0] == EOS


def test_scores_under_the_sampling_transform():
    """By hand, for one row: penalty on codes drawn before, the end forbidden in frames 0 and 1."""
    forced = forced_compiled(params(), BASE, prompts(), CODES)
    result = scores_compiled(forced, BASE, CODES, PENALISED)
    for frame in range(3):
        logits = np.asarray(forced.logits[1, frame], np.float64)
        for seen in set(CODES[1, :frame, 0].tolist()):
            logits[seen] *= 1.5 if logits[seen] < 0 else 1 / 1.5
        allowed = [*range(V), *([EOS] if frame >= 2 else [])]
        logits = logits / 0.7
        expected = logits - np.log(np.sum(np.exp(logits[allowed])))
        np.testing.assert_allclose(result.codes[1, frame, 0], expected[CODES[1, frame, 0]], atol=1e-4)
        expected = -np.sum(np.exp(expected[allowed]) * expected[allowed])
        np.testing.assert_allclose(result.code_entropies[1, frame, 0], expected, atol=1e-4)
    assert (np.asarray(result.code_entropies)[CODES < 0] == 0).all()
    assert (np.asarray(result.code_entropies)[CODES >= 0] > 0).all()
    assert (np.asarray(result.codes)[CODES < 0] == 0).all()


def test_the_end_is_scored_after_the_last_frame_of_each_row():
    forced = forced_compiled(params(), BASE, prompts(), CODES)
    result = scores_compiled(forced, BASE, CODES)
    for row, count in enumerate(LENGTHS):
        expected = jax.nn.log_softmax(forced.logits[row, count])
        np.testing.assert_allclose(result.end[row], expected[EOS], atol=1e-5)
        np.testing.assert_allclose(result.end_entropies[row], -jnp.sum(jnp.exp(expected) * expected), atol=1e-4)


def test_entropy_of_impossible_codes():
    logits = jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])
    np.testing.assert_allclose(entropy(logits), np.log(2), atol=1e-6)
    assert np.isfinite(jax.grad(entropy)(logits)).all()


def test_activations_are_captured_and_replaced():
    batch = prompts()
    paths = ("talker/transformer/layers_0", "talker/transformer/layers_0/attention", "code_predictor/transformer")
    plain = forced_compiled(params(), BASE, batch, CODES, capture=paths)
    slots, width = batch.text_ids.shape[1] + CODES.shape[1], BASE.talker.transformer.width
    assert plain.activations[paths[0]].shape == plain.activations[paths[1]].shape == (3, slots, width)
    assert plain.activations[paths[2]].shape[:2] == (3 * CODES.shape[1], Q)

    # The first layer's states put into another run make it go on as this one.
    other = np.where(CODES >= 0, (CODES + 1) % V, -1)
    states = plain.activations[paths[0]]

    def edited(edit, path):
        return forced_compiled(params(), BASE, batch, other, edit=edit, capture=(path,))

    patched = edited(lambda path, x: states if path == paths[0] else x, paths[0])
    np.testing.assert_array_equal(patched.activations[paths[0]], states)
    np.testing.assert_allclose(patched.hidden, plain.hidden, atol=1e-5)
    untouched = forced_compiled(params(), BASE, batch, other)
    assert np.abs(untouched.hidden - plain.hidden).max() > 0.1
    silenced = edited(lambda path, x: x * 0 if path == paths[1] else x, paths[1])
    assert not silenced.activations[paths[1]].any()
    assert np.abs(silenced.logits - untouched.logits).max() > 0.1
    with pytest.raises(ValueError, match="no module has the path talker/transformer/layers_9"):
        forced_compiled(params(), BASE, batch, CODES, capture=("talker/transformer/layers_9",))


def test_rematerialisation_changes_memory_alone():
    batch, trees = prompts(), {part: params()[part] for part in ("talker", "code_predictor")}

    def total(trees, remat):
        forced = teacher_force(trees, BASE, batch, CODES, remat=remat)
        return jnp.sum(scores(forced, BASE, CODES).codes)

    compiled = [jax.jit(jax.grad(total), static_argnums=1).lower(trees, remat).compile() for remat in (False, True)]
    for kept, again in zip(*(jax.tree.leaves(gradient(trees)) for gradient in compiled), strict=True):
        np.testing.assert_allclose(kept, again, atol=1e-4)

    def residuals(remat):
        saved = jax.eval_shape(lambda: jax.vjp(partial(total, remat=remat), trees)[1])
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    kept, again = residuals(False), residuals(True)
    weights = sum(leaf.size for leaf in jax.tree.leaves(trees))
    slots, width = batch.text_ids.shape[1] + CODES.shape[1], BASE.talker.transformer.width
    layers = 3 * slots * width + CODES.size * BASE.code_predictor.transformer.width
    assert layers <= again - weights < 0.5 * (kept - weights), (kept, again, weights, layers)


def test_generation_knows_the_log_probabilities_that_are_scored():
    batch = prompts("in-context", "as_it_comes")
    head = params()["talker"]["codec_head"]["weight"]
    tree = params() | {"talker": params()["talker"] | {"codec_head": {"weight": head.at[EOS].mul(2.5)}}}
    state, codes, drawn = jax.jit(g.generate_scored, static_argnums=(1, 2, 4))(
        tree, BASE, SAMPLED, first_state(tree, BASE, batch), 20
    )
    scored = scores_compiled(forced_compiled(tree, BASE, batch, codes), BASE, codes, SAMPLED)
    expected = np.array(scored.codes)
    counts = np.sum(np.asarray(codes)[..., 0] >= 0, axis=1)
    assert np.any(state.ended)
    for row in np.flatnonzero(state.ended):
        expected[row, counts[row], 0] = scored.end[row]
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    assert (np.asarray(drawn)[codes[..., 0] >= 0] < 0).any()
