"""On a GPU: this package, the official one and faster-qwen3-tts, each in a process of its own.

    python benchmarks/bench_gpu.py CHECKPOINT [--batches 1 64 256] [--frames 128] [--output gpu.jsonl] [--plot gpu.png]

The figures in README.md (`results/gpu_h200.jsonl`, 1.7B shapes) are from an earlier form of it, without "streams
together", and without whole calls at 256 utterances. Compiling ours for one of the batches takes about a minute, so
minutes pass before the first figure; each is printed as it is made. Ours computes in bfloat16, the codec in three
passes of it; the others in bfloat16 throughout. The figures are for frames alone, the codec alone, whole calls, streams
together, and the time until a stream's first sound; each is the median of several after one that compiles or captures.

Any custom-voice checkpoint will do, even a random one (tests/parity/random_checkpoint.py). The others need qwen-tts and
faster-qwen3-tts, which want different versions of transformers: `--kinds` chooses what an environment has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import figures
from bench_stream import speak_together
from figures import spread
from side_by_side import check_lengths

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
CALL = {"speaker": "ryan", "language": "english"}
FRAME_MS = 80.0
CHUNK, CODEC_CHUNK = 8, 16
_FEW, _MANY = 3, 10


def say(**row: Any) -> None:
    """Prints one measurement as a line of JSON."""
    print(json.dumps(row), flush=True)


def milliseconds(call: Callable[[], Any], times: int, warm: int = 1) -> list[float]:
    """The time of each of `times` calls, which wait for what they make."""
    for _ in range(warm):
        call()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def measure_ours(checkpoint: str, batches: list[int], frames: int) -> None:
    """Frames and codec apart, then whole calls and streams of the public class."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from qwen3_tts_jax import Qwen3TTS, Request, synthesis
    from qwen3_tts_jax import generate as g
    from qwen3_tts_jax.codec_decoding import codec_rows, codec_start, codec_step

    began = time.perf_counter()
    model = Qwen3TTS.from_pretrained(checkpoint, dtype="bfloat16,codec=bfloat16_3x")
    params, config = model.params, model.config
    say(what="load", seconds=time.perf_counter() - began, device=jax.devices()[0].device_kind)
    request = Request(TEXT, max_frames=frames, **CALL)

    def speak(batch: int) -> float:
        speeches = model.synthesize([request] * batch, batch_size=batch)
        check_lengths((len(speech.codes) for speech in speeches), frames)
        return sum(speech.seconds for speech in speeches)

    def stream() -> list[float]:
        start, marks = time.perf_counter(), []
        for chunk in model.stream(request):
            marks += [(time.perf_counter() - start) * 1e3] * len(chunk.codes)
        return marks

    # The shapes that calls have, so that their parts can be measured apart.
    shapes: dict[int, tuple[int, int]] = {}

    def noting(params: Any, config: Any, rows: int, *slots: int) -> Any:
        shapes[rows] = slots
        return g.empty_batch_compiled(params, config, rows, *slots)

    synthesis.empty_batch_compiled = noting
    codec, decoder_params = config.codec, params["codec"]["decoder"]
    together = codec_rows(params, codec)
    codes = np.random.default_rng(0).integers(0, 2048, (together, CODEC_CHUNK, config.talker.num_codebooks))
    codes = codes.astype(np.int32)

    def decode(codec: Any = codec, rows: int = len(codes)) -> jax.Array:
        start = codec_start(codec.decoder, rows)
        return jax.block_until_ready(codec_step(decoder_params, codec.decoder, start, codes[:rows])[1])

    exact_codec = codec.with_dtype("float32")
    # XLA's compiler hardly uses a second core.
    began = time.perf_counter()
    calls = [partial(speak, batch) for batch in batches]
    with ThreadPoolExecutor() as threads:
        for each in [threads.submit(call) for call in (*calls, stream, decode, partial(decode, exact_codec))]:
            each.result()
    say(what="compile", seconds=time.perf_counter() - began)

    exact, fast = (np.asarray(decode(each), np.float64) for each in (exact_codec, codec))
    error = 10 * np.log10(np.sum(exact**2) / np.sum((fast - exact) ** 2))
    say(what="codec", rows=len(codes), frames=CODEC_CHUNK, decibels_to_float32=error, hopper=codec.decoder.hopper)
    marks = [stream() for _ in range(_MANY)]
    say(what="first sound", batch=1, ms=spread([each[0] for each in marks]))
    say(what="stream", batch=1, ms_per_frame=spread([(each[-1] - each[0]) / (len(each) - 1) for each in marks]))
    for batch in batches:
        box = [g.empty_batch_compiled(params, config, batch, *shapes[batch])]
        box[0] = box[0].replace(frame_limit=jnp.full(batch, 10**6, jnp.int32))

        def chunk(box: list[Any] = box) -> None:
            box[0], codes = g.generate_chunk(params, config, config.generation, box[0], CHUNK)
            jax.block_until_ready(codes)

        each = spread([ms / CHUNK for ms in milliseconds(chunk, _MANY, warm=2)])
        rows = min(batch, len(codes))
        apart = spread([ms / CODEC_CHUNK / rows for ms in milliseconds(partial(decode, codec, rows), _MANY, warm=2)])
        step = each["median"] + apart["median"] * batch
        say(
            what="frame", batch=batch, capacity=shapes[batch][0], ms_per_frame=each, codec_rows=rows,
            codec_ms_per_row_and_frame=apart, together_ms=step, speed=batch * FRAME_MS / step,
        )  # fmt: skip
        del box[:]
        seconds: list[float] = []
        found = milliseconds(lambda batch=batch, seconds=seconds: seconds.append(speak(batch)), _FEW, warm=0)
        speed = seconds[-1] * 1e3 / statistics.median(found)
        say(what="whole call", batch=batch, frames=frames, ms=spread(found), speed=speed)
        if batch > 1:
            together = [speak_together(model, request, batch) for _ in range(_FEW + 1)][1:]
            say(
                what="streams together", batch=batch, frames=frames,
                first_ms=spread([each["first"] * 1e3 for each in together]),
                later_ms=spread([each["later"] * 1e3 for each in together]),
                speed=statistics.median(each["rate"] for each in together) * FRAME_MS / 1e3,
            )  # fmt: skip


def measure_official(checkpoint: str, batches: list[int], frames: int) -> None:
    """Whole calls, and their time without the codec."""
    import qwen_tts
    import torch

    model = qwen_tts.Qwen3TTSModel.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map="cuda", attn_implementation="sdpa"
    )
    generate, inner = model.model.generate, [0.0]

    def timed(**options: Any) -> Any:
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = generate(**options)
        torch.cuda.synchronize()
        inner[0] = (time.perf_counter() - began) * 1e3
        return result

    model.model.generate = timed
    say(what="load", device=torch.cuda.get_device_name())
    frame_samples = model.model.speech_tokenizer.get_decode_upsample_rate()
    for batch in batches:
        columns = {"text": [TEXT] * batch, **{name: [value] * batch for name, value in CALL.items()}}
        apart, seconds = [], [0.0]

        def whole(columns: dict = columns, apart: list = apart, seconds: list = seconds) -> None:
            samples, rate = model.generate_custom_voice(**columns, max_new_tokens=frames + 1)
            check_lengths(map(len, samples), frames * frame_samples)
            seconds[0] = sum(map(len, samples)) / rate
            apart.append(inner[0] / frames)

        found = milliseconds(whole, _FEW if batch == 1 else 1)
        say(
            what="whole call", batch=batch, frames=frames, ms=spread(found), ms_per_frame=spread(apart[1:]),
            speed=seconds[0] * 1e3 / statistics.median(found),
        )  # fmt: skip


def measure_faster(checkpoint: str, _batches: list[int], frames: int) -> None:
    """Whole calls and streams, one utterance at a time: it has no batches."""
    import torch
    import transformers

    # For the encoder of recordings, which does not run here; newer versions of transformers have no default for it.
    transformers.MimiConfig.rope_theta = 10_000.0
    from faster_qwen3_tts import FasterQwen3TTS

    model = FasterQwen3TTS.from_pretrained(checkpoint, device="cuda", dtype=torch.bfloat16)
    say(what="load", transformers=transformers.__version__, device=torch.cuda.get_device_name())
    options = {"text": TEXT, **CALL, "max_new_tokens": frames}
    seconds = [0.0]

    def whole() -> None:
        samples, rate = model.generate_custom_voice(**options)
        seconds[0] = len(samples[0]) / rate

    found = milliseconds(whole, _FEW)
    say(
        what="whole call", batch=1, frames=frames, ms=spread(found),
        ms_per_frame=spread([ms / (seconds[0] * 1e3 / FRAME_MS) for ms in found]),
        speed=seconds[0] * 1e3 / statistics.median(found),
    )  # fmt: skip
    for chunk in (1, CHUNK):
        first, each = [], []
        for run in range(4):
            began, made, start = time.perf_counter(), 0, 0.0
            for samples, _, _ in model.generate_custom_voice_streaming(**options, chunk_size=chunk):
                start = start or time.perf_counter() - began
                made += len(samples)
            if run:
                first.append(start * 1e3)
                rest = made / 1920 - chunk
                each.append((time.perf_counter() - began - start) * 1e3 / rest)
        say(what="first sound", batch=1, chunk=chunk, ms=spread(first))
        say(what="stream", batch=1, chunk=chunk, ms_per_frame=spread(each))


KINDS = {"ours": measure_ours, "official": measure_official, "faster-qwen3-tts": measure_faster}


def print_table(rows: list[dict[str, Any]], kinds: list[str]) -> None:
    """A Markdown table of what was measured for each kind: medians with their spread."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        for name, value in row.items():
            label = f"{row['what']}, batch {row['batch']}: {name}" if "batch" in row else ""
            label += f" (chunks of {row['chunk']})" if "chunk" in row else ""
            if isinstance(value, dict):
                cells.setdefault(label, {})[row["kind"]] = figures.cell(value)
            elif name == "speed":
                cells.setdefault(label, {})[row["kind"]] = f"{value:.3g}"
    lines = ([label, *(found.get(kind, "") for kind in kinds)] for label, found in cells.items())
    figures.print_table(["median (min to max, number)", *kinds], lines)


def main() -> None:
    """Measures one kind after the other, prints what each says, then a table, and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout, with speakers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256], help="default 1 64 256")
    parser.add_argument("--frames", type=int, default=128, help="of 80 ms, of each utterance (default 128)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default all")
    parser.add_argument("--output", type=Path, help="append the lines to this file")
    parser.add_argument("--plot", type=Path, help="draw the speed of whole calls into this PNG (needs matplotlib)")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        KINDS[arguments.worker](arguments.checkpoint, arguments.batches, arguments.frames)
        return
    rows = []
    for kind in arguments.kinds:
        command = [sys.executable, __file__, arguments.checkpoint, "--worker", kind, "--frames", str(arguments.frames)]
        command += ["--batches", *map(str, arguments.batches)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout or ():
                if line.startswith("{"):
                    rows.append({"kind": kind, **json.loads(line)})
                    print(json.dumps(rows[-1]), flush=True)
                    figures.append(arguments.output, {**rows[-1], "machine": figures.machine()})
        if worker.returncode:
            print(f"{kind} ended with exit status {worker.returncode}", file=sys.stderr)
    print_table(rows, arguments.kinds)
    if arguments.plot:
        calls = [row for row in rows if row["what"] == "whole call"]
        lines = {kind: {row["batch"]: row["speed"] for row in calls if row["kind"] == kind} for kind in arguments.kinds}
        figures.plot(arguments.plot, lines, "seconds of audio per second", scale="log")


if __name__ == "__main__":
    main()
