"""A codec that learns to say spectra, before its decoder learns to speak.

A codec that learns from samples spends most of its compute on convolutions near the sample rate, while its encoder
learns only a few directions of the latents, which leave the later codebooks nothing to say. Here two shorter stages
come first. An encoder of spectra, the codec's own quantizers and its decoder up to the waveform part learn to say, or
reproduce, the spectra through a linear read-out. Then the codec's own encoder learns to make those latents from
samples, at first alone, then with all that comes after it.

Both stages are long chains of nearly linear maps, whose directions gradient descent learns one after another, the
strongest first (Saxe et al. 2014, arXiv:1312.6120). So their matrices start orthogonal, and Muon, whose steps are
orthogonal too, learns all directions alike. The waveform part is learnt after that, from the codes
(`CodecRecipe.decoder_only`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from qwen3_tts_jax.config import CodecConfig, ConfigError
from qwen3_tts_jax.train.codec import teacher
from qwen3_tts_jax.train.codec.forward import CODEBOOK_LEAVES, check_shared, start_codebooks, with_codebooks
from qwen3_tts_jax.train.codec.quantizer import share_codebooks
from qwen3_tts_jax.train.codec.spectra import SpectralEncoder, hear, outputs_per_latent, spectra_per_frame
from qwen3_tts_jax.train.optimizer import OptimizerConfig

_WAVEFORM = ("decoder/conv_in", "decoder/upsample_", "decoder/snake_out", "decoder/conv_out")
SPECTRAL, READOUT = "spectral/", "readout/"
_BEFORE = 0.1  # factor on kernels for inputs before the present one


def spectral_optimizer(steps: int, learning_rate: float = 3e-3, clip: float = 1.0) -> OptimizerConfig:
    """The optimizer that spectra are learnt with."""
    return OptimizerConfig(
        learning_rate, steps, min(50, steps // 10), final_rate=0.03, weight_decay=1e-3, betas=(0.8, 0.99), clip=clip,
        kind="muon",
    )  # fmt: skip


@dataclass(frozen=True)
class SpectralRecipe:
    """What the compiled step must know; hashable.

    Attributes:
        codec: see `CodecRecipe`.
        hears: what the encoder is given: "spectra" for one that exists in training alone, "samples" for the codec's
            own, which learns from it.
        optimizer: its Muon learns kernels too.
        alone: how many steps the encoder of samples learns alone, at first.
        low, latents, commitment: weights of these losses, where that of the mel bands is 1.
        decay, dead_below, dropout, teacher: see `CodecRecipe`.
    """

    codec: CodecConfig
    hears: Literal["spectra", "samples"] = "spectra"
    optimizer: OptimizerConfig = field(default_factory=lambda: spectral_optimizer(800))
    alone: int = 0
    low: float = 0.5
    latents: float = 1.0
    commitment: float = 0.25
    decay: float = 0.99
    dead_below: float = 0.1
    dropout: float = 0.25
    teacher: teacher.Teacher | None = None

    def __post_init__(self) -> None:
        check_shared(self.codec)
        spectra_per_frame(self.codec)
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"dropout must be a part, 0 … 1, got {self.dropout}")


def spectral_recipes(
    codec: CodecConfig,
    spectral_steps: int = 800,
    encoder_steps: int = 1000,
    learning_rate: float = 3e-3,
    clip: float = 1.0,
    dropout: float = 0.25,
) -> tuple[SpectralRecipe, SpectralRecipe]:
    """For an encoder of spectra, and for the codec's own, which learns alone for two fifths of its steps."""
    first, second = (spectral_optimizer(steps, learning_rate, clip) for steps in (spectral_steps, encoder_steps))
    return (
        SpectralRecipe(codec, "spectra", first, dropout=dropout),
        SpectralRecipe(codec, "samples", second, alone=encoder_steps * 2 // 5, dropout=dropout),
    )


@flax.struct.dataclass
class SpectralState:
    """What a step changes.

    Attributes:
        step: int32 [], steps done.
        trained: {path: float32 leaf} of spectral/… or encoder/…, of the encoder's projections, of decoder/… before the
            waveform part, of the read-out, and a teacher's head.
        codebooks: as in `CodecState`.
        optimizer: optax's state.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    codebooks: dict[str, dict[str, jax.Array]]
    optimizer: optax.OptState


def start_spectra(
    params: Mapping[str, Any], recipe: SpectralRecipe, taught: SpectralState | None = None, seed: int = 0
) -> SpectralState:
    """The state before the first step.

    Args:
        params: the trees encoder and decoder with random weights, see `start.random_codec`; matrices of the long
            chains become orthogonal.
        recipe: see there.
        taught: for an encoder of samples, the last state of the encoder of spectra, to go on from.
        seed: of those matrices, of the read-out and of the teacher's head.
    """
    config, rng = recipe.codec, np.random.default_rng(seed)
    leaves = flatten_dict({part: params[part] for part in ("encoder", "decoder")}, sep="/")
    leaves = {
        path: _isometric(path, np.asarray(leaf, np.float32), rng)
        for path, leaf in leaves.items()
        if path.rsplit("/", 1)[-1] not in CODEBOOK_LEAVES and not path.startswith(_WAVEFORM)
    }
    if taught is not None:
        trained = {path: leaf for path, leaf in taught.trained.items() if not path.startswith(SPECTRAL)}
        trained |= {path: leaf for path, leaf in leaves.items() if of_encoder(path)}
        codebooks = taught.codebooks
    else:
        trained = {path: leaf for path, leaf in leaves.items() if not of_encoder(path)}
        heard = jax.eval_shape(partial(hear, config=config), jnp.zeros((1, config.frame_samples)))
        spectral = SpectralEncoder(config.encoder.transformer.width).init(jax.random.key(seed), jnp.zeros(heard.shape))
        trained |= flatten_dict({SPECTRAL.rstrip("/"): spectral["params"]}, sep="/")
        outputs, width = sum(outputs_per_latent(config)), config.decoder.latent_width
        trained[f"{READOUT}weight"] = 0.05 * rng.standard_normal((outputs, width), np.float32)
        trained[f"{READOUT}bias"] = np.full(outputs, -2.0, np.float32)
        if recipe.teacher is not None:
            width = config.encoder.codebook_dim
            trained[teacher.HEAD] = teacher.start_head(recipe.teacher, width, seed)
        codebooks = start_codebooks(params, config)
    trained, codebooks = jax.tree.map(jnp.array, (trained, codebooks))
    optimizer = recipe.optimizer.optimizer(is_matrix)
    return SpectralState(jnp.zeros((), jnp.int32), trained, codebooks, optimizer.init(trained))


def finish_spectra(state: SpectralState, params: Mapping[str, Any], recipe: SpectralRecipe) -> dict[str, Any]:
    """The trees encoder and decoder that `state` stands for; what it lacks is taken from `params`."""
    return share_codebooks(with_codebooks(state.trained, params, state.codebooks), recipe.codec.num_codebooks)


def of_encoder(path: str) -> bool:
    """Whether a leaf belongs to the encoder of samples, which ends before the quantizers."""
    return path.startswith("encoder/") and not path.startswith("encoder/quantizer/")


def _isometric(path: str, leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A leaf of the linear chain made to preserve lengths; others as they are."""
    if "/transformer/" in path or "/convnext/" in path or "/residual_" in path:
        return leaf
    if path.endswith("/weight"):
        outputs, inputs = leaf.shape
        return _orthogonal(rng, outputs, inputs) * np.float32(max(1.0, outputs / inputs) ** 0.5)
    if path == "decoder/pre_conv/kernel":
        leaf = _BEFORE * leaf
        leaf[-1] = _orthogonal(rng, *leaf.shape[1:])
        return leaf
    if path.endswith("/transposed_conv/kernel"):
        return np.stack([_orthogonal(rng, *leaf.shape[1:]) for _ in leaf])
    if path.endswith("/kernel") and path != "encoder/conv_in/kernel":
        return _orthogonal(rng, prod(leaf.shape[:-1]), leaf.shape[-1]).reshape(leaf.shape)
    return leaf


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """float32 [rows, columns]; whichever are fewer are orthonormal."""
    basis = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return np.float32(basis if rows >= columns else basis.T)


def is_matrix(path: str, leaf: jax.Array) -> bool:
    """All matrices and kernels, except kernels that read one channel each."""
    return leaf.ndim >= 2 and not (path.endswith("/kernel") and leaf.shape[-2] == 1)
