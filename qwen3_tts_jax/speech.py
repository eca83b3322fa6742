"""What is spoken, `Speech`, and how callers are told how far it is, `Progress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from qwen3_tts_jax.config import CodecConfig

FinishReason = Literal["stop", "length"]
"""Of an utterance: the model ended it, or a limit cut it."""

Progress = Callable[[Literal["load", "encode", "prefill", "speak", "decode"], int, int], None]
"""Called as progress(stage, done, total): bytes loaded, recordings encoded,
prompts read, frames made, utterances decoded."""


@dataclass(frozen=True)
class Speech:
    """One utterance, or a chunk of one that is streamed.

    Attributes:
        samples: float32 [N] in [−1, 1].
        sample_rate: samples per second.
        codes: int32 [T, Q], the frames that `samples` were decoded from.
        finish_reason: "stop" where the model ended the utterance, "length" where the limit cut it, None
            while a stream goes on.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finish_reason: FinishReason | None

    @classmethod
    def silent(cls, codec: CodecConfig, finish_reason: FinishReason) -> Self:
        """The last chunk of a stream that turned out to have ended with the chunk before it."""
        codes = np.zeros((0, codec.num_codebooks), np.int32)
        return cls(np.zeros(0, np.float32), codec.sample_rate, codes, finish_reason)

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.sample_rate
