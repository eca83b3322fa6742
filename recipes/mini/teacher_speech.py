"""Speech of the teacher of `mini`, with phonemes that last whole frames: WORK/sentences.txt → WORK/speech.

    python -m recipes.mini.teacher_speech WORK --voice heart --first 400 --last 16000
    python -m recipes.mini.teacher_speech WORK --voice henry --first 16000 --last 29000

The teacher is hibari (PyPI hibari-tts, Apache-2.0), one American woman's voice distilled from Kokoro's af_heart. It is
given the phonemes that `mini` reads, so that text and speech never disagree, and how long each lasts, in frames of
50 ms; two short phonemes may share one. So a frame says one phoneme or a pair, not arbitrary parts of two or three, and
codes of frames are few and easy to predict. hibari's network gives the pitch and the spectra of harmonics and noise,
from which signal processing makes the waveform; the pitch is moved a little, see `pitch`. henry is the same voice with
another pitch and another vocal tract.

Writes FLAC files, and WORK/speech/VOICE.jsonl: audio, text (phonemes), sentence, speaker, seconds, durations (the
frames that each id of the text takes) and pitch (a code of `pitch` for each frame). Existing files are kept, so that an
interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import soundfile
from hibari import dsp, tts

from qwen3_tts_jax.files import completed
from qwen3_tts_jax.text.durations import UNIT
from qwen3_tts_jax.text.phonemes import STRESSES, UnspeakableError, phonemize
from recipes.mini import overlap_add
from recipes.mini.durations import LEAD, TAIL, TICKS, on_frames
from recipes.mini.pitch import Pitch, on_grid, pulses

LONGEST = 140
"""Most letters of phonemes; a sentence with more is left out."""
_PACE = 0.9  # of the teacher's own: speech that is rounded to frames is clearer if it is slower
_SPELLINGS = {"aɪ": "I", "aʊ": "W", "eɪ": "A", "oʊ": "O", "oɪ": "Y"}
_DURATIONS, _ROUNDED = "/Div_40_output_0", "/Clip_output_0"


@dataclass(frozen=True)
class Voice:
    """How a voice differs from the teacher's.

    Attributes:
        gain: of the samples.
        pitch: factor of the fundamental frequency.
        formants: factor of the frequencies of the resonances.
    """

    gain: float
    pitch: float = 1.0
    formants: float = 1.0


VOICES = {"heart": Voice(1.5), "henry": Voice(1.2, pitch=0.5, formants=0.88)}


class Teacher:
    """hibari's network in two parts: ids → durations, and ids with durations → the parts of spectra."""

    def __init__(self) -> None:
        self.vocabulary = json.loads((Path(tts.ASSETS) / "vocab.json").read_text(encoding="utf-8"))
        self._durations = _session({"speed"}, _DURATIONS)
        self._spectra = _session({_ROUNDED}, "lh", "theta", "ln", "lr", "phi", "f0")

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[int], list[int]]:
        """Phonemes of `phonemize` → samples at 24 kHz, how many frames each id of the text takes, and codes of pitch.

        Frames of silence at both ends are counted for the first and the last id.
        """
        units = UNIT.findall(text)
        groups = [[self.vocabulary[letter] for letter in _spelled(unit)] for unit in units]
        ids = np.array([[0, *(each for group in groups for each in group), 0]], np.int64)
        inputs = {"ids": ids, "speed": np.full(1, _PACE, np.float32)}
        wanted = self._durations.run(None, inputs)[0][1:-1]
        edges = np.cumsum([0, *map(len, groups)])
        ticks, frames = on_frames(units, [wanted[a:b] for a, b in pairwise(edges)])
        ticks = np.array([LEAD * TICKS, *ticks, TAIL * TICKS], np.float32)
        frames[0] += LEAD
        frames[-1] += TAIL
        outputs = self._spectra.run(None, {"ids": ids, _ROUNDED: ticks})
        *parts, hertz = (output[0] for output in outputs)
        pitch = on_grid(hertz)
        samples = _waveform(pitch, *parts)
        if voice.pitch != 1:
            other = on_grid(hertz, voice.pitch)
            samples, pitch = overlap_add.changed(samples, pitch, other, voice.formants), other
        return np.clip(samples * voice.gain, -1, 1), frames, pitch.codes.tolist()


def _waveform(
    pitch: Pitch, harmonics: np.ndarray, turns: np.ndarray, noise: np.ndarray, rest: np.ndarray, phases: np.ndarray
) -> np.ndarray:
    """The network's parts [601, 4 T] of the spectra → samples, as `hibari.dsp.synth` makes them: log magnitudes of
    harmonics and how far their phases are turned, of noise, and of a rest with phases of its own.
    """
    drawn = np.random.default_rng(0).standard_normal((2, *noise.shape), np.float32)
    spectra = dsp.stft(pulses(pitch), noise.shape[1]) * np.exp(np.minimum(harmonics, 7) + 1j * np.pi * np.tanh(turns))
    spectra += np.exp(np.minimum(noise, 7)) * (drawn[0] + 1j * drawn[1])
    spectra += np.exp(np.minimum(rest, 7) + 1j * phases)
    return dsp.ola(spectra.astype(np.complex64))


def _session(inputs: set[str], *outputs: str) -> onnxruntime.InferenceSession:
    """The part of hibari's network between some of its values and others; every part takes the ids."""
    model = onnx.load(tts.voice_path(tts.DEFAULT))
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if set(node.output) & needed - inputs:
            kept.append(node)
            needed |= set(node.input)
    shapes = {_ROUNDED: ["L"], "speed": [1], "ids": [1, "L"]}
    kinds = {"ids": onnx.TensorProto.INT64}
    graph = onnx.helper.make_graph(
        kept[::-1],
        "part",
        [
            onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), shapes[name])
            for name in ("ids", *inputs)
        ],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [each for each in model.graph.initializer if each.name in needed],
    )
    part = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _spelled(unit: str) -> str:
    """One of our phonemes in the teacher's letters."""
    stress = unit[0] if unit[0] in STRESSES else ""
    plain = unit[len(stress) :]
    if plain == "ɚ":
        return stress + ("ɜɹ" if stress else "əɹ")
    return stress + _SPELLINGS.get(plain, plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--voice", choices=list(VOICES), required=True)
    parser.add_argument("--first", type=int, default=0, help="line of sentences.txt")
    parser.add_argument("--last", type=int, default=None)
    arguments = parser.parse_args()
    name, work = arguments.voice, arguments.work
    lines = (work / "sentences.txt").read_text(encoding="utf-8").splitlines()
    folder = work / "speech" / name
    target, partial = folder.with_suffix(".jsonl"), folder.with_suffix(".part")
    folder.mkdir(parents=True, exist_ok=True)
    before = next((path for path in (partial, target) if path.exists()), None)
    kept = before.read_text(encoding="utf-8").splitlines(keepends=True) if before else []
    kept = [line for line in kept if line.endswith("\n")]
    done = {json.loads(line)["audio"] for line in kept}
    teacher = Teacher()
    with completed(partial) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    with partial.open("a", encoding="utf-8") as file:
        for number, sentence in list(enumerate(lines))[arguments.first : arguments.last]:
            audio = f"{name}/{number:05}.flac"
            if audio in done:
                continue
            try:
                text = phonemize(sentence)
            except UnspeakableError:
                continue
            if len(text) > LONGEST:
                continue
            samples, frames, pitch = teacher.speak(text, VOICES[name])
            soundfile.write(work / "speech" / audio, samples, dsp.SR, subtype="PCM_16")
            row = {"audio": audio, "text": text, "sentence": sentence, "speaker": name}
            row |= {"seconds": round(len(samples) / dsp.SR, 3), "durations": frames, "pitch": pitch}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number % 500 == 0:
                file.flush()
                print(f"{name} {number} of {arguments.last or len(lines)}", flush=True)
    rows = [json.loads(line) for line in partial.read_text(encoding="utf-8").splitlines()]
    print(f"{name}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 3600:.2f} h")
    partial.replace(target)


if __name__ == "__main__":
    main()
