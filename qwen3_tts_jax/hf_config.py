"""Reads the JSON files of a checkpoint in the published (Hugging Face) layout.

Only this module and `hf_export`, which writes them, know their key names. Whatever this package cannot run
is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_tts_jax.config import (
    CodecConfig,
    CodecDecoderConfig,
    CodecEncoderConfig,
    CodePredictorConfig,
    ConfigError,
    GenerationConfig,
    ModelConfig,
    PromptConfig,
    SamplingConfig,
    SpeakerEncoderConfig,
    TalkerConfig,
    TransformerConfig,
    require,
)
from qwen3_tts_jax.json_keys import Keys


def read_folder(folder: str | Path) -> ModelConfig:
    """Reads the JSON files of a checkpoint folder in the published layout.

    Raises:
        FileNotFoundError: config.json or speech_tokenizer/config.json is missing.
        ConfigError: as `from_hf`, or a file that is not JSON.
    """
    folder = Path(folder)
    generation = folder / "generation_config.json"
    return from_hf(
        _read_json(folder / "config.json"),
        _read_json(folder / "speech_tokenizer" / "config.json"),
        _read_json(generation) if generation.exists() else {},
    )


def read_codec(folder: str | Path) -> CodecConfig:
    """Reads the config.json of a codec's own folder, `speech_tokenizer` in a checkpoint.

    Raises:
        FileNotFoundError: config.json is missing.
        ConfigError: as `from_hf`, or a file that is not JSON.
    """
    return read_codec_file(Path(folder) / "config.json")


def read_codec_file(path: str | Path) -> CodecConfig:
    """`read_codec` for a file of any name."""
    return _codec_from_hf(Keys(_read_json(Path(path)), str(path)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    except PermissionError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _transformer_from_hf(keys: Keys, eps: str = "rms_norm_eps", **overrides: Any) -> TransformerConfig:
    keys.only("attention_bias", False)
    width, num_heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    shape = {
        "num_layers": keys.whole("num_hidden_layers"),
        "width": width,
        "mlp_width": keys.whole("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": keys.whole("num_key_value_heads"),
        "head_dim": keys.whole("head_dim", width // num_heads),
        "rope_theta": float(keys.number("rope_theta")),
        "norm_eps": keys.number(eps),
    }
    try:
        return TransformerConfig(**shape, **overrides)
    except ConfigError as error:
        raise ConfigError(f"{keys.where}: {error}") from None


def _window(keys: Keys) -> int | None:
    return None if keys["sliding_window"] is None else keys.whole("sliding_window")


def from_hf(
    config: Mapping[str, Any], codec_config: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> ModelConfig:
    """Reads the dicts of config.json, speech_tokenizer/config.json and generation_config.json.

    Raises:
        ConfigError: another architecture, a missing key, or a value that this package cannot run.
    """
    top = Keys(config, "config.json")
    top.only("model_type", "qwen3_tts")
    top.only("tokenizer_type", "qwen3_tts_tokenizer_12hz")
    require(
        top["tts_model_type"] in ("base", "custom_voice", "voice_design"),
        f"config.json: tts_model_type={top['tts_model_type']!r} is not one of base, custom_voice, voice_design",
    )
    talker = top.child("talker_config")
    talker.only("hidden_act", "silu")
    talker.only("use_sliding_window", False)
    talker.child("rope_scaling", {}).only("rope_type", "default")
    predictor = talker.child("code_predictor_config")
    predictor.only("hidden_act", "silu")
    predictor.only("use_sliding_window", False)
    predictor.only("rope_scaling", None)
    talker_config = TalkerConfig(
        transformer=_transformer_from_hf(talker, qk_norm=True),
        codec_vocab_size=talker.whole("vocab_size"),
        text_vocab_size=talker.whole("text_vocab_size"),
        text_width=talker.whole("text_hidden_size"),
        num_codebooks=talker.whole("num_code_groups"),
        max_positions=talker.whole("max_position_embeddings"),
    )
    languages = talker.ids("codec_language_id")
    spoken = talker.lower_case("spk_is_dialect")
    dialects = {
        name: spoken.text(name).lower()
        for name, dialect in spoken.values.items()
        if dialect is not None and dialect is not False
    }
    for name, dialect in dialects.items():
        require(
            dialect in languages,
            f"config.json: talker_config: spk_is_dialect has {dialect!r} for {name}, which codec_language_id has not",
        )
    sampling = Keys(generation_config, "generation_config.json")
    return ModelConfig(
        model_type=top["tts_model_type"],
        model_size=top.text("tts_model_size"),
        talker=talker_config,
        code_predictor=CodePredictorConfig(
            transformer=_transformer_from_hf(predictor, qk_norm=True),
            codebook_size=predictor.whole("vocab_size"),
            num_codebooks=predictor.whole("num_code_groups"),
            talker_width=talker_config.transformer.width,
        ),
        prompt=PromptConfig(
            **{f"tts_{name}": top.whole(f"tts_{name}_token_id", least=0) for name in ("bos", "eos", "pad")},
            codec_eos=talker.whole("codec_eos_token_id", least=0),
            **{
                f"codec_{name}": talker.whole(f"codec_{name}_id", least=0)
                for name in ("bos", "pad", "think", "nothink", "think_bos", "think_eos")
            },
            languages=languages,
            speakers=talker.ids("spk_id"),
            dialects=dialects,
        ),
        codec=_codec_from_hf(Keys(codec_config, "speech_tokenizer/config.json")),
        speaker_encoder=(
            _speaker_encoder_from_hf(top.child("speaker_encoder_config")) if top["tts_model_type"] == "base" else None
        ),
        generation=_generation_from_hf(sampling),
        max_new_tokens=sampling.whole("max_new_tokens", 2048),
    )


def _speaker_encoder_from_hf(keys: Keys) -> SpeakerEncoderConfig:
    default = SpeakerEncoderConfig()
    # It hears spectrograms of `mel`, which knows no other rate.
    keys.only("sample_rate", default.sample_rate)
    return SpeakerEncoderConfig(
        mel_bins=keys.whole("mel_dim", default.mel_bins),
        x_vector_width=keys.whole("enc_dim", default.x_vector_width),
        channels=keys.wholes("enc_channels", default.channels),
        kernel_sizes=keys.wholes("enc_kernel_sizes", default.kernel_sizes),
        dilations=keys.wholes("enc_dilations", default.dilations),
        attention_channels=keys.whole("enc_attention_channels", default.attention_channels),
        res2net_scale=keys.whole("enc_res2net_scale", default.res2net_scale),
        se_channels=keys.whole("enc_se_channels", default.se_channels),
    )


def _codec_from_hf(top: Keys) -> CodecConfig:
    top.only("model_type", "qwen3_tts_tokenizer_12hz")
    encoder, decoder = top.child("encoder_config"), top.child("decoder_config")
    decoder.only("hidden_act", "silu")
    encoder.only("hidden_act", "gelu")
    encoder.only("audio_channels", 1)
    encoder.only("use_causal_conv", True)
    encoder.only("use_conv_shortcut", False)
    encoder.only("pad_mode", "constant")
    sample_rate = top.whole("output_sample_rate")
    require(
        sample_rate == top.whole("input_sample_rate") == encoder.whole("sampling_rate"),
        f"{top.where}: input, output and encoder sample rates differ",
    )
    strides = encoder.wholes("upsampling_ratios")[::-1]
    convolution_stride = math.prod(strides)
    encoded, decoded = top.whole("encode_downsample_rate"), top.whole("decode_upsample_rate")
    require(
        encoded == decoded,
        f"{top.where}: encode_downsample_rate={encoded} differs from decode_upsample_rate={decoded}",
    )
    require(
        encoded % convolution_stride == 0,
        f"{top.where}: encode_downsample_rate={encoded} is no multiple of the encoder's strides ({convolution_stride})",
    )
    config = CodecConfig(
        encoder_trained=top.flag("encoder_trained", True),
        sample_rate=sample_rate,
        num_codebooks=top.whole("encoder_valid_num_quantizers"),
        encoder=CodecEncoderConfig(
            transformer=_transformer_from_hf(
                encoder,
                eps="norm_eps",
                norm="layer",
                mlp="gelu",
                layer_scale=True,
                final_norm=False,
                sliding_window=_window(encoder),
            ),
            filters=encoder.whole("num_filters"),
            strides=strides,
            kernel_size=encoder.whole("kernel_size"),
            last_kernel_size=encoder.whole("last_kernel_size"),
            residual_kernel_size=encoder.whole("residual_kernel_size"),
            num_residual_layers=encoder.whole("num_residual_layers", least=0),
            dilation_growth=encoder.whole("dilation_growth_rate"),
            compress=encoder.whole("compress"),
            downsample_stride=encoded // convolution_stride,
            num_codebooks=encoder.whole("num_quantizers"),
            num_semantic_codebooks=encoder.whole("num_semantic_quantizers"),
            codebook_size=encoder.whole("codebook_size"),
            codebook_dim=encoder.whole("codebook_dim"),
        ),
        decoder=CodecDecoderConfig(
            transformer=_transformer_from_hf(decoder, layer_scale=True, sliding_window=_window(decoder)),
            num_codebooks=decoder.whole("num_quantizers"),
            # The reference's decoder always splits off one codebook, whatever num_semantic_quantizers says.
            num_semantic_codebooks=1,
            codebook_size=decoder.whole("codebook_size"),
            # The reference halves codebook_dim inside the quantizer.
            codebook_dim=decoder.whole("codebook_dim", least=2) // 2,
            quantizer_width=decoder.whole("codebook_dim"),
            latent_width=decoder.whole("latent_dim"),
            decoder_channels=decoder.whole("decoder_dim"),
            upsample_rates=decoder.wholes("upsample_rates"),
            latent_upsample_rates=decoder.wholes("upsampling_ratios"),
        ),
    )
    require(
        config.frame_samples == decoded,
        f"{top.where}: decode_upsample_rate={decoded} but the decoder makes {config.frame_samples} samples a frame",
    )
    require(
        config.num_codebooks == config.decoder.num_codebooks,
        f"{top.where}: encoder_valid_num_quantizers={config.num_codebooks} "
        f"but the decoder reads {config.decoder.num_codebooks} codebooks",
    )
    return config


def _generation_from_hf(keys: Keys) -> GenerationConfig:
    """Keys that generation_config.json lacks have the official package's defaults; null means off."""
    off = {
        "dosample": False,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    values = {
        name: off.get(name.removeprefix("subtalker_")) if value is None else value
        for name, value in keys.values.items()
    }
    keys = Keys(values, keys.where)
    return GenerationConfig(
        talker=SamplingConfig(
            do_sample=keys.flag("do_sample", True),
            temperature=keys.number("temperature", 0.9),
            top_k=keys.whole("top_k", 50, least=0),
            top_p=keys.number("top_p", 1.0),
            repetition_penalty=keys.number("repetition_penalty", 1.05),
        ),
        code_predictor=SamplingConfig(
            do_sample=keys.flag("subtalker_dosample", True),
            temperature=keys.number("subtalker_temperature", 0.9),
            top_k=keys.whole("subtalker_top_k", 50, least=0),
            top_p=keys.number("subtalker_top_p", 1.0),
        ),
    )
