"""The official PyTorch package as the oracle of the parity tests."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUIREMENTS = (
    "pip install torch transformers==4.57.3 accelerate librosa einops sox onnxruntime "
    "&& pip install --no-deps qwen-tts==0.1.1"
)


class OracleMissingError(ImportError):
    """The official package, or one of its requirements, is not installed."""


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of the official package and its requirements are not ours: run their code in here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_official() -> types.ModuleType:
    """Imports and returns `qwen_tts`.

    Its 25 Hz tokenizer imports torchaudio, which nothing here calls: where that is not installed, empty
    modules take its place.

    Raises:
        OracleMissingError: torch, transformers or qwen_tts is not installed.
    """
    with quiet():
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401  (it looks for torchaudio itself: before the empty modules)

            if importlib.util.find_spec("torchaudio") is None:
                for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
                    module = types.ModuleType(name)
                    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
                    module.__path__ = []
                    sys.modules[name] = module
            import qwen_tts
        except ImportError as error:
            raise OracleMissingError(f"the official package cannot be imported ({error}): {REQUIREMENTS}") from error
    return qwen_tts


def model_classes() -> tuple[type, type, type, type]:
    """(model, its config, codec model, its config): the official classes."""
    import_official()
    with quiet():
        from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
        from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import (
            Qwen3TTSTokenizerV2Config,
        )
        from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model

    return (
        Qwen3TTSForConditionalGeneration,
        Qwen3TTSConfig,
        Qwen3TTSTokenizerV2Model,
        Qwen3TTSTokenizerV2Config,
    )


def load_official(folder: str | Path, dtype: Any = None) -> Any:
    """The official `Qwen3TTSModel` of a checkpoint folder, in eval mode, on the CPU.

    `dtype` is a torch dtype, float32 by default; the attention implementation is the package's own default.
    """
    official = import_official()
    import torch

    with quiet():
        model = official.Qwen3TTSModel.from_pretrained(str(folder), dtype=dtype or torch.float32)
    model.model.eval()
    model.model.speech_tokenizer.model.eval()
    return model
