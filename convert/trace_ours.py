"""Our own model, watched while it hears a recording and speaks, fed with the official package's codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.codec.decoder import CodecDecoder, initial_state
from qwen3_tts_jax.config import CodecDecoderConfig, GenerationConfig, ModelConfig
from qwen3_tts_jax.convert.hearing import Recording, hear
from qwen3_tts_jax.convert.load import load_params
from qwen3_tts_jax.convert.rule import PARTS
from qwen3_tts_jax.convert.trace import Rows, Trace, by_frame
from qwen3_tts_jax.decode_state import DecodeState
from qwen3_tts_jax.generate import Params, advance, embed_prompt, prefill_compiled, utterance_keys
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import PromptBatch, Request, batch_plans, plan_prompt
from qwen3_tts_jax.talker import Talker
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.score import code_logits_of
from qwen3_tts_jax.transformer import Block
from qwen3_tts_jax.voice_prompt import VoicePrompt


def trace_ours(
    folder: Path,
    config: ModelConfig,
    tokenizer: TextTokenizer,
    requests: Sequence[Request],
    recording: Recording,
    official: Trace,
    progress: Callable[[str], None],
) -> Trace:
    """Loads the checkpoint and computes all that `official` holds; the arguments are those of `trace_official`.

    What depends on codes is computed from the official ones. A base model clones the official x-vector and codes.
    """
    progress(f"ours: loading {folder.name}")
    parts = [part for part in PARTS if part != "speaker_encoder" or config.speaker_encoder is not None]
    params = load_params(folder, config, parts)
    progress(f"ours: hearing {recording.seconds:.1f} s")
    hearing = hear(params, config, recording)
    if config.model_type == "base":
        heard = None if recording.text is None else official.hearing.codes.astype(np.int32)
        voice = VoicePrompt(official.hearing.x_vector, heard, recording.text)
        requests = [replace(request, voice=voice) for request in requests]
    plans = [plan_prompt(request, tokenizer, config) for request in requests]
    batch = batch_plans(plans, tts_pad=config.prompt.tts_pad)
    lengths = [len(row) for row in official.codes]
    codes = np.zeros((len(lengths), max(lengths), config.talker.num_codebooks), np.int32)
    for row, forced in enumerate(official.codes):
        codes[row, : len(forced)] = forced

    progress("ours: reading the prompt")
    embeddings, track, layers, hidden = jax.device_get(_read_prompt(params, config, batch))
    progress("ours: logits after the official codes")
    limits = jnp.full(len(lengths), len(codes[0]), jnp.int32)
    capacity = batch.text_ids.shape[1] + codes.shape[1]
    state = prefill_compiled(params, config, batch, utterance_keys(0, jnp.arange(len(lengths))), limits, capacity)
    talker, predictor = jax.device_get(_forced_logits(params, config, state, codes))
    progress("ours: decoding the official codes")
    decoder = config.codec.decoder
    codec = jax.device_get(_codec_stages(params["codec"]["decoder"], decoder, codes))
    progress(f"ours: speaking {len(requests)} x {requests[0].max_frames} frames")
    greedy = GenerationConfig.greedy(config.generation.talker.repetition_penalty)
    speeches = Qwen3TTS(config, params, tokenizer).synthesize(requests, greedy)

    def used(values: np.ndarray) -> Rows:
        return [row[:length] for row, length in zip(values.astype(np.float32), batch.lengths, strict=True)]

    track = track.astype(np.float32)[:, np.minimum(np.arange(len(official.text_track[0])), track.shape[1] - 1)]
    return Trace(
        hearing=hearing,
        text_ids=[_text_ids(request, tokenizer) for request in requests],
        embeddings=used(embeddings),
        text_track=list(track),
        layers=[used(layer) for layer in layers],
        hidden=used(hidden),
        talker_logits=[row[: length + 1] for row, length in zip(talker, lengths, strict=True)],
        predictor_logits=[row[:length] for row, length in zip(predictor, lengths, strict=True)],
        codec={name: by_frame(values, lengths) for name, values in codec.items()},
        codes=[speech.codes for speech in speeches],
        samples=[speech.samples for speech in speeches],
    )


def _text_ids(request: Request, tokenizer: TextTokenizer) -> np.ndarray:
    before = tokenizer.instruct(request.instruct) if request.instruct else []
    if request.voice is not None and request.voice.text is not None:
        before = tokenizer.reference(request.voice.text)
    return np.array(before + tokenizer.assistant(request.text))


@partial(jax.jit, static_argnames="config")
def _read_prompt(
    params: Params, config: ModelConfig, prompt: PromptBatch
) -> tuple[jax.Array, jax.Array, list[jax.Array], jax.Array]:
    """The talker's inputs [B, T, D], text track [B, U, D], the layers' outputs, and the last one normed [B, T, D]."""
    embeddings, track = embed_prompt(params, config, prompt)
    stack = config.talker.transformer
    cache = KVCache.zeros(stack, *embeddings.shape[:2])
    (hidden, _), captured = Talker(config.talker).apply(
        {"params": params["talker"]},
        embeddings,
        cache,
        capture_intermediates=lambda module, method: isinstance(module, Block) and method == "__call__",
        mutable=["intermediates"],
    )
    blocks = captured["intermediates"]["transformer"]
    layers = [blocks[f"layers_{i}"]["__call__"][0][0] for i in range(stack.num_layers)]
    return embeddings, track, layers, hidden


@partial(jax.jit, static_argnames="config")
def _forced_logits(
    params: Params, config: ModelConfig, state: DecodeState, codes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Feeds frames [B, F, Q]; returns logits of code 0 [B, F + 1, V] and of the others [B, F, Q − 1, V]."""

    def step(state: DecodeState, codes: jax.Array):
        # All in one pass; `generate.predict_codes`, which goes step by step, is covered by the free codes.
        others = code_logits_of(params, config, state.hidden[:, None], codes[:, None])[:, 0]
        return advance(params, config, state, codes), (state.logits, others)

    state, (talker, predictor) = jax.lax.scan(step, state, codes.swapaxes(0, 1))
    talker = jnp.concatenate([talker, state.logits[None]])
    return talker.swapaxes(0, 1), predictor.swapaxes(0, 1)


_NOT_COMPARED = ("input_projection", "transformer", "snake_out", "conv_out")


@partial(jax.jit, static_argnames="config")
def _codec_stages(params: Params, config: CodecDecoderConfig, codes: jax.Array) -> dict[str, jax.Array]:
    """Activations [B, F·rate, C] after every stage of the decoder, by the stage's name, then samples."""

    def is_stage(module: nn.Module, method: str) -> bool:
        return len(module.path) == 1 and module.name not in _NOT_COMPARED and method in ("__call__", "decode")

    (samples, _), captured = CodecDecoder(config).apply(
        {"params": params},
        codes,
        initial_state(config, codes.shape[0]),
        capture_intermediates=is_stage,
        mutable=["intermediates"],
    )
    stages: dict[str, Any] = {}
    for name, methods in captured["intermediates"].items():
        ((output,),) = methods.values()
        stages[name] = output[0] if isinstance(output, tuple) else output
    return stages | {"samples": samples}
