"""Keys and values of past positions; the only file that knows how they are laid out.

Three caches with one interface: `positions` and `mask` describe the next T positions, `extend` adds
their keys and values for one layer and returns all that the layer may attend to, and `advance`
moves on once every layer has been extended. Layers are separate leaves, because slicing a stacked
array copies it. Keys have their slots last and values their head dim last: in both products of a
decode step the sum then runs over the slower axis, which is what vectorises.
"""

from __future__ import annotations

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.config import TransformerConfig

Pieces = tuple[jax.Array, ...]
"""Keys or values split over several arrays, in order."""


@flax.struct.dataclass
class KVCache:
    """A preallocated cache of `capacity` slots, for attention to everything before.

    Slot s of a row holds its position s, so rows of different lengths share a cache and each can be replaced
    without the others. Writing past the capacity is the caller's error; `grow` first.

    Attributes:
        keys: one [B, K, H, S] per layer.
        values: one [B, K, S, H] per layer.
        length: int32 [B], slots written so far, or int32 [] where that is the same in all rows; later slots
            are never looked at.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def zeros(cls, config: TransformerConfig, batch: int, capacity: int, *, aligned: bool = False) -> Self:
        """An empty cache; rows that are `aligned` always have the same length, and are written faster."""
        keys, values = _empty(config, batch, capacity)
        return cls(keys=keys, values=values, length=jnp.zeros(() if aligned else batch, jnp.int32))

    @property
    def capacity(self) -> int:
        """Slots of each row, S."""
        return self.values[0].shape[2]

    def positions(self, steps: int) -> jax.Array:
        """Positions of the next `steps` inputs, int32 [B, T], or [1, T] of aligned rows."""
        return jnp.atleast_1d(self.length)[:, None] + jnp.arange(steps, dtype=jnp.int32)

    def mask(self, steps: int) -> jax.Array:
        """True where the next `steps` inputs may look, bool [B or 1, T, S]: at themselves and all before."""
        slots = jnp.arange(self.capacity, dtype=jnp.int32)
        return slots <= self.positions(steps)[..., None]

    def past(self, steps: int) -> int | None:
        """How many slots precede the next `steps` inputs, if that is known when tracing and no slot follows them.

        Otherwise None. Inputs that fill the whole cache have none before them.
        """
        return 0 if steps == self.capacity else None

    def extend(self, layer: int, keys: jax.Array, values: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """Writes keys and values [B, T, K, H] of `layer`; returns the cache and all [B, K, H, S], [B, K, S, H]."""

        def write(buffer: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            new = new.astype(buffer.dtype)
            if new.shape == buffer.shape:
                return new
            # One length for all takes a plain write; one per row becomes a scatter, or selects around it.
            if self.length.size == 1:
                return jax.lax.dynamic_update_slice_in_dim(buffer, new, self.length.reshape(()), axis)
            return jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))(buffer, new, self.length, axis - 1)

        all_keys = write(self.keys[layer], keys.transpose(0, 2, 3, 1), axis=3)
        all_values = write(self.values[layer], values.swapaxes(1, 2), axis=2)
        return _replaced(self, layer, all_keys, all_values), all_keys, all_values

    def advance(self, steps: int) -> Self:
        """Counts the next `steps` slots of every row as written."""
        return self.replace(length=self.length + steps)

    def grow(self, capacity: int) -> Self:
        """The same cache with room for `capacity` slots in all."""
        extra = capacity - self.capacity
        return self.replace(
            keys=tuple(jnp.pad(buffer, ((0, 0), (0, 0), (0, 0), (0, extra))) for buffer in self.keys),
            values=tuple(jnp.pad(buffer, ((0, 0), (0, 0), (0, extra), (0, 0))) for buffer in self.values),
        )

    def insert(self, rows: jax.Array, new: Self) -> Self:
        """Replaces `rows` by the rows of `new`, which may have fewer slots.

        Args:
            rows: int32 [R], where each row of `new` goes; one that would go to a row ≥ B is dropped.
            new: a cache of R rows.
        """
        slots = slice(new.capacity)

        def put(buffers: tuple[jax.Array, ...], rows_of_new: tuple[jax.Array, ...], *where) -> tuple[jax.Array, ...]:
            pairs = zip(buffers, rows_of_new, strict=True)
            return tuple(buffer.at[(rows, *where)].set(row, mode="drop") for buffer, row in pairs)

        return self.replace(
            keys=put(self.keys, new.keys, slice(None), slice(None), slots),
            values=put(self.values, new.values, slice(None), slots),
            length=self.length.at[rows].set(new.length, mode="drop"),
        )


@flax.struct.dataclass
class StagedCache:
    """A `KVCache` that is only read, and the slots that a chunk of frames adds to it, one at a time.

    To write each row at a position of its own, XLA for TPUs loops over the rows, for each layer's keys and again for
    its values, which takes longer than reading the whole cache. Here all rows write at the same position, and `merged`
    puts what they wrote where it belongs, once per chunk.

    Attributes:
        before: what was there before the chunk.
        keys: one [B, K, H, W] per layer, of the chunk's W positions.
        values: one [B, K, W, H] per layer.
        written: int32 [], slots of the chunk written so far.
        length: int32 [B], as in a `KVCache`. What is written to a row that stands still is never looked at.
    """

    before: KVCache
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    written: jax.Array
    length: jax.Array

    @classmethod
    def after(cls, before: KVCache, config: TransformerConfig, steps: int) -> Self:
        """`before`, with room for `steps` more positions.

        In rows that go on after the chunk, `before` itself must have that room. Where it has less, `merged` overwrites
        a row's last slots, which are no longer looked at if that row has ended.
        """
        keys, values = _empty(config, before.length.shape[0], steps)
        return cls(before=before, keys=keys, values=values, written=jnp.zeros((), jnp.int32), length=before.length)

    def positions(self, steps: int) -> jax.Array:
        """The position of the next input, int32 [B, 1]; `steps` must be 1, here and below."""
        return self.length[:, None] + jnp.arange(steps, dtype=jnp.int32)

    def mask(self, steps: int) -> jax.Array:
        """True where the next input may look among past and new, bool [B, 1, S + W]."""
        rows, new = self.length.shape[0], self.values[0].shape[2]
        in_before = jnp.arange(self.before.capacity) < self.before.length[:, None, None]
        in_chunk = jnp.broadcast_to(jnp.arange(new) <= self.written, (rows, steps, new))
        return jnp.concatenate([in_before, in_chunk], axis=2)

    def past(self, steps: int) -> None:
        """As in a `KVCache`: not known."""

    def extend(self, layer: int, keys: jax.Array, values: jax.Array) -> tuple[Self, Pieces, Pieces]:
        """Adds the key and value [B, 1, K, H] of `layer`; returns the cache and all pieces, oldest first."""

        def write(buffer: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), self.written, axis)

        new_keys = write(self.keys[layer], keys.transpose(0, 2, 3, 1), axis=3)
        new_values = write(self.values[layer], values.swapaxes(1, 2), axis=2)
        cache = _replaced(self, layer, new_keys, new_values)
        return cache, (self.before.keys[layer], new_keys), (self.before.values[layer], new_values)

    def advance(self, steps: int) -> Self:
        """Counts the next slot as written."""
        return self.replace(length=self.length + steps, written=self.written + steps)

    def merged(self, devices: int) -> KVCache:
        """The cache with the chunk's slots after the old ones; in a row that stood still some lie beyond its length.

        Each of `devices` devices writes its own rows.
        """
        parts = ((self.before.keys, self.before.values), (self.keys, self.values), self.before.length)
        if devices == 1:
            keys, values = _put_behind(*parts)
        else:
            apart = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), parts)
            keys, values = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(_put_behind)(*apart))
        return KVCache(keys=keys, values=values, length=self.length)


@flax.struct.dataclass
class WindowCache:
    """The last `window − 1` positions, for causal attention through a sliding window.

    Attributes:
        keys: one [B, K, H, window − 1] per layer, oldest first.
        values: one [B, K, window − 1, H] per layer.
        length: int32 [B], positions seen so far.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def zeros(cls, config: TransformerConfig, batch: int) -> Self:
        """A cache that has seen nothing; `config.sliding_window` must be set."""
        keys, values = _empty(config, batch, config.sliding_window - 1)
        return cls(keys=keys, values=values, length=jnp.zeros(batch, jnp.int32))

    def positions(self, steps: int) -> jax.Array:
        """Positions of the next `steps` inputs, int32 [B, T]."""
        return self.length[:, None] + jnp.arange(steps, dtype=jnp.int32)

    def mask(self, steps: int) -> jax.Array:
        """True where the next `steps` inputs may look among past and new, bool [B, T, window − 1 + T]."""
        past = self.values[0].shape[2]
        queries = jnp.arange(steps)[:, None]
        offsets = jnp.arange(past + steps)[None] - past
        in_window = (offsets <= queries) & (offsets >= queries - past)
        return in_window & (offsets + self.length[:, None, None] >= 0)

    def past(self, steps: int) -> int | None:
        """As in a `KVCache`, but here later inputs no longer see the first slots."""
        return self.values[0].shape[2] or None

    def extend(self, layer: int, keys: jax.Array, values: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """Appends keys and values [B, T, K, H] of `layer`; returns the cache and all [B, K, H, S], [B, K, S, H]."""

        def append(buffer: jax.Array, new: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
            whole = jnp.concatenate([buffer, new.astype(buffer.dtype)], axis)
            steps = new.shape[axis]
            return whole, jax.lax.slice_in_dim(whole, steps, None, axis=axis)

        all_keys, last_keys = append(self.keys[layer], keys.transpose(0, 2, 3, 1), 3)
        all_values, last_values = append(self.values[layer], values.swapaxes(1, 2), 2)
        return _replaced(self, layer, last_keys, last_values), all_keys, all_values

    def advance(self, steps: int) -> Self:
        """Counts `steps` more positions as seen."""
        return self.replace(length=self.length + steps)


Cache = KVCache | StagedCache | WindowCache


def _put_behind(old: tuple[Pieces, Pieces], new: tuple[Pieces, Pieces], length: jax.Array) -> tuple[Pieces, Pieces]:
    """Keys and values of all layers, each row's new ones written at its length, in one loop over the rows."""

    def put_row(row: jax.Array, buffers: tuple[Pieces, Pieces]) -> tuple[Pieces, Pieces]:
        def put(old: Pieces, new: Pieces, axis: int) -> Pieces:
            start = [row, 0, 0, 0]
            start[axis] = length[row]
            return tuple(
                jax.lax.dynamic_update_slice(to, jax.lax.dynamic_slice_in_dim(of, row, 1), start)
                for to, of in zip(old, new, strict=True)
            )

        keys, values = buffers
        return put(keys, new[0], 3), put(values, new[1], 2)

    return jax.lax.fori_loop(0, length.shape[0], put_row, old)


def _empty(config: TransformerConfig, batch: int, slots: int) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    heads, width = config.num_kv_heads, config.head_dim
    keys = tuple(jnp.zeros((batch, heads, width, slots), config.dtype) for _ in range(config.num_layers))
    values = tuple(jnp.zeros((batch, heads, slots, width), config.dtype) for _ in range(config.num_layers))
    return keys, values


def _replaced(cache: Cache, layer: int, keys: jax.Array, values: jax.Array) -> Cache:
    def at_layer(buffers: tuple[jax.Array, ...], buffer: jax.Array) -> tuple[jax.Array, ...]:
        return (*buffers[:layer], buffer, *buffers[layer + 1 :])

    return cache.replace(keys=at_layer(cache.keys, keys), values=at_layer(cache.values, values))
