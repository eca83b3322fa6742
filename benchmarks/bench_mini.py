"""How fast `mini`, the voice in the package, speaks: one sentence, a long text, sentences at a time, and as a stream.

    python benchmarks/bench_mini.py [--repeats 7] [--output mini.jsonl]

Figures are seconds per second of speech, and milliseconds until a stream's first samples; each is the median of several
after one that compiles. It takes a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import figures

from qwen3_tts_jax import Qwen3TTS, Request

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "It rains a lot today, and nobody goes out.",
    "We will see each other tomorrow morning at nine.",
    "He said that the train was late again.",
)
LONG = 32
BATCHES = (4, 16)


def main() -> None:
    """Measures, prints a table, and adds a line to the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, besides the one that compiles")
    parser.add_argument("--output", type=Path, help="file of JSON lines to add to")
    arguments = parser.parse_args()

    mini = Qwen3TTS.from_pretrained("mini")
    sentence = Request(SENTENCES[0], speaker="heart")
    whole = Request(" ".join(SENTENCES * LONG), speaker="heart")

    def spoken(*requests: Request) -> float:
        """Seconds per second of speech."""
        began = time.perf_counter()
        speeches = mini.synthesize(list(requests))
        return (time.perf_counter() - began) / sum(speech.seconds for speech in speeches)

    def streamed() -> tuple[float, float]:
        """Milliseconds until the first samples, and seconds per second of speech."""
        began = time.perf_counter()
        marks, seconds = [], 0.0
        for chunk in mini.stream(sentence):
            marks.append(time.perf_counter() - began)
            seconds += chunk.seconds
        return marks[0] * 1e3, marks[-1] / seconds

    def repeated(measure: Callable[[], float]) -> dict[str, float]:
        measure()
        return figures.spread([measure() for _ in range(arguments.repeats)])

    found = {
        "a sentence, s per s of speech": repeated(lambda: spoken(sentence)),
        f"a text of {len(SENTENCES) * LONG} sentences, s per s of speech": repeated(lambda: spoken(whole)),
        **{
            f"{count} sentences at a time, s per s of speech": repeated(lambda count=count: spoken(*[sentence] * count))
            for count in BATCHES
        },
        "first samples of a stream, ms": repeated(lambda: streamed()[0]),
        "a stream, s per s of speech": repeated(lambda: streamed()[1]),
    }
    figures.print_table(
        ("", "median (least to most, runs)"), [(name, figures.cell(row)) for name, row in found.items()]
    )
    figures.append(arguments.output, found | {"machine": figures.machine()})


if __name__ == "__main__":
    main()
