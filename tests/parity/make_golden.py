"""Writes tests/golden/speech_*.npz with the official package:  python -m tests.parity.make_golden"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.golden_speech import GOLDENS, GREEDY, Golden
from tests.parity.oracle import load_official, quiet
from tests.parity.random_checkpoint import write_random_checkpoint
from tests.shapes import SMALL
from tests.tokenizer_files import write_tokenizer_files


def official_speech(golden: Golden, folder: Path) -> dict[str, np.ndarray]:
    """What the official package says, as `Golden.path` describes it."""
    model = load_official(folder)
    generate, captured = model.model.generate, []

    def capture(**options):
        result = generate(**options)
        captured.extend(result[0])
        return result

    model.model.generate = capture
    with quiet():
        wavs, _ = getattr(model, golden.method)(**golden.arguments, **GREEDY)
    arrays = {f"codes_{row}": codes.numpy().astype(np.int16) for row, codes in enumerate(captured)}
    return arrays | {f"samples_{row}": wav for row, wav in enumerate(wavs)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer_files(Path(folder) / "tokenizer")
        for golden in GOLDENS:
            checkpoint = Path(folder) / golden.name
            write_random_checkpoint(
                checkpoint, SMALL[golden.variant], tokenizer_files=tokenizer, eos_boost=golden.eos_boost
            )
            golden.path.parent.mkdir(exist_ok=True)
            np.savez_compressed(golden.path, **official_speech(golden, checkpoint))
            print(f"{golden.path}: {golden.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
