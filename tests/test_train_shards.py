"""Where training on several devices keeps what it trains."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec

from qwen3_tts_jax.train.shards import placement


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("talker/transformer/layers_0/mlp/down/weight", (64, 256), (None, "data")),
        ("talker/transformer/layers_0/attention/o/weight", (256, 64), ("data",)),
        # Not along their rows, which are looked up.
        ("talker/text_embedding/embedding", (4096, 64), (None, "data")),
        ("code_predictor/codec_embeddings/embedding", (15, 512, 64), (None, None, "data")),
        ("talker/text_embedding/embedding", (4096, 63), ("data",)),
        # Small, or of sizes that four devices cannot share.
        ("talker/transformer/norm/scale", (64,), ()),
        ("talker/codec_embedding/embedding", (4097, 63), ()),
    ],
)
def test_large_leaves_are_cut(path, shape, spec):
    mesh = jax.sharding.AbstractMesh((4, 1), ("data", "model"))
    assert placement(mesh)(path, shape).spec == PartitionSpec(*spec)


def test_without_a_mesh_nothing_is_cut():
    assert placement(None) is None
