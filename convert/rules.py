"""The conversion table: every tensor of the published files, where it goes in the parameter tree, and how.

Loading, exporting and checking all read it; nothing else knows a PyTorch name. The rules follow the
order of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax.config import CodecConfig, CodecDecoderConfig, CodecEncoderConfig, ModelConfig, SpeakerEncoderConfig
from qwen3_tts_jax.convert.rule import (
    PARTS,
    Rule,
    conv,
    embedding,
    linear,
    norm,
    snake,
    tensor,
    transformer,
    transposed_conv,
)
from qwen3_tts_jax.convert.transforms import SQUEEZE

SYNTHESIS_PARTS = ("talker", "code_predictor", "codec/decoder")
"""What text to speech without a reference recording needs."""


def model_rules(config: ModelConfig) -> list[Rule]:
    """The rules of `model.safetensors`: speaker encoder (base models only), talker, code predictor."""
    rules = []
    if config.speaker_encoder is not None:
        rules += _speaker_encoder("speaker_encoder", "speaker_encoder", config.speaker_encoder)
    talker, predictor = config.talker, config.code_predictor
    width, predictor_width = talker.transformer.width, predictor.transformer.width
    text_vocab, text_width = talker.text_vocab_size, talker.text_width
    torch, projection = "talker.code_predictor", "talker.text_projection"
    heads = range(predictor.num_codebooks - 1)
    rules += [
        *embedding("talker.model.codec_embedding", "talker/codec_embedding", talker.codec_vocab_size, width),
        *embedding("talker.model.text_embedding", "talker/text_embedding", text_vocab, text_width),
        *transformer("talker.model", "talker/transformer", talker.transformer),
        *linear(f"{projection}.linear_fc1", "talker/text_projection/fc1", text_width, text_width, bias=True),
        *linear(f"{projection}.linear_fc2", "talker/text_projection/fc2", text_width, width, bias=True),
        *linear("talker.codec_head", "talker/codec_head", width, talker.codec_vocab_size),
        *transformer(f"{torch}.model", "code_predictor/transformer", predictor.transformer),
        Rule(
            {f"{torch}.model.codec_embedding.{i}.weight": (predictor.codebook_size, width) for i in heads},
            "code_predictor/codec_embeddings/embedding",
            stacked=True,
            gathered=True,
        ),
        Rule(
            {f"{torch}.lm_head.{i}.weight": (predictor.codebook_size, predictor_width) for i in heads},
            "code_predictor/codec_heads/weight",
            stacked=True,
        ),
    ]
    if predictor.has_projection:
        rules += linear(
            f"{torch}.small_to_mtp_projection",
            "code_predictor/projection",
            predictor.talker_width,
            predictor_width,
            bias=True,
        )
    return rules


def codec_rules(config: CodecConfig) -> list[Rule]:
    """The rules of `speech_tokenizer/model.safetensors`: encoder and decoder."""
    return [*_codec_encoder(config.encoder), *_codec_decoder(config.decoder)]


def all_rules(config: ModelConfig) -> list[Rule]:
    """The rules of both files."""
    return [*model_rules(config), *codec_rules(config.codec)]


def select(rules: Iterable[Rule], config: ModelConfig, parts: Iterable[str]) -> list[Rule]:
    """The rules of `parts`.

    Raises:
        ValueError: a part that is not in `PARTS`, or the speaker encoder of a model that has none.
    """
    parts = tuple(parts)
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; there are {', '.join(PARTS)}")
        if part == "speaker_encoder" and config.speaker_encoder is None:
            raise ValueError(f"a {config.model_type} model has no speaker_encoder")
    return [rule for rule in rules if rule.part in parts]


def compute_dtype(config: ModelConfig, rule: Rule) -> jnp.dtype | None:
    """The dtype that a leaf is loaded in; None if it keeps the file's.

    The speaker encoder runs once per voice and always in float32.
    """
    if rule.gathered:
        return None
    names = {
        "talker": config.talker.transformer.dtype,
        "code_predictor": config.code_predictor.transformer.dtype,
        "speaker_encoder": "float32",
        "codec/encoder": config.codec.encoder.transformer.dtype,
        "codec/decoder": config.codec.decoder.transformer.dtype,
    }
    return jnp.dtype(names[rule.part])


def tree_shapes(rules: Iterable[Rule], dtype: Any = jnp.float32) -> dict:
    """The tree that the rules describe, with a `jax.ShapeDtypeStruct` of `dtype` at each leaf."""
    leaves = {rule.flax: jax.ShapeDtypeStruct(rule.flax_shape, dtype) for rule in rules}
    return unflatten_dict(leaves, sep="/")


def _speaker_encoder(torch: str, flax: str, config: SpeakerEncoderConfig) -> Iterator[Rule]:
    """ECAPA-TDNN: a convolution, SE-Res2Net blocks, and the pooled sum of their outputs."""
    channels, kernels = config.channels, config.kernel_sizes
    scale, last = config.res2net_scale, len(channels) - 1
    yield from conv(f"{torch}.blocks.0.conv", f"{flax}/blocks_0", config.mel_bins, channels[0], kernels[0])
    for i in range(1, last):
        block, block_flax, width = f"{torch}.blocks.{i}", f"{flax}/blocks_{i}", channels[i]
        yield from conv(f"{block}.tdnn1.conv", f"{block_flax}/tdnn_1", channels[i - 1], width, 1)
        for j in range(scale - 1):
            inner, inner_flax = f"{block}.res2net_block.blocks.{j}.conv", f"{block_flax}/res2net_{j}"
            yield from conv(inner, inner_flax, width // scale, width // scale, kernels[i])
        yield from conv(f"{block}.tdnn2.conv", f"{block_flax}/tdnn_2", width, width, 1)
        yield from conv(f"{block}.se_block.conv1", f"{block_flax}/se/conv_1", width, config.se_channels, 1)
        yield from conv(f"{block}.se_block.conv2", f"{block_flax}/se/conv_2", config.se_channels, width, 1)
    pooled, attention = channels[last], config.attention_channels
    yield from conv(f"{torch}.mfa.conv", f"{flax}/mfa", pooled, pooled, kernels[last])
    # The pooling's attention sees each frame with the mean and the deviation over all frames.
    yield from conv(f"{torch}.asp.tdnn.conv", f"{flax}/pooling/tdnn", 3 * pooled, attention, 1)
    yield from conv(f"{torch}.asp.conv", f"{flax}/pooling/conv", attention, pooled, 1)
    yield from conv(f"{torch}.fc", f"{flax}/fc", 2 * pooled, config.x_vector_width, 1)


def _codec_encoder(config: CodecEncoderConfig) -> Iterator[Rule]:
    """Mimi's encoder. Activations count in the indices of `encoder.layers`, though they have no weights."""
    torch, flax, channels, index = "encoder.encoder.layers", "codec/encoder", config.filters, 1
    yield from conv(f"{torch}.0.conv", f"{flax}/conv_in", 1, channels, config.kernel_size)
    for i, stride in enumerate(config.strides):
        hidden = channels // config.compress
        for j in range(config.num_residual_layers):
            block, path = f"{torch}.{index}.block", f"{flax}/stage_{i}/residual_{j}"
            yield from conv(f"{block}.1.conv", f"{path}/conv_1", channels, hidden, config.residual_kernel_size)
            yield from conv(f"{block}.3.conv", f"{path}/conv_2", hidden, channels, 1)
            index += 1
        down, path = f"{torch}.{index + 1}.conv", f"{flax}/stage_{i}/conv"
        yield from conv(down, path, channels, 2 * channels, 2 * stride)
        channels, index = 2 * channels, index + 2
    width, kernel = config.transformer.width, 2 * config.downsample_stride
    yield from conv(f"{torch}.{index + 1}.conv", f"{flax}/conv_out", channels, width, config.last_kernel_size)
    yield from transformer("encoder.encoder_transformer", f"{flax}/transformer", config.transformer)
    yield from conv("encoder.downsample.conv", f"{flax}/downsample", width, width, kernel, bias=False)
    tables = {
        "initialized": ("layers.{}.codebook.initialized", (1,)),
        "cluster_usage": ("layers.{}.codebook.cluster_usage", (config.codebook_size,)),
        "embedding_sum": ("layers.{}.codebook.embed_sum", (config.codebook_size, config.codebook_dim)),
    }
    semantic, total = config.num_semantic_codebooks, config.num_codebooks
    for name, count in (("semantic", semantic), ("acoustic", total - semantic)):
        quantizer, path = f"encoder.quantizer.{name}_residual_vector_quantizer", f"{flax}/quantizer/{name}"
        yield from _quantizer(quantizer, path, width, config.codebook_dim, tables, count)


def _codec_decoder(config: CodecDecoderConfig) -> Iterator[Rule]:
    torch, flax, latent = "decoder", "codec/decoder", config.latent_width
    stack, width = f"{torch}.pre_transformer", config.transformer.width
    yield from linear(f"{stack}.input_proj", f"{flax}/input_projection", latent, width, bias=True)
    yield from transformer(stack, f"{flax}/transformer", config.transformer)
    yield from linear(f"{stack}.output_proj", f"{flax}/output_projection", width, latent, bias=True)
    vocab, dim = config.codebook_size, config.codebook_dim
    tables = {
        "cluster_usage": ("vq.layers.{}._codebook.cluster_usage", (vocab,)),
        "embedding_sum": ("vq.layers.{}._codebook.embedding_sum", (vocab, dim)),
    }
    semantic, quantizer_width = config.num_semantic_codebooks, config.quantizer_width
    for torch_name, name, count in (
        ("rvq_first", "semantic", semantic),
        ("rvq_rest", "acoustic", config.num_codebooks - semantic),
    ):
        quantizer, path = f"{torch}.quantizer.{torch_name}", f"{flax}/quantizer/{name}"
        yield from _quantizer(quantizer, path, quantizer_width, dim, tables, count)
    yield from conv(f"{torch}.pre_conv.conv", f"{flax}/pre_conv", quantizer_width, latent, 3)
    for i, rate in enumerate(config.latent_upsample_rates):
        stage, path = f"{torch}.upsample.{i}", f"{flax}/latent_upsample_{i}"
        yield from transposed_conv(f"{stage}.0.conv", f"{path}/transposed_conv", latent, latent, rate)
        yield from _convnext(f"{stage}.1", f"{path}/convnext", latent)
    stages, channels = f"{torch}.decoder", config.decoder_channels
    yield from conv(f"{stages}.0.conv", f"{flax}/conv_in", latent, channels, 7)
    for i, rate in enumerate(config.upsample_rates):
        block, path, half = f"{stages}.{i + 1}.block", f"{flax}/upsample_{i}", channels // 2
        yield from snake(f"{block}.0", f"{path}/snake", channels)
        yield from transposed_conv(f"{block}.1.conv", f"{path}/transposed_conv", channels, half, 2 * rate)
        for j in range(3):
            yield from _residual_unit(f"{block}.{j + 2}", f"{path}/residual_{j}", half)
        channels = half
    last = len(config.upsample_rates) + 1
    yield from snake(f"{stages}.{last}", f"{flax}/snake_out", channels)
    yield from conv(f"{stages}.{last + 1}.conv", f"{flax}/conv_out", channels, 1, 7)


def _convnext(torch: str, flax: str, channels: int) -> Iterator[Rule]:
    yield tensor(f"{torch}.gamma", f"{flax}/gamma", channels)
    yield from conv(f"{torch}.dwconv.conv", f"{flax}/depthwise", 1, channels, 7)
    yield from norm(f"{torch}.norm", f"{flax}/norm", channels, bias=True)
    yield from linear(f"{torch}.pwconv1", f"{flax}/expand", channels, 4 * channels, bias=True)
    yield from linear(f"{torch}.pwconv2", f"{flax}/contract", 4 * channels, channels, bias=True)


def _residual_unit(torch: str, flax: str, channels: int) -> Iterator[Rule]:
    for i, kernel in ((1, 7), (2, 1)):
        yield from snake(f"{torch}.act{i}", f"{flax}/snake_{i}", channels)
        yield from conv(f"{torch}.conv{i}.conv", f"{flax}/conv_{i}", channels, channels, kernel)


def _quantizer(
    torch: str,
    flax: str,
    width: int,
    codebook_dim: int,
    tables: dict[str, tuple[str, tuple[int, ...]]],
    count: int,
) -> Iterator[Rule]:
    """`count` residual codebooks; `tables` maps a leaf to its PyTorch name, which takes the codebook, and its shape."""
    for name, inputs, outputs in (("input", width, codebook_dim), ("output", codebook_dim, width)):
        weight, path = f"{torch}.{name}_proj.weight", f"{flax}/{name}_projection/weight"
        yield tensor(weight, path, outputs, inputs, 1, transform=SQUEEZE)
    for leaf, (name, shape) in tables.items():
        tensors = {f"{torch}.{name.format(j)}": shape for j in range(count)}
        yield Rule(tensors, f"{flax}/{leaf}", stacked=True, gathered=True)
