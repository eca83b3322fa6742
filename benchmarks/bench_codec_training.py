"""How good a small codec becomes on a CPU in less than an hour, on recordings that it has not heard.

    pip install pystoi pesq
    python benchmarks/bench_codec_training.py RECORDINGS OUTPUT [--steps 3000] [--sample-rate 16000]

RECORDINGS is a folder of speech; every twentieth clip is held out. OUTPUT is the folder of the run, which is gone on
with where it was interrupted. Prints the mel distance (lower is better), STOI and wide-band PESQ (higher is better) of
the held-out clips: of the codec at its start, whose random weights have seen one batch that fills the codebooks; of the
trained one with the first half of its codebooks; of the trained one. Adds them to
benchmarks/results/codec_training_cpu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from pesq import NoUtterancesError, pesq
from pystoi import stoi

from qwen3_tts_jax import audio
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.train.codec_data import find_recordings
from qwen3_tts_jax.train.codec_job import CODEC, CodecTraining, prepare_codec, run_codec
from qwen3_tts_jax.train.codec_loss import mel_loss
from qwen3_tts_jax.train.codec_start import codec_shape, random_codec
from qwen3_tts_jax.train.codec_step import CodecRecipe, codec_step, finish_codec, start_codec
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Schedule

RESULTS = Path(__file__).parent / "results" / "codec_training_cpu.jsonl"
HELD_OUT_EVERY = 20
PESQ_RATE = 16_000
FRAMES = 100  # of each clip that are judged, 8 s


def shape(sample_rate: int, channels: int, codebook_size: int) -> CodecConfig:
    """The built-in small codec with other widths, for 24 kHz or 16 kHz, 12.5 frames a second."""
    small = codec_shape("small")
    strides, rates = {24_000: ((4, 5, 6, 8), (8, 5, 4, 3)), 16_000: ((4, 4, 5, 8), (8, 5, 4, 2))}[sample_rate]
    return replace(
        small,
        sample_rate=sample_rate,
        encoder=replace(small.encoder, strides=strides, codebook_size=codebook_size),
        decoder=replace(small.decoder, upsample_rates=rates, decoder_channels=channels, codebook_size=codebook_size),
    )


def judge(params: dict, config: CodecConfig, clips: list[np.ndarray], num_codebooks: int) -> dict[str, float]:
    """Means over clips of what comes out of the first so many codebooks."""
    codes = SpeechTokenizer(config, params).encode(clips, config.sample_rate)
    decode = jax.jit(partial(decoder.decode, config=config.decoder))
    mel = jax.jit(partial(mel_loss, sample_rate=config.sample_rate))
    rows = []
    for clip, clip_codes in zip(clips, codes, strict=True):
        padded = np.zeros((1, FRAMES, num_codebooks), np.int32)
        padded[0, : len(clip_codes)] = clip_codes[:, :num_codebooks]
        whole = np.asarray(decode(params["decoder"], codes=padded))[0]
        made = whole[: len(clip)]
        distance = float(mel(made[None], clip[None]))
        at_16 = [audio.resample(one, config.sample_rate, PESQ_RATE) for one in (clip, made)]
        try:
            quality = pesq(PESQ_RATE, *at_16, "wb")
        except NoUtterancesError:  # nothing that could be taken for speech came out
            quality = 1.0
        rows.append((distance, stoi(*at_16, PESQ_RATE), quality))
    return dict(zip(("mel", "stoi", "pesq"), np.mean(rows, axis=0).round(4).tolist(), strict=True))


def start(recipe: CodecRecipe, data: np.ndarray) -> dict:
    """Random weights, and codebooks that one batch has filled."""
    params = random_codec(recipe.codec)
    state, _ = codec_step(start_codec(params, recipe), params, data, jax.random.key(0), recipe)
    return jax.device_get(finish_codec(state, params, recipe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--sample-rate", type=int, choices=(16_000, 24_000), default=16_000)
    parser.add_argument("--channels", type=int, default=128, help="of the decoder's widest stage")
    parser.add_argument("--codebook-size", type=int, default=64, help="of each of its 8")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    arguments.output.mkdir(parents=True, exist_ok=True)

    found = find_recordings(arguments.recordings)
    parts = {"held-out": found[::HELD_OUT_EVERY], "train": [r for i, r in enumerate(found) if i % HELD_OUT_EVERY]}
    files = {}
    for name, recordings in parts.items():
        files[name] = arguments.output / f"{name}.jsonl"
        lines = [json.dumps({"audio": str(recording.audio.absolute())}) for recording in recordings]
        files[name].write_text("".join(f"{line}\n" for line in lines))

    config = shape(arguments.sample_rate, arguments.channels, arguments.codebook_size)
    recipe = CodecRecipe(
        config, OptimizerConfig(arguments.learning_rate, arguments.steps, 50, weight_decay=0.0), average=0.99,
        continuous_steps=arguments.steps // 15, unquantized=0.3, unquantized_steps=arguments.steps // 2,
    )  # fmt: skip
    training = CodecTraining(
        recipe, batch_seconds=4.8, crop_seconds=1.6, schedule=Schedule(log=20, evaluate=0, save=250)
    )
    clips = []
    for recording in parts["held-out"]:
        samples = audio.resample(*audio.read(recording.audio), config.sample_rate)
        clips.append(samples[: FRAMES * config.frame_samples])
    crops = training.crops()
    first = np.stack([np.resize(clip, crops.samples) for clip in clips[: crops.rows]])
    untrained = start(recipe, first)

    job = prepare_codec(files["train"], arguments.output, training)
    wall, cpu = time.perf_counter(), time.process_time()
    run_codec(job, report=lambda numbers: print(json.dumps(numbers), flush=True))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokenizer = SpeechTokenizer.from_pretrained(arguments.output / CODEC)
    assert tokenizer.config == config, "the codec that was written has another shape"

    count = config.num_codebooks
    table = {
        "start": judge(untrained, config, clips, count),
        f"first {count // 2} codebooks": judge(tokenizer.params, config, clips, count // 2),
        f"all {count} codebooks": judge(tokenizer.params, config, clips, count),
    }
    weights = sum(leaf.size for leaf in jax.tree.leaves(tokenizer.params))
    audio_hours = arguments.steps * crops.rows * crops.samples / config.sample_rate / 3600
    print(
        f"{weights / 1e6:.1f} M weights, {config.sample_rate} Hz, {arguments.steps} steps, {audio_hours:.2f} h of "
        "crops, "
        f"{cpu / 60:.1f} CPU minutes ({wall / 60:.1f} by the clock), {len(clips)} clips held out"
    )
    print(f"{'':20}{'mel':>8}{'STOI':>8}{'PESQ':>8}")
    for name, numbers in table.items():
        print(f"{name:20}{numbers['mel']:>8.3f}{numbers['stoi']:>8.3f}{numbers['pesq']:>8.2f}")
    record = {
        "sample_rate": config.sample_rate, "codebook_size": arguments.codebook_size, "weights": weights,
        "steps": arguments.steps, "hours_of_crops": audio_hours,
        "cpu_minutes": cpu / 60, "wall_minutes": wall / 60, "held_out_clips": len(clips), **table,
    }  # fmt: skip
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
