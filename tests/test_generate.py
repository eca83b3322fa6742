"""The pure functions: what a row may depend on, how it stops, what compiles, what differentiates."""

from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax import generate as g
from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.config import GenerationConfig, SamplingConfig
from qwen3_tts_jax.convert.rules import model_rules
from qwen3_tts_jax.decode_state import grow_compiled, insert_compiled
from qwen3_tts_jax.prompt import PromptPlan, batch_plans
from qwen3_tts_jax.talker import Talker
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

CONFIG = SMALL["1.7B-VoiceDesign"]
Q = CONFIG.talker.num_codebooks
GREEDY = GenerationConfig.greedy()
SAMPLED = GenerationConfig(
    talker=SamplingConfig(temperature=1.2, top_k=20, repetition_penalty=1.05),
    code_predictor=SamplingConfig(temperature=1.1, top_p=0.9),
)


@cache
def params():
    return jax.tree.map(jnp.asarray, drawn_tree(model_rules(CONFIG), seed=3))


def plan(length, trailing=0, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.full((length, Q), -1, np.int32)
    codes[length // 2 :, 0] = rng.integers(0, CONFIG.talker.codec_vocab_size, length - length // 2)
    codes[-2:] = rng.integers(0, CONFIG.code_predictor.codebook_size, (2, Q))
    ids = rng.integers(0, CONFIG.talker.text_vocab_size, length).astype(np.int32)
    return PromptPlan(ids, codes, rng.integers(0, 1000, trailing).astype(np.int32))


PLANS = [plan(9, 5, seed=1), plan(14, 0, seed=2), plan(6, 11, seed=3)]


def speak(
    plans,
    generation,
    frames,
    *,
    length=None,
    chunk=None,
    limit=10_000,
    utterances=None,
    seed=5,
    tree=None,
    config=CONFIG,
    capacity=64,
):
    """Codes [B, frames, Q] and the last state."""
    batch = batch_plans(plans, tts_pad=CONFIG.prompt.tts_pad, length=length, trailing_length=13)
    utterances = jnp.arange(len(plans)) if utterances is None else jnp.asarray(utterances)
    limits = jnp.broadcast_to(jnp.asarray(limit, jnp.int32), (len(plans),))
    tree = params() if tree is None else tree
    state = g.prefill_compiled(tree, config, batch, g.utterance_keys(seed, utterances), limits, capacity)
    pieces = []
    for _ in range(0, frames, chunk or frames):
        state, codes = g.generate_chunk(tree, config, generation, state, chunk or frames)
        pieces.append(np.asarray(codes))
    return np.concatenate(pieces, axis=1), state


@pytest.mark.parametrize("generation", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_companions_padding_or_chunks(generation):
    together, _ = speak(PLANS, generation, 12)
    assert len({row.tobytes() for row in together}) == 3
    for row in range(3):
        alone, _ = speak(PLANS[row : row + 1], generation, 12, utterances=[row])
        np.testing.assert_array_equal(alone[0], together[row])
    padded, _ = speak(PLANS, generation, 12, length=37)
    np.testing.assert_array_equal(padded, together)
    chunked, _ = speak(PLANS, generation, 12, chunk=3)
    np.testing.assert_array_equal(chunked, together)


def test_draws_depend_on_seed_and_utterance():
    first, _ = speak(PLANS[:1], SAMPLED, 8)
    other_seed, _ = speak(PLANS[:1], SAMPLED, 8, seed=6)
    other_utterance, _ = speak(PLANS[:1], SAMPLED, 8, utterances=[1])
    assert (first != other_seed).any()
    assert (first != other_utterance).any()


def test_draws_do_not_depend_on_the_default_generator():
    expected, _ = speak(PLANS, SAMPLED, 8)
    with jax.default_prng_impl("rbg"):
        found, _ = speak(PLANS, SAMPLED, 8)
    np.testing.assert_array_equal(found, expected)


def test_every_draw_has_its_own_key():
    """With flat logits a draw shows its key: fold_in(fold_in(utterance, frame), codebook)."""
    tree = jax.tree.map(lambda x: x, params())
    for part, head in (("talker", "codec_head"), ("code_predictor", "codec_heads")):
        tree[part][head]["weight"] = jnp.zeros_like(tree[part][head]["weight"])
    flat = SamplingConfig(temperature=1.0, top_k=0)
    codes, _ = speak(PLANS[:1], GenerationConfig(talker=flat, code_predictor=flat), 2, tree=tree, utterances=[4])
    utterance = jax.random.fold_in(jax.random.key(5), 4)
    for frame in range(2):
        for codebook in range(Q):
            key = jax.random.fold_in(jax.random.fold_in(utterance, frame), codebook)
            size = CONFIG.talker.codec_vocab_size if codebook == 0 else CONFIG.code_predictor.codebook_size
            allowed = jnp.arange(size) < CONFIG.code_predictor.codebook_size
            expected = jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))
            assert codes[0, frame, codebook] == expected, (frame, codebook)


def test_codes_stay_in_range_and_use_all_codebooks():
    codes, _ = speak(PLANS, SAMPLED, 24)
    spoken = codes[codes[..., 0] >= 0]
    assert len(spoken) > 40
    assert spoken.min() >= 0
    assert spoken.max() < CONFIG.code_predictor.codebook_size
    assert all(len(np.unique(spoken[:, q])) > 5 for q in range(Q))


def loud_end(scale):
    """The same model with an end of speech that is `scale` times as loud."""
    tree = jax.tree.map(lambda x: x, params())
    head = tree["talker"]["codec_head"]["weight"]
    tree["talker"]["codec_head"]["weight"] = head.at[CONFIG.prompt.codec_eos].multiply(scale)
    return tree


def test_rows_stop_by_themselves_and_leave_the_others_alone():
    codes, state = speak(PLANS, SAMPLED, 30, tree=loud_end(2.5))
    lengths = (codes[..., 0] >= 0).sum(axis=1)
    assert len(set(lengths)) > 1, lengths
    assert state.ended.tolist() == (lengths < 30).tolist()
    for row, length in enumerate(lengths):
        assert (codes[row, length:] == -1).all()
        assert (codes[row, :length] >= 0).all()
        alone, _ = speak(PLANS[row : row + 1], SAMPLED, 30, utterances=[row], tree=loud_end(2.5))
        np.testing.assert_array_equal(alone[0], codes[row])


def test_the_end_cannot_be_drawn_before_the_third_code():
    tree = jax.tree.map(lambda x: x, params())
    head = tree["talker"]["codec_head"]["weight"]
    _, state = speak(PLANS, GREEDY, 1)
    # A row of the head that points along every hidden state: the end is the likeliest code at once.
    tree["talker"]["codec_head"]["weight"] = head.at[CONFIG.prompt.codec_eos].set(20 * state.hidden.sum(axis=0))
    codes, state = speak(PLANS, GREEDY, 6, tree=tree)
    lengths = (codes[..., 0] >= 0).sum(axis=1)
    assert lengths.min() == 2
    assert state.ended[lengths.argmin()]


def test_a_limit_cuts_a_row_without_ending_it():
    codes, state = speak(PLANS, GREEDY, 8, limit=[3, 8, 0])
    free, _ = speak(PLANS, GREEDY, 8)
    assert (codes[..., 0] >= 0).sum(axis=1).tolist() == [3, 8, 0]
    np.testing.assert_array_equal(codes[0, :3], free[0, :3])
    assert not state.ended.any()
    assert not state.active.any()


def test_the_text_track_is_fed_frame_by_frame_then_padded():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    _, track = g.embed_prompt(params(), CONFIG, batch)
    assert track.shape == (3, 14, CONFIG.talker.transformer.width)
    pad = track[1, 0]
    np.testing.assert_allclose(track[0, 5:], jnp.tile(pad, (9, 1)), atol=1e-6)
    assert jnp.abs(track[0, 4] - pad).max() > 0.1
    _, state = speak(PLANS, GREEDY, 3)
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, Q)), jnp.int32)
    advance = jax.jit(g.advance, static_argnums=1)
    later = [advance(params(), CONFIG, state.replace(frame=jnp.full(3, frame)), codes).hidden for frame in (3, 13, 50)]
    assert jnp.abs(later[0] - later[1])[2].max() > 1e-3
    np.testing.assert_array_equal(later[1], later[2])


def test_channels_marked_as_absent_add_nothing():
    batch = batch_plans(PLANS[:1], tts_pad=CONFIG.prompt.tts_pad)
    embeddings, _ = g.embed_prompt(params(), CONFIG, batch)
    text_only = batch._replace(codes=np.full_like(batch.codes, -1))
    codes_only = batch._replace(text_ids=np.full_like(batch.text_ids, -1))
    parts = [g.embed_prompt(params(), CONFIG, part)[0] for part in (text_only, codes_only)]
    np.testing.assert_allclose(parts[0] + parts[1], embeddings, atol=1e-6)
    assert jnp.abs(parts[1][:, : 9 // 2]).max() == 0
    assert jnp.abs(parts[0]).max() > 0.1


def test_frames_are_summed_over_their_own_tables():
    codes = np.random.default_rng(1).integers(0, CONFIG.code_predictor.codebook_size, (2, 3, Q))
    tree = params()
    expected = np.asarray(tree["talker"]["codec_embedding"]["embedding"])[codes[..., 0]].copy()
    for q in range(1, Q):
        expected += np.asarray(tree["code_predictor"]["codec_embeddings"]["embedding"])[q - 1][codes[..., q]]
    np.testing.assert_allclose(g.embed_codes(tree, CONFIG, jnp.asarray(codes)), expected, atol=1e-6)


def test_a_second_call_with_the_same_shapes_compiles_nothing():
    speak(PLANS, GREEDY, 4, chunk=2)
    prefill_size, chunk_size = g.prefill_compiled._cache_size(), g.generate_chunk._cache_size()
    other = [plan(11, 2, seed=11), plan(14, 1, seed=12), plan(5, 3, seed=13)]
    speak(other, GREEDY, 4, chunk=2, seed=99, limit=[7, 8, 9])
    assert g.prefill_compiled._cache_size() == prefill_size
    assert g.generate_chunk._cache_size() == chunk_size


def test_another_temperature_compiles_nothing():
    speak(PLANS, SAMPLED, 4, chunk=2)
    size = g.generate_chunk._cache_size()
    cold = GenerationConfig(
        talker=replace(SAMPLED.talker, temperature=0.01, top_k=3),
        code_predictor=replace(SAMPLED.code_predictor, temperature=0.01, top_k=3, top_p=0.5),
    )
    codes, _ = speak(PLANS, cold, 4, chunk=2)
    assert g.generate_chunk._cache_size() == size
    greedy = GenerationConfig.greedy(SAMPLED.talker.repetition_penalty)
    np.testing.assert_array_equal(codes, speak(PLANS, greedy, 4, chunk=2)[0])


def test_the_frame_is_traced_once_for_any_number_of_chunks():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(g.generate, n=1), static_argnames=("config", "generation", "num_frames"))
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad)
    state = g.prefill(params(), CONFIG, batch, g.utterance_keys(0, jnp.arange(3)), jnp.full(3, 9), 40)
    for _ in range(3):
        state, _ = traced(params(), CONFIG, GREEDY, state, num_frames=2)
    assert state.frame.tolist() == [6, 6, 6]


def test_any_number_of_frames_from_one_program():
    whole, _ = speak(PLANS, SAMPLED, 12)
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    state = g.prefill_compiled(params(), CONFIG, batch, g.utterance_keys(5, jnp.arange(3)), jnp.full(3, 99), 64)
    pieces, programs = [], g.generate_stream._cache_size()
    for count in (1, 5, 2, 4):
        state, codes = g.generate_stream(params(), CONFIG, SAMPLED, state, jnp.int32(count), 6)
        assert (codes[:, count:] == -1).all()
        pieces.append(codes[:, :count])
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert g.generate_stream._cache_size() == programs + 1


def test_no_frame_is_made_once_all_rows_have_ended():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad)
    limits = jnp.array([3, 1, 4])
    state = g.prefill_compiled(params(), CONFIG, batch, g.utterance_keys(5, jnp.arange(3)), limits, 64)
    state, codes = g.generate_stream(params(), CONFIG, SAMPLED, state, jnp.int32(9), 9)
    assert state.frame.tolist() == (state.cache.length - batch.lengths).tolist() == [3, 1, 4]
    assert (codes[..., 0] >= 0).sum(axis=1).tolist() == [3, 1, 4]


def test_text_set_later_is_text_known_before():
    whole, _ = speak(PLANS[:1], SAMPLED, 12)
    trailing = PLANS[0].trailing_text_ids
    bare = [replace(PLANS[0], trailing_text_ids=trailing[:0])]
    batch = batch_plans(bare, tts_pad=CONFIG.prompt.tts_pad)
    state = g.prefill_compiled(params(), CONFIG, batch, g.utterance_keys(5, jnp.arange(1)), jnp.full(1, 99), 64)
    pieces = []
    for frame in range(0, 12, 3):
        window = [*trailing[frame : frame + 3], *[CONFIG.prompt.tts_pad] * 3][:3]
        state = g.set_text_compiled(params(), CONFIG, state, np.array([window], np.int32))
        state, codes = g.generate_stream(params(), CONFIG, SAMPLED, state, jnp.int32(3), 3)
        pieces.append(codes)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    without, _ = speak(bare, SAMPLED, 12)
    assert (without != whole).any()


def test_a_cache_that_grows_keeps_what_it_holds():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    codes = []
    for capacity in (64, batch.text_ids.shape[1] + 4):
        keys = g.utterance_keys(5, jnp.arange(3))
        state = g.prefill_compiled(params(), CONFIG, batch, keys, jnp.full(3, 99), capacity)
        state, first = g.generate_chunk(params(), CONFIG, SAMPLED, state, 4)
        state = grow_compiled(state, 70)
        assert state.cache.capacity == 70
        codes.append(np.concatenate([first, g.generate_chunk(params(), CONFIG, SAMPLED, state, 4)[1]], axis=1))
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("capacity", [64, 21])
@pytest.mark.parametrize(("devices", "rows", "staged"), [(1, 3, True), (3, 3, True), (2, 3, False), (1, 1, False)])
def test_a_cache_that_is_written_once_for_a_chunk(devices, rows, staged, capacity, monkeypatch):
    """On TPUs: with rows that end within a chunk, where there may be no room for all of it, and go on in the next."""
    config, chunks = g.configure(CONFIG, "tpu", devices), []
    merged = g.StagedCache.merged
    monkeypatch.setattr(g.StagedCache, "merged", lambda self, n: chunks.append(n) or merged(self, n))
    options = {"chunk": 4, "limit": [12, 6, 9][:rows], "capacity": capacity}
    codes, state = speak(PLANS[:rows], SAMPLED, 12, config=config, **options)
    expected, expected_state = speak(PLANS[:rows], SAMPLED, 12, **options)
    np.testing.assert_array_equal(codes, expected)
    assert chunks == [devices] * staged  # traced once
    assert state.cache.length.tolist() == expected_state.cache.length.tolist()


def test_chunks_of_any_length_with_a_cache_that_is_written_once_for_each():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    found = []
    for config in (CONFIG, g.configure(CONFIG, "tpu")):
        state = g.prefill_compiled(params(), config, batch, g.utterance_keys(5, jnp.arange(3)), jnp.full(3, 8), 64)
        pieces = []
        for frames in (1, 3, 2, 4):
            state, codes = g.generate_stream(params(), config, SAMPLED, state, jnp.int32(frames), 4)
            pieces.append(codes[:, :frames])
        found.append((np.concatenate(pieces, axis=1), state.cache.length))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_scores_with_a_cache_that_is_written_once_for_a_chunk():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    found = []
    for config in (CONFIG, g.configure(CONFIG, "tpu")):
        state = g.prefill_compiled(params(), config, batch, g.utterance_keys(5, jnp.arange(3)), jnp.full(3, 9), 64)
        scored = jax.jit(g.generate_scored, static_argnums=(1, 4))
        state, codes, scores = scored(params(), config, SAMPLED, state, 6)
        assert isinstance(state.cache, KVCache)
        found.append((codes, scores))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


def test_only_tpus_write_the_cache_once_for_a_chunk():
    for platform, devices in (("cpu", 0), ("gpu", 0), (None, 0), ("tpu", 4)):
        assert g.configure(CONFIG, platform, 4).talker.staging_devices == devices


def test_functions_that_are_not_compiled_may_be_followed_by_compiled_ones():
    """Those are given the state for good, and with it each of its buffers once."""
    whole, _ = speak(PLANS, GREEDY, 4)
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad, trailing_length=13)
    keys, limits = g.utterance_keys(5, jnp.arange(3)), jnp.full(3, 99)
    read = g.prefill(params(), CONFIG, batch, keys, limits, 64)
    state = insert_compiled(g.empty_batch(params(), CONFIG, 3, 64, 13), jnp.arange(3), read)
    for filled in (state, read):
        _, codes = g.generate_chunk(params(), CONFIG, GREEDY, filled, 4)
        np.testing.assert_array_equal(codes, whole)


def test_an_x_vector_stands_at_the_speaker_alone():
    width = CONFIG.talker.transformer.width
    x_vector = np.random.default_rng(0).normal(size=width).astype(np.float32)
    plans = [PLANS[0], replace(PLANS[1], x_vector=x_vector, speaker_position=3)]
    with_one, _ = g.embed_prompt(params(), CONFIG, batch_plans(plans, tts_pad=CONFIG.prompt.tts_pad, length=17))
    without, _ = g.embed_prompt(params(), CONFIG, batch_plans(PLANS[:2], tts_pad=CONFIG.prompt.tts_pad, length=17))
    difference = np.zeros((2, 17, width), np.float32)
    difference[1, 3] = x_vector
    np.testing.assert_allclose(with_one - without, difference, rtol=0, atol=1e-6)


def test_vmap_over_seeds_equals_a_batch():
    batch = batch_plans(PLANS[:1], tts_pad=CONFIG.prompt.tts_pad, length=14, trailing_length=13)

    def one(key):
        state = g.prefill(params(), CONFIG, batch, key[None], jnp.full(1, 99), 24)
        return g.generate(params(), CONFIG, SAMPLED, state, 5)[1][0]

    mapped = jax.jit(jax.vmap(one))(g.utterance_keys(5, jnp.arange(3)))
    rows, _ = speak([PLANS[0]] * 3, SAMPLED, 5)
    np.testing.assert_array_equal(mapped, rows)


def test_gradients_agree_with_finite_differences():
    batch = batch_plans(PLANS, tts_pad=CONFIG.prompt.tts_pad)
    keys, limits = g.utterance_keys(0, jnp.arange(3)), jnp.full(3, 9)
    targets = jnp.array([3, 17, 29])

    @jax.jit
    def loss(tree):
        state = g.prefill(tree, CONFIG, batch, keys, limits, batch.text_ids.shape[1])
        return -jax.nn.log_softmax(state.logits)[jnp.arange(3), targets].sum()

    gradient = jax.grad(loss)(params())
    rng = np.random.default_rng(0)
    for path in (
        ("talker", "transformer", "layers_1", "attention", "qkv", "weight"),
        ("talker", "codec_head", "weight"),
    ):
        leaf, slope = params(), gradient
        for key in path:
            leaf, slope = leaf[key], slope[key]
        direction = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

        def moved(step, path=path, direction=direction):
            tree = jax.tree.map(lambda x: x, params())
            node = tree
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = node[path[-1]] + step * direction
            return float(loss(tree))

        numeric = (moved(2e-3) - moved(-2e-3)) / 4e-3
        assert numeric == pytest.approx(float((slope * direction).sum()), rel=0.02)
        assert abs(numeric) > 1e-2


@pytest.mark.parametrize("variant", SMALL)
def test_modules_make_exactly_the_tree_of_the_table(variant):
    config = SMALL[variant]

    def shapes(module, width):
        def init(key):
            x = jnp.zeros((1, 1, width))
            cache = g.KVCache.zeros(module.config.transformer, 1, 1)

            def touch(module):
                if isinstance(module, Talker):
                    module.embed_text(jnp.zeros(1, jnp.int32))
                    module.embed_code(jnp.zeros(1, jnp.int32))
                    return module.logits(module(x, cache)[0])
                module.embed_code(jnp.int32(1), jnp.zeros(1, jnp.int32))
                return module.logits(module(x, cache)[0], jnp.int32(1))

            return module.init(key, method=touch)["params"]

        return jax.eval_shape(init, jax.random.key(0))

    width = config.talker.transformer.width
    made = {
        "talker": shapes(Talker(config.talker), width),
        "code_predictor": shapes(CodePredictor(config.code_predictor), width),
    }
    rules = [rule for rule in model_rules(config) if rule.part in made]
    expected = unflatten_dict({tuple(rule.flax.split("/")): rule.flax_shape for rule in rules})
    assert jax.tree.map(lambda leaf: leaf.shape, made) == expected
