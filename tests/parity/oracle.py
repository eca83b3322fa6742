"""The official PyTorch package as the oracle of the parity tests."""

from __future__ import annotations

from qwen3_tts_jax.convert.reference import OracleMissingError, import_official, load_official, quiet

__all__ = ["OracleMissingError", "import_official", "load_official", "model_classes", "quiet"]


def model_classes() -> tuple[type, type, type, type]:
    """(model, its config, codec model, its config): the official classes."""
    import_official()
    with quiet():
        from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
        from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config
        from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model

    return (
        Qwen3TTSForConditionalGeneration,
        Qwen3TTSConfig,
        Qwen3TTSTokenizerV2Model,
        Qwen3TTSTokenizerV2Config,
    )
