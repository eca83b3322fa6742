"""What is spoken, `Speech`, and how callers are told how far it is, `Progress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

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

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.sample_rate
