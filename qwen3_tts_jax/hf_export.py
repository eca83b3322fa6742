"""Writes a `ModelConfig` as the JSON files that the official package runs a model from."""

from __future__ import annotations

from typing import Any

from qwen3_tts_jax.config import CodecConfig, ModelConfig, TransformerConfig


def to_hf(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The dicts that `hf_config.from_hf` reads: config.json, the codec's config.json, generation_config.json."""
    talker, predictor, prompt = config.talker, config.code_predictor, config.prompt
    # The reference rotates with M-RoPE over three equal position streams: any split of H/2 gives plain RoPE.
    half = talker.transformer.head_dim // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    top = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": config.model_size,
        "tts_model_type": config.model_type,
        "transformers_version": "4.57.3",
        "im_start_token_id": 151_644,
        "im_end_token_id": 151_645,
        "assistant_token_id": 77_091,
        **{f"tts_{name}_token_id": getattr(prompt, f"tts_{name}") for name in ("bos", "eos", "pad")},
        "talker_config": {
            "model_type": "qwen3_tts_talker",
            **_transformer_to_hf(talker.transformer),
            "vocab_size": talker.codec_vocab_size,
            "text_vocab_size": talker.text_vocab_size,
            "text_hidden_size": talker.text_width,
            "num_code_groups": talker.num_codebooks,
            "max_position_embeddings": talker.max_positions,
            "rope_scaling": {
                "type": "default",
                "rope_type": "default",
                "interleaved": True,
                "mrope_section": sections,
            },
            "codec_eos_token_id": prompt.codec_eos,
            **{
                f"codec_{name}_id": getattr(prompt, f"codec_{name}")
                for name in ("bos", "pad", "think", "nothink", "think_bos", "think_eos")
            },
            "codec_language_id": dict(prompt.languages),
            "spk_id": dict(prompt.speakers),
            "spk_is_dialect": {name: prompt.dialects.get(name, False) for name in prompt.speakers},
            "code_predictor_config": {
                "model_type": "qwen3_tts_talker_code_predictor",
                **_transformer_to_hf(predictor.transformer),
                "layer_types": ["full_attention"] * predictor.transformer.num_layers,
                "vocab_size": predictor.codebook_size,
                "num_code_groups": predictor.num_codebooks,
                "max_position_embeddings": 65_536,
            },
        },
    }
    if config.speaker_encoder is not None:
        encoder = config.speaker_encoder
        top["speaker_encoder_config"] = {
            "mel_dim": encoder.mel_bins,
            "enc_dim": encoder.x_vector_width,
            "enc_channels": list(encoder.channels),
            "enc_kernel_sizes": list(encoder.kernel_sizes),
            "enc_dilations": list(encoder.dilations),
            "enc_attention_channels": encoder.attention_channels,
            "enc_res2net_scale": encoder.res2net_scale,
            "enc_se_channels": encoder.se_channels,
            "sample_rate": encoder.sample_rate,
        }
    generation = config.generation
    generation_dict = {
        "do_sample": generation.talker.do_sample,
        "repetition_penalty": generation.talker.repetition_penalty,
        **{name: getattr(generation.talker, name) for name in ("temperature", "top_p", "top_k")},
        "subtalker_dosample": generation.code_predictor.do_sample,
        **{f"subtalker_{name}": getattr(generation.code_predictor, name) for name in ("temperature", "top_p", "top_k")},
        "max_new_tokens": config.max_new_tokens,
    }
    return top, codec_to_hf(config.codec), generation_dict


def _transformer_to_hf(config: TransformerConfig, eps: str = "rms_norm_eps") -> dict[str, Any]:
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        eps: config.norm_eps,
        "hidden_act": "silu" if config.mlp == "swiglu" else "gelu",
        "attention_bias": False,
        "sliding_window": config.sliding_window,
    }


def codec_to_hf(config: CodecConfig) -> dict[str, Any]:
    """The dict that `hf_config.read_codec` reads: the config.json of a codec's own folder."""
    encoder, decoder = config.encoder, config.decoder
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "transformers_version": "4.57.3",
        "encoder_valid_num_quantizers": config.num_codebooks,
        "input_sample_rate": config.sample_rate,
        "output_sample_rate": config.sample_rate,
        "decode_upsample_rate": config.frame_samples,
        "encode_downsample_rate": config.frame_samples,
        **({} if config.encoder_trained else {"encoder_trained": False}),
        "encoder_config": {
            **_transformer_to_hf(encoder.transformer, eps="norm_eps"),
            "_frame_rate": config.frame_rate,
            "audio_channels": 1,
            "sampling_rate": config.sample_rate,
            "num_filters": encoder.filters,
            "upsampling_ratios": list(reversed(encoder.strides)),
            "kernel_size": encoder.kernel_size,
            "last_kernel_size": encoder.last_kernel_size,
            "residual_kernel_size": encoder.residual_kernel_size,
            "num_residual_layers": encoder.num_residual_layers,
            "dilation_growth_rate": encoder.dilation_growth,
            "compress": encoder.compress,
            "num_quantizers": encoder.num_codebooks,
            "num_semantic_quantizers": encoder.num_semantic_codebooks,
            "codebook_size": encoder.codebook_size,
            "codebook_dim": encoder.codebook_dim,
            "vector_quantization_hidden_dimension": encoder.codebook_dim,
            "upsample_groups": encoder.transformer.width,
            "max_position_embeddings": 8000,
            "use_causal_conv": True,
            "use_conv_shortcut": False,
            "pad_mode": "constant",
        },
        "decoder_config": {
            **_transformer_to_hf(decoder.transformer),
            "max_position_embeddings": 8000,
            "num_quantizers": decoder.num_codebooks,
            "num_semantic_quantizers": decoder.num_semantic_codebooks,
            "codebook_size": decoder.codebook_size,
            "codebook_dim": decoder.quantizer_width,
            "latent_dim": decoder.latent_width,
            "decoder_dim": decoder.decoder_channels,
            "upsample_rates": list(decoder.upsample_rates),
            "upsampling_ratios": list(decoder.latent_upsample_rates),
        },
    }


def codec_preprocessor_to_hf(config: CodecConfig) -> dict[str, Any]:
    """The preprocessor_config.json of a codec's own folder."""
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "chunk_length_s": None,
        "feature_size": 1,
        "overlap": None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": config.sample_rate,
    }
