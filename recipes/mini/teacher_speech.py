"""Speech of the two teachers: WORK/sentences.txt → WORK/speech/<voice>/*.flac and WORK/speech/<voice>.jsonl.

    python -m recipes.mini.teacher_speech WORK --voice heart --last 20000
    python -m recipes.mini.teacher_speech WORK --voice michael --first 20000 --last 24000

heart is an American woman, spoken by `hibari-tts` (distilled from Kokoro's af_heart; some 90 times real time on one
core). michael is an American man, Kokoro-82M's am_michael in int8 (2.5 times real time on two cores); it needs the
folder that `python -m recipes.mini.kokoro WORK` makes. Both are Apache-2.0. Clips that are there are kept, so that
an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 24_000
LEAD, TAIL = 0.08, 0.24
"""Silence before and after speech, s: the same for all, so that ends are learnt."""
_PEAK, _FLOOR = 0.5, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--voice", choices=["heart", "michael"], required=True)
    parser.add_argument("--first", type=int, default=0, help="line of sentences.txt")
    parser.add_argument("--last", type=int, default=None)
    arguments = parser.parse_args()
    speak = heart() if arguments.voice == "heart" else michael(arguments.work)
    lines = (arguments.work / "sentences.txt").read_text(encoding="utf-8").splitlines()
    folder = arguments.work / "speech" / arguments.voice
    folder.mkdir(parents=True, exist_ok=True)
    last = len(lines) if arguments.last is None else arguments.last
    for number in range(arguments.first, last):
        target = folder / f"{number:05}.flac"
        if not target.exists():
            write(target, trim(speak(lines[number])))
        if number % 500 == 0:
            print(f"{arguments.voice} {number} of {last}", flush=True)
    index(folder, lines)


def heart() -> Callable[[str], np.ndarray]:
    """Text → samples at 24 kHz."""
    from hibari import Hibari

    voice = Hibari(threads=1)
    return lambda text: voice(text, seed=0)


def michael(work: Path) -> Callable[[str], np.ndarray]:
    """Text → samples at 24 kHz."""
    from recipes.mini.kokoro import Kokoro

    return Kokoro(work / "kokoro", "am_michael")


def trim(samples: np.ndarray) -> np.ndarray:
    """Speech at a fixed peak, with `LEAD` and `TAIL` of what was around it, silence where there was less."""
    samples = np.asarray(samples, np.float32)
    samples = samples * (_PEAK / max(float(np.max(np.abs(samples))), 1e-4))
    loud = np.flatnonzero(np.abs(samples) > _FLOOR)
    lead, tail = round(LEAD * SAMPLE_RATE), round(TAIL * SAMPLE_RATE)
    start, stop = int(loud[0]) - lead, int(loud[-1]) + tail
    padded = np.pad(samples, (max(0, -start), max(0, stop - len(samples))))
    return padded[max(0, start) : stop + max(0, -start)]


def write(target: Path, samples: np.ndarray) -> None:
    temporary = target.with_suffix(".tmp")
    soundfile.write(temporary, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    temporary.replace(target)


def index(folder: Path, lines: list[str]) -> None:
    """One JSON line per clip: audio, text, speaker, seconds."""
    rows = []
    for path in sorted(folder.glob("*.flac")):
        seconds = soundfile.info(path).duration
        text = lines[int(path.stem)]
        rows.append(
            {"audio": f"{folder.name}/{path.name}", "text": text, "speaker": folder.name, "seconds": round(seconds, 3)}
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder.with_suffix(".jsonl").write_text(text, encoding="utf-8")
    print(f"{folder.name}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 3600:.2f} h")


if __name__ == "__main__":
    main()
