"""Random weights that depend on nothing but (name, shape, seed): NumPy only.

Names are those of the published files. Every tensor is drawn apart, so neither their order nor the library
that builds the model matters, and a test without PyTorch can rebuild the weights of one with it. The scales
keep the network alive: nothing is 0 or 1 by default, and no activation saturates.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

# A tensor longer than this is a block of normals, repeated under signs of another, coprime period.
_BLOCK = 2**20

_TRANSPOSED = re.compile(r"decoder\.upsample\.\d+\.0\.conv\.weight|decoder\.decoder\.\d+\.block\.1\.conv\.weight")
_RESIDUAL_OUT = re.compile(r"decoder\.decoder\.\d+\.block\.\d+\.conv2\.conv\.weight")
_WAVEFORM_OUT = re.compile(r"decoder\.decoder\.\d+\.conv\.weight")
_EMBEDDING_SUM = re.compile(r"codebook\.embed(ding)?_sum$")


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The weights of one tensor of a published file.

    Args:
        name: its name in the file, e.g. `talker.model.norm.weight`; the kind of tensor follows from it.
        shape: its shape in the file.
        seed: another seed, another model.

    Returns:
        float32 [*shape]; the same on every machine up to the rounding of `log`.

    Raises:
        ValueError: no rule says how a tensor of this name is drawn.
    """
    shape = tuple(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "initialized":
        return np.ones(shape, np.float32)
    if last == "cluster_usage":
        return _cluster_usage(name, shape, seed)
    values = _normal(name, shape, seed)
    if _EMBEDDING_SUM.search(name):
        usage_name = _EMBEDDING_SUM.sub("codebook.cluster_usage", name)
        # The reference divides unused rows by an epsilon of 1e-5.
        values[_unused_rows(usage_name, shape[0], seed)] *= 1e-5
        return values
    if last in ("scale", "gamma"):
        return 0.3 * (1 + 0.3 * values)
    if last in ("alpha", "beta"):
        return 0.3 * values
    if last == "bias":
        return 0.1 * values
    if last == "weight" and len(shape) == 1:
        return 1 + 0.2 * values
    if last == "weight" and "embedding" in name:
        return values if "text_embedding" in name else 0.5 * values
    if last == "weight":
        values *= np.float32(_gain(name, shape) / np.sqrt(_fan_in(name, shape)))
        return values
    raise ValueError(f"no rule says how to draw {name!r} {list(shape)}")


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Products summed into one output: [out, in, *kernel], or [in, out, kernel] where transposed."""
    if _TRANSPOSED.fullmatch(name):
        overlap = 1 if name.startswith("decoder.upsample") else 2
        return shape[0] * overlap
    return int(np.prod(shape[1:]))


def _gain(name: str, shape: tuple[int, ...]) -> float:
    if "codec_head" in name or "lm_head" in name:
        return 3.0  # sampling from nearly equal logits would hide errors of temperature, top-k and top-p
    if _RESIDUAL_OUT.fullmatch(name):
        return 0.5  # three residual units a stage would let the waveform outgrow ±1
    if _WAVEFORM_OUT.fullmatch(name) and shape[0] == 1:
        return 0.06  # most samples stay within ±1, where the clamp hides nothing
    if name == "speaker_encoder.fc.weight":
        return 0.25  # the residual stream outgrows 1, and an x-vector is added to embeddings of about 0.5
    return 1.0


def _cluster_usage(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    usage = _generator(name, seed).uniform(0.5, 3.0, shape).astype(np.float32)
    unused = _unused_rows(name, shape[0], seed)
    usage[unused] = 0.0
    usage[unused[::2]] = 3e-6
    return usage


def _unused_rows(usage_name: str, codebook_size: int, seed: int) -> np.ndarray:
    """Rows of a codebook whose usage lies below the reference's epsilon: at least 2."""
    order = _generator(usage_name + ":unused", seed).permutation(codebook_size)
    return order[: max(2, codebook_size // 32)]


def _generator(name: str, seed: int) -> np.random.RandomState:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # The stream of RandomState is frozen for ever; that of default_rng may change.
    return np.random.RandomState(np.frombuffer(digest, "<u4").astype(np.uint32))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    size = int(np.prod(shape))
    generator = _generator(name, seed)
    block = generator.standard_normal(min(size, _BLOCK)).astype(np.float32)
    if size <= _BLOCK:
        return block.reshape(shape)
    signs = (generator.randint(0, 2, _BLOCK - 1) * 2 - 1).astype(np.float32)
    signs = np.concatenate([signs, signs])
    values = np.empty(size, np.float32)
    for start in range(0, size, _BLOCK):
        part = values[start : start + _BLOCK]
        offset = start % (_BLOCK - 1)
        np.multiply(block[: len(part)], signs[offset : offset + len(part)], out=part)
    return values.reshape(shape)
