"""How often another batch size gives other codes: it rounds differently, which can tip a close draw.

    python benchmarks/bench_shapes.py CHECKPOINT [--utterances 64] [--batches 1 2 4 8] [--frames 100] [--dtype float32]

The same utterances are drawn with the same seed at each batch size and compared with those of the first size. Once a
code differs, so does nearly everything after it. With random weights, under which no code is much likelier than
another, draws are closer than with real ones. Each batch size speaks all utterances, up to 100 frames each: on a CPU
choose a small model, as for the README's figures (192 utterances in float32, 64 in bfloat16). Needs nothing but this
package.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import figures
import numpy as np

from qwen3_tts_jax import Qwen3TTS, Request

WORDS = [
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "nobody", "minds", "that", "at", "all",
]  # fmt: skip


def main() -> None:
    """Speaks, prints one table, and keeps it as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder in the published layout, with voices or for voice design")
    parser.add_argument("--utterances", type=int, default=64, help="of each batch size (default 64)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 2, 4, 8), help="default 1 2 4 8")
    parser.add_argument("--frames", type=int, default=100, help="the most of an utterance (default 100)")
    parser.add_argument("--dtype", default="auto", help="to compute in (default auto)")
    parser.add_argument("--output", type=Path, help="append the figures to this file of JSON lines")
    arguments = parser.parse_args()
    model = Qwen3TTS.from_pretrained(arguments.checkpoint, dtype=arguments.dtype)
    custom = model.config.model_type == "custom_voice"
    voice = {"speaker": next(iter(model.config.prompt.speakers))} if custom else {"instruct": "An old man."}
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 20))) + "." for _ in range(arguments.utterances)]
    requests = [Request(text, "english", max_frames=arguments.frames, **voice) for text in texts]

    spoken: dict[int, list[np.ndarray]] = {}
    for batch in arguments.batches:
        spoken[batch] = [speech.codes for speech in model.synthesize(requests, batch_size=batch, fixed_shapes=True)]
    first, *others = arguments.batches
    frames = sum(map(len, spoken[first]))
    rows = [compare(spoken[first], spoken[batch]) | {"batch": batch} for batch in others]
    print(f"{len(texts)} utterances, {frames} frames of {model.config.talker.num_codebooks} codes, sampled")
    heads = ["batch", f"utterances unlike batch {first}", "first frame that differs, median", "frames before it"]
    lines = []
    for row in rows:
        where = "" if row["median_frame"] is None else f"{row['median_frame']:.0f}"
        lines.append([str(row["batch"]), str(row["different"]), where, f"{row['frames_before'] / frames:.1%}"])
        settings = {"like": first, "utterances": len(texts), "frames": frames, "dtype": arguments.dtype}
        figures.append(arguments.output, {**row, **settings, "machine": figures.machine()})
    figures.print_table(heads, lines)


def compare(one: list[np.ndarray], other: list[np.ndarray]) -> dict[str, float | None]:
    """How many utterances differ, where they start to, and how many frames of all of them come before that."""
    starts, before = [], 0
    for left, right in zip(one, other, strict=True):
        length = min(len(left), len(right))
        alike = (left[:length] == right[:length]).all(axis=1)
        same = length if alike.all() else int(alike.argmin())
        before += same
        if same < max(len(left), len(right)):
            starts.append(same)
    return {
        "different": len(starts),
        "median_frame": statistics.median(starts) if starts else None,
        "frames_before": before,
    }


if __name__ == "__main__":
    main()
