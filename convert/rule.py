"""A rule of the conversion table, and the rules for the layers that the model is built from.

Every function here takes the PyTorch prefix of a layer, then its path in the parameter tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qwen3_tts_jax.config import TransformerConfig
from qwen3_tts_jax.convert.transforms import CONV, CONV_TRANSPOSE, IDENTITY, Transform

PARTS = ("talker", "code_predictor", "speaker_encoder", "codec/encoder", "codec/decoder")
"""The subtrees that can be read independently."""


@dataclass(frozen=True)
class Rule:
    """One leaf of the parameter tree and the PyTorch tensors that it is made from.

    Attributes:
        torch: names and shapes of the tensors; one, or several if `stacked` or `groups`.
        flax: path in the tree, such as "talker/codec_head/weight".
        transform: layout change of each tensor.
        stacked: whether the tensors, of one shape, are stacked along a new leading axis.
        groups: linear layers are joined by groups of outputs: each weight [groups · rows, in] gives the next
            `rows` of every group, so the leaf is [groups, sum of rows, in].
        gathered: whether its rows are only looked up, never multiplied, so that it keeps the file's dtype.
    """

    torch: Mapping[str, tuple[int, ...]]
    flax: str
    transform: Transform = IDENTITY
    stacked: bool = False
    groups: int | None = None
    gathered: bool = False

    @property
    def flax_shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        shapes = list(self.torch.values())
        if self.groups is not None:
            return (self.groups, sum(rows for rows, _ in shapes) // self.groups, shapes[0][1])
        shape = self.transform.shape(shapes[0])
        return (len(shapes), *shape) if self.stacked else shape

    @property
    def part(self) -> str:
        """The member of `PARTS` that the leaf belongs to."""
        return next(part for part in PARTS if self.flax.startswith(f"{part}/"))

    def split(self, leaf: np.ndarray) -> list[np.ndarray]:
        """Views of the leaf, one for each tensor; joined ones as [groups, rows, in]."""
        if self.stacked:
            return list(leaf)
        if self.groups is None:
            return [leaf]
        ends = np.cumsum([rows // self.groups for rows, _ in self.torch.values()])
        return np.split(leaf, ends[:-1], axis=1)


def tensor(torch: str, flax: str, *shape: int, transform: Transform = IDENTITY) -> Rule:
    """The rule for one tensor, of PyTorch's `shape`."""
    return Rule({torch: shape}, flax, transform)


def embedding(torch: str, flax: str, vocab: int, width: int) -> Iterator[Rule]:
    """The rule for `torch`.weight, a table that is only looked up."""
    yield Rule({f"{torch}.weight": (vocab, width)}, f"{flax}/embedding", gathered=True)


def linear(torch: str, flax: str, inputs: int, outputs: int, bias: bool = False) -> Iterator[Rule]:
    """The rules for a matrix [outputs, inputs], and its bias."""
    yield tensor(f"{torch}.weight", f"{flax}/weight", outputs, inputs)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def conv(torch: str, flax: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> Iterator[Rule]:
    """The rules for a convolution over time, and its bias."""
    yield tensor(f"{torch}.weight", f"{flax}/kernel", outputs, inputs, kernel, transform=CONV)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def transposed_conv(torch: str, flax: str, inputs: int, outputs: int, kernel: int) -> Iterator[Rule]:
    """The rules for a transposed convolution over time."""
    yield tensor(f"{torch}.weight", f"{flax}/kernel", inputs, outputs, kernel, transform=CONV_TRANSPOSE)
    yield tensor(f"{torch}.bias", f"{flax}/bias", outputs)


def norm(torch: str, flax: str, width: int, bias: bool = False) -> Iterator[Rule]:
    """The rules for a norm's scale, and its bias."""
    yield tensor(f"{torch}.weight", f"{flax}/scale", width)
    if bias:
        yield tensor(f"{torch}.bias", f"{flax}/bias", width)


def snake(torch: str, flax: str, channels: int) -> Iterator[Rule]:
    """The rules for a SnakeBeta's two vectors."""
    yield tensor(f"{torch}.alpha", f"{flax}/alpha", channels)
    yield tensor(f"{torch}.beta", f"{flax}/beta", channels)


def transformer(torch: str, flax: str, config: TransformerConfig) -> Iterator[Rule]:
    """The rules for `torch`.layers.* and `torch`.norm."""
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
    joined = {
        f"{attention}.{name}_proj.weight": (rows, width)
        for name, rows in zip("qkv", (queries, keys, keys), strict=True)
    }
    yield Rule(joined, f"{attention_flax}/qkv/weight", groups=config.num_kv_heads)
    yield from linear(f"{attention}.o_proj", f"{attention_flax}/o", queries, width)
    if config.qk_norm:
        yield from norm(f"{attention}.q_norm", f"{attention_flax}/qk_norm/queries", config.head_dim)
        yield from norm(f"{attention}.k_norm", f"{attention_flax}/qk_norm/key", config.head_dim)
    if config.layer_scale:
        yield tensor(f"{torch}.self_attn_layer_scale.scale", f"{flax}/attention_layer_scale/scale", width)
    yield from norm(f"{torch}.post_attention_layernorm", f"{flax}/mlp_norm", width, has_bias)
    if config.mlp == "swiglu":
        gate_up = {f"{torch}.mlp.{name}_proj.weight": (config.mlp_width, width) for name in ("gate", "up")}
        yield Rule(gate_up, f"{flax}/mlp/gate_up/weight", stacked=True)
    else:
        yield from linear(f"{torch}.mlp.fc1", f"{flax}/mlp/up", width, config.mlp_width)
    down = "down_proj" if config.mlp == "swiglu" else "fc2"
    yield from linear(f"{torch}.mlp.{down}", f"{flax}/mlp/down", config.mlp_width, width)
    if config.layer_scale:
        yield tensor(f"{torch}.mlp_layer_scale.scale", f"{flax}/mlp_layer_scale/scale", width)
