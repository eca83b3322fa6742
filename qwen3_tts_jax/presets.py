"""The five published checkpoints, as configs."""

from __future__ import annotations

from qwen3_tts_jax.config import (
    CodecConfig,
    CodecDecoderConfig,
    CodecEncoderConfig,
    CodePredictorConfig,
    ConfigError,
    ModelConfig,
    PromptConfig,
    SpeakerEncoderConfig,
    TalkerConfig,
    TransformerConfig,
)

PRESETS = ("0.6B-Base", "0.6B-CustomVoice", "1.7B-Base", "1.7B-CustomVoice", "1.7B-VoiceDesign")

_LANGUAGES = {
    "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070, "portuguese": 2071,
    "spanish": 2054, "japanese": 2058, "korean": 2064, "french": 2061, "russian": 2069,
}  # fmt: skip
_DIALECTS = {"beijing_dialect": 2074, "sichuan_dialect": 2062}
_SPEAKERS = {
    "serena": 3066, "vivian": 3065, "uncle_fu": 3010, "ryan": 3061, "aiden": 2861,
    "ono_anna": 2873, "sohee": 2864, "eric": 2875, "dylan": 2878,
}  # fmt: skip
_SPEAKER_DIALECTS = {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}


def preset(name: str) -> ModelConfig:
    """The config of a published checkpoint, `0.6B-Base` … `1.7B-VoiceDesign`.

    Raises:
        ConfigError: `name` is not one of `PRESETS`.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    size, kind = name.split("-")
    width, mlp_width, model_size = {"0.6B": (1024, 3072, "0b6"), "1.7B": (2048, 6144, "1b7")}[size]

    def qwen3(num_layers: int, width: int, mlp_width: int) -> TransformerConfig:
        return TransformerConfig(
            num_layers, width, mlp_width, num_heads=16, num_kv_heads=8, head_dim=128,
            rope_theta=1e6, norm_eps=1e-6, qk_norm=True,
        )  # fmt: skip

    return ModelConfig(
        model_type={"Base": "base", "CustomVoice": "custom_voice", "VoiceDesign": "voice_design"}[kind],
        model_size=model_size,
        talker=TalkerConfig(
            qwen3(28, width, mlp_width), codec_vocab_size=3072, text_vocab_size=151_936,
            text_width=2048, num_codebooks=16, max_positions=32_768,
        ),
        code_predictor=CodePredictorConfig(
            qwen3(5, 1024, 3072), codebook_size=2048, num_codebooks=16, talker_width=width
        ),
        prompt=PromptConfig(
            tts_bos=151_672, tts_eos=151_673, tts_pad=151_671,
            codec_bos=2149, codec_eos=2150, codec_pad=2148,
            codec_think=2154, codec_nothink=2155, codec_think_bos=2156, codec_think_eos=2157,
            languages=_LANGUAGES | (_DIALECTS if kind == "CustomVoice" else {}),
            speakers=_SPEAKERS if kind == "CustomVoice" else {},
            dialects=_SPEAKER_DIALECTS if kind == "CustomVoice" else {},
        ),
        codec=_published_codec(),
        speaker_encoder=SpeakerEncoderConfig(x_vector_width=width) if kind == "Base" else None,
        max_new_tokens=8192,
    )  # fmt: skip


def _published_codec() -> CodecConfig:
    return CodecConfig(
        sample_rate=24_000,
        num_codebooks=16,
        encoder=CodecEncoderConfig(
            TransformerConfig(
                num_layers=8, width=512, mlp_width=2048, num_heads=8, num_kv_heads=8, head_dim=64,
                rope_theta=1e4, norm_eps=1e-5, norm="layer", mlp="gelu", layer_scale=True, final_norm=False,
                sliding_window=250,
            ),
            filters=64, strides=(4, 5, 6, 8), kernel_size=7, last_kernel_size=3, residual_kernel_size=3,
            num_residual_layers=1, dilation_growth=2, compress=2, downsample_stride=2,
            num_codebooks=32, num_semantic_codebooks=1, codebook_size=2048, codebook_dim=256,
        ),
        decoder=CodecDecoderConfig(
            TransformerConfig(
                num_layers=8, width=512, mlp_width=1024, num_heads=16, num_kv_heads=16, head_dim=64,
                rope_theta=1e4, norm_eps=1e-5, layer_scale=True, sliding_window=72,
            ),
            num_codebooks=16, num_semantic_codebooks=1, codebook_size=2048, codebook_dim=256,
            quantizer_width=512, latent_width=1024, decoder_channels=1536,
            upsample_rates=(8, 5, 4, 3), latent_upsample_rates=(2, 2),
        ),
    )  # fmt: skip
