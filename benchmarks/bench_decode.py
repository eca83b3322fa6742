"""Milliseconds per frame of the talker, the code predictor and the codec, apart and together, by batch.

    python benchmarks/bench_decode.py CHECKPOINT [--batches 1 2 4 8 16 32] [--repeats 3] [--plot decode.png]

A tool for making one of the parts faster; the figures in README.md are of whole calls (bench_batch.py). Ours are
compiled loops of each part and of the whole frame; the official package's are the calls of the same parts within one
generation. Each measurement runs in a fresh process, in float32, the official package also in bfloat16; with 0.6B
shapes on two cores that takes minutes for each batch and repeat. CHECKPOINT is as for bench_batch.py. Needs the extra
`parity` and qwen-tts; `--kinds ours` needs neither.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import side_by_side

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
_CALLS = 5


def measure_ours(checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """Each loop makes `frames` frames; medians of five calls after the first, which compiles."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from qwen3_tts_jax import Qwen3TTS
    from qwen3_tts_jax import generate as g
    from qwen3_tts_jax.codec import decoder
    from qwen3_tts_jax.decode_state import DecodeState
    from qwen3_tts_jax.prompt import batch_plans, plan_prompt

    model = Qwen3TTS.from_pretrained(checkpoint, dtype="float32")
    params, config = model.params, model.config
    plan = plan_prompt(_request(config.model_type), model.tokenizer, config)
    prompt = batch_plans([plan] * batch, tts_pad=config.prompt.tts_pad)
    capacity = prompt.text_ids.shape[1] + frames
    keys, limits = g.utterance_keys(0, jnp.arange(batch)), jnp.full(batch, frames)
    start = g.prefill_compiled(params, config, prompt, keys, limits, capacity)
    size = config.code_predictor.codebook_size
    codes = np.random.default_rng(0).integers(0, size, (frames, batch, config.talker.num_codebooks)).astype(np.int32)
    sampling = config.generation.code_predictor

    def talker(params: Any, state: DecodeState, codes: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda state, row: (g.advance(params, config, state, row), None), state, codes)[0].logits

    def predictor(params: Any, state: DecodeState, codes: jax.Array) -> jax.Array:
        def step(hidden: jax.Array, row: jax.Array):
            made, _ = g.predict_codes(params, config, sampling, hidden, row[:, 0], state.keys)
            # The next frame waits for this one, as it does in generation.
            return hidden + made.sum() * 1e-9, None

        return jax.lax.scan(step, state.hidden, codes)[0]

    def whole(params: Any, state: DecodeState, codes: jax.Array) -> jax.Array:
        return g.generate(params, config, config.generation, state, frames)[1]

    def codec(params: Any, state: DecodeState, codes: jax.Array) -> jax.Array:
        state = decoder.initial_state(config.codec.decoder, batch)
        return decoder.decode_step(params["codec"]["decoder"], config.codec.decoder, state, codes.swapaxes(0, 1))[1]

    def milliseconds(function: Callable) -> float:
        compiled = jax.jit(function)
        jax.block_until_ready(compiled(params, start, codes))
        times = []
        for _ in range(_CALLS):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(params, start, codes))
            times.append(time.perf_counter() - begin)
        return statistics.median(times) / frames * 1e3

    parts = {"talker": talker, "predictor": predictor, "frame": whole, "codec": codec}
    return _speed({name: milliseconds(function) for name, function in parts.items()}, batch)


def measure_official(dtype: str, checkpoint: str, frames: int, batch: int) -> side_by_side.Figures:
    """Sums of what the calls of each part take in the second of two generations, without the prompt's."""
    from qwen3_tts_jax.convert.reference import import_official

    official = import_official()
    import torch

    torch.manual_seed(0)
    model = official.Qwen3TTSModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    talker, tokenizer = model.model.talker, model.model.speech_tokenizer
    times: dict[str, list[float]] = {}

    def noting(owner: Any, method: str, part: str) -> None:
        function = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **options)
            times.setdefault(part, []).append(time.perf_counter() - begin)
            return result

        setattr(owner, method, timed)

    noting(talker.model, "forward", "talker")
    noting(talker.code_predictor, "generate", "predictor")
    noting(tokenizer, "decode", "codec")
    noting(model.model, "generate", "whole")
    request = _request(model.model.tts_model_type)
    voice = {"speaker": request.speaker} if request.speaker else {"instruct": request.instruct}
    speak = model.generate_custom_voice if request.speaker else model.generate_voice_design
    columns = {name: [value] * batch for name, value in {"text": TEXT, "language": "english", **voice}.items()}
    for _ in range(2):
        times.clear()
        wavs, _ = speak(**columns, max_new_tokens=frames + 1)
        side_by_side.check_lengths(map(len, wavs), frames * tokenizer.get_decode_upsample_rate())
    prompt = times["talker"].pop(0)
    sums = {part: sum(found) for part, found in times.items()} | {"frame": times["whole"][0] - prompt}
    return _speed({part: sums[part] / frames * 1e3 for part in ("talker", "predictor", "frame", "codec")}, batch)


def _speed(milliseconds: side_by_side.Figures, batch: int) -> side_by_side.Figures:
    return {**milliseconds, "speed": batch * 80 / (milliseconds["frame"] + milliseconds["codec"])}


def _request(model_type: str) -> Any:
    from qwen3_tts_jax import Request

    return Request(TEXT, "english", **side_by_side.voice(model_type))


_MEASURES = {
    "ours": measure_ours,
    "official": partial(measure_official, "float32"),
    "official bfloat16": partial(measure_official, "bfloat16"),
}
_ROWS = [
    ("talker", "talker, ms per frame"), ("predictor", "code predictor, ms per frame"),
    ("frame", "talker, predictor and the rest, ms per frame"), ("codec", "codec, ms per frame"),
    ("speed", "seconds of audio per second"), ("peak_gb", "peak memory, GB"),
]  # fmt: skip

if __name__ == "__main__":
    side_by_side.main(__file__, __doc__, _MEASURES, _ROWS, batches=(1, 2, 4, 8, 16, 32), plotted="speed")
