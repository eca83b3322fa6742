"""Runs the official PyTorch package and this one on the same inputs and compares them stage by stage.

The official model is loaded first, watched and dropped again, so that only one is in memory at a time.
Both are greedy, with the checkpoint's own repetition penalty. Logits are compared under the official
package's codes; only the last two stages, codes and speech, are each side's own.

In bfloat16 only talker and code predictor are: the codec is float32 on both sides, see
`reference.load_official`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cache import KVCache
from qwen3_tts_jax.code_predictor import CodePredictor
from qwen3_tts_jax.codec.decoder import CodecDecoder, initial_state
from qwen3_tts_jax.config import CodecDecoderConfig, GenerationConfig, ModelConfig
from qwen3_tts_jax.convert.check import check_folder
from qwen3_tts_jax.convert.compare import TOLERANCES, Stage, compare
from qwen3_tts_jax.convert.load import load_params
from qwen3_tts_jax.convert.reference import (
    MAX_FRAMES,
    Rows,
    Trace,
    by_frame,
    import_official,
    trace_official,
)
from qwen3_tts_jax.convert.report import Report
from qwen3_tts_jax.generate import DecodeState, Params, advance, embed_prompt, prefill_compiled, utterance_keys
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import PromptBatch, Request, TextMode, batch_plans, plan_prompt
from qwen3_tts_jax.talker import Talker
from qwen3_tts_jax.text import TextTokenizer
from qwen3_tts_jax.transformer import Block

_VERSIONS = ("qwen-tts", "transformers", "torch", "jax", "qwen3-tts-jax")


def run_parity(
    folder: str | Path,
    texts: Sequence[str],
    *,
    dtype: str = "float32",
    frames: int = 12,
    speaker: str | None = None,
    language: str = "auto",
    instruct: str | None = None,
    text_mode: TextMode = "all_at_once",
    layers: bool = False,
    report: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compares both implementations on one batch of texts.

    Args:
        folder: a custom-voice or voice-design checkpoint in the published layout.
        texts: what both say, in one batch.
        dtype: "float32" or "bfloat16", of talker and code predictor.
        frames: how many each makes at most, 1 to 300.
        speaker: of all texts; by default the first of a custom-voice model.
        language: of all texts.
        instruct: for all texts.
        text_mode: see `Request`.
        layers: also compare the output of every layer of the talker over the prompt.
        report: a Markdown file to write, with a plot beside it; its folder must exist.
        progress: called with a line before each long step.

    Raises:
        qwen3_tts_jax.convert.reference.OracleMissingError: the official package is not installed.
        ValueError: a bad argument, a base model, which speaks only after a reference recording, or (as
            `check.CheckpointError`) weights that do not fit the config.
        FileNotFoundError: the folder of `report` does not exist.
    """
    folder, say = Path(folder), progress or (lambda line: None)
    if dtype not in TOLERANCES:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(TOLERANCES)}")
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be 1 to {MAX_FRAMES}, got {frames}")
    if not texts:
        raise ValueError("no texts to compare; give at least one")
    if report is not None and not Path(report).parent.is_dir():
        raise FileNotFoundError(f"the folder {Path(report).parent} for the report does not exist")
    config = hf_config.read_folder(folder).with_dtypes(dtype)
    if config.model_type == "base":
        raise ValueError(
            "a base model speaks only after a reference recording: compare a custom-voice or voice-design one"
        )
    if speaker is None and config.prompt.speakers:
        speaker = min(config.prompt.speakers)
    if not config.supports_instruct:
        instruct = None
    requests = [Request(text, language, speaker, instruct, text_mode, frames) for text in texts]
    tokenizer = TextTokenizer.from_folder(folder)
    for request in requests:
        plan_prompt(request, tokenizer, config)
    check_folder(folder, config)
    import_official()

    official = trace_official(folder, requests, dtype, frames, say)
    ours = _trace_ours(folder, config, tokenizer, requests, official, say)
    settings = {
        "model": folder.resolve().name,
        "dtype": dtype,
        "texts": "; ".join(texts),
        "speaker": str(speaker),
        "language": language,
        "instruct": str(instruct),
        "text mode": text_mode,
        "JAX backend": jax.default_backend(),
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS),
    }
    result = Report(settings, list(_stages(official, ours, dtype, layers)))
    if report is not None:
        result.write(Path(report))
        say(f"wrote {report}")
    return result


def _stages(official: Trace, ours: Trace, dtype: str, layers: bool) -> Iterable[Stage]:
    def stage(name: str, kind: str, pick: Callable[[Trace], Rows]) -> Stage:
        return compare(name, kind, dtype, pick(official), pick(ours))

    yield stage("text ids", "ids", lambda trace: trace.text_ids)
    yield stage("prompt embeddings", "embeddings", lambda trace: trace.embeddings)
    yield stage("text track", "embeddings", lambda trace: trace.text_track)
    if layers:
        for layer in range(len(official.layers)):
            yield stage(f"talker layer {layer}", "hidden", lambda trace, layer=layer: trace.layers[layer])
    yield stage("prefill hidden", "hidden", lambda trace: trace.hidden)
    yield stage("prefill logits", "logits", lambda trace: [row[:1] for row in trace.talker_logits])
    yield stage("talker logits", "logits", lambda trace: trace.talker_logits)
    yield stage("predictor logits", "logits", lambda trace: trace.predictor_logits)
    for name in official.codec:
        kind = "samples" if name == "samples" else "codec"
        yield stage(f"codec {name}", kind, lambda trace, name=name: trace.codec[name])
    yield stage("free codes", "codes", lambda trace: trace.codes)
    frame = official.codec["samples"][0].shape[1]
    yield stage("speech", "speech", lambda trace: [row.reshape(-1, frame) for row in trace.samples])


def _trace_ours(
    folder: Path,
    config: ModelConfig,
    tokenizer: TextTokenizer,
    requests: list[Request],
    official: Trace,
    say: Callable[[str], None],
) -> Trace:
    say(f"ours: loading {folder.name}")
    params = load_params(folder, config)
    plans = [plan_prompt(request, tokenizer, config) for request in requests]
    batch = batch_plans(plans, tts_pad=config.prompt.tts_pad)
    lengths = [len(row) for row in official.codes]
    codes = np.zeros((len(lengths), max(lengths), config.talker.num_codebooks), np.int32)
    for row, forced in enumerate(official.codes):
        codes[row, : len(forced)] = forced

    say("ours: reading the prompt")
    embeddings, track, layers, hidden = jax.device_get(_read_prompt(params, config, batch))
    say("ours: logits after the official codes")
    limits = jnp.full(len(lengths), len(codes[0]), jnp.int32)
    state = prefill_compiled(params, config, batch, utterance_keys(0, jnp.arange(len(lengths))), limits)
    state = state.replace(cache=state.cache.grow(batch.text_ids.shape[1] + codes.shape[1]))
    talker, predictor = jax.device_get(_forced_logits(params, config, state, codes))
    say("ours: decoding the official codes")
    decoder = config.codec.decoder
    codec = jax.device_get(_codec_stages(params["codec"]["decoder"], decoder, codes))
    say(f"ours: speaking {len(requests)} x {requests[0].max_frames} frames")
    greedy = GenerationConfig.greedy(config.generation.talker.repetition_penalty)
    speeches = Qwen3TTS(config, params, tokenizer).synthesize(requests, greedy)

    def used(values: np.ndarray) -> Rows:
        return [row[start:] for row, start in zip(values.astype(np.float32), batch.start, strict=True)]

    track = track.astype(np.float32)[:, np.minimum(np.arange(len(official.text_track[0])), track.shape[1] - 1)]
    return Trace(
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
    instruct = tokenizer.instruct(request.instruct) if request.instruct else []
    return np.array(instruct + tokenizer.assistant(request.text))


@partial(jax.jit, static_argnames="config")
def _read_prompt(
    params: Params, config: ModelConfig, prompt: PromptBatch
) -> tuple[jax.Array, jax.Array, list[jax.Array], jax.Array]:
    """The talker's inputs [B, T, D], text track [B, U, D], layers' outputs and normed last one [B, T, D]."""
    embeddings, track = embed_prompt(params, config, prompt)
    stack = config.talker.transformer
    cache = KVCache.zeros(stack, prompt.start, embeddings.shape[1])
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
        return advance(params, config, state, codes), (state.logits, _predictor_logits(params, config, state, codes))

    state, (talker, predictor) = jax.lax.scan(step, state, codes.swapaxes(0, 1))
    talker = jnp.concatenate([talker, state.logits[None]])
    return talker.swapaxes(0, 1), predictor.swapaxes(0, 1)


def _predictor_logits(params: Params, config: ModelConfig, state: DecodeState, codes: jax.Array) -> jax.Array:
    """Logits [B, Q − 1, V] of codes 1 … Q − 1 of a frame [B, Q], all positions in one pass.

    `generate.predict_codes`, which goes step by step, is compared by the free codes.
    """
    predictor, variables = CodePredictor(config.code_predictor), {"params": params["code_predictor"]}
    batch, num_codebooks = codes.shape
    code_0 = Talker(config.talker).apply({"params": params["talker"]}, codes[:, :1], method=Talker.embed_code)
    codebooks = jnp.arange(1, num_codebooks - 1)
    others = predictor.apply(variables, codebooks, codes[:, 1:-1], method=CodePredictor.embed_code)
    dtype = state.hidden.dtype
    x = jnp.concatenate([state.hidden[:, None], code_0.astype(dtype), others.astype(dtype)], axis=1)
    cache = KVCache.zeros(config.code_predictor.transformer, jnp.zeros(batch, jnp.int32), num_codebooks)
    hidden, _ = predictor.apply(variables, x, cache)
    logits = [
        predictor.apply(variables, hidden[:, codebook], codebook, method=CodePredictor.logits)
        for codebook in range(1, num_codebooks)
    ]
    return jnp.stack(logits, axis=1)


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
