"""How good a codec trained from scratch becomes in less than an hour on a CPU, on recordings that it has not heard.

    pip install pystoi pesq
    apt-get download festvox-ru && dpkg -x festvox-ru*.deb russian
    python benchmarks/bench_codec_training.py russian RUN --steps 1600 [--output codec.jsonl]

These commands made the README's figures (`results/codec_training_cpu.jsonl`) in 32 CPU minutes, from a man
reading 620 Russian sentences, 99.5 minutes at 16 kHz; any other folder of speech will do. Every twentieth clip is held
out. RUN is the folder of the run; an interrupted run resumes.

Prints the mel distance (lower is better), STOI and wide-band PESQ (higher is better) of the held-out clips: for the
codec at its start, with random weights and codebooks that one batch has filled; for the trained codec with the first
half of its codebooks; with all of them; and in how many clips all codebooks are better than half of them. With
--spectral-steps 0 the whole codec learns from samples.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from functools import partial
from pathlib import Path

import figures
import jax
import numpy as np
from pesq import NoUtterancesError, pesq
from pystoi import stoi

from qwen3_tts_jax import audio
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec.data import find_recordings
from qwen3_tts_jax.train.codec.job import CODEC, prepare_codec, run_codec
from qwen3_tts_jax.train.codec.loss import mel_loss
from qwen3_tts_jax.train.codec.run import used_codes
from qwen3_tts_jax.train.codec.spectral import spectral_recipes
from qwen3_tts_jax.train.codec.start import codec_shape, random_codec
from qwen3_tts_jax.train.codec.step import CodecRecipe, codec_step, finish_codec, start_codec
from qwen3_tts_jax.train.codec.training import CodecTraining
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Schedule

HELD_OUT_EVERY = 20
PESQ_RATE = 16_000
FRAMES = 100  # that are judged of each clip, 8 s


def judge(params: dict, config: CodecConfig, clips: list[np.ndarray], num_codebooks: int) -> np.ndarray:
    """Mel distance, STOI and PESQ, [clips, 3], of what the first `num_codebooks` codebooks give."""
    codes = SpeechTokenizer(config, params).encode(clips, config.sample_rate)
    decode = jax.jit(partial(decoder.decode, config=config.decoder))
    mel = jax.jit(partial(mel_loss, sample_rate=config.sample_rate))
    rows = []
    for clip, clip_codes in zip(clips, codes, strict=True):
        padded = np.zeros((1, FRAMES, num_codebooks), np.int32)
        padded[0, : len(clip_codes)] = clip_codes[:, :num_codebooks]
        made = np.asarray(decode(params["decoder"], codes=padded))[0][: len(clip)]
        distance = float(mel(made[None], clip[None]))
        at_16 = [audio.resample(one, config.sample_rate, PESQ_RATE) for one in (clip, made)]
        try:
            quality = pesq(PESQ_RATE, *at_16, "wb")
        except NoUtterancesError:  # nothing in it could be taken for speech
            quality = 1.0
        rows.append((distance, stoi(*at_16, PESQ_RATE), quality))
    return np.array(rows)


def start(recipe: CodecRecipe, data: np.ndarray) -> dict:
    """Random weights, and codebooks that one batch has filled."""
    params = random_codec(recipe.codec)
    state, _ = codec_step(start_codec(params, recipe), params, data, jax.random.key(0), recipe)
    return jax.device_get(finish_codec(state, params, recipe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--size", choices=("small", "medium"), default="medium")
    parser.add_argument("--spectral-steps", type=int, default=800)
    parser.add_argument("--encoder-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-seconds", type=float, default=9.6)
    parser.add_argument("--crop-seconds", type=float, default=1.6)
    parser.add_argument("--output", type=Path, help="append the figures to this file of JSON lines")
    arguments = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    arguments.run.mkdir(parents=True, exist_ok=True)

    found = find_recordings(arguments.recordings)
    parts = {"held-out": found[::HELD_OUT_EVERY], "train": [r for i, r in enumerate(found) if i % HELD_OUT_EVERY]}
    files = {}
    for name, recordings in parts.items():
        files[name] = arguments.run / f"{name}.jsonl"
        lines = [json.dumps({"audio": str(recording.audio.absolute())}) for recording in recordings]
        files[name].write_text("".join(f"{line}\n" for line in lines))

    config, spectral = codec_shape(arguments.size), ()
    if arguments.spectral_steps:
        spectral = spectral_recipes(config, arguments.spectral_steps, arguments.encoder_steps)
    optimizer = OptimizerConfig(1e-3, arguments.steps, 50)
    recipe = CodecRecipe(config, optimizer, decoder_only=bool(spectral), average=0.99)
    training = CodecTraining(
        recipe, arguments.batch_seconds, arguments.crop_seconds, spectral=spectral,
        schedule=Schedule(log=20, evaluate=0, save=250),
    )  # fmt: skip
    clips = []
    for recording in parts["held-out"]:
        samples = audio.resample(*audio.read(recording.audio), config.sample_rate)
        clips.append(samples[: FRAMES * config.frame_samples])
    crops = training.crops()
    first = np.stack([np.resize(clip, crops.samples) for clip in clips[: crops.rows]])
    untrained = start(CodecRecipe(config), first)

    job = prepare_codec(files["train"], arguments.run, training)
    wall, cpu = time.perf_counter(), time.process_time()
    run_codec(job, report=lambda numbers: print(json.dumps(numbers), flush=True))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokenizer = SpeechTokenizer.from_pretrained(arguments.run / CODEC)
    assert tokenizer.config == config, "the codec that was written has another shape"

    count = config.num_codebooks
    half, every = f"first {count // 2} codebooks", f"all {count} codebooks"
    rows = {
        "start": judge(untrained, config, clips, count),
        half: judge(tokenizer.params, config, clips, count // 2),
        every: judge(tokenizer.params, config, clips, count),
    }
    table = {
        name: dict(zip(("mel", "stoi", "pesq"), found.mean(axis=0).round(4).tolist(), strict=True))
        for name, found in rows.items()
    }
    better = ((rows[every] - rows[half]) * (-1, 1, 1) > 0).sum(axis=0).tolist()
    codes = np.concatenate(tokenizer.encode(clips, config.sample_rate))
    perplexity = np.round(used_codes(codes, config.decoder.codebook_size), 1).tolist()
    weights = sum(leaf.size for leaf in jax.tree.leaves(tokenizer.params))
    print(
        f"{arguments.size}, {weights / 1e6:.1f} M weights, {arguments.spectral_steps} + {arguments.encoder_steps} + "
        f"{arguments.steps} steps of "
        f"{crops.rows * crops.samples / config.sample_rate:.1f} s, {cpu / 60:.1f} CPU minutes ({wall / 60:.1f} by the "
        f"clock), {len(clips)} clips held out"
    )
    print(f"{'':20}{'mel':>8}{'STOI':>8}{'PESQ':>8}")
    for name, numbers in table.items():
        print(f"{name:20}{numbers['mel']:>8.3f}{numbers['stoi']:>8.3f}{numbers['pesq']:>8.2f}")
    print(f"{'all better, clips':20}{better[0]:>8}{better[1]:>8}{better[2]:>8}")
    print("perplexity of each codebook", *perplexity)
    record = {
        "size": arguments.size, "weights": weights, "spectral_steps": arguments.spectral_steps,
        "encoder_steps": arguments.encoder_steps,
        "steps": arguments.steps, "batch_seconds": crops.rows * crops.samples / config.sample_rate,
        "cpu_minutes": cpu / 60, "wall_minutes": wall / 60, "held_out_clips": len(clips), **table,
        "clips_where_all_are_better": better, "perplexity": perplexity, "machine": figures.machine(),
    }  # fmt: skip
    figures.append(arguments.output, record)


if __name__ == "__main__":
    main()
