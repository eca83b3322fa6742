"""Reads the JSON files of a checkpoint in the published (Hugging Face) layout.

With `hf_export`, which writes them, the only module that knows their key names. Whatever this package
cannot run is refused by name.
"""

from __future__ import annotations

import json
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
)


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
    """`read_codec` of a file of any name."""
    return _codec_from_hf(_Keys(_read_json(Path(path)), str(path)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


class _Keys:
    """A JSON object whose missing or unsupported keys are reported with their full path."""

    def __init__(self, values: Mapping[str, Any], where: str):
        _require(isinstance(values, Mapping), f"{where} must be a JSON object, got {type(values).__name__}")
        self.values, self.where = values, where

    def __getitem__(self, key: str) -> Any:
        _require(key in self.values, f"{self.where} has no {key!r}")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        return default if value is None else value

    def child(self, key: str) -> _Keys:
        return _Keys(self[key], f"{self.where}: {key}")

    def lower_case(self, key: str) -> dict[str, Any]:
        """An object, {} where it is missing, with its names in lower case: requests name them in any case."""
        values = self.get(key, {})
        lowered = {name.lower(): value for name, value in values.items()}
        _require(len(lowered) == len(values), f"{self.where}: {key} has names that differ in nothing but case")
        return lowered

    def only(self, key: str, *allowed: Any) -> None:
        value = self.values.get(key, allowed[0])
        _require(
            value in allowed,
            f"{self.where}: {key}={value!r} is not supported (supported: {', '.join(map(repr, allowed))})",
        )


def _transformer_from_hf(keys: _Keys, eps: str = "rms_norm_eps", **overrides: Any) -> TransformerConfig:
    keys.only("attention_bias", False)
    try:
        return TransformerConfig(
            num_layers=keys["num_hidden_layers"],
            width=keys["hidden_size"],
            mlp_width=keys["intermediate_size"],
            num_heads=keys["num_attention_heads"],
            num_kv_heads=keys["num_key_value_heads"],
            head_dim=keys.get("head_dim", keys["hidden_size"] // keys["num_attention_heads"]),
            rope_theta=float(keys["rope_theta"]),
            norm_eps=keys[eps],
            **overrides,
        )
    except ConfigError as error:
        raise ConfigError(f"{keys.where}: {error}") from None


def from_hf(
    config: Mapping[str, Any], codec_config: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> ModelConfig:
    """Reads the dicts of config.json, speech_tokenizer/config.json and generation_config.json.

    Raises:
        ConfigError: another architecture, a missing key, or a value that this package cannot run.
    """
    top = _Keys(config, "config.json")
    top.only("model_type", "qwen3_tts")
    top.only("tokenizer_type", "qwen3_tts_tokenizer_12hz")
    _require(
        top["tts_model_type"] in ("base", "custom_voice", "voice_design"),
        f"config.json: tts_model_type={top['tts_model_type']!r} is not one of base, custom_voice, voice_design",
    )
    talker = top.child("talker_config")
    talker.only("hidden_act", "silu")
    talker.only("use_sliding_window", False)
    rope = talker.get("rope_scaling", {})
    _require(
        rope.get("rope_type", "default") == "default",
        f"config.json: talker_config: rope_scaling {rope.get('rope_type')!r} is not supported (supported: 'default')",
    )
    predictor = talker.child("code_predictor_config")
    predictor.only("hidden_act", "silu")
    predictor.only("use_sliding_window", False)
    predictor.only("rope_scaling", None)
    talker_config = TalkerConfig(
        transformer=_transformer_from_hf(talker, qk_norm=True),
        codec_vocab_size=talker["vocab_size"],
        text_vocab_size=talker["text_vocab_size"],
        text_width=talker["text_hidden_size"],
        num_codebooks=talker["num_code_groups"],
        max_positions=talker["max_position_embeddings"],
    )
    languages = talker.lower_case("codec_language_id")
    dialects = {name: dialect.lower() for name, dialect in talker.lower_case("spk_is_dialect").items() if dialect}
    for name, dialect in dialects.items():
        _require(
            dialect in languages,
            f"config.json: talker_config: spk_is_dialect has {dialect!r} for {name}, which codec_language_id has not",
        )
    sampling = _Keys(generation_config, "generation_config.json")
    return ModelConfig(
        model_type=top["tts_model_type"],
        model_size=top["tts_model_size"],
        talker=talker_config,
        code_predictor=CodePredictorConfig(
            transformer=_transformer_from_hf(predictor, qk_norm=True),
            codebook_size=predictor["vocab_size"],
            num_codebooks=predictor["num_code_groups"],
            talker_width=talker_config.transformer.width,
        ),
        prompt=PromptConfig(
            **{f"tts_{name}": top[f"tts_{name}_token_id"] for name in ("bos", "eos", "pad")},
            codec_eos=talker["codec_eos_token_id"],
            **{
                f"codec_{name}": talker[f"codec_{name}_id"]
                for name in ("bos", "pad", "think", "nothink", "think_bos", "think_eos")
            },
            languages=languages,
            speakers=talker.lower_case("spk_id"),
            dialects=dialects,
        ),
        codec=_codec_from_hf(_Keys(codec_config, "speech_tokenizer/config.json")),
        speaker_encoder=(
            _speaker_encoder_from_hf(top.child("speaker_encoder_config")) if top["tts_model_type"] == "base" else None
        ),
        generation=_generation_from_hf(sampling),
        max_new_tokens=sampling.get("max_new_tokens", 2048),
    )


def _speaker_encoder_from_hf(keys: _Keys) -> SpeakerEncoderConfig:
    default = SpeakerEncoderConfig()
    # What it hears is a spectrogram of `mel`, which knows no other.
    keys.only("sample_rate", default.sample_rate)
    return SpeakerEncoderConfig(
        mel_bins=keys.get("mel_dim", default.mel_bins),
        x_vector_width=keys.get("enc_dim", default.x_vector_width),
        channels=tuple(keys.get("enc_channels", default.channels)),
        kernel_sizes=tuple(keys.get("enc_kernel_sizes", default.kernel_sizes)),
        dilations=tuple(keys.get("enc_dilations", default.dilations)),
        attention_channels=keys.get("enc_attention_channels", default.attention_channels),
        res2net_scale=keys.get("enc_res2net_scale", default.res2net_scale),
        se_channels=keys.get("enc_se_channels", default.se_channels),
    )


def _codec_from_hf(top: _Keys) -> CodecConfig:
    top.only("model_type", "qwen3_tts_tokenizer_12hz")
    encoder, decoder = top.child("encoder_config"), top.child("decoder_config")
    decoder.only("hidden_act", "silu")
    encoder.only("hidden_act", "gelu")
    encoder.only("audio_channels", 1)
    encoder.only("use_causal_conv", True)
    encoder.only("use_conv_shortcut", False)
    encoder.only("pad_mode", "constant")
    sample_rate = top["output_sample_rate"]
    _require(
        sample_rate == top["input_sample_rate"] == encoder["sampling_rate"],
        f"{top.where}: input, output and encoder sample rates differ",
    )
    strides = tuple(reversed(encoder["upsampling_ratios"]))
    convolution_stride = 1
    for stride in strides:
        convolution_stride *= stride
    encoded, decoded = top["encode_downsample_rate"], top["decode_upsample_rate"]
    _require(
        encoded == decoded,
        f"{top.where}: encode_downsample_rate={encoded} differs from decode_upsample_rate={decoded}",
    )
    _require(
        encoded % convolution_stride == 0,
        f"{top.where}: encode_downsample_rate={encoded} is no multiple of the encoder's strides ({convolution_stride})",
    )
    config = CodecConfig(
        encoder_trained=top.get("encoder_trained", True),
        sample_rate=sample_rate,
        num_codebooks=top["encoder_valid_num_quantizers"],
        encoder=CodecEncoderConfig(
            transformer=_transformer_from_hf(
                encoder,
                eps="norm_eps",
                norm="layer",
                mlp="gelu",
                layer_scale=True,
                final_norm=False,
                sliding_window=encoder["sliding_window"],
            ),
            filters=encoder["num_filters"],
            strides=strides,
            kernel_size=encoder["kernel_size"],
            last_kernel_size=encoder["last_kernel_size"],
            residual_kernel_size=encoder["residual_kernel_size"],
            num_residual_layers=encoder["num_residual_layers"],
            dilation_growth=encoder["dilation_growth_rate"],
            compress=encoder["compress"],
            downsample_stride=encoded // convolution_stride,
            num_codebooks=encoder["num_quantizers"],
            num_semantic_codebooks=encoder["num_semantic_quantizers"],
            codebook_size=encoder["codebook_size"],
            codebook_dim=encoder["codebook_dim"],
        ),
        decoder=CodecDecoderConfig(
            transformer=_transformer_from_hf(decoder, layer_scale=True, sliding_window=decoder["sliding_window"]),
            num_codebooks=decoder["num_quantizers"],
            # The reference's decoder always splits off one codebook, whatever num_semantic_quantizers says.
            num_semantic_codebooks=1,
            codebook_size=decoder["codebook_size"],
            # The reference halves codebook_dim inside the quantizer.
            codebook_dim=decoder["codebook_dim"] // 2,
            quantizer_width=decoder["codebook_dim"],
            latent_width=decoder["latent_dim"],
            decoder_channels=decoder["decoder_dim"],
            upsample_rates=tuple(decoder["upsample_rates"]),
            latent_upsample_rates=tuple(decoder["upsampling_ratios"]),
        ),
    )
    _require(
        config.frame_samples == decoded,
        f"{top.where}: decode_upsample_rate={decoded} but the decoder makes {config.frame_samples} samples a frame",
    )
    _require(
        config.num_codebooks == config.decoder.num_codebooks,
        f"{top.where}: encoder_valid_num_quantizers={config.num_codebooks} "
        f"but the decoder reads {config.decoder.num_codebooks} codebooks",
    )
    return config


def _generation_from_hf(keys: _Keys) -> GenerationConfig:
    """Where generation_config.json is silent, the defaults of the official package."""
    return GenerationConfig(
        talker=SamplingConfig(
            do_sample=keys.get("do_sample", True),
            temperature=keys.get("temperature", 0.9),
            top_k=keys.get("top_k", 50),
            top_p=keys.get("top_p", 1.0),
            repetition_penalty=keys.get("repetition_penalty", 1.05),
        ),
        code_predictor=SamplingConfig(
            do_sample=keys.get("subtalker_dosample", True),
            temperature=keys.get("subtalker_temperature", 0.9),
            top_k=keys.get("subtalker_top_k", 50),
            top_p=keys.get("subtalker_top_p", 1.0),
        ),
    )
