"""The random weights that other tests stand on: reproducible, alive, and never equal where they must differ."""

import hashlib

import numpy as np
import pytest

from tests.draw import draw


def test_same_name_shape_and_seed_give_the_same_weights():
    name, shape = "talker.model.layers.3.mlp.up_proj.weight", (5, 7)
    np.testing.assert_array_equal(draw(name, shape, 4), draw(name, shape, 4))
    assert not np.any(draw(name, shape, 4) == draw(name, shape, 5))
    assert not np.any(draw(name, shape, 4) == draw(name.replace("3", "2"), shape, 4))


def test_the_stream_is_frozen():
    values = draw("talker.model.layers.0.mlp.up_proj.weight", (3, 4), 0)
    digest = hashlib.sha256(np.round(values * 1e4).astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "e937b4ae88dbc0cf"


@pytest.mark.parametrize("shape", [(61, 40), (2100, 1030)], ids=["one block", "repeated block"])
def test_rows_differ_and_are_not_correlated(shape):
    rows = draw("talker.model.text_embedding.weight", shape)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T - np.eye(len(rows))
    assert np.abs(cosine).max() < 6 / np.sqrt(shape[1])
    assert abs(np.std(rows) * np.sqrt(shape[1]) - 1) < 0.02


def test_products_keep_the_scale_of_their_input():
    x = np.random.RandomState(0).standard_normal((64, 90)).astype(np.float32)
    linear = draw("talker.model.layers.0.self_attn.q_proj.weight", (80, 90))
    assert 0.9 < np.std(x @ linear.T) < 1.1
    # [in, out, kernel]: kernel is twice the stride, so that two taps of every input channel meet in an output.
    transposed = draw("decoder.decoder.2.block.1.conv.weight", (90, 50, 10))
    assert 0.9 < np.std(x @ transposed[:, :, 3] + x[::-1] @ transposed[:, :, 8]) < 1.1


@pytest.mark.parametrize(
    ("prefix", "embedding"),
    [
        ("decoder.quantizer.rvq_rest.vq.layers.2._codebook", "embedding_sum"),
        ("encoder.quantizer.acoustic_residual_vector_quantizer.layers.2.codebook", "embed_sum"),
    ],
)
def test_unused_codes_are_tiny_and_become_ordinary_rows(prefix, embedding):
    usage = draw(f"{prefix}.cluster_usage", (96,))
    total = draw(f"{prefix}.{embedding}", (96, 20))
    unused = usage < 1e-5
    assert unused.sum() == 3
    assert (usage == 0).any()
    assert ((usage > 0) & unused).any()
    assert np.abs(total[unused]).max() < 1e-3
    codebook = total / np.maximum(usage, 1e-5)[:, None]
    assert 0.3 < np.std(codebook[unused]) < 2
    assert 0.3 < np.std(codebook[~unused]) < 2


def test_a_name_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="rotary_emb"):
        draw("talker.model.rotary_emb.inv_freq", (5,))
