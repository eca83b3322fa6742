"""One step of training a codec: encoder, codebooks and decoder together, or the decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.train.codec import teacher
from qwen3_tts_jax.train.codec.codes import GivenCodes
from qwen3_tts_jax.train.codec.discriminator import (
    Discriminator,
    DiscriminatorState,
    codec_losses,
    discriminator_step,
    start_discriminator,
)
from qwen3_tts_jax.train.codec.forward import (
    CODEBOOK_LEAVES,
    KINDS,
    check_shared,
    reconstruct,
    reconstruct_given,
    start_codebooks,
    with_codebooks,
)
from qwen3_tts_jax.train.codec.loss import mel_loss, spectral_loss
from qwen3_tts_jax.train.codec.quantizer import dropped_codebooks, learn_codebooks, perplexity, share_codebooks
from qwen3_tts_jax.train.optimizer import OptimizerConfig, if_finite, moving_average


@dataclass(frozen=True)
class CodecRecipe:
    """What the compiled step must know; hashable.

    Attributes:
        codec: encoder and decoder with equal `codebook_dim`, `codebook_size` and semantic codebooks.
        optimizer: of all weights but the codebooks.
        mel, spectral, waveform, commitment: weights of the losses.
        decay: see `quantizer.learn_codebooks`.
        dead_below: entries that get fewer vectors than this part of an even share are moved. Unless it is far below
            1, small batches move entries before they have settled, and the decoder learns to ignore them.
        dropout: part of rows that use fewer codebooks.
        continuous_steps: how many steps the decoder is given the codebooks' input, at first, while they learn.
        unquantized: part of rows for which that goes on.
        unquantized_steps: the step at which that ends.
        decoder_only: encoder and codebooks stay as they are.
        average: decay of the moving average of the weights, which is what is judged and written; 0 takes the
            weights themselves.
        discriminator: that the codec learns to fool; None without.
        teacher: whose features codebook 0 learns to predict; None without.
    """

    codec: CodecConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mel: float = 15.0
    spectral: float = 1.0
    waveform: float = 0.1
    commitment: float = 0.25
    decay: float = 0.99
    dead_below: float = 0.1
    dropout: float = 0.25
    continuous_steps: int = 0
    unquantized: float = 0.0
    unquantized_steps: int = 0
    decoder_only: bool = False
    average: float = 0.0
    discriminator: Discriminator | None = None
    teacher: teacher.Teacher | None = None

    def __post_init__(self) -> None:
        check_shared(self.codec)
        for name in ("dropout", "unquantized", "average"):
            if not 0 <= getattr(self, name) <= 1 or (name == "average" and self.average == 1):
                raise ConfigError(f"{name} must be a part, 0 … 1, got {getattr(self, name)}")
        if self.continuous_steps < 0:
            raise ConfigError(f"continuous_steps must be 0 or more, got {self.continuous_steps}")
        if self.decoder_only and (self.continuous_steps or self.unquantized_steps or self.teacher):
            raise ConfigError("where the decoder alone is trained, all rows are quantized and there is no teacher")


@flax.struct.dataclass
class CodecState:
    """What a step changes.

    Attributes:
        step: int32 [], steps done.
        trained: {path: float32 leaf} of encoder/… and decoder/…, and the head of a teacher.
        codebooks: of the encoder, by kind: embedding_sum [q, V, C] and cluster_usage [q, V].
        optimizer: optax's state.
        average: moving averages of `trained`; empty where the recipe has none.
        discriminator: where the recipe has one.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    codebooks: dict[str, dict[str, jax.Array]]
    optimizer: optax.OptState
    average: dict[str, jax.Array]
    discriminator: DiscriminatorState | None = None


def start_codec(params: Mapping[str, Any], recipe: CodecRecipe, *, fresh: bool = True, seed: int = 0) -> CodecState:
    """The state before the first step.

    Args:
        params: the trees encoder and decoder.
        recipe: see there.
        fresh: forget the codebooks; the first batch then fills them.
        seed: of the discriminator and of the teacher's head.
    """
    parts = ("decoder",) if recipe.decoder_only else ("encoder", "decoder")
    leaves = flatten_dict({part: params[part] for part in parts}, sep="/")
    trained = {
        path: jnp.array(leaf, jnp.float32)
        for path, leaf in leaves.items()
        if path.rsplit("/", 1)[-1] not in CODEBOOK_LEAVES
    }
    if recipe.teacher is not None:
        trained[teacher.HEAD] = teacher.start_head(recipe.teacher, recipe.codec.encoder.codebook_dim, seed)
    codebooks = start_codebooks(params, recipe.codec, fresh=fresh)
    average = {path: jnp.array(leaf) for path, leaf in trained.items()} if recipe.average else {}
    optimizer = recipe.optimizer.optimizer().init(trained)
    discriminator = None if recipe.discriminator is None else start_discriminator(recipe.discriminator, seed)
    return CodecState(jnp.zeros((), jnp.int32), trained, codebooks, optimizer, average, discriminator)


def finish_codec(state: CodecState, params: Mapping[str, Any], recipe: CodecRecipe) -> dict[str, Any]:
    """The trees encoder and decoder that `state` stands for; codebooks unknown to the talker are those of `params`."""
    trees = with_codebooks(state.average or state.trained, params, state.codebooks)
    return share_codebooks(trees, recipe.codec.num_codebooks)


@partial(jax.jit, static_argnames=("recipe", "against"), donate_argnames="state")
def codec_step(
    state: CodecState, params: Mapping[str, Any], samples: jax.Array, key: jax.Array, recipe: CodecRecipe,
    targets: jax.Array | None = None, against: bool = False, given: GivenCodes | None = None,
) -> tuple[CodecState, dict[str, jax.Array]]:  # fmt: skip
    """One step of the optimizer and of the codebooks.

    Args:
        state: donated.
        params: what `start_codec` was given.
        samples: [B, N] in ±1 at the codec's rate, N whole frames and at least 2,048.
        key: for all that is drawn.
        recipe: static.
        targets: a teacher's features [B, T, D] of each frame, where the recipe has a teacher.
        against: static; whether the discriminator takes part.
        given: codes of `samples`, which begin on whole frames, for a decoder alone; None lets the encoder make them.

    Returns:
        The next state, and loss and its parts, gradient_norm, learning_rate, finite [] and perplexity [Q] of the
        step; with the discriminator also its own loss, as discriminator; with given codes no commitment. If the loss
        or its gradient is not finite, the state is the old one.
    """
    if given is not None and not recipe.decoder_only:
        raise ConfigError("from given codes the decoder alone can learn")
    codec = recipe.codec
    drop_key, row_key, piece_key, *kind_keys = jax.random.split(key, 5)
    split = codec.encoder.num_semantic_codebooks
    keep = dropped_codebooks(drop_key, len(samples), codec.num_codebooks, split, recipe.dropout)
    part = jnp.where(state.step < recipe.unquantized_steps, recipe.unquantized, 0.0)
    part = jnp.where(state.step < recipe.continuous_steps, 1.0, part)
    continuous = jax.random.uniform(row_key, (len(samples),)) < part

    def piece(all_samples: jax.Array) -> jax.Array:
        """The piece of each row that the discriminator hears."""
        length = recipe.discriminator.samples
        first = jax.random.randint(piece_key, (), 0, samples.shape[1] - length + 1)
        return jax.lax.dynamic_slice_in_dim(all_samples, first, length, axis=1)

    def value(trained: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple]:
        trees = with_codebooks(trained, params, state.codebooks)
        if given is None:
            made, results = reconstruct(trees, state.codebooks, codec, samples, keep, continuous)
            codes = jnp.concatenate([results[kind].codes for kind in KINDS], axis=-1)
        else:
            frames, results = samples.shape[1] // codec.frame_samples, {}
            made = reconstruct_given(trees, state.codebooks, codec, given, frames, keep)
            codes = given.of_crops(frames)
        losses = {
            "mel": mel_loss(made, samples, codec.sample_rate),
            "spectral": spectral_loss(made, samples),
            "waveform": jnp.mean(jnp.abs(made - samples)),
        }
        if given is None:
            losses["commitment"] = sum(result.commitment for result in results.values())
        total = sum(getattr(recipe, name) * loss for name, loss in losses.items())
        if recipe.teacher is not None:
            vectors, head = results["semantic"].vectors, trained[teacher.HEAD]
            losses["teacher"] = teacher.distance(vectors, head, targets)
            total += recipe.teacher.weight * losses["teacher"]
        if against:
            taught, losses["discriminator"] = codec_losses(
                state.discriminator.params, recipe.discriminator, piece(made), piece(samples)
            )
            losses |= taught
            total += recipe.discriminator.weight * taught["adversarial"]
            total += recipe.discriminator.features * taught["features"]
        return total, (losses, results, codes, made)

    (total, (losses, results, codes, made)), gradient = jax.value_and_grad(value, has_aux=True)(state.trained)
    updates, optimizer = recipe.optimizer.optimizer().update(gradient, state.optimizer, state.trained)
    trained, codebooks = optax.apply_updates(state.trained, updates), state.codebooks
    if not recipe.decoder_only:
        vectors = len(samples) * samples.shape[1] // codec.frame_samples
        dead_below = recipe.dead_below * vectors / codec.encoder.codebook_size
        codebooks = {
            kind: learn_codebooks(codebooks[kind], results[kind], one, recipe.decay, dead_below)
            for kind, one in zip(KINDS, kind_keys, strict=True)
        }
    discriminator = state.discriminator
    if against:
        learnt = discriminator_step(discriminator, recipe.discriminator, piece(made), piece(samples))
        # A conditional would cost many times what it saves: in one, XLA's CPU backend runs convolutions slowly.
        learns = state.step % recipe.discriminator.every == 0
        discriminator = jax.tree.map(lambda new, old: jnp.where(learns, new, old), learnt, discriminator)
    average = moving_average(state.average, trained, state.step, recipe.average) if recipe.average else {}
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    rate = recipe.optimizer.schedule()(state.step)
    metrics = {"loss": total, **losses, "gradient_norm": norm, "learning_rate": rate, "finite": finite}
    metrics["perplexity"] = perplexity(codes, codec.encoder.codebook_size)
    new = CodecState(state.step + 1, trained, codebooks, optimizer, average, discriminator)
    return if_finite(finite, new, state), metrics


@partial(jax.jit, static_argnames="recipe")
def judge(
    state: CodecState, params: Mapping[str, Any], samples: jax.Array, recipe: CodecRecipe,
    given: GivenCodes | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """Mel distance (`loss.mel_loss`), mel [B], and codes int32 [B, T, Q] of samples [B, N].

    It uses all codebooks, and the weights' average where the recipe has one. Codes are those `given`, if any.
    """
    codec = recipe.codec
    trees = with_codebooks(state.average or state.trained, params, state.codebooks)
    keep = jnp.full(len(samples), codec.num_codebooks)
    if given is None:
        made, results = reconstruct(trees, state.codebooks, codec, samples, keep)
        codes = jnp.concatenate([results[kind].codes for kind in KINDS], axis=-1)
    else:
        frames = samples.shape[1] // codec.frame_samples
        made, codes = reconstruct_given(trees, state.codebooks, codec, given, frames, keep), given.of_crops(frames)
    mel = jax.vmap(lambda a, b: mel_loss(a[None], b[None], codec.sample_rate))(made, samples)
    return {"mel": mel, "codes": codes}
