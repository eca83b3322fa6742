"""The exam of the finished voice: sentences that nothing was trained on, read by every speaker.

    python -m recipes.mini.exam WORK EXAM
    qwen3-tts-jax batch EXAM/manifest.jsonl -o EXAM/out
    python -m recipes.mini.judge EXAM/clips.jsonl --teachers WORK/speech

takes the first 50 whole sentences of 2 to 20 words among the 400 that WORK/sentences.txt holds out, and writes the
manifest of a batch job and the list of clips for the judges. With --fragments it takes the first 50 of 2 to 20 words,
including clauses and dictionary examples. With --teacher the teacher says them too, for EXAM/teacher.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from qwen3_tts_jax.packaged import MINI_VOICES
from qwen3_tts_jax.text.phonemes import phonemize

HELD_OUT, SENTENCES = 400, 50
_WHOLE = re.compile(r"[A-Z].*[.?!]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("exam", type=Path)
    parser.add_argument("--fragments", action="store_true")
    parser.add_argument("--teacher", action="store_true")
    arguments = parser.parse_args()
    sentences = (arguments.work / "sentences.txt").read_text(encoding="utf-8").splitlines()[:HELD_OUT]
    chosen = [sentence for sentence in sentences if 2 <= len(sentence.split()) <= 20]
    if not arguments.fragments:
        chosen = [sentence for sentence in chosen if _WHOLE.fullmatch(sentence)]
    chosen = chosen[:SENTENCES]
    requests, clips, told = [], [], []
    for speaker in MINI_VOICES:
        for number, text in enumerate(chosen):
            name = f"{speaker}-{number:03}"
            requests.append({"id": name, "text": text, "speaker": speaker})
            clips.append({"audio": f"out/{name}.wav", "text": text, "speaker": speaker})
            told.append({"audio": f"teacher/{name}.flac", "text": text, "speaker": speaker})
    arguments.exam.mkdir(parents=True, exist_ok=True)
    files = {"manifest": requests, "clips": clips}
    if arguments.teacher:
        let_teacher_say(told, arguments.exam)
        files["teacher"] = told
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.exam / f"{name}.jsonl").write_text(text, encoding="utf-8")


def let_teacher_say(clips: list[dict[str, str]], folder: Path) -> None:
    """Writes the clips' audio."""
    # hibari is only needed for --teacher.
    import soundfile
    from hibari import dsp

    from recipes.mini.teacher_speech import VOICES, Teacher

    teacher = Teacher()
    (folder / "teacher").mkdir(exist_ok=True)
    for clip in clips:
        samples, *_ = teacher.speak(phonemize(clip["text"]), VOICES[clip["speaker"]])
        soundfile.write(folder / clip["audio"], samples, dsp.SR)


if __name__ == "__main__":
    main()
