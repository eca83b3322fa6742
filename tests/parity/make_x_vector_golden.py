"""Writes tests/golden/x_vector.npz with the official package:  python -m tests.parity.make_x_vector_golden"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig
from tests.draw import draw
from tests.golden_x_vector import PATH, VARIANT, speech_like
from tests.parity.oracle import import_official, quiet
from tests.shapes import SMALL


def official_module() -> ModuleType:
    import_official()
    with quiet():
        from qwen_tts.core.models import modeling_qwen3_tts

    return modeling_qwen3_tts


def official_encoder(model: ModelConfig) -> Any:
    """The official speaker encoder of a base model, with drawn weights."""
    import torch

    module = official_module()
    top, _, _ = hf_export.to_hf(model)
    with quiet():
        config = module.Qwen3TTSSpeakerEncoderConfig(**top["speaker_encoder_config"])
        encoder = module.Qwen3TTSSpeakerEncoder(config).eval()
    weights = {
        name: torch.from_numpy(draw(f"speaker_encoder.{name}", tuple(x.shape)))
        for name, x in encoder.state_dict().items()
    }
    encoder.load_state_dict(weights)
    return encoder.requires_grad_(False)


def official_mel(samples: np.ndarray) -> np.ndarray:
    """[B, N] → [B, T, 128] with the figures of the official `extract_speaker_embedding`."""
    import torch

    with quiet():
        mel = official_module().mel_spectrogram(
            torch.from_numpy(samples), 1024, 128, 24_000, hop_size=256, win_size=1024, fmin=0, fmax=12_000
        )
    return mel.transpose(1, 2).numpy()


def official_arrays() -> dict[str, np.ndarray]:
    """The arrays of the golden file."""
    import torch

    samples = speech_like(5003)
    mel = official_mel(samples[None])
    vector = official_encoder(SMALL[VARIANT])(torch.from_numpy(mel)).numpy()
    return {"samples": samples, "mel": mel[0], "x_vector": vector[0]}


def main() -> None:
    np.savez_compressed(PATH, **official_arrays())
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
