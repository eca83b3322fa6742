"""Keys and values of past positions; the only file that knows how they are laid out.

Two caches with one interface: `positions` and `mask` describe the next T positions, `extend` adds
their keys and values for one layer and returns all that the layer may attend to, and `advance`
moves on once every layer has been extended. Layers are separate leaves, because slicing a stacked
array copies it.
"""

from __future__ import annotations

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import TransformerConfig


@flax.struct.dataclass
class KVCache:
    """A preallocated cache of `capacity` slots that sees everything before it.

    Rows are padded on the left: row b holds nothing in its first `start[b]` slots, and the position
    of slot s is s − start[b]. Writing past the capacity is an error of the caller; `grow` first.

    Attributes:
        keys, values: one [B, K, S, H] per layer.
        start: int32 [B], the first slot that row b uses.
        length: int32 [], slots written so far, the same for all rows.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    start: jax.Array
    length: jax.Array

    @classmethod
    def zeros(cls, config: TransformerConfig, start: jax.Array, capacity: int) -> Self:
        """An empty cache for the rows of `start` (int32 [B], their left padding)."""
        shape = (start.shape[0], config.num_kv_heads, capacity, config.head_dim)

        def empty() -> tuple[jax.Array, ...]:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))

        return cls(keys=empty(), values=empty(), start=start, length=jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def positions(self, steps: int) -> jax.Array:
        """Positions of the next `steps` slots, int32 [B, T]; negative in the left padding."""
        return self.length + jnp.arange(steps, dtype=jnp.int32) - self.start[:, None]

    def mask(self, steps: int) -> jax.Array:
        """True where the next `steps` slots may look, bool [B, T, S]: causal, without the padding."""
        slots = jnp.arange(self.capacity, dtype=jnp.int32)
        queries = self.length + jnp.arange(steps, dtype=jnp.int32)
        causal = slots[None, :] <= queries[:, None]
        return causal[None] & (slots >= self.start[:, None])[:, None]

    def extend(self, layer: int, keys: jax.Array, values: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """Writes keys and values [B, T, K, H] of `layer`; returns the cache and all of them [B, K, S, H]."""

        def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
            update = new.swapaxes(1, 2).astype(buffer.dtype)
            return jax.lax.dynamic_update_slice(buffer, update, (0, 0, self.length, 0))

        all_keys, all_values = write(self.keys[layer], keys), write(self.values[layer], values)
        cache = self.replace(keys=_with(self.keys, layer, all_keys), values=_with(self.values, layer, all_values))
        return cache, all_keys, all_values

    def advance(self, steps: int) -> Self:
        """Counts the next `steps` slots as written."""
        return self.replace(length=self.length + steps)

    def grow(self, capacity: int) -> Self:
        """The same cache with room for `capacity` slots in all."""
        extra = capacity - self.capacity

        def pad(buffer: jax.Array) -> jax.Array:
            return jnp.pad(buffer, ((0, 0), (0, 0), (0, extra), (0, 0)))

        return self.replace(keys=tuple(map(pad, self.keys)), values=tuple(map(pad, self.values)))


@flax.struct.dataclass
class WindowCache:
    """The last `window − 1` positions, for causal attention through a sliding window.

    Attributes:
        keys, values: one [B, K, window − 1, H] per layer, oldest first.
        length: int32 [], positions seen so far.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def zeros(cls, config: TransformerConfig, batch: int) -> Self:
        """A cache that has seen nothing; `config.sliding_window` must be set."""
        shape = (batch, config.num_kv_heads, config.sliding_window - 1, config.head_dim)

        def empty() -> tuple[jax.Array, ...]:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))

        return cls(keys=empty(), values=empty(), length=jnp.zeros((), jnp.int32))

    def positions(self, steps: int) -> jax.Array:
        """Positions of the next `steps` inputs, int32 [1, T]."""
        return (self.length + jnp.arange(steps, dtype=jnp.int32))[None]

    def mask(self, steps: int) -> jax.Array:
        """True where the next `steps` inputs may look among past and new, bool [1, T, window − 1 + T]."""
        past = self.keys[0].shape[2]
        queries = jnp.arange(steps)[:, None]
        offsets = jnp.arange(past + steps)[None] - past
        in_window = (offsets <= queries) & (offsets >= queries - past)
        return (in_window & (offsets + self.length >= 0))[None]

    def extend(self, layer: int, keys: jax.Array, values: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """Appends keys and values [B, T, K, H] of `layer`; returns the cache and all [B, K, S, H]."""
        past = self.keys[layer].shape[2]

        def append(buffer: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([buffer, new.swapaxes(1, 2).astype(buffer.dtype)], axis=2)

        all_keys, all_values = append(self.keys[layer], keys), append(self.values[layer], values)
        first = all_keys.shape[2] - past
        cache = self.replace(
            keys=_with(self.keys, layer, all_keys[:, :, first:]),
            values=_with(self.values, layer, all_values[:, :, first:]),
        )
        return cache, all_keys, all_values

    def advance(self, steps: int) -> Self:
        """Counts `steps` more positions as seen."""
        return self.replace(length=self.length + steps)


Cache = KVCache | WindowCache


def _with(items: tuple[jax.Array, ...], index: int, item: jax.Array) -> tuple[jax.Array, ...]:
    return (*items[:index], item, *items[index + 1 :])
