"""Small models for tests: one per published checkpoint, every width odd or different from its neighbours.

What the official package fixes stays as published: the token ids of the text specials, 1,024 special rows
at the end of the codec vocabulary, 128 mel bins, 24 kHz. The rest is small, and the five models differ in
the number of codebooks (16 or 5) and in the samples per frame (1,920, 240, 24 or 12).
"""

from __future__ import annotations

from dataclasses import replace

from qwen3_tts_jax.config import (
    CodecConfig,
    CodecDecoderConfig,
    CodecEncoderConfig,
    CodePredictorConfig,
    ModelConfig,
    PromptConfig,
    SpeakerEncoderConfig,
    TalkerConfig,
    TransformerConfig,
)
from qwen3_tts_jax.presets import preset


def _qwen3(layers: int, width: int, mlp_width: int, heads: int, kv_heads: int, head_dim: int):
    return TransformerConfig(
        layers, width, mlp_width, heads, kv_heads, head_dim, rope_theta=1e6, norm_eps=1e-6, qk_norm=True
    )


def _talker(transformer: TransformerConfig, codebook_size: int, num_codebooks: int, text_width: int):
    return TalkerConfig(
        transformer,
        codec_vocab_size=codebook_size + 1024,
        text_vocab_size=151_936,
        text_width=text_width,
        num_codebooks=num_codebooks,
        max_positions=32_768,
    )


def _predictor(transformer: TransformerConfig, talker: TalkerConfig):
    return CodePredictorConfig(
        transformer,
        codebook_size=talker.codec_vocab_size - talker.num_special_codes,
        num_codebooks=talker.num_codebooks,
        talker_width=talker.transformer.width,
    )


def _prompt(name: str, codebook_size: int) -> PromptConfig:
    """The published ids, moved so that each keeps its distance from the end of the codes."""
    published = preset(name).prompt
    shift = codebook_size - 2048

    def moved(ids):
        return {key: value + shift for key, value in ids.items()}

    codec_ids = ("bos", "eos", "pad", "think", "nothink", "think_bos", "think_eos")
    return replace(
        published,
        **{f"codec_{key}": getattr(published, f"codec_{key}") + shift for key in codec_ids},
        languages=moved(published.languages),
        speakers=moved(published.speakers),
    )


def _codec(
    *,
    num_codebooks: int,
    codebook_size: int,
    upsample_rates: tuple[int, ...],
    latent_upsample_rates: tuple[int, ...],
    strides: tuple[int, ...],
    decoder_channels: int,
    window: int = 7,
) -> CodecConfig:
    """The decoder makes prod(upsample_rates) × prod(latent_upsample_rates) samples a frame, and the encoder
    reads prod(strides) × 2: they must agree."""
    codec = CodecConfig(
        sample_rate=24_000,
        num_codebooks=num_codebooks,
        encoder=CodecEncoderConfig(
            TransformerConfig(
                num_layers=2, width=27, mlp_width=38, num_heads=3, num_kv_heads=3, head_dim=10,
                rope_theta=1e4, norm_eps=1e-5, norm="layer", mlp="gelu", layer_scale=True, final_norm=False,
                sliding_window=9,
            ),
            filters=6, strides=strides, kernel_size=7, last_kernel_size=3, residual_kernel_size=3,
            num_residual_layers=1, dilation_growth=2, compress=2, downsample_stride=2,
            num_codebooks=num_codebooks + 2, num_semantic_codebooks=1,
            # The reference's encoder takes powers of 2 only; the largest that fits the talker's codes.
            codebook_size=2 ** (codebook_size.bit_length() - 1), codebook_dim=11,
        ),
        decoder=CodecDecoderConfig(
            TransformerConfig(
                num_layers=2, width=24, mlp_width=34, num_heads=3, num_kv_heads=3, head_dim=10,
                rope_theta=1e4, norm_eps=1e-5, layer_scale=True, sliding_window=window,
            ),
            num_codebooks=num_codebooks, num_semantic_codebooks=1, codebook_size=codebook_size,
            codebook_dim=6, quantizer_width=12, latent_width=20, decoder_channels=decoder_channels,
            upsample_rates=upsample_rates, latent_upsample_rates=latent_upsample_rates,
        ),
    )  # fmt: skip
    encoded = 2
    for stride in strides:
        encoded *= stride
    assert encoded == codec.frame_samples, (encoded, codec.frame_samples)
    return codec


def _base_06b() -> ModelConfig:
    """1,920 samples a frame as published, 16 codebooks of 67 codes; no projection in the predictor."""
    talker = _talker(_qwen3(3, 48, 80, 6, 2, 10), codebook_size=67, num_codebooks=16, text_width=12)
    return ModelConfig(
        model_type="base",
        model_size="0b6",
        talker=talker,
        code_predictor=_predictor(_qwen3(2, 48, 58, 4, 2, 14), talker),
        prompt=_prompt("0.6B-Base", 67),
        codec=_codec(
            num_codebooks=16, codebook_size=67, upsample_rates=(8, 5, 4, 3), latent_upsample_rates=(2, 2),
            strides=(4, 5, 6, 8), decoder_channels=48,
        ),
        speaker_encoder=SpeakerEncoderConfig(
            x_vector_width=48, channels=(16, 16, 16, 16, 48), attention_channels=10, se_channels=6
        ),
        max_new_tokens=300,
    )  # fmt: skip


def _custom_voice_06b() -> ModelConfig:
    """1,920 samples a frame as published, 16 codebooks of 61 codes; no projection in the predictor."""
    talker = _talker(_qwen3(3, 56, 80, 6, 3, 12), codebook_size=61, num_codebooks=16, text_width=12)
    return ModelConfig(
        model_type="custom_voice",
        model_size="0b6",
        talker=talker,
        code_predictor=_predictor(_qwen3(2, 56, 62, 4, 2, 10), talker),
        prompt=_prompt("0.6B-CustomVoice", 61),
        codec=_codec(
            num_codebooks=16, codebook_size=61, upsample_rates=(8, 5, 4, 3), latent_upsample_rates=(2, 2),
            strides=(4, 5, 6, 8), decoder_channels=48,
        ),
        max_new_tokens=300,
    )  # fmt: skip


def _base_17b() -> ModelConfig:
    """240 samples a frame, 5 codebooks of 37 codes, a projection in the predictor."""
    talker = _talker(_qwen3(3, 56, 80, 6, 2, 16), codebook_size=37, num_codebooks=5, text_width=10)
    return ModelConfig(
        model_type="base",
        model_size="1b7",
        talker=talker,
        code_predictor=_predictor(_qwen3(2, 44, 58, 4, 4, 12), talker),
        prompt=_prompt("1.7B-Base", 37),
        codec=_codec(
            num_codebooks=5, codebook_size=37, upsample_rates=(5, 3, 4), latent_upsample_rates=(2, 2),
            strides=(4, 5, 6), decoder_channels=40, window=5,
        ),
        speaker_encoder=SpeakerEncoderConfig(
            x_vector_width=56, channels=(12, 12, 12, 12, 36), attention_channels=10, se_channels=6,
            res2net_scale=4,
        ),
        max_new_tokens=300,
    )  # fmt: skip


def _custom_voice_17b() -> ModelConfig:
    """12 samples a frame, 16 codebooks of 53 codes, a projection in the predictor."""
    talker = _talker(_qwen3(3, 48, 80, 6, 3, 14), codebook_size=53, num_codebooks=16, text_width=14)
    return ModelConfig(
        model_type="custom_voice",
        model_size="1b7",
        talker=talker,
        code_predictor=_predictor(_qwen3(2, 36, 50, 4, 1, 10), talker),
        prompt=_prompt("1.7B-CustomVoice", 53),
        codec=_codec(
            num_codebooks=16, codebook_size=53, upsample_rates=(3, 2), latent_upsample_rates=(2,),
            strides=(3, 2), decoder_channels=28,
        ),
        max_new_tokens=300,
    )  # fmt: skip


def _voice_design_17b() -> ModelConfig:
    """24 samples a frame, 5 codebooks of 41 codes, a projection in the predictor."""
    talker = _talker(_qwen3(3, 56, 80, 6, 3, 12), codebook_size=41, num_codebooks=5, text_width=12)
    return ModelConfig(
        model_type="voice_design",
        model_size="1b7",
        talker=talker,
        code_predictor=_predictor(_qwen3(2, 40, 54, 5, 5, 10), talker),
        prompt=_prompt("1.7B-VoiceDesign", 41),
        codec=_codec(
            num_codebooks=5, codebook_size=41, upsample_rates=(4, 3), latent_upsample_rates=(2,),
            strides=(3, 4), decoder_channels=36,
        ),
        max_new_tokens=300,
    )  # fmt: skip


SMALL: dict[str, ModelConfig] = {
    "0.6B-Base": _base_06b(),
    "0.6B-CustomVoice": _custom_voice_06b(),
    "1.7B-Base": _base_17b(),
    "1.7B-CustomVoice": _custom_voice_17b(),
    "1.7B-VoiceDesign": _voice_design_17b(),
}
