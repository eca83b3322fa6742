"""Frozen descriptions of every part of the model.

All of them are hashable, so a config can be a static argument of `jax.jit`. Files are read and
written by `hf_config`; `presets` has the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Literal, NamedTuple

ModelType = Literal["base", "custom_voice", "voice_design"]
AttentionKernel = Literal["xla", "cudnn", "pallas"]


class ConfigError(ValueError):
    """A configuration that this package cannot run; the message names the key and its value."""


def require(condition: bool, message: str) -> None:
    """Raises a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class TransformerConfig:
    """Shapes of one stack of transformer layers.

    `sliding_window` counts the positions that a query may see, its own included; None sees all.
    `dtype` is the dtype of activations and products; norms, softmax and RoPE are always float32.
    `attention` names what computes the attention of many queries, see `attention.configure`.
    """

    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk_norm: bool = False
    layer_scale: bool = False
    final_norm: bool = True
    sliding_window: int | None = None
    dtype: str = "float32"
    attention: AttentionKernel = "xla"

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "mlp_width", "num_heads", "num_kv_heads", "head_dim"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_attention_heads ({self.num_heads}) must be a multiple of num_key_value_heads ({self.num_kv_heads})",
        )
        require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {self.head_dim}")
        require(
            self.sliding_window is None or self.sliding_window > 0,
            f"sliding_window must be positive, got {self.sliding_window}",
        )
        require(
            self.dtype in ("float32", "bfloat16"),
            f"dtype must be float32 or bfloat16, got {self.dtype!r}",
        )


@dataclass(frozen=True)
class TalkerConfig:
    """The Qwen3 language model over code 0, with its text embedding and projection.

    The codec vocabulary is the codes of codebook 0 followed by `num_special_codes` rows for
    control tokens, languages and speakers. If `staging_devices` is not 0, a batch that is spread over that many
    writes its cache once per chunk of frames, see `cache.StagedCache`.
    """

    transformer: TransformerConfig
    codec_vocab_size: int
    text_vocab_size: int
    text_width: int
    num_codebooks: int
    max_positions: int
    num_special_codes: int = 1024
    staging_devices: int = 0

    def __post_init__(self) -> None:
        require(
            self.codec_vocab_size > self.num_special_codes,
            f"talker vocab_size must exceed its {self.num_special_codes} special codes, got {self.codec_vocab_size}",
        )
        require(self.num_codebooks > 1, f"num_code_groups must be at least 2, got {self.num_codebooks}")

    @property
    def codebook_size(self) -> int:
        """The number of codes in codebook 0."""
        return self.codec_vocab_size - self.num_special_codes


@dataclass(frozen=True)
class CodePredictorConfig:
    """The small transformer that predicts codes 1 … Q−1 of a frame, one after the other."""

    transformer: TransformerConfig
    codebook_size: int
    num_codebooks: int
    talker_width: int

    @property
    def has_projection(self) -> bool:
        """True where inputs of the talker's width are projected to the predictor's."""
        return self.talker_width != self.transformer.width


@dataclass(frozen=True)
class PromptConfig:
    """Token ids that the prompt is made of: text specials, codec specials, languages, speakers.

    `dialects` maps a speaker to the language (dialect) that replaces Chinese or auto.
    """

    tts_bos: int
    tts_eos: int
    tts_pad: int
    codec_bos: int
    codec_eos: int
    codec_pad: int
    codec_think: int
    codec_nothink: int
    codec_think_bos: int
    codec_think_eos: int
    languages: Mapping[str, int] = field(hash=False)
    speakers: Mapping[str, int] = field(hash=False)
    dialects: Mapping[str, str] = field(hash=False)

    @property
    def text_ids(self) -> dict[str, int]:
        """The ids that belong to the text vocabulary, by name."""
        return {name: getattr(self, name) for name in ("tts_bos", "tts_eos", "tts_pad")}

    @property
    def codec_ids(self) -> dict[str, int]:
        """The ids that belong to the codec vocabulary, by name."""
        control = ("bos", "eos", "pad", "think", "nothink", "think_bos", "think_eos")
        languages = {f"language {name}": index for name, index in self.languages.items()}
        speakers = {f"speaker {name}": index for name, index in self.speakers.items()}
        return {f"codec_{name}": getattr(self, f"codec_{name}") for name in control} | languages | speakers


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """ECAPA-TDNN that turns a 128-bin mel spectrogram into an x-vector."""

    mel_bins: int = 128
    x_vector_width: int = 1024
    channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    attention_channels: int = 128
    res2net_scale: int = 8
    se_channels: int = 128
    sample_rate: int = 24_000


@dataclass(frozen=True)
class CodecEncoderConfig:
    """Waveform → codes: strided causal convolutions, a transformer, a split residual quantizer.

    `num_codebooks` is what the file holds; only the first `CodecConfig.num_codebooks` are used.
    """

    transformer: TransformerConfig
    filters: int
    strides: tuple[int, ...]
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    num_residual_layers: int
    dilation_growth: int
    compress: int
    downsample_stride: int
    num_codebooks: int
    num_semantic_codebooks: int
    codebook_size: int
    codebook_dim: int


@dataclass(frozen=True)
class CodecDecoderConfig:
    """Codes → waveform: split residual quantizer, a transformer, transposed convolutions.

    `latent_upsample_rates` are the ConvNeXt stages, `upsample_rates` the SnakeBeta stages; their
    product is the number of samples per frame. Stage i of the latter has
    `decoder_channels // 2**i` input channels. With `three_pass` the float32 convolutions are made of products in
    bfloat16, see `codec.conv`; with `hopper`, by kernels where shapes allow, see `codec.hopper`.
    """

    transformer: TransformerConfig
    num_codebooks: int
    num_semantic_codebooks: int
    codebook_size: int
    codebook_dim: int
    quantizer_width: int
    latent_width: int
    decoder_channels: int
    upsample_rates: tuple[int, ...]
    latent_upsample_rates: tuple[int, ...]
    three_pass: bool = False
    hopper: bool = False

    def __post_init__(self) -> None:
        halvings = 2 ** len(self.upsample_rates)
        require(
            self.decoder_channels % halvings == 0,
            f"decoder_dim ({self.decoder_channels}) must be divisible by {halvings} "
            f"(it halves in each of {len(self.upsample_rates)} stages)",
        )
        require(
            self.num_codebooks > self.num_semantic_codebooks,
            f"num_quantizers ({self.num_codebooks}) must exceed "
            f"num_semantic_quantizers ({self.num_semantic_codebooks})",
        )

    @property
    def frame_samples(self) -> int:
        """Samples per frame: 1,920 as published (80 ms at 24 kHz)."""
        total = 1
        for rate in (*self.latent_upsample_rates, *self.upsample_rates):
            total *= rate
        return total


@dataclass(frozen=True)
class CodecConfig:
    """The speech tokenizer: 12.5 frames a second as published.

    `encoder_trained` is False where only what follows the encoder was trained: such a codec only decodes.
    """

    sample_rate: int
    num_codebooks: int
    encoder: CodecEncoderConfig
    decoder: CodecDecoderConfig
    encoder_trained: bool = True

    def __post_init__(self) -> None:
        require(
            self.encoder.codebook_size <= self.decoder.codebook_size,
            f"the encoder's codebook_size ({self.encoder.codebook_size}) exceeds "
            f"the decoder's ({self.decoder.codebook_size})",
        )

    @property
    def frame_samples(self) -> int:
        """Samples per frame."""
        return self.decoder.frame_samples

    def require_encoder(self) -> None:
        """Raises a ConfigError where the encoder is not trained."""
        require(self.encoder_trained, "this codec's encoder is not trained: it cannot encode recordings")

    @property
    def frame_rate(self) -> float:
        """Frames per second: 12.5 as published."""
        return self.sample_rate / self.decoder.frame_samples

    def frames_in(self, seconds: float) -> int:
        """Whole frames in `seconds`: at least one, and no more than an int32 counts."""
        # 2.32 × 12.5 is a little less than 29 in floating point.
        return max(1, math.floor(min(seconds * self.frame_rate + 1e-6, 2**31 - 1)))

    def with_dtype(self, dtype: str) -> CodecConfig:
        """The same codec computing in `dtype`: "float32", "bfloat16", or "bfloat16_3x".

        The last is float32, except that the decoder's convolutions take three passes of bfloat16: several times as
        fast on accelerators, slower on CPUs. Kernels are chosen for a dtype: call `codec.hopper.configure` afterwards.
        """
        three_pass = dtype == "bfloat16_3x"
        dtype = "float32" if three_pass else dtype
        encoder = replace(self.encoder, transformer=replace(self.encoder.transformer, dtype=dtype))
        transformer = replace(self.decoder.transformer, dtype=dtype)
        decoder = replace(self.decoder, transformer=transformer, three_pass=three_pass, hopper=False)
        return replace(self, encoder=encoder, decoder=decoder)


class Filters(NamedTuple):
    """Which steps of sampling a compiled program contains; their strengths are arguments of it.

    Attributes:
        do_sample: whether codes are drawn; otherwise the most likely are taken.
        top_k_room: the largest top-k that the program supports, 64, 128, 256, …; 0 where it is off.
        nucleus: whether top-p is on.
        penalty: whether repetition is penalised.
    """

    do_sample: bool
    top_k_room: int
    nucleus: bool
    penalty: bool


@dataclass(frozen=True)
class SamplingConfig:
    """How one code is drawn from its logits; see `sampling.process_logits` for the order of operations.

    `top_k=0` and `top_p=1.0` switch those filters off. `do_sample=False` takes the most likely code
    and ignores temperature, top-k and top-p, but not the repetition penalty. As a non-static argument of a compiled
    function it is a pytree of its numbers: programs depend on its `filters` alone.
    """

    do_sample: bool = True
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            require(isinstance(value, Real), f"{name} must be a number, got {value!r}")
        # Compiled functions have them as float32, in which far smaller and larger ones are 0 or infinite.
        require(
            not self.do_sample or 1e-6 <= self.temperature <= 1e6,
            f"temperature must be from 1e-6 to 1e6, got {self.temperature} (for the most likely codes use "
            "do_sample=False)",
        )
        require(isinstance(self.top_k, Integral), f"top_k must be a whole number, got {self.top_k!r}")
        require(self.top_k >= 0, f"top_k must be 0 (off) or positive, got {self.top_k}")
        require(0 <= self.top_p <= 1, f"top_p must be in [0, 1], got {self.top_p}")
        require(
            1e-6 <= self.repetition_penalty <= 1e6,
            f"repetition_penalty must be from 1e-6 to 1e6, got {self.repetition_penalty}",
        )

    @cached_property
    def filters(self) -> Filters:
        """The part of it that a compiled program is specialised to."""
        room = 1 << max(6, (int(self.top_k) - 1).bit_length()) if self.top_k else 0
        return Filters(self.do_sample, room, self.top_p < 1.0, self.repetition_penalty != 1.0)

    @cached_property
    def tail(self) -> float:
        """The mass of unlikely codes that top-p may drop."""
        return 1.0 - self.top_p


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling of code 0 by the talker and of codes 1 … Q−1 by the code predictor; a pytree, as they are."""

    talker: SamplingConfig = SamplingConfig(repetition_penalty=1.05)
    code_predictor: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        # Its codes belong to different codebooks, so none can repeat another.
        require(
            self.code_predictor.repetition_penalty == 1.0,
            f"repetition_penalty of the code predictor must be 1, got {self.code_predictor.repetition_penalty}",
        )

    @classmethod
    def greedy(cls, repetition_penalty: float = 1.05) -> GenerationConfig:
        """The most likely code everywhere; the penalty on repeated codes 0 stays."""
        return cls(
            talker=SamplingConfig(do_sample=False, repetition_penalty=repetition_penalty),
            code_predictor=SamplingConfig(do_sample=False),
        )


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint. `max_new_tokens` is the published limit of code-0 tokens per utterance."""

    model_type: ModelType
    model_size: str
    talker: TalkerConfig
    code_predictor: CodePredictorConfig
    prompt: PromptConfig
    codec: CodecConfig
    speaker_encoder: SpeakerEncoderConfig | None = None
    generation: GenerationConfig = GenerationConfig()
    max_new_tokens: int = 2048

    def __post_init__(self) -> None:
        require(
            self.talker.num_codebooks == self.code_predictor.num_codebooks,
            f"num_code_groups differ: talker {self.talker.num_codebooks}, "
            f"code predictor {self.code_predictor.num_codebooks}",
        )
        require(
            self.talker.num_codebooks == self.codec.num_codebooks,
            f"the talker makes {self.talker.num_codebooks} codes a frame, the codec reads {self.codec.num_codebooks}",
        )
        sizes = {
            "talker": self.talker.codebook_size,
            "code predictor": self.code_predictor.codebook_size,
        }
        for part, size in sizes.items():
            require(
                size == self.codec.decoder.codebook_size,
                f"the {part} has codebooks of {size} codes, the codec of {self.codec.decoder.codebook_size}",
            )
        for vocabulary, size, ids in (
            ("text", self.talker.text_vocab_size, self.prompt.text_ids),
            ("codec", self.talker.codec_vocab_size, self.prompt.codec_ids),
        ):
            for name, index in ids.items():
                # An id beyond its table would be embedded as the last row; such an end of speech is never drawn.
                require(0 <= index < size, f"{name} is {index}, but the {vocabulary} vocabulary has {size} ids")
        require(
            (self.model_type == "base") == (self.speaker_encoder is not None),
            "a 'base' model has a speaker encoder, and only it has one",
        )

    @property
    def supports_instruct(self) -> bool:
        """Whether it takes instructions.

        The published 0.6B checkpoint with voices was not trained with them, and the reference drops them.
        """
        return self.model_type == "voice_design" or (self.model_type == "custom_voice" and self.model_size != "0b6")

    def with_dtypes(
        self, dtype: str, codec_dtype: str = "float32", code_predictor_dtype: str | None = None
    ) -> ModelConfig:
        """The same model computing in `dtype` (talker, and code predictor unless it has another) and `codec_dtype`."""

        def cast(part, to):
            return replace(part, transformer=replace(part.transformer, dtype=to))

        return replace(
            self,
            talker=cast(self.talker, dtype),
            code_predictor=cast(self.code_predictor, code_predictor_dtype or dtype),
            codec=self.codec.with_dtype(codec_dtype),
        )

    def with_attention(self, choose: Callable[[TransformerConfig], AttentionKernel]) -> ModelConfig:
        """The same model with the attention that `choose` returns for each of its stacks."""

        def chosen(part):
            stack = part.transformer
            return replace(part, transformer=replace(stack, attention=choose(stack)))

        codec = replace(self.codec, encoder=chosen(self.codec.encoder), decoder=chosen(self.codec.decoder))
        return replace(self, talker=chosen(self.talker), code_predictor=chosen(self.code_predictor), codec=codec)
