"""The settings of a run that trains a codec."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.prompt import check_seed
from qwen3_tts_jax.train.codec.run import Crops
from qwen3_tts_jax.train.codec.spectral import SpectralRecipe
from qwen3_tts_jax.train.codec.start import codec_shape
from qwen3_tts_jax.train.codec.step import CodecRecipe
from qwen3_tts_jax.train.progress import Schedule

_SHORTEST_CROP = 2048  # the longest window of the losses


@dataclass(frozen=True)
class CodecTraining:
    """A run.

    Attributes:
        recipe: see there.
        batch_seconds: of audio in a step.
        crop_seconds: of each crop in it; rounded to whole frames.
        starts: part of the crops that begin where their recording begins.
        context_seconds: of codes before each crop, where the recordings have codes; rounded to whole frames.
        feature_rate: of a teacher's features, per second; None without a teacher.
        teacher_weight: of the teacher in the loss.
        start: folder of a codec to go on from, whose shape `recipe.codec` is; None draws random weights.
        spectral: how random weights first learn to say spectra, from spectra and then from samples, before `recipe`
            trains the decoder alone; empty without.
        seed: of weights, crops and dropout.
        schedule: what happens when.
    """

    recipe: CodecRecipe = field(default_factory=lambda: CodecRecipe(codec_shape("small")))
    batch_seconds: float = 12.0
    crop_seconds: float = 2.0
    starts: float = 0.1
    context_seconds: float = 2.0
    feature_rate: float | None = None
    teacher_weight: float = 1.0
    start: Path | None = None
    spectral: tuple[SpectralRecipe, ...] = ()
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("batch_seconds", "crop_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.context_seconds < float("inf"):
            raise ConfigError(f"there cannot be {self.context_seconds} s of context")
        if not self.spectral:
            return
        if self.start is not None:
            raise ConfigError("a codec that is there goes on without spectra: they are for a start from nothing")
        if [one.hears for one in self.spectral] != ["spectra", "samples"]:
            raise ConfigError("spectra are learnt from spectra and then from samples")
        if not self.recipe.decoder_only or {one.codec for one in self.spectral} != {self.recipe.codec}:
            raise ConfigError("after spectra the decoder alone of the same codec is trained")

    def crops(self, given_codes: bool = False) -> Crops:
        """How steps cut recordings, with context where codes are given.

        Raises:
            ConfigError: crops shorter than the losses' longest window or than what the discriminator hears, or no
                whole crop in a batch.
        """
        codec = self.recipe.codec
        samples = round(self.crop_seconds * codec.frame_rate) * codec.frame_samples
        if samples < _SHORTEST_CROP:
            raise ConfigError(
                f"pieces of {self.crop_seconds} s are too short: the losses need {_SHORTEST_CROP} samples"
            )
        discriminator = self.recipe.discriminator
        if discriminator is not None and discriminator.samples > samples:
            raise ConfigError(
                f"the discriminator cannot hear {discriminator.samples / codec.sample_rate:g} s of pieces of "
                f"{samples / codec.sample_rate:g} s"
            )
        rows = round(self.batch_seconds * codec.sample_rate / samples)
        if rows < 1:
            raise ConfigError(f"a batch of {self.batch_seconds} s holds no piece of {self.crop_seconds} s")
        context = round(self.context_seconds * codec.frame_rate) if given_codes else 0
        return Crops(rows, samples, self.starts, self.seed, context)
