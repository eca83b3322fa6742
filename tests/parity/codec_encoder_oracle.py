"""The official codec with drawn weights; writes its golden file:  python -m tests.parity.codec_encoder_oracle"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig
from tests import golden_codec_encoder as golden
from tests.draw import draw
from tests.parity.oracle import model_classes, quiet


@cache
def official_codec(model: ModelConfig) -> Any:
    """The official `Qwen3TTSTokenizerV2Model` of a model's codec."""
    import torch

    _, _, codec_class, config_class = model_classes()
    _, config, _ = hf_export.to_hf(model)
    with quiet():
        codec = codec_class(config_class(**config)).eval()
    weights = {
        name: torch.from_numpy(draw(name, tuple(tensor.shape))).to(tensor.dtype)
        for name, tensor in codec.state_dict().items()
    }
    codec.load_state_dict(weights, assign=True)
    return codec.requires_grad_(False)


@contextmanager
def windowed_attention() -> Iterator[None]:
    """Gives Mimi's transformer the mask that flash attention applies and its other kernels lack."""
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.mimi import modeling_mimi

    unlimited = modeling_mimi.create_causal_mask
    modeling_mimi.create_causal_mask = create_sliding_window_causal_mask
    try:
        yield
    finally:
        modeling_mimi.create_causal_mask = unlimited


def official_latents(codec: Any, samples: np.ndarray) -> np.ndarray:
    """What the official quantizer is given, samples [B, N] → [B, T, D]."""
    import torch

    encoder = codec.encoder
    with quiet():
        x = encoder.encoder(torch.from_numpy(samples)[:, None])
        x = encoder.encoder_transformer(x.transpose(1, 2)).last_hidden_state
        return encoder.downsample(x.transpose(1, 2)).transpose(1, 2).numpy()


def official_codes(codec: Any, samples: np.ndarray, mask: np.ndarray | None = None) -> list[np.ndarray]:
    """Codes [T, Q] of each row of samples [B, N]; `mask` [B, N] is 0 in the right padding."""
    import torch

    mask = np.ones(samples.shape, np.int64) if mask is None else mask
    with quiet():
        codes = codec.encode(torch.from_numpy(samples), torch.from_numpy(mask)).audio_codes
    return [row.numpy() for row in codes]


def golden_arrays() -> dict[str, np.ndarray]:
    """The arrays of the golden file, made anew."""
    codec, samples = official_codec(golden.MODEL), golden.golden_samples()

    def encode() -> tuple[np.ndarray, np.ndarray]:
        return np.stack(official_codes(codec, samples)).astype(np.int16), official_latents(codec, samples)

    arrays = dict(zip(("codes", "latents"), encode(), strict=True))
    with windowed_attention():
        arrays |= dict(zip(("windowed_codes", "windowed_latents"), encode(), strict=True))
    return arrays


def main() -> None:
    np.savez_compressed(golden.PATH, **golden_arrays())
    print(f"{golden.PATH}: {golden.PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
