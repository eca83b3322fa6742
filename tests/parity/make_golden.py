"""Writes tests/golden/speech_*.npz with the official package:  python -m tests.parity.make_golden [NAME …]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.golden_speech import GOLDENS, GREEDY, Golden, voice
from tests.parity.oracle import import_official, load_official, quiet
from tests.parity.random_checkpoint import write_random_checkpoint
from tests.shapes import SMALL
from tests.tokenizer_files import write_tokenizer_files


def official_item(one: VoicePrompt) -> Any:
    """The same voice as the official package's VoiceClonePromptItem."""
    import torch

    alone = one.codes is None
    return import_official().VoiceClonePromptItem(
        ref_code=None if alone else torch.from_numpy(one.codes).long(),
        ref_spk_embedding=torch.from_numpy(one.x_vector),
        x_vector_only_mode=alone,
        icl_mode=not alone,
        ref_text=one.text,
    )


def official_speech(golden: Golden, folder: Path) -> dict[str, np.ndarray]:
    """What the official package says, as `Golden.path` describes it."""
    model = load_official(folder)
    generate, captured = model.model.generate, []

    def capture(**options):
        result = generate(**options)
        captured.extend(result[0])
        return result

    model.model.generate = capture
    arguments = dict(golden.arguments)
    if golden.voices:
        voices = [voice(golden.variant, row, *given) for row, given in enumerate(golden.voices)]
        arguments["voice_clone_prompt"] = [official_item(one) for one in voices]
    with quiet():
        wavs, _ = getattr(model, golden.method)(**arguments, **GREEDY)
    arrays = {f"codes_{row}": codes.numpy().astype(np.int16) for row, codes in enumerate(captured)}
    return arrays | {f"samples_{row}": wav for row, wav in enumerate(wavs)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer_files(Path(folder) / "tokenizer")
        for golden in GOLDENS if len(sys.argv) < 2 else [one for one in GOLDENS if one.name in sys.argv[1:]]:
            checkpoint = Path(folder) / golden.name
            write_random_checkpoint(
                checkpoint, SMALL[golden.variant], tokenizer_files=tokenizer, eos_boost=golden.eos_boost
            )
            golden.path.parent.mkdir(exist_ok=True)
            np.savez_compressed(golden.path, **official_speech(golden, checkpoint))
            print(f"{golden.path}: {golden.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
