"""Talker, code predictor and the whole of speech against the official package: float32, every weight re-drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_tts_jax import generate as g
from qwen3_tts_jax.arguments import merge_sampling
from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.codec_decoding import decode_codes
from qwen3_tts_jax.config import GenerationConfig
from qwen3_tts_jax.convert import PARTS, export_safetensors, load_params
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request, batch_plans, plan_prompt
from qwen3_tts_jax.talker import Talker
from tests.parity.oracle import load_official, quiet
from tests.shapes import SMALL

TEXTS = ["Hello, world.", "这是一个较长的中文句子，用来测试不同的长度。", "Ein kurzer Satz mit Umlauten: äöü!"]
LANGUAGES = ["english", "chinese", "auto"]
INSTRUCTS = ["Speak gladly, like an old friend.", "", "langsam und leise"]
SPEAKERS = ["Ryan", "eric", "serena"]
GREEDY = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.05}


@pytest.fixture
def ours(checkpoint):
    models = {}

    def load(variant, **options):
        if variant not in models:
            models[variant] = Qwen3TTS.from_pretrained(checkpoint(variant, **options), dtype="float32")
        return models[variant]

    return load


def official_codes(model, call):
    """What `call()` returns, and the codes that `model.model.generate` made in it."""
    generate, captured = model.model.generate, []

    def capture(**options):
        result = generate(**options)
        captured.extend(codes.numpy() for codes in result[0])
        return result

    model.model.generate = capture
    try:
        with quiet(), torch.no_grad():
            return call(), captured
    finally:
        model.model.generate = generate


@pytest.mark.parametrize("variant", SMALL)
def test_talker_layers_and_logits(variant, ours, official):
    """Every layer of a prefill of rows of different length, then steps over a cache with more capacity.

    The official package pads on the left, we on the right.
    """
    model, reference = ours(variant), official(variant).model.talker
    config, params = model.config, model.params
    rng = np.random.default_rng(0)
    start, steps = np.array([0, 5, 2]), 11
    lengths = steps - start
    x = rng.normal(size=(3, steps + 3, config.talker.transformer.width)).astype(np.float32)
    mask = (np.arange(steps) >= start[:, None]).astype(np.int64)

    with quiet(), torch.no_grad():
        expected = reference(
            inputs_embeds=torch.tensor(x[:, :steps]), attention_mask=torch.tensor(mask),
            cache_position=torch.arange(steps), output_hidden_states=True, use_cache=True,
        )  # fmt: skip
    padded = np.stack([np.roll(row[:steps], -first, axis=0) for row, first in zip(x, start, strict=True)])
    variables, talker = {"params": params["talker"]}, Talker(config.talker)
    watched = jax.jit(partial(talker.apply, capture_intermediates=True, mutable=["intermediates"]))
    one_step, logits_of = jax.jit(talker.apply), jax.jit(partial(talker.apply, method=Talker.logits))
    (hidden, cache), seen = watched(variables, padded, KVCache.zeros(config.talker.transformer, 3, steps))
    layers = seen["intermediates"]["transformer"]
    outputs = [layers[f"layers_{layer}"]["__call__"][0][0] for layer in range(config.talker.transformer.num_layers - 1)]
    for output, theirs in zip([*outputs, hidden], expected.hidden_states[0][1:], strict=True):
        for row in range(3):
            np.testing.assert_allclose(output[row, : lengths[row]], theirs[row, start[row] :].numpy(), atol=1e-4)
    logits = logits_of(variables, hidden)
    np.testing.assert_allclose(logits[np.arange(3), lengths - 1], expected.logits[:, -1].numpy(), atol=1e-4)

    cache = cache.grow(steps + 9).replace(length=jnp.asarray(lengths, jnp.int32))
    past = expected.past_key_values
    for step in range(3):
        position = steps + step
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        positions = torch.tensor(position - start)[None, :, None].expand(3, -1, -1)
        with quiet(), torch.no_grad():
            expected = reference.model(
                inputs_embeds=torch.tensor(x[:, position : position + 1]), attention_mask=torch.tensor(mask),
                position_ids=positions, cache_position=torch.tensor([position]), past_key_values=past, use_cache=True,
            )  # fmt: skip
            theirs = reference.codec_head(expected.last_hidden_state).numpy()
        hidden, cache = one_step(variables, x[:, position : position + 1], cache)
        logits = logits_of(variables, hidden)
        np.testing.assert_allclose(logits, theirs, atol=1e-4)


@pytest.mark.parametrize("variant", SMALL)
def test_text_projection(variant, ours, official):
    model, reference = ours(variant), official(variant).model.talker
    ids = np.random.default_rng(1).integers(0, 151_000, (2, 9))
    with torch.no_grad():
        expected = reference.text_projection(reference.get_text_embeddings()(torch.tensor(ids))).numpy()
    talker = Talker(model.config.talker)
    embedded = talker.apply({"params": model.params["talker"]}, jnp.asarray(ids), method=Talker.embed_text)
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


@pytest.mark.parametrize("variant", SMALL)
def test_code_predictor_logits_under_forced_codes(variant, ours, official):
    model, reference = ours(variant), official(variant).model.talker.code_predictor
    config, variables = model.config, {"params": model.params["code_predictor"]}
    predictor = CodePredictor(config.code_predictor)
    step = jax.jit(predictor.apply)
    logits_of, embed_code = (
        jax.jit(partial(predictor.apply, method=method)) for method in (CodePredictor.logits, CodePredictor.embed_code)
    )
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 2, config.talker.transformer.width)).astype(np.float32)
    codes = rng.integers(0, config.code_predictor.codebook_size, (3, config.talker.num_codebooks))
    with quiet(), torch.no_grad():
        expected = reference(inputs_embeds=torch.tensor(x), use_cache=True)
    cache = KVCache.zeros(config.code_predictor.transformer, 3, config.talker.num_codebooks)
    hidden, cache = step(variables, x, cache)
    for q in range(1, config.talker.num_codebooks):
        logits = logits_of(variables, hidden[:, -1], q)
        np.testing.assert_allclose(logits, expected.logits[:, -1].numpy(), atol=1e-4)
        if q == config.talker.num_codebooks - 1:
            break
        with quiet(), torch.no_grad():
            expected = reference(
                input_ids=torch.tensor(codes[:, q : q + 1]), past_key_values=expected.past_key_values,
                generation_steps=q, use_cache=True,
            )  # fmt: skip
        hidden, cache = step(variables, embed_code(variables, q, codes[:, q])[:, None], cache)


@pytest.mark.filterwarnings("ignore:.*takes no instruct")
@pytest.mark.parametrize("non_streaming_mode", [True, False], ids=["all_at_once", "as_it_comes"])
@pytest.mark.parametrize("instruct", [None, INSTRUCTS], ids=["plain", "instruct"])
@pytest.mark.parametrize("variant", ["0.6B-CustomVoice", "1.7B-CustomVoice"])
def test_custom_voice_speaks_the_same(variant, instruct, non_streaming_mode, ours, official):
    model, reference = ours(variant), official(variant)
    arguments = (TEXTS, SPEAKERS, LANGUAGES, instruct, non_streaming_mode)
    check_same_speech(model, reference, "generate_custom_voice", arguments)


@pytest.mark.parametrize("non_streaming_mode", [True, False], ids=["all_at_once", "as_it_comes"])
@pytest.mark.parametrize("instruct", ["", INSTRUCTS], ids=["plain", "instruct"])
def test_voice_design_speaks_the_same(instruct, non_streaming_mode, ours, official):
    model, reference = ours("1.7B-VoiceDesign"), official("1.7B-VoiceDesign")
    arguments = (TEXTS, instruct, LANGUAGES, non_streaming_mode)
    check_same_speech(model, reference, "generate_voice_design", arguments)


@pytest.mark.parametrize("text_mode", ["all_at_once", "as_it_comes"])
@pytest.mark.parametrize("variant", ["0.6B-Base", "1.7B-Base"])
def test_base_without_a_reference_speaks_the_same(variant, text_mode, ours, official):
    """The official class offers no such call, its model does."""
    model, reference = ours(variant), official(variant)
    with quiet(), torch.no_grad():
        ids = reference._tokenize_texts([reference._build_assistant_text(text) for text in TEXTS])
        codes, _ = reference.model.generate(
            input_ids=ids, languages=LANGUAGES, non_streaming_mode=text_mode == "all_at_once",
            max_new_tokens=19, **GREEDY,
        )  # fmt: skip
        wavs, _ = reference.model.speech_tokenizer.decode([{"audio_codes": row} for row in codes])
    requests = [
        Request(text, language, text_mode=text_mode, max_frames=18)
        for text, language in zip(TEXTS, LANGUAGES, strict=True)
    ]
    for speech, row, wav in zip(model.synthesize(requests, GenerationConfig.greedy()), codes, wavs, strict=True):
        np.testing.assert_array_equal(speech.codes, row.numpy())
        np.testing.assert_allclose(speech.samples, wav, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*takes no instruct")
@pytest.mark.parametrize("variant", ["0.6B-CustomVoice", "1.7B-VoiceDesign"])
def test_exported_weights_speak_the_same_in_the_official_package(variant, checkpoint, ours, tmp_path):
    """Flax → safetensors: a changed model says the same changed thing on both sides."""
    source, config = checkpoint(variant, dtype="float32"), SMALL[variant]
    params = load_params(source, config, [part for part in PARTS if part != "speaker_encoder"])
    rng = np.random.default_rng(5)
    factors = jax.tree.map(lambda leaf: (1 + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), params)
    changed = jax.tree.map(lambda leaf, factor: jnp.asarray(np.asarray(leaf) * factor), params, factors)
    export_safetensors(tmp_path, changed, config)
    for file in (file for file in source.rglob("*") if file.suffix in (".json", ".txt")):
        (tmp_path / file.relative_to(source)).write_bytes(file.read_bytes())
    voices = {"speaker": SPEAKERS} if variant.endswith("CustomVoice") else {"instruct": INSTRUCTS}
    method = "generate_custom_voice" if variant.endswith("CustomVoice") else "generate_voice_design"
    arguments = {"text": TEXTS, "language": LANGUAGES, **voices}
    tokenizer = ours(variant).tokenizer
    after = check_same_speech(
        Qwen3TTS(config, changed, tokenizer), load_official(tmp_path), method, (), 14, keywords=arguments
    )
    before, _ = getattr(Qwen3TTS(config, params, tokenizer), method)(**arguments, **GREEDY, max_new_tokens=14)
    assert not np.array_equal(before[0], after[0])


def check_same_speech(model, reference, method, arguments, max_new_tokens=24, keywords=None):
    """Greedy codes 0 … Q−1 equal in every frame of every row, samples within 1e-4; returns ours."""
    options = GREEDY | {"max_new_tokens": max_new_tokens} | (keywords or {})
    (wavs, rate), codes = official_codes(reference, lambda: getattr(reference, method)(*arguments, **options))
    synthesize, ours_codes = model.synthesize, []

    def noting(*args, **keywords):
        speeches = synthesize(*args, **keywords)
        ours_codes.extend(speech.codes for speech in speeches)
        return speeches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "synthesize", noting)
        our_wavs, our_rate = getattr(model, method)(*arguments, **options)
    assert our_rate == rate
    assert len({row.tobytes() for row in codes}) == len(codes)
    for row, (mine, theirs) in enumerate(zip(ours_codes, codes, strict=True)):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"row {row}")
    for mine, theirs in zip(our_wavs, wavs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    return our_wavs


def test_rows_that_stop_at_different_frames(ours, official):
    model = ours("0.6B-CustomVoice", eos_boost=1.0)
    reference = official("0.6B-CustomVoice", eos_boost=1.0)
    arguments = (TEXTS, SPEAKERS, LANGUAGES, None, True)
    check_same_speech(model, reference, "generate_custom_voice", arguments, max_new_tokens=40)
    speeches = [len(wav) for wav in model.generate_custom_voice(*arguments, **GREEDY, max_new_tokens=40)[0]]
    assert len(set(speeches)) > 1
    assert min(speeches) < 39 * model.config.codec.frame_samples


def test_long_speech_decoded_the_official_way(ours, official):
    """Beyond 300 frames the official decode is not exact: ours follows it by option only."""
    model, reference = ours("1.7B-CustomVoice"), official("1.7B-CustomVoice").model.speech_tokenizer
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 53, (340, 16))
    with quiet():
        expected = reference.decode([{"audio_codes": codes}])[0][0]
    decode = partial(decode_codes, model.params["codec"]["decoder"], model.config.codec, [codes.astype(np.int32)])
    np.testing.assert_allclose(decode(official=True)[0], expected, atol=1e-4)
    exact = decode()[0]
    assert np.abs(exact[: 300 * 12] - expected[: 300 * 12]).max() < 1e-4
    assert np.abs(exact - expected).max() > 1e-3


def test_bfloat16_logits_keep_their_direction(checkpoint, official):
    """Under forced codes, at the logits of code 0: cosine of at least 0.9995 to the float32 reference."""
    folder = checkpoint("1.7B-CustomVoice")
    half = Qwen3TTS.from_pretrained(folder, dtype="bfloat16")
    full = Qwen3TTS.from_pretrained(folder, dtype="float32")
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 53, (3, 8, 16))
    plans = [
        plan_prompt(Request(text, language, speaker), half.tokenizer, half.config)
        for text, language, speaker in zip(TEXTS, LANGUAGES, SPEAKERS, strict=True)
    ]
    batch = batch_plans(plans, tts_pad=half.config.prompt.tts_pad)

    def forced(model):
        keys, capacity = g.utterance_keys(0, jnp.arange(3)), batch.text_ids.shape[1] + 8
        state = g.prefill_compiled(model.params, model.config, batch, keys, jnp.full(3, 99), capacity)
        logits = [state.logits]
        step = jax.jit(g.advance, static_argnums=1)
        for frame in range(8):
            state = step(model.params, model.config, state, jnp.asarray(codes[:, frame], jnp.int32))
            logits.append(state.logits)
        return np.stack(logits)

    a, b = forced(half), forced(full)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() >= 0.9995, cosine.min()


def test_greedy_is_what_the_official_options_say():
    generation, frames = merge_sampling(SMALL["0.6B-CustomVoice"], GREEDY | {"max_new_tokens": 9})
    assert not generation.talker.do_sample
    assert not generation.code_predictor.do_sample
    assert generation.talker.repetition_penalty == GenerationConfig.greedy().talker.repetition_penalty
    assert frames == 8
