"""Configs of models small enough to be trained on a CPU within seconds, from random weights."""

from __future__ import annotations

from dataclasses import replace

from qwen3_tts_jax.config import ModelConfig, TransformerConfig
from qwen3_tts_jax.presets import preset


def small_model(
    talker: TransformerConfig, predictor: TransformerConfig, *, codebooks: int, codes: int, text_ids: int
) -> ModelConfig:
    """0.6B-CustomVoice with other stacks and fewer codebooks, codes per codebook and text ids; without speakers.

    Special ids keep their places: the codec's, languages included, come after the codes, the text's are the last four
    text ids.
    """
    published = preset("0.6B-CustomVoice")
    sizes = {"num_codebooks": codebooks, "codebook_size": codes}
    shift = codes - published.code_predictor.codebook_size
    moved = {name: value + shift for name, value in vars(published.prompt).items() if name.startswith("codec_")}
    languages = {name: value + shift for name, value in published.prompt.languages.items()}
    return replace(
        published,
        talker=replace(
            published.talker, transformer=talker, codec_vocab_size=codes + 1024, text_vocab_size=text_ids,
            text_width=talker.width, num_codebooks=codebooks, max_positions=4096,
        ),
        code_predictor=replace(
            published.code_predictor, transformer=predictor, talker_width=talker.width, **sizes
        ),
        prompt=replace(
            published.prompt, tts_bos=text_ids - 4, tts_eos=text_ids - 3, tts_pad=text_ids - 2, speakers={},
            dialects={}, languages=languages, **moved,
        ),
        codec=replace(
            published.codec,
            num_codebooks=codebooks,
            encoder=replace(published.codec.encoder, **sizes),
            decoder=replace(published.codec.decoder, **sizes),
        ),
    )  # fmt: skip
