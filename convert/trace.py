"""What an implementation computes between a recording and texts, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_tts_jax.convert.hearing import Hearing

Rows = list[np.ndarray]
"""One array [T, …] per utterance; T differs between utterances."""


@dataclass(frozen=True)
class Trace:
    """What an implementation computed between texts and samples, for B utterances.

    Codes are forced: on both sides, the logits of frame k were computed after the same codes 0 … k − 1.

    Attributes:
        hearing: of the recording; a base model's speech goes on from the official one.
        text_ids: int [T] each: instruction, the recording's transcript and the text, in their chat templates.
        embeddings: [T, D] each, the talker's prompt.
        text_track: [U, D] each, what is added to the embeddings of frames 0, 1, …; the last one to all that follow.
        layers: for each talker layer its outputs [T, D] over the prompt.
        hidden: [T, D] each, after the talker's last norm.
        talker_logits: [F + 1, V] each: those after the prompt, then those after each frame.
        predictor_logits: [F, Q − 1, V] each.
        codec: activations [F, …] each after every stage of the codec's decoder, by the stage's name, with all
            those of a frame in one row; "samples" [F, frame_samples] are the result.
        codes: int [F, Q] each, chosen freely: always the most likely code.
        samples: [N] each, decoded from those codes, without the recording's.
    """

    hearing: Hearing
    text_ids: Rows
    embeddings: Rows
    text_track: Rows
    layers: list[Rows]
    hidden: Rows
    talker_logits: Rows
    predictor_logits: Rows
    codec: dict[str, Rows]
    codes: Rows
    samples: Rows


def by_frame(values: np.ndarray, lengths: Sequence[int]) -> Rows:
    """[B, F·rate, C] → [F, rate·C] of each utterance, without its padding."""
    frames = values.reshape(len(lengths), max(lengths), -1)
    return [row[:length] for row, length in zip(frames, lengths, strict=True)]
