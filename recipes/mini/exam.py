"""What the finished voice is examined with: sentences that nothing was trained on, read by every speaker.

    python -m recipes.mini.exam WORK EXAM
    qwen3-tts-jax batch EXAM/manifest.jsonl -o EXAM/out
    python -m recipes.mini.judge EXAM/clips.jsonl --teachers WORK/speech

takes the first 50 sentences and phrases of two words or more of WORK/sentences.txt, whose first 400 are held out, and
writes the manifest of a batch job and what the judges are to hear.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qwen3_tts_jax.packaged import MINI_VOICES

HELD_OUT, SENTENCES = 400, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("exam", type=Path)
    arguments = parser.parse_args()
    sentences = (arguments.work / "sentences.txt").read_text(encoding="utf-8").splitlines()[:HELD_OUT]
    chosen = [sentence for sentence in sentences if len(sentence.split()) >= 2][:SENTENCES]
    requests, clips = [], []
    for speaker in MINI_VOICES:
        for number, text in enumerate(chosen):
            name = f"{speaker}-{number:03}"
            requests.append({"id": name, "text": text, "speaker": speaker})
            clips.append({"audio": f"out/{name}.wav", "text": text, "speaker": speaker})
    arguments.exam.mkdir(parents=True, exist_ok=True)
    for name, rows in (("manifest", requests), ("clips", clips)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.exam / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
