"""Codes for the small voice, and the part of its codec that reads them, from an autoencoder of spectra.

    python -m recipes.mini.codes WORK [--steps 4000]

A codec that learns from samples spends most of its work on convolutions near the sample rate. What a frame's codes
must encode is in its spectra, so here an encoder of spectra, the codec's own quantizers and its decoder up to the
first convolution learn to reproduce the spectra, in minutes on one core. Codebook 0 also learns which phonemes are
said, which makes it easier for a talker to predict. The last codebook is not learnt: it encodes pitch and phase, see
`pitch`. The waveform part of the decoder is learnt afterwards, from the codes, see `decoder`.

Reads WORK/speech/*.jsonl and writes WORK/codes: codes.npz (int16 [T, Q] per clip) and recordings-*.jsonl for
`train codec`; said.npz, the same codes after a little silence, and texts-*.jsonl for `train talker`, with a phoneme
per frame; their tokenizer/, with the durations of phonemes; and codec/, in the published layout, whose encoder and
waveform part are untrained; --waveform takes the latter from another codec, as far as shapes agree. An interrupted run
resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import soundfile
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.convert import load_codec
from qwen3_tts_jax.files import require_absent
from qwen3_tts_jax.text.durations import UNIT
from qwen3_tts_jax.text.phonemes import STRESSES, UNITS
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.codec.job import write_codec
from qwen3_tts_jax.train.codec.quantizer import entries, share_codebooks
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from recipes.mini import pitch
from recipes.mini.durations import AHEAD, fitted, text_of
from recipes.mini.spectral import PHONEMES, SAID, WAVEFORM, State, encode, finished, start, step

_FRAMES = (32, 44, 58, 76, 102, 140, 200)
"""The lengths of batches in frames; longer clips are cut."""
_BATCH_FRAMES = 500
SPECTRAL = 4
"""How many codebooks learn; one more encodes the pitch."""


@dataclass(frozen=True)
class Clip:
    """One line of WORK/speech, with its samples int16 [N]."""

    row: dict[str, Any]
    samples: np.ndarray
    held_out: bool

    @property
    def name(self) -> str:
        """Its name among the codes."""
        return f"{self.row['speaker']}-{Path(self.row['audio']).stem}"

    @property
    def labels(self) -> np.ndarray:
        """What each frame says, int32 [T, 2]; see `spectral.PHONEMES`."""
        frames: list[list[int]] = []
        for unit, count in zip(UNIT.findall(self.row["text"]), self.row["durations"], strict=True):
            if unit == " ":
                continue
            label = 1 + PHONEMES.index(unit.lstrip("".join(STRESSES)))
            if count == 0:
                frames[-1][1] = label
            frames += [[label, 0] for _ in range(count)]
        return np.array(frames, np.int32)


def read_clips(work: Path, held_out: int) -> list[Clip]:
    """All clips, of which one in `held_out` is held out."""
    clips = []
    for path in sorted((work / "speech").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for number, row in enumerate(rows):
            samples = soundfile.read(path.parent / row["audio"], dtype="int16")[0]
            clips.append(Clip(row, samples, number % held_out == held_out - 1))
    return clips


def batch_of(clips: list[Clip], frames: int, rows: int, config: CodecConfig) -> dict[str, np.ndarray]:
    """A batch of `rows` rows of `frames` frames; rows without a clip are silent and have no frames."""
    samples = np.zeros((rows, frames * config.frame_samples), np.float32)
    labels = np.zeros((rows, frames, SAID), np.int32)
    counts = np.zeros(rows, np.int32)
    for row, clip in enumerate(clips):
        piece = clip.samples[: samples.shape[1]]
        samples[row, : len(piece)] = piece.astype(np.float32) / 32_767
        counts[row] = len(piece) // config.frame_samples
        labels[row, : counts[row]] = clip.labels[:frames]
    return {"samples": samples, "frames": counts, "labels": labels}


def bucket(clip: Clip, config: CodecConfig) -> int:
    """The number of frames of the batches that a clip goes into."""
    frames = -(-len(clip.samples) // config.frame_samples)
    return next((each for each in _FRAMES if each >= frames), _FRAMES[-1])


def batches(clips: list[Clip], steps: range, config: CodecConfig) -> Iterator[dict[str, np.ndarray]]:
    """One batch per step, determined by the step: a bucket by its share of speech, speakers by the root of theirs."""
    by_bucket: dict[int, list[Clip]] = {}
    for clip in clips:
        by_bucket.setdefault(bucket(clip, config), []).append(clip)
    sizes = sorted(by_bucket)
    seconds = {
        name: sum(len(c.samples) for c in clips if c.row["speaker"] == name)
        for name in {c.row["speaker"] for c in clips}
    }
    weights = {size: np.array([seconds[c.row["speaker"]] ** -0.5 for c in by_bucket[size]]) for size in sizes}
    shares = np.array([weights[size].sum() * size for size in sizes])
    for number in steps:
        rng = np.random.default_rng([0, number])
        size = sizes[rng.choice(len(sizes), p=shares / shares.sum())]
        rows = max(1, _BATCH_FRAMES // size)
        chosen = rng.choice(len(by_bucket[size]), rows, p=weights[size] / weights[size].sum())
        yield batch_of([by_bucket[size][i] for i in chosen], size, rows, config)


def codec_of_mini(codebooks: int = SPECTRAL + 1) -> CodecConfig:
    """20 frames a second of 5 codes of 512: 900 bits a second."""
    shape = codec_shape("medium")
    encoder = replace(shape.encoder, strides=(4, 5, 6, 5), num_codebooks=codebooks)
    decoder = replace(shape.decoder, upsample_rates=(5, 5, 4, 3), num_codebooks=codebooks)
    # Spectra are learnt by another encoder, which is not kept.
    return replace(shape, num_codebooks=codebooks, encoder=encoder, decoder=decoder, encoder_trained=False)


def with_pitch(params: Mapping[str, Any], codes: np.ndarray) -> dict[str, Any]:
    """A codec's trees encoder and decoder with one more codebook, whose entries are `pitch.features`.

    They lie where sums of the other entries hardly vary: the sums of `codes` int16 [T, `SPECTRAL`] have six directions.
    """
    quantizer = params["encoder"]["quantizer"]
    acoustic = quantizer["acoustic"]
    tables = np.asarray(entries(acoustic))
    sums = sum(table[codes[:, 1 + number]] for number, table in enumerate(tables))
    directions = np.linalg.eigh(np.cov(sums.T))[1]  # those of least variance come first
    features = pitch.features(tables.shape[1])
    table = features @ directions[:, : features.shape[1]].T
    more = {"embedding_sum": table, "cluster_usage": np.ones(len(table)), "initialized": np.ones(1)}
    acoustic = acoustic | {
        name: np.concatenate([acoustic[name], leaf[None].astype(np.float32)]) for name, leaf in more.items()
    }
    encoder = {**params["encoder"], "quantizer": {**quantizer, "acoustic": acoustic}}
    return share_codebooks({**params, "encoder": encoder}, SPECTRAL + 1)


def with_waveform_of(decoder: Mapping[str, Any], codec: Path) -> dict[str, Any]:
    """A decoder's tree with the leaves of another one's waveform part, as far as shapes agree."""
    leaves = flatten_dict(decoder, sep="/")
    others = flatten_dict(load_codec(codec, hf_config.read_codec(codec))["decoder"], sep="/")
    taken = {
        path: np.asarray(others[path])
        for path, leaf in leaves.items()
        if path.startswith(WAVEFORM) and path in others and others[path].shape == leaf.shape
    }
    print(f"{len(taken)} leaves of the waveform part are those of {codec}")
    return unflatten_dict(leaves | taken, sep="/")


def train(work: Path, clips: list[Clip], config: CodecConfig, params: Mapping[str, Any], steps: int) -> State:
    """Trains to `steps`, from the last checkpoint if there is one."""
    rate = optax.warmup_cosine_decay_schedule(0, 1.5e-3, 200, steps, 5e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, 0.8, 0.99, weight_decay=1e-3))
    checkpoints = Checkpoints(work / "codes", {"steps": steps})
    state = checkpoints.resume(start(config, params, optimizer))
    first, began, sums, since = int(state.step), time.perf_counter(), {}, 0
    training = [clip for clip in clips if not clip.held_out]
    for number, batch in zip(range(first, steps), batches(training, range(first, steps), config), strict=True):
        state, losses = step(state, params, batch, config, optimizer)
        sums = {name: sums.get(name, 0.0) + float(loss) for name, loss in losses.items()}
        since += 1
        if (number + 1) % 200 == 0 or number + 1 == steps:
            means = {name: round(value / since, 4) for name, value in sums.items()}
            print(
                json.dumps({"step": number + 1, **means, "seconds": round(time.perf_counter() - began, 1)}), flush=True
            )
            sums, since = {}, 0
        if (number + 1) % 1000 == 0 or number + 1 == steps:
            checkpoints.save(state, number + 1)
    return state


def write_codes(
    work: Path, clips: list[Clip], state: State, params: Mapping[str, Any], config: CodecConfig
) -> np.ndarray:
    """Writes the codes of all clips and the lines that name them; returns them, int16 [all frames, `SPECTRAL` + 1]."""
    folder = work / "codes"
    codes, order = {}, sorted(range(len(clips)), key=lambda i: len(clips[i].samples))
    by_bucket: dict[int, list[Clip]] = {}
    for i in order:
        by_bucket.setdefault(bucket(clips[i], config), []).append(clips[i])
    off: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for size, some in by_bucket.items():
        rows = max(1, _BATCH_FRAMES // size)
        for begin in range(0, len(some), rows):
            part = some[begin : begin + rows]
            batch = batch_of(part, size, rows, config)
            result = jax.device_get(encode(state, params, batch["samples"], config))
            for row, clip in enumerate(part):
                frames = batch["frames"][row]
                own = result["codes"][row, :frames], np.array(clip.row["pitch"])[:frames, None]
                codes[clip.name] = np.concatenate(own, axis=1).astype(np.int16)
                right = result["labels"][row, :frames] == batch["labels"][row, :frames]
                off[clip.held_out].append((float(result["mel"][row, :frames].mean()), float(right[:, 0].mean())))
    np.savez(folder / "codes.npz", **codes)
    silence = Counter(tuple(each[-1]) for each in codes.values()).most_common(1)[0][0]
    ahead = np.tile(np.array(silence, np.int16), (AHEAD, 1))
    np.savez(folder / "said.npz", **{name: np.concatenate([ahead, each]) for name, each in codes.items()})
    for name, held_out in (("lines", False), ("held", True)):
        some = [clip for clip in clips if clip.held_out == held_out]
        common = [{"key": clip.name, "speaker": clip.row["speaker"]} for clip in some]
        heard = [{"audio": f"../speech/{clip.row['audio']}", "codes": "codes.npz"} for clip in some]
        said = [{"text": text_of(clip.row), "language": "english", "codes": "said.npz"} for clip in some]
        for kind, more in (("recordings", heard), ("texts", said)):
            rows = [json.dumps(one | other, ensure_ascii=False) + "\n" for one, other in zip(more, common, strict=True)]
            (folder / f"{kind}-{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        mel, right = np.mean(off[held_out], axis=0)
        print(f"{name}: {len(some)} clips, mel bands off by {mel:.3f} nats, code 0 tells {right:.1%} of phonemes")
    together = np.concatenate(list(codes.values()))
    used = np.stack([np.bincount(book, minlength=config.encoder.codebook_size) for book in together.T])
    shares = used / used.sum(axis=1, keepdims=True)
    entropies = -np.sum(np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-12)), 0), axis=1)
    print("perplexities", np.exp(entropies).round(1).tolist())
    return together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=100, help="one clip in so many")
    parser.add_argument("--waveform", type=Path, help="a codec's folder whose waveform part is a start")
    arguments = parser.parse_args()
    work, config = arguments.work, codec_of_mini(SPECTRAL)
    require_absent(work / "codes" / "codec")
    (work / "codes").mkdir(exist_ok=True)
    clips, params = read_clips(work, arguments.held_out), random_codec(config)
    if arguments.waveform is not None:
        params = params | {"decoder": with_waveform_of(params["decoder"], arguments.waveform)}
    print(
        f"{len(clips)} clips, {sum(len(clip.samples) for clip in clips) / config.sample_rate / 3600:.2f} h", flush=True
    )
    tokenizer = write_byte_tokenizer(work / "codes" / "tokenizer", UNITS)
    durations = asdict(fitted(clip.row for clip in clips if not clip.held_out))
    (tokenizer / "durations.json").write_text(json.dumps(durations, ensure_ascii=False, indent=1), encoding="utf-8")
    state = train(work, clips, config, params, arguments.steps)
    codes = write_codes(work, clips, state, params, config)
    trees = with_pitch(finished(state, params, config), codes[:, :SPECTRAL])
    write_codec(work / "codes" / "codec", trees, codec_of_mini())


if __name__ == "__main__":
    main()
