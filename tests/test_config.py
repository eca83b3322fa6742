"""Configs: what is read, what is refused by name, and that writing and reading agree."""

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.arguments import part_dtypes
from qwen3_tts_jax.config import ConfigError, GenerationConfig, SamplingConfig
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.presets import PRESETS, preset
from tests.shapes import SMALL


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs_survive_writing_and_reading(name):
    config = preset(name)
    assert hf_config.from_hf(*json.loads(json.dumps(hf_export.to_hf(config)))) == config


@pytest.mark.parametrize("name", SMALL)
def test_small_configs_survive_writing_and_reading(name):
    assert hf_config.from_hf(*hf_export.to_hf(SMALL[name])) == SMALL[name]


def test_mini_survives_reading_and_writing():
    config = hf_config.read_folder(local_folder(MINI))
    assert hf_config.from_hf(*hf_export.to_hf(config)) == config


def test_published_facts():
    small, large = preset("0.6B-CustomVoice"), preset("1.7B-VoiceDesign")
    assert small.codec.frame_samples == 1920
    assert small.codec.frame_rate == 12.5
    assert not small.code_predictor.has_projection
    assert large.code_predictor.has_projection
    assert not small.supports_instruct
    assert large.supports_instruct
    assert preset("0.6B-Base").speaker_encoder.x_vector_width == 1024
    assert preset("1.7B-Base").speaker_encoder.x_vector_width == 2048
    assert len(small.prompt.speakers) == 9
    assert small.prompt.dialects == {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}


def test_configs_are_static_arguments():
    config = preset("1.7B-Base")
    assert hash(config) == hash(preset("1.7B-Base"))
    assert config == preset("1.7B-Base")
    assert config != preset("1.7B-CustomVoice")
    assert config != config.with_dtypes("bfloat16")
    assert hash(GenerationConfig()) == hash(GenerationConfig())


def test_with_dtypes_keeps_the_codec_apart():
    config = preset("0.6B-Base").with_dtypes("bfloat16", "float32")
    assert config.talker.transformer.dtype == config.code_predictor.transformer.dtype == "bfloat16"
    assert config.codec.decoder.transformer.dtype == config.codec.encoder.transformer.dtype == "float32"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", ("bfloat16", "bfloat16", "float32")),
        ("float32", ("float32", "float32", "float32")),
        ("talker=float32", ("float32", "bfloat16", "float32")),
        ("float32, code_predictor=bfloat16,codec=bfloat16_3x", ("float32", "bfloat16", "bfloat16_3x")),
        ("codec=bfloat16,talker=auto", ("bfloat16", "bfloat16", "bfloat16")),
        (np.float32, ("float32", "float32", "float32")),
        (jnp.dtype("float32"), ("float32", "float32", "float32")),
    ],
)
def test_dtypes_by_part(dtype, expected):
    found = part_dtypes(dtype, "bfloat16")
    assert (found["talker"], found["code_predictor"], found["codec"]) == expected


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "dtype of the talker must be auto, float32 or bfloat16; got 'float16'"),
        ("bfloat16_3x", "dtype of the talker must be auto, float32 or bfloat16; got 'bfloat16_3x'"),
        ("codec=int8", "dtype of the codec must be auto, float32 or bfloat16 or bfloat16_3x; got 'int8'"),
        ("vocoder=float32", "dtype names the part 'vocoder'; there are talker, code_predictor, codec"),
        ("float32,", "dtype of the talker must be auto, float32 or bfloat16; got ''"),
        (None, "dtype must be auto, float32 or bfloat16, as text or of JAX; got None"),
        (np.float16, "dtype must be auto, float32 or bfloat16, as text or of JAX; got <class 'numpy.float16'>"),
        ({}, "dtype must be auto, float32 or bfloat16, as text or of JAX; got {}"),
        (pytest, f"dtype must be auto, float32 or bfloat16, as text or of JAX; got {pytest!r}"),
    ],
)
def test_dtypes_of_parts_that_cannot_be_are_refused(dtype, message):
    with pytest.raises(ConfigError) as error:
        part_dtypes(dtype, "float32")
    assert str(error.value) == message


def test_bfloat16_as_a_dtype():
    assert part_dtypes(jnp.bfloat16, "float32") == part_dtypes("bfloat16", "float32")


def test_three_passes_are_of_the_decoder_alone():
    config = preset("0.6B-Base").with_dtypes("bfloat16", "bfloat16_3x", "float32")
    assert config.code_predictor.transformer.dtype == "float32"
    assert config.codec.decoder.three_pass
    assert config.codec.decoder.transformer.dtype == config.codec.encoder.transformer.dtype == "float32"
    assert config.with_dtypes("float32") == preset("0.6B-Base").with_dtypes("float32")


def test_unknown_dtypes_are_refused():
    with pytest.raises(ConfigError, match="dtype must be float32 or bfloat16, got 'float16'"):
        preset("0.6B-Base").with_dtypes("float16")


def test_generation_defaults_are_the_official_ones_where_the_file_is_silent():
    config, codec, _ = hf_export.to_hf(preset("0.6B-CustomVoice"))
    model = hf_config.from_hf(config, codec, {"temperature": 0.5, "subtalker_top_k": 3, "max_new_tokens": 70})
    assert model.generation.talker.temperature == 0.5
    assert model.generation.talker.top_k == 50
    assert model.generation.talker.repetition_penalty == 1.05
    assert model.generation.code_predictor.top_k == 3
    assert model.generation.code_predictor.temperature == 0.9
    assert model.generation.code_predictor.repetition_penalty == 1.0
    assert model.max_new_tokens == 70
    assert hf_config.from_hf(config, codec, {}).max_new_tokens == 2048
    # What is null is off.
    names = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "subtalker_dosample")
    nulls = dict.fromkeys([*names, "subtalker_temperature", "subtalker_top_k", "subtalker_top_p"])
    off = SamplingConfig(do_sample=False, temperature=1.0, top_k=0)
    assert hf_config.from_hf(config, codec, nulls).generation == GenerationConfig(off, off)
    assert hf_config.from_hf(config, codec, {"max_new_tokens": None}).max_new_tokens == 2048


def test_names_are_read_in_lower_case():
    top, codec, generation = copy.deepcopy(hf_export.to_hf(preset("0.6B-CustomVoice")))
    talker = top["talker_config"]
    for key in ("spk_id", "spk_is_dialect", "codec_language_id"):
        talker[key] = {name.title(): value for name, value in talker[key].items()}
    talker["spk_is_dialect"]["Eric"] = "Sichuan_Dialect"
    assert hf_config.from_hf(top, codec, generation) == preset("0.6B-CustomVoice")
    talker["spk_id"]["ERIC"] = 2000
    with pytest.raises(ConfigError, match="talker_config: spk_id has names that differ in nothing but case"):
        hf_config.from_hf(top, codec, generation)


@pytest.mark.parametrize("hundredths", [1, 8, 100, 112, 114, 232, 1234, 6000])
def test_frames_of_seconds(hundredths):
    codec = preset("0.6B-Base").codec
    assert codec.frames_in(hundredths / 100) == max(1, hundredths * 125 // 1000)


def test_sampling_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"top_k must be a whole number, got 20\.0"):
        SamplingConfig(top_k=20.0)
    with pytest.raises(ConfigError, match="repetition_penalty of the code predictor must be 1"):
        GenerationConfig(code_predictor=SamplingConfig(repetition_penalty=1.1))


def changed(name, path, value):
    """The three dicts of a preset with one key set to `value`, or removed where that is None."""
    dicts = copy.deepcopy(hf_export.to_hf(preset(name)))
    *parents, key = path
    target = dicts
    for parent in parents:
        target = target[parent]
    if value is None:
        del target[key]
    else:
        target[key] = value
    return dicts


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((0, "model_type"), "qwen2_audio", "config.json: model_type='qwen2_audio' is not supported"),
        ((0, "tokenizer_type"), "qwen3_tts_tokenizer_25hz", "tokenizer_type='qwen3_tts_tokenizer_25hz'"),
        ((0, "tts_model_type"), "singing", "tts_model_type='singing' is not one of base, custom_voice"),
        ((0, "talker_config"), None, "config.json has no 'talker_config'"),
        ((0, "talker_config", "hidden_size"), None, "config.json: talker_config has no 'hidden_size'"),
        ((0, "talker_config", "hidden_size"), 0, "talker_config: hidden_size must be at least 1, got 0"),
        ((0, "talker_config", "num_key_value_heads"), 5, r"num_attention_heads \(16\) must be a multiple of"),
        ((0, "talker_config", "head_dim"), 7, "head_dim must be even for RoPE, got 7"),
        ((0, "talker_config", "hidden_act"), "gelu", "hidden_act='gelu' is not supported"),
        ((0, "talker_config", "attention_bias"), True, "attention_bias=True is not supported"),
        ((0, "talker_config", "use_sliding_window"), True, "use_sliding_window=True is not supported"),
        ((0, "talker_config", "vocab_size"), 1024, "talker vocab_size must exceed its 1024 special codes"),
        ((0, "talker_config", "num_code_groups"), 8, "num_code_groups differ: talker 8, code predictor 16"),
        (
            (0, "talker_config", "rope_scaling"),
            {"rope_type": "yarn"},
            "talker_config: rope_scaling: rope_type='yarn' is not supported",
        ),
        (
            (0, "talker_config", "code_predictor_config", "rope_scaling"),
            {"rope_type": "linear"},
            "code_predictor_config: rope_scaling=.* is not supported",
        ),
        (
            (0, "talker_config", "code_predictor_config", "vocab_size"),
            999,
            "the code predictor has codebooks of 999 codes, the codec of 2048",
        ),
        ((0, "talker_config", "vocab_size"), 3080, "the talker has codebooks of 2056 codes, the codec of 2048"),
        ((0, "talker_config", "spk_is_dialect", "eric"), "cockney", "spk_is_dialect has 'cockney' for eric"),
        ((0, "talker_config", "codec_eos_token_id"), 3072, "codec_eos is 3072, but the codec vocabulary has 3072 ids"),
        (
            (0, "talker_config", "codec_language_id", "german"),
            5000,
            "language german is 5000, but the codec vocabulary",
        ),
        ((0, "talker_config", "spk_id", "ryan"), 9999, "speaker ryan is 9999, but the codec vocabulary has 3072 ids"),
        ((0, "tts_pad_token_id"), 151_936, "tts_pad is 151936, but the text vocabulary has 151936 ids"),
        ((1, "model_type"), "encodec", "speech_tokenizer/config.json: model_type='encodec'"),
        ((1, "decode_upsample_rate"), 960, "encode_downsample_rate=1920 differs from decode_upsample_rate=960"),
        ((1, "encode_downsample_rate"), 2879, "encode_downsample_rate=2879 differs from decode_upsample_rate=1920"),
        ((1, "decoder_config", "upsample_rates"), [8, 5, 4, 6], "=1920 but the decoder makes 3840 samples a frame"),
        ((1, "encoder_config", "upsampling_ratios"), [7], r"=1920 is no multiple of the encoder's strides \(7\)"),
        ((1, "encoder_config", "codebook_size"), 4096, r"encoder's codebook_size \(4096\) exceeds the decoder's"),
        ((1, "output_sample_rate"), 16000, "sample rates differ"),
        ((1, "encoder_valid_num_quantizers"), 8, "encoder_valid_num_quantizers=8 but the decoder reads 16"),
        ((1, "decoder_config", "decoder_dim"), 1000, r"decoder_dim \(1000\) must be divisible by 16"),
        ((1, "encoder_config", "use_causal_conv"), False, "use_causal_conv=False is not supported"),
        ((2, "temperature"), 0, "temperature must be from 1e-6 to 1e6, got 0"),
        ((2, "top_k"), 20.0, r"top_k must be a whole number, got 20\.0"),
    ],
)
def test_what_cannot_run_is_refused_by_name(path, value, message):
    with pytest.raises(ConfigError, match=message):
        hf_config.from_hf(*changed("1.7B-CustomVoice", path, value))


def keys_of(values):
    """Every dict in nested dicts, with each of its keys."""
    for key, value in values.items():
        yield values, key
        if isinstance(value, dict):
            yield from keys_of(value)


def json_type(value):
    return "number" if type(value) in (int, float) else type(value)


@pytest.mark.parametrize("name", ["0.6B-Base", "1.7B-CustomVoice"])
@pytest.mark.parametrize(
    "wrong", [None, "many", True, 1.5, -1, 0, [], ["a"], [1.5], [0], [[8]], {}, {"a": [1]}], ids=str
)
def test_values_of_another_type_are_refused_by_the_name_of_their_key(name, wrong):
    config = preset(name)
    dicts = hf_export.to_hf(config)
    for values, key in [found for part in dicts for found in keys_of(part)]:
        before, values[key] = values.get(key), wrong
        try:
            found, refusal = hf_config.from_hf(*dicts), None
        except ConfigError as error:
            found, refusal = None, str(error)
        # Null may stand for a default, and of the right type this may be as good.
        if wrong is not None and json_type(wrong) != json_type(before):
            assert found == config or key in refusal, (key, refusal)
        values[key] = before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((0,), [], "config.json must be a JSON object, got []"),
        ((0, "talker_config"), "talker", "config.json: talker_config must be a JSON object, got 'talker'"),
        ((0, "talker_config", "spk_id"), ["a"], "config.json: talker_config: spk_id must be a JSON object, got ['a']"),
        (
            (0, "talker_config", "spk_id", "ryan"),
            "3061",
            "config.json: talker_config: spk_id: ryan must be a whole number, got '3061'",
        ),
        (
            (0, "talker_config", "spk_is_dialect", "eric"),
            1,
            "config.json: talker_config: spk_is_dialect: eric must be text, got 1",
        ),
        (
            (0, "talker_config", "rope_scaling"),
            2,
            "config.json: talker_config: rope_scaling must be a JSON object, got 2",
        ),
        ((0, "talker_config", "rope_theta"), [1], "config.json: talker_config: rope_theta must be a number, got [1]"),
        ((0, "talker_config", "num_attention_heads"), 0, "num_attention_heads must be at least 1, got 0"),
        ((0, "tts_model_size"), 1.7, "config.json: tts_model_size must be text, got 1.7"),
        ((1, "encoder_trained"), "no", "encoder_trained must be true or false, got 'no'"),
        (
            (1, "decoder_config", "upsample_rates"),
            "8543",
            "speech_tokenizer/config.json: decoder_config: upsample_rates must be a list of whole numbers, got '8543'",
        ),
        ((1, "encoder_config", "upsampling_ratios"), [8, 0], "upsampling_ratios must be at least 1, got 0"),
        ((1, "encoder_config", "sliding_window"), "250", "sliding_window must be a whole number, got '250'"),
        ((2,), "greedy", "generation_config.json must be a JSON object, got 'greedy'"),
        ((2, "do_sample"), "yes", "generation_config.json: do_sample must be true or false, got 'yes'"),
        ((0, "talker_config", "rope_theta"), 10**400, "rope_theta must be a number, got 1000000000"),
        ((2, "top_p"), float("nan"), "generation_config.json: top_p must be a number, got nan"),
        ((2, "max_new_tokens"), 0, "generation_config.json: max_new_tokens must be at least 1, got 0"),
    ],
)
def test_json_of_another_type_is_refused_in_clear_words(path, value, message):
    dicts = list(changed("1.7B-CustomVoice", path, value) if len(path) > 1 else hf_export.to_hf(preset("0.6B-Base")))
    if len(path) == 1:
        dicts[path[0]] = value
    with pytest.raises(ConfigError) as error:
        hf_config.from_hf(*dicts)
    assert message in str(error.value)


def test_a_missing_key_is_named_once():
    with pytest.raises(ConfigError) as error:
        hf_config.from_hf(*changed("0.6B-Base", (0, "talker_config", "hidden_size"), None))
    assert str(error.value) == "config.json: talker_config has no 'hidden_size'"


def test_base_needs_a_speaker_encoder():
    with pytest.raises(ConfigError, match=r"config\.json has no 'speaker_encoder_config'"):
        hf_config.from_hf(*changed("0.6B-Base", (0, "speaker_encoder_config"), None))


def test_speaker_encoders_hear_at_24_khz():
    with pytest.raises(ConfigError, match=r"speaker_encoder_config: sample_rate=16000 is not supported"):
        hf_config.from_hf(*changed("0.6B-Base", (0, "speaker_encoder_config", "sample_rate"), 16_000))


def test_unknown_preset_lists_what_exists():
    with pytest.raises(ConfigError, match=r"unknown preset .0\.6B-VoiceDesign.; there are 0\.6B-Base"):
        preset("0.6B-VoiceDesign")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        hf_config.read_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"tts_model_size": "größer"}', encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        hf_config.read_folder(tmp_path)
