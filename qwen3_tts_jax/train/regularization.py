"""What makes training harder so that generation is easier: noise on what is read, dropout, fewer frames."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import ConfigError, ModelConfig


@dataclass(frozen=True)
class Regularization:
    """What part of the input is corrupted; the targets stay as they are.

    Attributes:
        noise: part of codes 1 … Q − 1, as talker and code predictor read them, that random ones replace.
        noise_0: part of codes 0, likewise.
        forget: part of frames that the talker does not see, so that it must look at the text.
        dropout: part of the outputs of attention and MLPs (Srivastava et al. 2014), rounded to 256ths: 0, or 1 to 255
            of them.
        predictor_share: part of frames that the code predictor learns from, different ones in every step.
    """

    noise: float = 0.0
    noise_0: float = 0.0
    forget: float = 0.0
    dropout: float = 0.0
    predictor_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("noise", "noise_0", "forget", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a part from 0 to below 1, got {getattr(self, name)}")
        if self.dropout and not 1 <= _in_256ths(self.dropout) <= 255:
            raise ConfigError(f"dropout must be 0, or 1/256 to 255/256 once rounded to 256ths, got {self.dropout}")
        if not 0 < self.predictor_share <= 1:
            raise ConfigError(f"the code predictor must see a part of the frames, got {self.predictor_share}")


@flax.struct.dataclass
class Seen:
    """What the model reads instead of the codes that it learns.

    Attributes:
        talker: int32 [B, T, Q]; −1 adds nothing to a frame.
        predictor: int32 [B, T, Q].
        chosen: int32 [N], the frames that the code predictor works on, numbered through B·T; None takes all.
    """

    talker: jax.Array
    predictor: jax.Array
    chosen: jax.Array | None = None


def corrupt(key: jax.Array, codes: jax.Array, config: ModelConfig, recipe: Regularization) -> Seen:
    """What a training step reads instead of codes int32 [B, T, Q]; −1 where a row has no frame stays."""
    where_key, code_key, forget_key, choice_key = jax.random.split(key, 4)
    there = codes >= 0
    parts = jnp.array([recipe.noise_0] + [recipe.noise] * (codes.shape[-1] - 1))
    random = jax.random.randint(code_key, codes.shape, 0, config.talker.codebook_size, jnp.int32)
    replaced = there & (jax.random.uniform(where_key, codes.shape) < parts)
    noisy = jnp.where(replaced, random, codes)
    forgotten = jax.random.uniform(forget_key, codes.shape[:2]) < recipe.forget
    chosen = None
    if recipe.predictor_share < 1:
        count = math.ceil(recipe.predictor_share * codes.shape[0] * codes.shape[1])
        lot = jnp.where(there[..., 0], jax.random.uniform(choice_key, codes.shape[:2]), -1.0)
        chosen = jax.lax.top_k(lot.reshape(-1), count)[1]
    return Seen(jnp.where(forgotten[..., None], -1, noisy), noisy, chosen)


def drop_out(key: jax.Array, path: str, output: jax.Array, part: float) -> jax.Array:
    """An `Edit` (see `score.teacher_force`) of the outputs of attention and MLPs; `part` is rounded to 256ths."""
    dropped = _in_256ths(part)
    if dropped == 0 or path.rsplit("/", 1)[-1] not in ("attention", "mlp"):
        return output
    # Bytes, because random numbers are what dropout costs on a CPU.
    bits = jax.random.bits(jax.random.fold_in(key, zlib.crc32(path.encode())), output.shape, jnp.uint8)
    return jnp.where(bits >= dropped, output * (256 / (256 - dropped)), 0).astype(output.dtype)


def _in_256ths(part: float) -> int:
    return round(256 * part)
