"""The differences between two implementations in one stage, and how large they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

Kind = Literal[
    "mel", "x-vector", "encoded", "ids", "embeddings", "hidden", "logits", "codes", "codec", "samples", "speech"
]


@dataclass(frozen=True)
class Tolerance:
    """What a stage must satisfy in every frame.

    "absolute" and "relative" bound the largest error from above, the latter in units of the largest
    magnitude of the reference; "cosine" bounds the lowest cosine from below; "equal" allows no other token.
    """

    measure: Literal["absolute", "relative", "cosine", "equal"]
    limit: float = 0.0

    def __str__(self) -> str:
        if self.measure == "equal":
            return "equal"
        return f"{self.measure} {'≥' if self.measure == 'cosine' else '≤'} {self.limit:g}"


_EQUAL = Tolerance("equal")
# The mel spectrogram and the codec are computed in float32, whatever the model's dtype.
_IN_FLOAT32: Mapping[Kind, Tolerance] = {
    "mel": Tolerance("relative", 1e-5),
    "codec": Tolerance("relative", 1e-4),
    "encoded": Tolerance("relative", 1e-4),
    "samples": Tolerance("absolute", 1e-4),
}

TOLERANCES: Mapping[str, Mapping[Kind, Tolerance]] = {
    "float32": {
        **_IN_FLOAT32,
        "x-vector": Tolerance("relative", 1e-4),
        "ids": _EQUAL,
        "embeddings": Tolerance("relative", 1e-5),
        "hidden": Tolerance("relative", 1e-4),
        "logits": Tolerance("relative", 1e-4),
        "codes": _EQUAL,
        "speech": Tolerance("absolute", 1e-4),
    },
    # In bfloat16 two codes may be equally likely, and the first that differs changes all that follow.
    "bfloat16": {
        **_IN_FLOAT32,
        "x-vector": Tolerance("cosine", 0.999),
        "ids": _EQUAL,
        "logits": Tolerance("cosine", 0.9995),
    },
}
"""By dtype and kind of stage; a kind that is not listed must only be finite. "samples" are decoded from the
same codes, "speech" from each side's own; "encoded" are codes of a recording, see `compare_encoded`."""


@dataclass(frozen=True)
class Stage:
    """The differences in one stage, over all utterances.

    Attributes:
        name: of the stage.
        shape: of the reference, "B × F × …".
        max_abs: largest absolute error.
        max_rel: the same over the largest magnitude of the reference.
        cosine: lowest cosine of a frame (or prompt position), all its values taken as one vector.
        agreement: fraction of equal tokens in [0, 1]; for logits, of equal most likely tokens.
        first_difference: first frame (or prompt position) beyond the tolerance or, if there is none,
            with another token.
        tolerance: None if the values must only be finite.
        passed: whether the tolerance is kept.
        kind: what its values are.
        errors: largest error of each frame, absolute for samples, else relative.
    """

    name: str
    shape: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    agreement: float | None
    first_difference: int | None
    tolerance: Tolerance | None
    passed: bool
    kind: Kind
    errors: tuple[float, ...] = field(repr=False, default=())


def compare(name: str, kind: Kind, dtype: str, reference: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> Stage:
    """Compares one stage of each utterance.

    Args:
        name: of the stage.
        kind: what its values are, which decides the tolerance and whether they are tokens.
        dtype: a key of `TOLERANCES`.
        reference: [T, …] of each utterance; T counts frames or prompt positions.
        ours: the same. Where T differs, what both have is compared, and a stage with a tolerance fails.
    """
    tolerance = TOLERANCES[dtype].get(kind)
    longest = max(len(row) for row in reference)
    shape = " × ".join(map(str, (len(reference), longest, *reference[0].shape[1:])))
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(reference, ours, strict=True)]
    same_length = all(len(a) == len(b) for a, b in zip(reference, ours, strict=True))
    if not same_length:
        shape += f" (ours {max(len(row) for row in ours)})"
    # If one side ends first, the first difference is the first frame that only the other has.
    ends = [len(a) for (a, _), r, o in zip(pairs, reference, ours, strict=True) if len(r) != len(o)]
    if kind in ("ids", "codes"):
        equal = [_over_frames(np.all, a == b) for a, b in pairs]
        compared = sum(max(np.size(a), np.size(b)) for a, b in zip(reference, ours, strict=True))
        agreement = sum(np.count_nonzero(a == b) for a, b in pairs) / compared
        first = min([*_first([~row for row in equal]), *ends], default=None)
        passed = tolerance is None or first is None
        return Stage(name, shape, None, None, None, agreement, first, tolerance, passed, kind)

    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    scale = max((float(np.abs(a).max(initial=0)) for a, _ in pairs), default=0.0) or 1.0
    errors = [_over_frames(np.max, np.abs(a - b)) for a, b in pairs]
    cosines = [_cosines(a, b) for a, b in pairs]
    max_abs = float(np.concatenate(errors).max(initial=0))
    agreement, other_token = None, []
    if kind == "logits":
        equal = [a.argmax(-1) == b.argmax(-1) for a, b in pairs]
        agreement = float(np.concatenate([row.ravel() for row in equal]).mean())
        other_token = [~_over_frames(np.all, row) for row in equal]
    # Written so that a NaN is beyond every tolerance.
    match tolerance:
        case Tolerance("absolute", limit):
            beyond = [~(row <= limit) for row in errors]
        case Tolerance("relative", limit):
            beyond = [~(row <= limit * scale) for row in errors]
        case Tolerance("cosine", limit):
            beyond = [~(row >= limit) for row in cosines]
        case _:
            beyond = [~np.isfinite(row) for row in errors]
    outside = [*_first(beyond), *ends] if tolerance else _first(beyond)
    unit = 1.0 if kind in ("samples", "speech") else scale
    return Stage(
        name=name,
        shape=shape,
        max_abs=max_abs,
        max_rel=max_abs / scale,
        cosine=float(np.concatenate(cosines).min(initial=1)),
        agreement=agreement,
        first_difference=min(outside or _first(other_token), default=None),
        tolerance=tolerance,
        passed=not outside,
        kind=kind,
        errors=tuple(_largest_by_frame([row / unit for row in errors])),
    )


@dataclass(frozen=True, eq=False)
class Quantization:
    """How a residual quantizer chose its codes.

    Attributes:
        residuals: [T, Q, C], what each codebook was given.
        entries: [Q, V, C], from which each codebook chose the nearest.
    """

    residuals: np.ndarray
    entries: np.ndarray

    def distances(self, codes: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How far each residual is from where its codebook would have chosen the other code, [T, Q].

        That is the distance to the plane midway between the two entries. It is 0 where the codes [T, Q] are equal,
        and after the first difference in a frame, since a different code leaves a different residual.
        """
        codebooks = np.arange(len(self.entries))
        own, other = (self.entries[codebooks, rows].astype(np.float64) for rows in (codes, others))
        apart = np.linalg.norm(other - own, axis=-1)
        middle = (own + other) / 2
        beyond = np.abs(np.sum((self.residuals - middle) * (other - own), axis=-1)) / np.where(apart == 0, 1, apart)
        differs = codes != others
        return np.where(differs & (np.cumsum(differs, axis=1) == 1), beyond, 0.0)


def compare_encoded(
    name: str, dtype: str, reference: np.ndarray, ours: np.ndarray, quantizations: Sequence[Quantization]
) -> Stage:
    """Compares the codes int [T, Q] of one recording.

    If a latent lies midway between two entries, rounding decides which is nearer, and the codes may differ. So a
    code's error is how far the latent would have to move (`Quantization.distances`), relative to the greatest
    length of a latent.

    Args:
        name: of the stage.
        dtype: a key of `TOLERANCES`.
        reference: codes.
        ours: the same; see `compare` where T differs.
        quantizations: of the reference, one per quantizer; together they have Q codebooks.
    """
    shared = min(len(reference), len(ours))
    splits = np.cumsum([len(part.entries) for part in quantizations])[:-1]
    codes, others = (np.split(rows[:shared], splits, axis=1) for rows in (reference, ours))
    parts = [replace(part, residuals=part.residuals[:shared]) for part in quantizations]
    distances = [part.distances(*pair) for part, *pair in zip(parts, codes, others, strict=True)]
    scale = max(float(np.linalg.norm(part.residuals, axis=-1).max()) for part in quantizations)
    equal = np.count_nonzero(reference[:shared] == ours[:shared])
    errors = np.concatenate(distances, axis=1).max(axis=1)
    tolerance = TOLERANCES[dtype]["encoded"]
    beyond = np.flatnonzero(~(errors <= tolerance.limit * scale)).tolist()
    same_length = len(reference) == len(ours)
    first = [*beyond, *([] if same_length else [shared])]
    return Stage(
        name=name,
        shape=" × ".join(map(str, (1, *reference.shape))) + ("" if same_length else f" (ours {len(ours)})"),
        max_abs=float(errors.max()),
        max_rel=float(errors.max()) / scale,
        cosine=None,
        agreement=equal / max(reference.size, ours.size),
        first_difference=min(first or np.flatnonzero(errors).tolist(), default=None),
        tolerance=tolerance,
        passed=not first,
        kind="encoded",
        errors=tuple((errors / scale).tolist()),
    )


def _over_frames(reduce, values: np.ndarray) -> np.ndarray:
    """[T, …] → [T]."""
    return reduce(values.reshape(len(values), -1), axis=1) if values.size else np.zeros(len(values), values.dtype)


def _first(rows: Sequence[np.ndarray]) -> list[int]:
    """The first True frame of each row [T] that has one."""
    return [int(np.argmax(row)) for row in rows if row.any()]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each frame, [T, …] → [T]; 1 where both are zero."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms == 0, 1.0, norms))


def _largest_by_frame(rows: Sequence[np.ndarray]) -> list[float]:
    longest = max(len(row) for row in rows)
    return [float(max(row[t] for row in rows if t < len(row))) for t in range(longest)]
