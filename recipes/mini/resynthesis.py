"""How well a codec decodes the codes of clips that it has not heard: mel distance, STOI, wide-band PESQ.

    pip install pystoi pesq
    python -m recipes.mini.resynthesis WORK CODEC [--clips WORK/said]

With all codebooks, and with the first half of them; --clips also writes the sound of all codebooks, for the judge.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import soundfile
from pesq import pesq
from pystoi import stoi

from qwen3_tts_jax import audio
from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec.loss import mel_loss

_PESQ_RATE = 16_000
_FRAMES = 256
"""No clip has more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--per-speaker", type=int, default=16)
    parser.add_argument("--clips", type=Path)
    arguments = parser.parse_args()
    folder, tokenizer = arguments.work / "codes", SpeechTokenizer.from_pretrained(arguments.codec)
    config, all_codes = tokenizer.config, np.load(folder / "codes.npz")
    said = {}
    for path in (arguments.work / "speech").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            said[f"../speech/{row['audio']}"] = row["sentence"]
    rows = [json.loads(line) for line in (folder / "recordings-held.jsonl").read_text(encoding="utf-8").splitlines()]
    say, distance_of = jax.jit(partial(decode, config=config.decoder)), jax.jit(partial(mel_loss, sample_rate=24_000))
    chosen = []
    for speaker in sorted({row["speaker"] for row in rows}):
        chosen += [row for row in rows if row["speaker"] == speaker][: arguments.per_speaker]
    table: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    clips = []
    for row in chosen:
        clip, rate = soundfile.read(folder / row["audio"], dtype="float32")
        codes = all_codes[row["key"]].astype(np.int32)
        for count in (config.num_codebooks // 2, config.num_codebooks):
            padded = np.zeros((1, _FRAMES, count), np.int32)
            padded[0, : len(codes)] = codes[:, :count]
            made = np.asarray(say(tokenizer.params["decoder"], codes=padded))[0][: len(clip)]
            at_16 = [audio.resample(one, rate, _PESQ_RATE) for one in (clip[: len(made)], made)]
            both = (np.pad(one[: len(made)], (0, _FRAMES * config.frame_samples - len(made))) for one in (made, clip))
            distance = float(distance_of(*(one[None] for one in both)))
            numbers = distance, stoi(*at_16, _PESQ_RATE), pesq(_PESQ_RATE, *at_16, "wb")
            table.setdefault((row["speaker"], count), []).append(numbers)
        clips.append((row, made))
    print(f"{'':24}{'mel':>8}{'STOI':>8}{'PESQ':>8}")
    for (speaker, count), numbers in sorted(table.items()):
        mel, intelligibility, quality = np.mean(numbers, axis=0)
        print(f"{f'{speaker}, {count} codebooks':24}{mel:>8.3f}{intelligibility:>8.3f}{quality:>8.2f}")
    if arguments.clips is not None:
        write(arguments.clips, clips, said, config.sample_rate)


def write(folder: Path, clips: list[tuple[dict, np.ndarray]], said: dict[str, str], rate: int) -> None:
    """Writes the clips, and clips.jsonl for `judge`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, samples in clips:
        soundfile.write(folder / f"{row['key']}.wav", samples, rate)
        line = {"audio": f"{row['key']}.wav", "text": said[row["audio"]], "speaker": row["speaker"]}
        lines.append(json.dumps(line) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
