"""A very small model for tests of training: 5 codebooks of 37 codes and, unlike `shapes`, few text ids.

One config computes for all types of models, so that what a test compiles serves all of its cases.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.rules import model_rules
from qwen3_tts_jax.prompt import PromptBatch, Request, batch_plans, plan_prompt
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.command import one_layer
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

TEXTS = ("Hello there, how are you?", "Short.", "Something between.")
KINDS = ("speaker", "instruct", "x-vector", "in-context")


class Letters:
    """A text tokenizer of one id per character."""

    phonemes = None

    def assistant(self, text):
        return [1, 2, 3, *self._ids(text), 4, 5, 6, 7, 8]

    def reference(self, text):
        return [1, 2, 3, *self._ids(text), 4, 5]

    def instruct(self, text):
        return [9, *self._ids(text), 10]

    def _ids(self, text):
        return [ord(letter) % 200 for letter in text]


def _small() -> ModelConfig:
    config = one_layer(SMALL["1.7B-Base"])
    talker = replace(config.talker, text_vocab_size=211, max_positions=200)
    return replace(config, talker=talker, prompt=replace(config.prompt, tts_bos=201, tts_eos=202, tts_pad=203))


BASE = _small()
CUSTOM_VOICE = replace(
    BASE,
    model_type="custom_voice",
    speaker_encoder=None,
    prompt=replace(BASE.prompt, speakers={"ryan": 700, "eric": 701}, dialects={"eric": "sichuan_dialect"}),
)
CUSTOM_VOICE = replace(
    CUSTOM_VOICE, prompt=replace(CUSTOM_VOICE.prompt, languages={**BASE.prompt.languages, "sichuan_dialect": 702})
)
DESIGN = replace(BASE, model_type="voice_design", speaker_encoder=None)
Q, V = BASE.talker.num_codebooks, BASE.code_predictor.codebook_size


@cache
def params(seed: int = 3) -> dict:
    """The trees talker, code_predictor and speaker_encoder."""
    return jax.tree.map(jnp.asarray, drawn_tree(model_rules(BASE), seed=seed))


def own_params() -> dict:
    """A copy of `params`, to be given away."""
    return jax.tree.map(jnp.copy, params())


def voice(frames: int = 0, seed: int = 0) -> VoicePrompt:
    rng = np.random.default_rng(seed)
    x_vector = rng.normal(size=BASE.speaker_encoder.x_vector_width).astype(np.float32)
    return VoicePrompt(x_vector, random_codes((frames,), seed), "what it says") if frames else VoicePrompt(x_vector)


def random_codes(lengths: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Codes int32 [T, Q] of one length, or [B, T, Q] of several, −1 behind each."""
    codes = np.random.default_rng(seed).integers(0, V, (len(lengths), max(lengths), Q))
    there = np.arange(max(lengths)) < np.array(lengths)[:, None]
    codes = np.where(there[..., None], codes, -1).astype(np.int32)
    return codes[0] if len(lengths) == 1 else codes


def prompts(kind: str = "x-vector", text_mode: str = "all_at_once", length: int = 56) -> PromptBatch:
    """Three prompts of different lengths, padded to one shape for all kinds."""
    config, fields = {
        "speaker": (CUSTOM_VOICE, [{"speaker": name} for name in ("ryan", "eric", "ryan")]),
        "instruct": (DESIGN, [{"instruct": "an old man"}, {}, {"instruct": "whispers"}]),
        "x-vector": (BASE, [{"voice": voice(seed=i)} for i in range(3)]),
        "in-context": (BASE, [{"voice": voice(4 + 2 * i, seed=i)} for i in range(3)]),
    }[kind]
    plans = [
        plan_prompt(Request(text, language, text_mode=text_mode, **each), Letters(), config)
        for text, language, each in zip(TEXTS, ("english", "chinese", "auto"), fields, strict=True)
    ]
    batch = batch_plans(plans, tts_pad=config.prompt.tts_pad, length=length, trailing_length=40)
    if batch.x_vectors is None:
        batch = batch._replace(x_vectors=np.zeros((3, BASE.talker.transformer.width), np.float32))
    return batch
