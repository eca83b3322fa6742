"""How codebook 0 learns what is said: a head on top of it learns to predict a teacher's features.

As in Mimi (Défossez et al. 2024, arXiv:2410.00037, section 3.3.2), by the cosine distance between a frame's features
and a linear function of its semantic entry. The head belongs to training, not to the codec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.layers import PRECISION
from qwen3_tts_jax.train.codec.data import Length, Recording
from qwen3_tts_jax.train.lines import raise_problems

HEAD = "teacher/weight"
"""The head's path among what is trained."""

_TOLERANCE = 0.5  # seconds by which features may be shorter or longer than their recording


@dataclass(frozen=True)
class Teacher:
    """A teacher whose features are [T, `width`].

    Attributes:
        width: of the features.
        weight: of the cosine distance in the loss.
    """

    width: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"the weight of the teacher must be above 0, got {self.weight}")


def start_head(teacher: Teacher, width: int, seed: int) -> jax.Array:
    """The head [D, C] before the first step, C = `width`."""
    return jax.random.normal(jax.random.key(seed), (teacher.width, width), jnp.float32) * width**-0.5


def distance(vectors: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """1 minus the mean cosine between vectors [B, T, C] through the head [D, C] and targets [B, T, D], [].

    Frames whose target is 0 do not count.
    """
    predicted = jnp.matmul(vectors, head.T, precision=PRECISION)
    there = jnp.any(targets != 0, axis=-1)
    norms = jnp.sqrt(jnp.sum(predicted**2, axis=-1) + 1e-12) * jnp.sqrt(jnp.sum(targets**2, axis=-1) + 1e-12)
    cosine = jnp.sum(predicted * targets, axis=-1) / norms
    return jnp.sum(jnp.where(there, 1 - cosine, 0.0)) / jnp.maximum(jnp.sum(there), 1)


@dataclass(frozen=True, eq=False)
class Features:
    """A teacher's features of recordings.

    Attributes:
        arrays: float [T, D] of each recording, in the order of the recordings.
        rate: of the features, per second.
    """

    arrays: tuple[np.ndarray, ...]
    rate: float

    @property
    def width(self) -> int:
        """D."""
        return self.arrays[0].shape[1]

    def targets(
        self, places: Sequence[tuple[int, int]], frames: int, sample_rate: int, frame_samples: int
    ) -> np.ndarray:
        """Features float32 [B, frames, D] of crops from `Clips.places`.

        A frame's are the mean of the features whose middle lies in it or, if there are none, the one in which its own
        middle lies; 0 beyond the end.
        """
        targets = np.zeros((len(places), frames, self.width), np.float32)
        for row, (which, first) in enumerate(places):
            features = self.arrays[which]
            edges = (first + frame_samples * np.arange(frames + 1)) / sample_rate * self.rate
            for frame, (begin, end) in enumerate(pairwise(edges)):
                inside = slice(math.ceil(begin - 0.5), math.ceil(end - 0.5))
                around = math.floor((begin + end) / 2)
                piece = features[inside if inside.start < inside.stop else slice(around, around + 1)]
                if len(piece):
                    targets[row, frame] = np.asarray(piece, np.float32).mean(axis=0)
        return targets


def read_features(recordings: Sequence[Recording], lengths: Sequence[Length], rate: float) -> Features:
    """The features of all recordings, memory-mapped where they are .npy files.

    Args:
        recordings: from `data.find_recordings`.
        lengths: from `data.check_headers`.
        rate: of the features, per second.

    Raises:
        train.lines.DataError: recordings without features, files that do not hold one finite float array [T, D], widths
            that differ, or a length that is not the recording's at this rate. The first ten are named.
        ConfigError: a rate that is not above 0.
    """
    if not 0 < rate < math.inf:
        raise ConfigError(f"the rate of the teacher's features must be above 0, got {rate}")
    arrays: list[np.ndarray] = []
    problems = []
    for recording, (count, per_second) in zip(recordings, lengths, strict=True):
        if recording.features is None:
            problems.append(f"{recording.where} has no features")
            continue
        try:
            array = _read(recording.features)
            _check(array, count / per_second, rate, arrays[0].shape[1] if arrays else array.shape[1])
        except (OSError, ValueError) as error:
            problems.append(f"{recording.where}: features {recording.features}: {error}")
        else:
            arrays.append(array)
    raise_problems(problems)
    return Features(tuple(arrays), rate)


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path) as file:
            if len(file.files) != 1:
                raise ValueError(f"must hold one array, holds {len(file.files)}")
            array = file[file.files[0]]
    else:
        array = np.load(path, mmap_mode="r")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"must be floats [T, D], got {array.dtype} {list(array.shape)}")
    return array


def _check(array: np.ndarray, seconds: float, rate: float, width: int) -> None:
    if array.shape[1] != width:
        raise ValueError(f"has {array.shape[1]} numbers per frame, others {width}")
    if abs(len(array) / rate - seconds) > _TOLERANCE:
        raise ValueError(
            f"has {len(array)} frames, {len(array) / rate:.2f} s at {rate:g} per second, and the recording is "
            f"{seconds:.2f} s long"
        )
    if not np.isfinite(array).all():
        raise ValueError("is not finite")
