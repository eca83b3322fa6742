"""What the clips say, in phonemes: WORK/speech/<voice>.jsonl → WORK/spoken/<voice>.jsonl, with "text" in phonemes.

    python -m recipes.mini.spoken WORK

The sentence itself stays as "sentence". A line whose phonemes would not fit into its clip, which then says something
else, is left out. Lines that are there are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qwen3_tts_jax.phonemes import UnspeakableError, phonemize

MOST_PER_SECOND = 30
"""Letters of phonemes, stress and spaces. Teachers say 12 to 24."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    (work / "spoken").mkdir(exist_ok=True)
    for source in sorted((work / "speech").glob("*.jsonl")):
        convert(source, work / "spoken" / source.name)


def convert(source: Path, target: Path) -> None:
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    partial, kept, seen = target.with_suffix(".part"), [], set()
    if target.exists() or partial.exists():
        lines = (target if target.exists() else partial).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [json.loads(line) for line in lines if line.endswith("\n")]
        seen = {row["audio"].removeprefix("../speech/") for row in kept}
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        for number, row in enumerate(rows):
            if row["audio"] in seen:
                continue
            try:
                text = phonemize(row["text"])
            except UnspeakableError:
                continue
            if len(text) <= MOST_PER_SECOND * row["seconds"]:
                new = {**row, "audio": f"../speech/{row['audio']}", "text": text, "sentence": row["text"]}
                file.write(json.dumps(new, ensure_ascii=False) + "\n")
            if number % 1000 == 0:
                file.flush()
                print(f"{source.stem}: {number} of {len(rows)}", flush=True)
    partial.replace(target)


if __name__ == "__main__":
    main()
