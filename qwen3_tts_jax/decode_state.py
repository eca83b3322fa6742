"""What one frame hands on to the next, for a batch of rows, and how rows come and stand still.

Pure functions; those under `jax.jit`, with the state donated, are at the end.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_tts_jax.cache import KVCache, StagedCache


@flax.struct.dataclass
class DecodeState:
    """Everything that one frame hands on to the next.

    Attributes:
        cache: the talker's keys and values; staged only within a chunk.
        hidden: [B, D], the talker's state that predicts the next code 0.
        logits: float32 [B, V] of the next code 0.
        seen: bool [B, V], codes 0 drawn so far (for the repetition penalty).
        text_track: [B, U + 1, D], text added to the embeddings of frames `text_start`, `text_start` + 1, …;
            the last entry (tts_pad) is repeated for ever.
        text_start: int32 [B], the frame that the text track starts with.
        keys: PRNG keys [B], one per utterance.
        frame: int32 [B], frames made so far; it stands still in rows that have ended.
        frame_limit: int32 [B], frames after which a row is cut off.
        ended: bool [B], True where a row drew the end of speech.
    """

    cache: KVCache | StagedCache
    hidden: jax.Array
    logits: jax.Array
    seen: jax.Array
    text_track: jax.Array
    text_start: jax.Array
    keys: jax.Array
    frame: jax.Array
    frame_limit: jax.Array
    ended: jax.Array

    @property
    def active(self) -> jax.Array:
        """True where a row still speaks, bool [B]."""
        return ~self.ended & (self.frame < self.frame_limit)


def insert(state: DecodeState, rows: jax.Array, new: DecodeState) -> DecodeState:
    """Puts prompts that were read separately into `rows` (int32 [R]); those for rows ≥ B are dropped.

    `new` has R rows, the same text track length, and no more slots in its cache.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[rows].set(new, mode="drop")

    cache = state.cache.insert(rows, new.cache)
    return jax.tree.map(put, state.replace(cache=None), new.replace(cache=None)).replace(cache=cache)


def keep_still(before: DecodeState, after: DecodeState) -> DecodeState:
    """The state `after` a frame, in which rows that made none can still make it: where their `frame_limit` is raised.

    What predicts their next frame is as it was `before`; their caches and frames have stood still anyway.
    """

    def kept(name: str) -> jax.Array:
        old, new = getattr(before, name), getattr(after, name)
        return jnp.where(before.active[:, None], new, old)

    return after.replace(**{name: kept(name) for name in ("hidden", "logits", "seen")})


def grow(state: DecodeState, capacity: int) -> DecodeState:
    """The same state with room for `capacity` slots in its cache."""
    return state.replace(cache=state.cache.grow(capacity))


insert_compiled = jax.jit(insert, donate_argnames="state")
grow_compiled = jax.jit(grow, static_argnames="capacity")
