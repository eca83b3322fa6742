"""The official PyTorch package: imported and loaded. Needs the `parity` extra."""

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

import numpy as np

REQUIREMENTS = 'in the clone of this package, pip install -e ".[parity]" && pip install --no-deps qwen-tts==0.1.1'

# The official codec decodes longer utterances in chunks that do not see their whole past.
MAX_FRAMES = 300


class OracleMissingError(ImportError):
    """The official package, or one of its requirements, is not installed."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of the official package and its requirements, which are not ours, while their code runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_official() -> types.ModuleType:
    """Imports and returns `qwen_tts`.

    Its 25 Hz tokenizer imports torchaudio, which nothing here calls: if that is not installed, empty
    modules take its place.

    Raises:
        OracleMissingError: torch, transformers or qwen_tts is not installed, or does not load.
    """
    with quiet():
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401  (before the empty modules, since it looks for torchaudio itself)

            if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
                for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
                    module = types.ModuleType(name)
                    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
                    module.__path__ = []
                    sys.modules[name] = module
            import qwen_tts
        except (ImportError, OSError) as error:  # a shared library that does not load is an OSError
            raise OracleMissingError(
                f"the official package cannot be imported ({error}); to install it: {REQUIREMENTS}"
            ) from error
    return qwen_tts


def load_official(folder: str | Path, dtype: Any = None) -> Any:
    """The official `Qwen3TTSModel` of a checkpoint folder, in eval mode, on the CPU.

    `dtype` is the torch dtype of talker and code predictor, float32 by default. The codec is float32,
    though the official loader would give it `dtype` too: it was published in float32, and in bfloat16
    there would be nothing exact to compare with. The attention implementation is the package's default.
    """
    official = import_official()
    import torch

    with quiet():
        model = official.Qwen3TTSModel.from_pretrained(str(folder), dtype=dtype or torch.float32)
        if dtype not in (None, torch.float32):
            codec = Path(folder) / "speech_tokenizer"
            model.model.load_speech_tokenizer(
                official.Qwen3TTSTokenizer.from_pretrained(str(codec), dtype=torch.float32)
            )
    model.model.eval()
    model.model.speech_tokenizer.model.eval()
    return model


def to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor's values; floats of any size in float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()
