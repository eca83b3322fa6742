"""The sampler's distribution against the processors that the official package's `generate` builds."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.config import SamplingConfig
from qwen3_tts_jax.sampling import process_logits
from tests.parity.oracle import quiet


def official_distribution(logits, history, suppressed, config, min_new_tokens, eos):
    """Logits after the processors, in the order in which transformers' own `generate` puts them."""
    import torch

    with quiet():
        from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

        tiny = Qwen3Config(
            vocab_size=logits.shape[1], hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        )  # fmt: skip
        model = Qwen3ForCausalLM(tiny)
        options = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        generation = GenerationConfig(
            do_sample=config.do_sample,
            repetition_penalty=config.repetition_penalty,
            suppress_tokens=suppressed,
            min_new_tokens=min_new_tokens,
            eos_token_id=eos,
            pad_token_id=eos,
            **(options if config.do_sample else {}),
        )
        model._prepare_special_tokens(generation, device="cpu")
        processors = model._get_logits_processor(generation, input_ids_seq_length=0, device="cpu")
        return processors(torch.tensor(history), torch.tensor(logits)).numpy()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(repetition_penalty=1.05),
        SamplingConfig(temperature=1.7, top_k=7, top_p=0.8, repetition_penalty=1.3),
        SamplingConfig(temperature=0.5, top_k=0, top_p=0.6),
        SamplingConfig(temperature=0.9, top_k=500, top_p=1.0, repetition_penalty=0.8),
        SamplingConfig(do_sample=False, repetition_penalty=1.2),
    ],
)
@pytest.mark.parametrize("frames", [0, 1, 2, 9])
def test_processed_logits_are_the_official_ones(config, frames):
    rows, vocab, codes, eos = 4, 97, 70, 80
    rng = np.random.default_rng(frames)
    logits = rng.normal(size=(rows, vocab)).astype(np.float32) * 3
    history = rng.integers(0, codes, (rows, frames))
    suppressed = [i for i in range(codes, vocab) if i != eos]
    expected = official_distribution(logits, history, suppressed, config, 2, eos)

    seen = np.zeros((rows, vocab), bool)
    seen[np.arange(rows)[:, None], history] = True
    allowed = np.arange(vocab) < codes
    allowed[eos] = frames >= 2
    ours = np.asarray(process_logits(jnp.asarray(logits), config, jnp.asarray(seen), jnp.asarray(allowed)))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(ours[finite], expected[finite], rtol=1e-6)
