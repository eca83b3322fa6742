"""From a prompt to codes: prefill, one frame, and the scan over frames that is compiled end to end.

Every function here is pure: `params` is the parameter tree (`talker` and `code_predictor`), `config` a
hashable `ModelConfig`, and everything that changes rides in `DecodeState`. The same functions under `jax.jit` are at
the end, those that change a state with the state donated; `synthesis` and `streaming` call them. A frame is

    sample code 0  →  code predictor × (Q − 1)  →  sum of the Q embeddings + text track  →  talker step
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwen3_tts_jax.cache import KVCache, StagedCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.config import GenerationConfig, ModelConfig, SamplingConfig
from qwen3_tts_jax.decode_state import DecodeState, keep_still
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.sampling import draw
from qwen3_tts_jax.sharding import place_state
from qwen3_tts_jax.talker import Talker

Params = dict
PRNG = "threefry2x32"
"""Fixed, whatever JAX's default is: with other generators (rbg) a row's draws depend on the rest of the batch."""
MIN_FRAMES = 2  # The end of speech cannot be drawn before this frame: min_new_tokens of the official package.


def _talker(params: Params, config: ModelConfig, *args, method=None):
    return Talker(config.talker).apply({"params": params["talker"]}, *args, method=method)


def _predictor(params: Params, config: ModelConfig, *args, method=None):
    variables = {"params": params["code_predictor"]}
    return CodePredictor(config.code_predictor).apply(variables, *args, method=method)


# Compiled: dispatched one by one, its operations would delay a stream's first sound by 2 ms.
_fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))


def utterance_keys(seed: int, utterances: jax.Array) -> jax.Array:
    """PRNG keys [B] of the utterances with these numbers (int32 [B]); no key depends on the others."""
    return _fold_in(jax.random.key(seed, impl=PRNG), utterances)


def embed_codes(params: Params, config: ModelConfig, codes: jax.Array) -> jax.Array:
    """The sum of a frame's code embeddings, int32 [..., Q] → [..., D]; −1 adds nothing.

    Summed in the order of the codebooks, as the reference does: another order changes the rounding,
    and with it, sooner or later, a code.
    """

    def rows(codebook: int) -> jax.Array:
        ids = jnp.maximum(codes[..., codebook], 0)
        if codebook == 0:
            found = _talker(params, config, ids, method=Talker.embed_code)
        else:
            found = _predictor(params, config, codebook, ids, method=CodePredictor.embed_code)
        return jnp.where(codes[..., codebook, None] >= 0, found.astype(jnp.float32), 0.0)

    # One codebook after the other: XLA for TPUs would put the rows of all of them into memory.
    total = rows(0)
    for codebook in range(1, codes.shape[-1]):
        total = total + rows(codebook)
    return total.astype(config.talker.transformer.dtype)


def embed_text_track(params: Params, config: ModelConfig, text_ids: jax.Array) -> jax.Array:
    """Text ids int32 [B, U] of the frames to come → `DecodeState.text_track`, [B, U + 1, D]."""
    pad = jnp.full_like(text_ids, config.prompt.tts_pad, shape=(text_ids.shape[0], 1))
    return _talker(params, config, jnp.concatenate([text_ids, pad], axis=1), method=Talker.embed_text)


def embed_prompt(params: Params, config: ModelConfig, prompt: PromptBatch) -> tuple[jax.Array, jax.Array]:
    """The talker's inputs [B, T, D], and the text track [B, U + 1, D] that later frames add."""
    with jax.named_scope("embed_prompt"):
        text = _talker(params, config, jnp.maximum(prompt.text_ids, 0), method=Talker.embed_text)
        text = jnp.where(prompt.text_ids[..., None] >= 0, text, 0.0)
        embeddings = text + embed_codes(params, config, prompt.codes)
        if prompt.x_vectors is not None:
            at_speaker = jnp.arange(embeddings.shape[1]) == prompt.speaker_position[:, None]
            x_vectors = prompt.x_vectors.astype(embeddings.dtype)[:, None]
            embeddings = embeddings + jnp.where(at_speaker[..., None], x_vectors, 0.0)
        return embeddings, embed_text_track(params, config, prompt.trailing_text_ids)


def prefill(
    params: Params,
    config: ModelConfig,
    prompt: PromptBatch,
    keys: jax.Array,
    frame_limit: jax.Array,
    capacity: int,
) -> DecodeState:
    """Reads the prompts.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static under jit.
        prompt: B prompts of length T.
        keys: PRNG keys [B], see `utterance_keys`.
        frame_limit: int32 [B], the most frames that each row may make.
        capacity: slots of the cache that is returned, at least T; each frame takes one, and `grow` adds more.
    """
    embeddings, text_track = embed_prompt(params, config, prompt)
    batch, steps = prompt.text_ids.shape
    with jax.named_scope("prefill"):
        cache = KVCache.zeros(config.talker.transformer, batch, capacity=steps)
        hidden, cache = _talker(params, config, embeddings, cache)
        hidden = jnp.take_along_axis(hidden, prompt.lengths[:, None, None] - 1, axis=1)[:, 0]
        # What the padding left in the cache lies beyond the length and is overwritten.
        cache = cache.grow(capacity).replace(length=prompt.lengths)
        state = idle_state(config, cache, text_track)
        logits = _talker(params, config, hidden, method=Talker.logits)
        return state.replace(hidden=hidden, logits=logits, keys=keys, frame_limit=frame_limit)


def idle_state(config: ModelConfig, cache: KVCache, text_track: jax.Array) -> DecodeState:
    """A state whose rows make no frames, for `insert` in `decode_state`; the cache's length is taken as it is."""
    batch, _, width = text_track.shape
    vocab = config.talker.codec_vocab_size

    def zeros() -> jax.Array:
        # One for each field: a buffer can be donated only once.
        return jnp.zeros(batch, jnp.int32)

    return DecodeState(
        cache=cache,
        hidden=jnp.zeros((batch, width), text_track.dtype),
        logits=jnp.zeros((batch, vocab), jnp.float32),
        seen=jnp.zeros((batch, vocab), bool),
        text_track=text_track,
        text_start=zeros(),
        keys=utterance_keys(0, zeros()),
        frame=zeros(),
        frame_limit=zeros(),
        ended=jnp.zeros(batch, bool),
    )


def allowed_codes(config: ModelConfig, frame: jax.Array) -> jax.Array:
    """What code 0 may be at `frame` [B]: the codes themselves and, from frame 2 on, the end of speech; bool [B, V]."""
    ids = jnp.arange(config.talker.codec_vocab_size)
    is_code = ids < config.talker.codebook_size
    return is_code | ((ids == config.prompt.codec_eos) & (frame[:, None] >= MIN_FRAMES))


def predict_codes(
    params: Params,
    config: ModelConfig,
    sampling: SamplingConfig,
    hidden: jax.Array,
    code_0: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Codes 1 … Q−1 of a frame, int32 [B, Q − 1], and their log-probabilities, float32 [B, Q − 1].

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static under jit.
        sampling: how these codes are drawn.
        hidden: [B, D], the talker's state that predicted code 0.
        code_0: int32 [B].
        keys: PRNG keys [B] of the frame; codebook q draws with fold_in(key, q).
    """

    def draw_from(hidden: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _predictor(params, config, hidden, codebook, method=CodePredictor.logits)
        return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, codebook), sampling)

    def step(carry: tuple[jax.Array, jax.Array, jax.Array, KVCache], codebook: jax.Array):
        codes, scores, code, cache = carry
        x = _predictor(params, config, codebook - 1, code, method=CodePredictor.embed_code)
        hidden, cache = _predictor(params, config, x[:, None], cache)
        code, score = draw_from(hidden[:, -1], codebook)
        return (put(codes, code, codebook), put(scores, score, codebook), code, cache), None

    def put(codes: jax.Array, code: jax.Array, codebook: jax.Array) -> jax.Array:
        # A select rather than a write at a traced index: GPUs can then record the loop as one graph.
        return jnp.where(jnp.arange(1, num_codebooks) == codebook, code[:, None], codes)

    num_codebooks = config.talker.num_codebooks
    with jax.named_scope("code_predictor"):
        cache = KVCache.zeros(config.code_predictor.transformer, code_0.shape[0], num_codebooks, aligned=True)
        embedded = _talker(params, config, code_0, method=Talker.embed_code).astype(hidden.dtype)
        hidden, cache = _predictor(params, config, jnp.stack([hidden, embedded], axis=1), cache)
        code, score = draw_from(hidden[:, -1], jnp.int32(1))
        codes, scores = (jnp.broadcast_to(one[:, None], (one.shape[0], num_codebooks - 1)) for one in (code, score))
        carry = (codes, scores, code, cache)
        (codes, scores, _, _), _ = jax.lax.scan(step, carry, jnp.arange(2, num_codebooks))
        return codes, scores


def advance(params: Params, config: ModelConfig, state: DecodeState, codes: jax.Array) -> DecodeState:
    """Feeds a frame (int32 [B, Q]) and its text to the talker, which then predicts the next code 0.

    Rows that have ended stay where they are: what they write is overwritten by the next prompt in that row.
    """
    with jax.named_scope("talker"):
        last = state.text_track.shape[1] - 1
        entry = jnp.minimum(state.frame - state.text_start, last)
        text = jnp.take_along_axis(state.text_track, entry[:, None, None], axis=1)[:, 0]
        x = embed_codes(params, config, codes) + text
        hidden, cache = _talker(params, config, x[:, None], state.cache)
        hidden = hidden[:, -1]
        rows, made = jnp.arange(codes.shape[0]), state.active.astype(jnp.int32)
        return state.replace(
            cache=cache.replace(length=state.cache.length + made),
            hidden=hidden,
            logits=_talker(params, config, hidden, method=Talker.logits),
            seen=state.seen.at[rows, codes[:, 0]].set(True),
            frame=state.frame + made,
        )


def frame_step(
    params: Params, config: ModelConfig, generation: GenerationConfig, state: DecodeState
) -> tuple[DecodeState, jax.Array]:
    """Makes one frame; returns the state and the frame's codes, int32 [B, Q], −1 in rows that have ended.

    A row ends when it draws the end of speech (`ended`) or reaches its `frame_limit`.
    """
    return scored_frame_step(params, config, generation, state)[:2]


def scored_frame_step(
    params: Params, config: ModelConfig, generation: GenerationConfig, state: DecodeState
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """As `frame_step`, with the log-probabilities of what was drawn, float32 [B, Q].

    Where a row draws the end of speech, its log-probability stands in for code 0's and the others are 0; in rows
    that had already ended, all are 0.
    """
    speaking = state.active
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.frame)
    code_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    allowed = allowed_codes(config, state.frame)
    code_0, score_0 = draw(state.logits, code_keys, generation.talker, state.seen, allowed)
    ended = state.ended | (speaking & (code_0 == config.prompt.codec_eos))
    state = state.replace(ended=ended)
    active = state.active
    # Rows that have ended still compute: what they make is masked, and no other row sees it.
    rest, scores = predict_codes(params, config, generation.code_predictor, state.hidden, code_0, keys)
    codes = jnp.concatenate([code_0[:, None], rest], axis=1)
    drawn = [jnp.where(speaking, score_0, 0.0)[:, None], jnp.where(active[:, None], scores, 0.0)]
    return advance(params, config, state, codes), jnp.where(active[:, None], codes, -1), jnp.concatenate(drawn, axis=1)


def generate(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    state: DecodeState,
    num_frames: int,
) -> tuple[DecodeState, jax.Array]:
    """Makes `num_frames` frames in one scan; the cache must have room for them.

    Returns:
        The state and the codes, int32 [B, num_frames, Q], −1 in rows that have ended.
    """

    def step(state: DecodeState, _):
        return frame_step(params, config, generation, state)

    state, codes = jax.lax.scan(step, _stage(config, state, num_frames), length=num_frames)
    return _settle(config, state), codes.swapaxes(0, 1)


def generate_scored(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    state: DecodeState,
    num_frames: int,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """As `generate`, with the log-probabilities of what was drawn, float32 [B, num_frames, Q]; see `scored_frame_step`.

    The sum over a row is the log-probability of everything it said; `train.score` computes the same in one pass.
    """

    def step(state: DecodeState, _):
        state, codes, scores = scored_frame_step(params, config, generation, state)
        return state, (codes, scores)

    state, (codes, scores) = jax.lax.scan(step, _stage(config, state, num_frames), length=num_frames)
    return _settle(config, state), codes.swapaxes(0, 1), scores.swapaxes(0, 1)


def _stage(config: ModelConfig, state: DecodeState, num_frames: int) -> DecodeState:
    """The state for a chunk of `num_frames`, with a `StagedCache` where the config says so."""
    rows, devices = state.hidden.shape[0], config.talker.staging_devices
    # A single row writes at one position; rows that the devices cannot share evenly are computed by all.
    if rows == 1 or devices == 0 or rows % devices:
        return state
    return state.replace(cache=StagedCache.after(state.cache, config.talker.transformer, num_frames))


def _settle(config: ModelConfig, state: DecodeState) -> DecodeState:
    """The state after a chunk, with its `StagedCache`, if any, merged."""
    if not isinstance(state.cache, StagedCache):
        return state
    return state.replace(cache=state.cache.merged(config.talker.staging_devices))


def generate_at_most(
    params: Params,
    config: ModelConfig,
    generation: GenerationConfig,
    state: DecodeState,
    num_frames: jax.Array,
    max_frames: int,
) -> tuple[DecodeState, jax.Array]:
    """Makes frames until there are `num_frames` or every row has ended.

    The cache must have room for them, and for `max_frames` in a batch on TPUs (see `cache.StagedCache`).

    One compiled program makes any number of frames and never too many; `generate` makes a fixed number. Rows at their
    `frame_limit` go on in a later call if it is higher by then, so that each may make another number of frames.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static under jit.
        generation: how codes are drawn; its numbers may be traced.
        state: what `prefill` or the previous call returned.
        num_frames: int32 [], at most `max_frames`.
        max_frames: static under jit.

    Returns:
        The state and the codes, int32 [B, max_frames, Q], −1 in frames that were not made and in rows
        that have ended.
    """

    def more(carry: tuple[DecodeState, jax.Array, jax.Array]) -> jax.Array:
        state, _, made = carry
        return (made < num_frames) & jnp.any(state.active)

    def step(carry: tuple[DecodeState, jax.Array, jax.Array]):
        state, codes, made = carry
        after, frame = frame_step(params, config, generation, state)
        codes = jax.lax.dynamic_update_slice_in_dim(codes, frame[:, None], made, axis=1)
        return keep_still(state, after), codes, made + 1

    codes = jnp.full((state.hidden.shape[0], max_frames, config.talker.num_codebooks), -1, jnp.int32)
    start = (_stage(config, state, max_frames), codes, jnp.zeros((), jnp.int32))
    state, codes, _ = jax.lax.while_loop(more, step, start)
    return _settle(config, state), codes


def set_text(params: Params, config: ModelConfig, state: DecodeState, text_ids: jax.Array) -> DecodeState:
    """Replaces the text track by text ids int32 [B, U], the first of which goes with the next frame."""
    return state.replace(text_track=embed_text_track(params, config, text_ids), text_start=state.frame)


def empty_batch(
    params: Params, config: ModelConfig, rows: int, capacity: int, text_slots: int, mesh: Mesh | None = None
) -> DecodeState:
    """A batch of `rows` for `insert` (in `decode_state`), `capacity` slots and text tracks of `text_slots` ids.

    On a `mesh` no device holds more than its part of it at any time.
    """
    cache = KVCache.zeros(config.talker.transformer, rows, capacity)
    text_ids = jnp.full((rows, text_slots), config.prompt.tts_pad, jnp.int32)
    state = idle_state(config, cache, embed_text_track(params, config, text_ids))
    return state if mesh is None else place_state(mesh, state)


def configure(config: ModelConfig, platform: str | None, devices: int = 1) -> ModelConfig:
    """The same model, for batches that are spread over `devices` devices of a platform.

    Args:
        config: the model's.
        platform: "cpu", "gpu" or "tpu"; None where one program is to run on several.
        devices: how many the rows of a batch are spread over.
    """
    return replace(config, talker=replace(config.talker, staging_devices=devices if platform == "tpu" else 0))


prefill_compiled = jax.jit(prefill, static_argnames=("config", "capacity"))
generate_chunk = jax.jit(generate, static_argnames=("config", "num_frames"), donate_argnames="state")
generate_stream = jax.jit(generate_at_most, static_argnames=("config", "max_frames"), donate_argnames="state")
empty_batch_compiled = jax.jit(empty_batch, static_argnames=("config", "rows", "capacity", "text_slots", "mesh"))
set_text_compiled = jax.jit(set_text, static_argnames="config", donate_argnames="state")
