"""A rule of the conversion table, and the rules of the layers that the model is built of.

Every function here takes the PyTorch prefix of a layer, then its path in the parameter tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3_tts_jax.config import TransformerConfig
from qwen3_tts_jax.convert.transforms import CONV, CONV_TRANSPOSE, IDENTITY, Transform

PARTS = ("talker", "code_predictor", "speaker_encoder", "codec/encoder", "codec/decoder")
"""The subtrees that can be read one without the other."""


@dataclass(frozen=True)
class Rule:
    """One leaf of the parameter tree and the PyTorch tensors that it is made of.

    Attributes:
        torch: one name or, where `stacked`, the names along a new leading axis.
        flax: path in the tree, "talker/codec_head/weight".
        transform: layout change of each tensor.
        shape: of each PyTorch tensor.
        stacked: the leaf is [len(torch), *transform.shape(shape)].
        gathered: rows of it are looked up, never multiplied, so it keeps the file's dtype.
    """

    torch: tuple[str, ...]
    flax: str
    transform: Transform
    shape: tuple[int, ...]
    stacked: bool = False
    gathered: bool = False

    @property
    def flax_shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        shape = self.transform.shape(self.shape)
        return (len(self.torch), *shape) if self.stacked else shape

    @property
    def part(self) -> str:
        """The member of `PARTS` that the leaf belongs to."""
        return next(part for part in PARTS if self.flax.startswith(f"{part}/"))


def tensor(torch: str, flax: str, *shape: int, transform: Transform = IDENTITY) -> Rule:
    return Rule((torch,), flax, transform, shape)


def embedding(torch: str, flax: str, vocab: int, width: int) -> Iterator[Rule]:
    yield Rule((f"{torch}.weight",), f"{flax}/embedding", IDENTITY, (vocab, width), gathered=True)


def linear(torch: str, flax: str, inputs: int, outputs: int, bias: bool = False) -> Iterator[Rule]:
    yield tensor(f"{torch}.weight", f"{flax}/weight", outputs, inputs)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def conv(torch: str, flax: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> Iterator[Rule]:
    yield tensor(f"{torch}.weight", f"{flax}/kernel", outputs, inputs, kernel, transform=CONV)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def transposed_conv(torch: str, flax: str, inputs: int, outputs: int, kernel: int) -> Iterator[Rule]:
    yield tensor(f"{torch}.weight", f"{flax}/kernel", inputs, outputs, kernel, transform=CONV_TRANSPOSE)
    yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def norm(torch: str, flax: str, width: int, bias: bool = False) -> Iterator[Rule]:
    yield tensor(f"{torch}.weight", f"{flax}/scale", width)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", width)


def snake(torch: str, flax: str, channels: int) -> Iterator[Rule]:
    yield tensor(f"{torch}.alpha", f"{flax}/alpha", channels)
    yield tensor(f"{torch}.beta", f"{flax}/beta", channels)


def transformer(torch: str, flax: str, config: TransformerConfig) -> Iterator[Rule]:
    """`torch`.layers.* and `torch`.norm."""
    for i in range(config.num_layers):
        yield from _layer(f"{torch}.layers.{i}", f"{flax}/layers_{i}", config)
    if config.final_norm:
        yield from norm(f"{torch}.norm", f"{flax}/norm", config.width)


def _layer(torch: str, flax: str, config: TransformerConfig) -> Iterator[Rule]:
    width, queries = config.width, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    has_bias = config.norm == "layer"
    attention, attention_flax = f"{torch}.self_attn", f"{flax}/attention"
    yield from norm(f"{torch}.input_layernorm", f"{flax}/attention_norm", width, has_bias)
    yield from linear(f"{attention}.q_proj", f"{attention_flax}/q", width, queries)
    yield from linear(f"{attention}.k_proj", f"{attention_flax}/k", width, keys)
    yield from linear(f"{attention}.v_proj", f"{attention_flax}/v", width, keys)
    yield from linear(f"{attention}.o_proj", f"{attention_flax}/o", queries, width)
    if config.qk_norm:
        yield from norm(f"{attention}.q_norm", f"{attention_flax}/q_norm", config.head_dim)
        yield from norm(f"{attention}.k_norm", f"{attention_flax}/k_norm", config.head_dim)
    if config.layer_scale:
        yield tensor(f"{torch}.self_attn_layer_scale.scale", f"{flax}/attention_layer_scale/scale", width)
    yield from norm(f"{torch}.post_attention_layernorm", f"{flax}/mlp_norm", width, has_bias)
    swiglu = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    for name, torch_name in (swiglu if config.mlp == "swiglu" else {"up": "fc1", "down": "fc2"}).items():
        inputs, outputs = (config.mlp_width, width) if name == "down" else (width, config.mlp_width)
        yield from linear(f"{torch}.mlp.{torch_name}", f"{flax}/mlp/{name}", inputs, outputs)
    if config.layer_scale:
        yield tensor(f"{torch}.mlp_layer_scale.scale", f"{flax}/mlp_layer_scale/scale", width)
