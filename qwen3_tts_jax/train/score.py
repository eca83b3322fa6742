"""How likely the model finds given codes: teacher forcing in one parallel pass.

The talker reads a prompt and all its frames at once, the code predictor all frames at once, as a batch of B·T
sequences of Q positions. Both go through the same functions as generation, so the numbers are those of decoding step
by step; the training losses are made from them (`loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.generate import Params, allowed_codes, embed_codes, embed_prompt
from qwen3_tts_jax.prompt import PromptBatch
from qwen3_tts_jax.sampling import process_logits
from qwen3_tts_jax.talker import Talker
from qwen3_tts_jax.train.regularization import Seen
from qwen3_tts_jax.transformer import Block

Edit = Callable[[str, jax.Array], jax.Array]
"""edit(path, activation) → what takes its place; see `teacher_force`."""

_BLOCK_OUTPUT = "block_output"


@flax.struct.dataclass
class Forced:
    """What the model computes over prompts and given frames.

    Frames that a row does not have (−1 in the codes) hold meaningless numbers.

    Attributes:
        hidden: [B, T + 1, D], the talker's states that predict code 0 of frames 0 … T − 1, and of the one after.
        logits: float32 [B, T + 1, V], of code 0 from them.
        code_logits: float32 [B, T, Q − 1, V'], of codes 1 … Q − 1; [1, N, Q − 1, V'] of N frames that were chosen.
        activations: the outputs that were asked for, by path. The talker's are [B, S, …], over each row's prompt from
            position 0 on and then its frames; the predictor's are [B·T, Q, …].
    """

    hidden: jax.Array
    logits: jax.Array
    code_logits: jax.Array
    activations: dict[str, jax.Array]


@flax.struct.dataclass
class Scores:
    """Log-probabilities (natural) of given codes; 0 where there is no frame.

    Attributes:
        codes: float32 [B, T, Q].
        end: float32 [B], of the end of speech after a row's last frame.
        code_entropies: float32 [B, T, Q] in nats, of the distributions that the codes were scored under.
        end_entropies: float32 [B], of the one that the end was scored under.
    """

    codes: jax.Array
    end: jax.Array
    code_entropies: jax.Array
    end_entropies: jax.Array


def score(
    params: Params,
    config: ModelConfig,
    prompts: PromptBatch,
    codes: jax.Array,
    generation: GenerationConfig | None = None,
) -> jax.Array:
    """Log-probabilities float32 [B, T, Q] of codes after their prompts; 0 in frames that are not there.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static under jit.
        prompts: B prompts.
        codes: int32 [B, T, Q], −1 in the frames that a row does not have, which must be its last.
        generation: scores under the distributions that such sampling draws from: after repetition penalty, forbidden
            codes, temperature, top-k and top-p, −inf for a code that cannot be drawn. None: the model's own,
            over its whole vocabulary. Static under jit.
    """
    return scores(teacher_force(params, config, prompts, codes), config, codes, generation).codes


def scores(forced: Forced, config: ModelConfig, codes: jax.Array, generation: GenerationConfig | None = None) -> Scores:
    """The scores of the codes that `forced` was made with; the arguments are those of `score`."""
    there = codes[..., 0] >= 0
    first, rest = forced.logits, forced.code_logits
    if generation is not None:
        allowed = allowed_codes(config, jnp.arange(first.shape[1]))
        first = process_logits(first, generation.talker, _seen_before(codes[..., 0], first.shape[-1]), allowed)
        rest = process_logits(rest, generation.code_predictor)
    end_at = jnp.sum(there, axis=1)
    end_logits = jnp.take_along_axis(first, end_at[:, None, None], axis=1)[:, 0]
    end_codes = jnp.full(end_at.shape, config.prompt.codec_eos)
    known = jnp.maximum(codes, 0)

    def of_frames(function: Callable[..., jax.Array]) -> jax.Array:
        both = [function(first[:, :-1], known[..., 0])[..., None], function(rest, known[..., 1:])]
        return jnp.where(there[..., None], jnp.concatenate(both, axis=-1), 0.0)

    return Scores(
        codes=of_frames(log_probability),
        end=log_probability(end_logits, end_codes),
        code_entropies=of_frames(lambda logits, _: entropy(logits)),
        end_entropies=entropy(end_logits),
    )


def log_probability(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability of `codes` int [...] under the softmax of `logits` float32 [..., V], in nats: [...]."""
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax of `logits` [..., V], in nats: [...]; −inf is allowed."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    possible = jnp.isfinite(log_probabilities)
    finite = jnp.where(possible, log_probabilities, 0.0)
    return -jnp.sum(jnp.where(possible, jnp.exp(finite), 0.0) * finite, axis=-1)


def _seen_before(codes: jax.Array, size: int) -> jax.Array:
    """Codes 0, int32 [B, T] → which codes came in earlier frames, bool [B, T + 1, size]."""
    drawn = jax.nn.one_hot(codes, size, dtype=jnp.int32)
    return jnp.pad(jax.lax.cummax(drawn, axis=1), ((0, 0), (1, 0), (0, 0))) > 0


def teacher_force(
    params: Params,
    config: ModelConfig,
    prompts: PromptBatch,
    codes: jax.Array,
    *,
    capture: Sequence[str] = (),
    edit: Edit | None = None,
    remat: bool = False,
    seen: Seen | None = None,
) -> Forced:
    """Runs talker and code predictor over prompts and frames in one pass.

    The output of every module of the stacks and heads can be captured or replaced. Its path is that of its parameters:
    "talker/transformer/layers_3" is the residual stream after a layer, "…/layers_3/attention" and
    "…/layers_3/mlp" are what the layer adds, "code_predictor/transformer" are the last states, norm included.

    Args:
        params: the trees `talker` and `code_predictor`.
        config: static under jit.
        prompts: B prompts.
        codes: int32 [B, T, Q], −1 in the frames that a row does not have, which must be its last.
        capture: paths of `Forced.activations`; static under jit.
        edit: called for every module as edit(path, output); what it returns replaces the output, in
            `activations` too. Static under jit.
        remat: keep only the states between layers for the backward pass and recompute the rest
            (Chen et al. 2016, arXiv:1604.06174).
        seen: what the model reads instead of `codes`; see `regularization.corrupt`.

    Raises:
        ValueError: a path of `capture` that no module has.
    """

    def run(params: Params, prompts: PromptBatch, codes: jax.Array) -> Forced:
        return _forced(params, config, prompts, seen or Seen(codes, codes), capture, edit)

    if remat:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(_BLOCK_OUTPUT))
    return run(params, prompts, codes)


def _forced(
    params: Params,
    config: ModelConfig,
    prompts: PromptBatch,
    seen: Seen,
    capture: Sequence[str],
    edit: Edit | None,
) -> Forced:
    activations: dict[str, jax.Array] = {}
    batch, steps, num_codebooks = seen.talker.shape
    prompt, text_track = embed_prompt(params, config, prompts)
    frames = embed_codes(params, config, seen.talker) + _text_of_frames(text_track, steps)
    lengths = jnp.asarray(prompts.lengths)
    sequence = _join(prompt, frames, lengths)

    talker = partial(Talker(config.talker).apply, {"params": params["talker"]})
    with jax.named_scope("talker"), _watched("talker", capture, edit, activations):
        hidden, _ = talker(sequence, KVCache.zeros(config.talker.transformer, batch, sequence.shape[1]))
        # The state at a position predicts the frame at the next.
        positions = lengths[:, None] - 1 + jnp.arange(steps + 1)
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        logits = talker(hidden, method=Talker.logits)

    with jax.named_scope("code_predictor"), _watched("code_predictor", capture, edit, activations):
        states, codes = hidden[:, :-1], seen.predictor
        if seen.chosen is not None:
            states = states.reshape(1, batch * steps, -1)[:, seen.chosen]
            codes = codes.reshape(1, batch * steps, num_codebooks)[:, seen.chosen]
        code_logits = code_logits_of(params, config, states, codes)
    missing = [path for path in capture if path not in activations]
    if missing:
        raise ValueError(
            f"no module has the path {', '.join(missing)}; paths are those of parameters, without the last"
        )
    return Forced(hidden, logits, code_logits, activations)


def code_logits_of(params: Params, config: ModelConfig, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """Logits float32 [B, T, Q − 1, V'] of codes 1 … Q − 1 of frames int32 [B, T, Q], each given those before it.

    `hidden` [B, T, D] are the talker's states that predicted code 0 of the frames.
    """
    batch, steps, num_codebooks = codes.shape
    talker = partial(Talker(config.talker).apply, {"params": params["talker"]})
    predictor = partial(CodePredictor(config.code_predictor).apply, {"params": params["code_predictor"]})
    known = jnp.maximum(codes, 0)
    first = talker(known[..., :1], method=Talker.embed_code)
    rest = predictor(jnp.arange(1, num_codebooks - 1), known[..., 1:-1], method=CodePredictor.embed_code)
    inputs = [hidden[:, :, None], first.astype(hidden.dtype), rest.astype(hidden.dtype)]
    inputs = jnp.concatenate(inputs, axis=2).reshape(batch * steps, num_codebooks, -1)
    states, _ = predictor(inputs, KVCache.zeros(config.code_predictor.transformer, batch * steps, num_codebooks))
    states = states.reshape(batch, steps, num_codebooks, -1)[:, :, 1:]
    heads = jax.vmap(partial(predictor, method=CodePredictor.logits), in_axes=(2, 0), out_axes=2)
    return heads(states, jnp.arange(1, num_codebooks))


def _text_of_frames(text_track: jax.Array, steps: int) -> jax.Array:
    """What the text adds to frames 0 … T − 1, [B, T, D]."""
    return text_track[:, jnp.minimum(jnp.arange(steps), text_track.shape[1] - 1)]


def _join(prompt: jax.Array, frames: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, P, D] and [B, T, D] → [B, P + T, D], each row's prompt, then its frames, then padding.

    `lengths` int32 [B] are those of the prompts. Nothing looks ahead, so what the padding holds does not matter.
    """
    both = jnp.concatenate([prompt, frames.astype(prompt.dtype)], axis=1)
    slots = jnp.arange(both.shape[1])
    source = jnp.where(slots < lengths[:, None], slots, slots - lengths[:, None] + prompt.shape[1])
    return jnp.take_along_axis(both, jnp.minimum(source, both.shape[1] - 1)[..., None], axis=1)


@contextmanager
def _watched(part: str, capture: Sequence[str], edit: Edit | None, activations: dict[str, jax.Array]) -> Iterator[None]:
    """Within it, modules' outputs are edited and captured, and those of layers named for rematerialisation."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        output = call(*args, **kwargs)
        if context.method_name != "__call__":
            return output
        value, *others = output if isinstance(output, tuple) else (output,)
        path = "/".join((part, *context.module.path))
        if edit is not None:
            value = edit(path, value)
        if isinstance(context.module, Block):
            value = checkpoint_name(value, _BLOCK_OUTPUT)
        if path in capture:
            activations[path] = value
        return (value, *others) if others else value

    with nn.intercept_methods(intercept):
        yield
