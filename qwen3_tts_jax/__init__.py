"""Qwen3-TTS in JAX and Flax: compiled end to end, differentiable, and in float32 equal to the PyTorch reference.

`Qwen3TTS` is where to start. README, "How data flows", says what is in which module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_tts_jax.compile_cache import keep_compiled
    from qwen3_tts_jax.config import ConfigError, GenerationConfig, ModelConfig, SamplingConfig
    from qwen3_tts_jax.pipeline import Qwen3TTS
    from qwen3_tts_jax.prompt import Request
    from qwen3_tts_jax.speech import Speech
    from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
    from qwen3_tts_jax.streaming.batch import StreamError
    from qwen3_tts_jax.voice_prompt import VoicePrompt

_HOMES = {
    "keep_compiled": "compile_cache",
    "ConfigError": "config",
    "GenerationConfig": "config",
    "ModelConfig": "config",
    "SamplingConfig": "config",
    "Qwen3TTS": "pipeline",
    "Request": "prompt",
    "Speech": "speech",
    "SpeechTokenizer": "speech_tokenizer",
    "StreamError": "streaming.batch",
    "VoicePrompt": "voice_prompt",
}
__all__ = [
    "ConfigError",
    "GenerationConfig",
    "ModelConfig",
    "Qwen3TTS",
    "Request",
    "SamplingConfig",
    "Speech",
    "SpeechTokenizer",
    "StreamError",
    "VoicePrompt",
    "keep_compiled",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command answers --help without waiting for JAX."""
    if name in _HOMES:
        return getattr(import_module(f"qwen3_tts_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
