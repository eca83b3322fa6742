"""A codec of the shape of mini's, with few channels and weights drawn at random."""

from dataclasses import replace

import numpy as np

from qwen3_tts_jax.train.codec.start import random_codec
from recipes.mini.codes import codec_of_mini, with_pitch


def small(codebooks=5):
    shape = codec_of_mini(codebooks)
    narrow = {"num_layers": 1, "width": 16, "mlp_width": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    encoder = replace(shape.encoder, transformer=replace(shape.encoder.transformer, **narrow), filters=2)
    decoder = replace(shape.decoder, transformer=replace(shape.decoder.transformer, **narrow))
    decoder = replace(decoder, latent_width=16, decoder_channels=32)
    return replace(shape, encoder=encoder, decoder=decoder)


def codec():
    rng = np.random.default_rng(0)
    params = random_codec(small(4))
    for quantizer in (params["encoder"]["quantizer"], params["decoder"]["quantizer"]):
        for kind in quantizer.values():
            kind["embedding_sum"] = rng.standard_normal(kind["embedding_sum"].shape).astype(np.float32)
    codes = np.stack([rng.integers(0, 512, 200) for _ in range(4)], axis=1)
    return with_pitch(params, codes)
