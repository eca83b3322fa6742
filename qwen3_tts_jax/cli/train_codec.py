"""The command `train codec`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refuse, refuse_idle, refusing
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.cli.train_common import (
    NORM,
    PART,
    PART_BELOW,
    POSITIVE,
    SECONDS,
    STEPS,
    STEPS_OR_NONE,
    Interval,
    Steps,
    check_numbers,
    check_run,
    counter,
    training,
    warmup_steps,
)
from qwen3_tts_jax.config import CodecConfig
from qwen3_tts_jax.packaged import local_folder
from qwen3_tts_jax.presets import preset

EXAMPLES = examples(
    "qwen3-tts-jax train codec recordings/ -o my-codec --validation held-out/",
    "qwen3-tts-jax train codec data.jsonl -o my-codec --size medium --steps 20000 --discriminator-start 10000",
    "qwen3-tts-jax codec encode hello.wav -o hello.npz --model my-codec/codec",
)


def codec(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder of recordings (any format, any rate), or JSON lines with audio (codes: --decoder-only).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; continued if interrupted.")],
    validation: Annotated[Path | None, typer.Option(help="More recordings, to judge by: the best is kept.")] = None,
    size: Annotated[
        Literal["small", "medium"],
        typer.Option(help="3.3 or 5.7 million weights; 24 kHz, 12.5 Hz, 8 codebooks of 512."),
    ] = "small",
    config: Annotated[
        Path | None, typer.Option(help="A shape of your own, in the layout of speech_tokenizer/config.json.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="A codec to go on from: folder, repository or short name; gives the shape.")
    ] = None,
    decoder_only: Annotated[
        bool,
        typer.Option(
            "--decoder-only",
            help="Keep encoder and codebooks, so that codes keep their meaning; lines may then have codes of their "
            "own, a .npy file, or a .npz file and a key.",
        ),
    ] = False,
    spectral_steps: Annotated[
        int | None,
        typer.Option(
            help="This many steps first, in which quantizers and the decoder's front learn to say spectra that an "
            "encoder of spectra is given; 800 from random weights. 0: all of the codec learns together, from samples."
        ),
    ] = None,
    encoder_steps: Annotated[
        int, typer.Option(help="Then this many, in which the codec's own encoder learns the same from samples.")
    ] = 1000,
    spectral_rate: Annotated[float, typer.Option(help="The highest learning rate of both.")] = 3e-3,
    steps: Annotated[int, typer.Option(help="Of the optimizer, after them.")] = 10_000,
    batch_seconds: Annotated[float, typer.Option(help="Of audio in a step.")] = 12.0,
    crop_seconds: Annotated[float, typer.Option(help="Of each piece of it.")] = 2.0,
    context_seconds: Annotated[float, typer.Option(help="Of codes before each piece, where lines have codes.")] = 2.0,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    warmup: Annotated[int | None, typer.Option(help="Steps up to it; a twentieth of all, at most 500.")] = None,
    clip: Annotated[float, typer.Option(help="The largest norm of a gradient.")] = 1.0,
    dropout: Annotated[float, typer.Option(help="Part of pieces that use fewer codebooks.")] = 0.25,
    continuous_steps: Annotated[int, typer.Option(help="Steps before anything is quantized.")] = 0,
    unquantized: Annotated[
        float, typer.Option(help="Part of the pieces that are not quantized in the first half of the steps.")
    ] = 0.0,
    average: Annotated[float, typer.Option(help="Decay of an average of the weights, to be written; 0: none.")] = 0.0,
    discriminator_start: Annotated[
        int | None,
        typer.Option(help="The first step with a discriminator, which makes it sound clearer; none by default."),
    ] = None,
    discriminator_every: Annotated[int, typer.Option(help="It learns every N steps.")] = 2,
    discriminator_seconds: Annotated[float, typer.Option(help="Of each piece it hears.")] = 0.75,
    discriminator_kind: Annotated[Literal["hinge", "least-squares"], typer.Option(help="Its loss.")] = "hinge",
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of a teacher's features [T, D], .npy or .npz, named as the recordings; or in lines."),
    ] = None,
    feature_rate: Annotated[
        float | None, typer.Option(help="Of them, per second: codebook 0 learns to tell them. None by default.")
    ] = None,
    teacher_weight: Annotated[float, typer.Option(help="Of their cosine distance in the loss.")] = 1.0,
    log_every: Annotated[int, typer.Option(help="Steps between numbers in log.jsonl.")] = 10,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on the validation data.")] = 250,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    sample_every: Annotated[int, typer.Option(help="Steps between samples to listen to; 0 makes none.")] = 0,
    patience: Annotated[int, typer.Option(help="End after this many evaluations without a better one; 0 never.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of decoded recordings; in the run's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, pieces and dropout.")] = 0,
    quiet: option.Quiet = False,
) -> None:
    """Train a codec on recordings.

    It is written to OUTPUT/codec, for `codec encode --model`.

    From random weights, encoder and codebooks first learn spectra, then the decoder learns from their codes; from an
    existing codec, all learn together.
    """
    check_run(context)
    refuse_idle(context, config is not None, "with --config", "size")
    refuse_idle(context, start is not None, "with --start", "size")
    refuse_idle(context, feature_rate is None, "without --feature-rate", "teacher_weight")
    hearing = ("discriminator_every", "discriminator_seconds", "discriminator_kind")
    refuse_idle(context, discriminator_start is None, "without --discriminator-start", *hearing)
    check_numbers(STEPS, encoder_steps=encoder_steps, discriminator_every=discriminator_every)
    check_numbers(STEPS_OR_NONE, spectral_steps=spectral_steps, continuous_steps=continuous_steps)
    check_numbers(STEPS_OR_NONE, discriminator_start=discriminator_start)
    check_numbers(SECONDS, batch_seconds=batch_seconds, crop_seconds=crop_seconds)
    check_numbers(SECONDS, discriminator_seconds=discriminator_seconds)
    check_numbers(Interval(0, SECONDS.high), context_seconds=context_seconds)
    check_numbers(POSITIVE, learning_rate=learning_rate, spectral_rate=spectral_rate)
    check_numbers(POSITIVE, feature_rate=feature_rate, teacher_weight=teacher_weight)
    check_numbers(NORM, clip=clip)
    check_numbers(PART, dropout=dropout, unquantized=unquantized)
    check_numbers(PART_BELOW, average=average)
    with plain_messages():
        if start is not None and config is not None:
            refuse("--start brings its own shape: omit --config")
        if decoder_only and start is None:
            refuse("--decoder-only needs --start: the codec whose decoder is to learn")
        if start is not None and spectral_steps:
            refuse("--spectral-steps are for a codec from nothing: omit --start")
        if start is None and spectral_steps is None:
            spectral_steps = 800
        refuse_idle(context, not spectral_steps, "where no spectra are learnt", "encoder_steps", "spectral_rate")
        if spectral_steps and (continuous_steps or unquantized):
            refuse("--continuous-steps and --unquantized are for a codec that learns from samples: --spectral-steps 0")
        if features is not None and feature_rate is None:
            refuse("--features needs --feature-rate, how many of them there are per second")

        from qwen3_tts_jax import hf_config
        from qwen3_tts_jax.train.codec.discriminator import Discriminator
        from qwen3_tts_jax.train.codec.job import check_without_codec, codec_to_start_from, prepare_codec, run_codec
        from qwen3_tts_jax.train.codec.spectral import spectral_recipes
        from qwen3_tts_jax.train.codec.start import codec_shape
        from qwen3_tts_jax.train.codec.step import CodecRecipe
        from qwen3_tts_jax.train.codec.training import CodecTraining
        from qwen3_tts_jax.train.optimizer import OptimizerConfig
        from qwen3_tts_jax.train.progress import Schedule

        def settings_of(shape: CodecConfig, folder: Path | None) -> CodecTraining:
            discriminator, spectral = None, ()
            if discriminator_start is not None:
                heard = round(discriminator_seconds * shape.sample_rate)
                discriminator = Discriminator(heard, discriminator_start, discriminator_every, discriminator_kind)
            recipe = CodecRecipe(
                shape,
                OptimizerConfig(learning_rate, steps, warmup_steps(warmup, steps), clip=clip),
                dropout=dropout,
                continuous_steps=continuous_steps,
                unquantized=unquantized,
                unquantized_steps=steps // 2 if unquantized else 0,
                decoder_only=decoder_only or bool(spectral_steps),
                average=average,
                discriminator=discriminator,
            )
            if spectral_steps:
                spectral = spectral_recipes(shape, spectral_steps, encoder_steps, spectral_rate, clip, dropout)
            return CodecTraining(
                recipe,
                batch_seconds,
                crop_seconds,
                context_seconds=context_seconds,
                feature_rate=feature_rate,
                teacher_weight=teacher_weight,
                start=folder,
                spectral=spectral,
                seed=seed,
                schedule=Schedule(log_every, evaluate_every, save_every, sample_every, patience),
            )

        folder, files = None, (validation, features, cache)
        with refusing(ValueError, OSError):
            if start is not None:
                if local_folder(start) is None:
                    published = Source(start).published()
                    known = None if published is None else settings_of(preset(published).codec, None)
                    check_without_codec(data, output, known, *files)
                folder, shape = codec_to_start_from(start)
            else:
                shape = codec_shape(size) if config is None else hf_config.read_codec_file(config)
            settings = settings_of(shape, folder)
            job = prepare_codec(data, output, settings, *files)
        quiet_orbax()
        counts = {None: steps} | {one.hears: one.optimizer.steps for one in settings.spectral}
        with training(output, quiet, "a smaller --batch-seconds"):
            result = run_codec(job, decoding=counter(quiet, "decoded"), report=_reporter(quiet, counts))
    end = "ended early" if result.ended_early else "done"
    typer.echo(f"{output / 'codec'}: {end}, the state after step {result.step}, mel distance {result.mel:.3f}")


def _reporter(quiet: bool, counts: dict[str | None, int]) -> Callable[[dict[str, Any]], None] | None:
    """Shows log lines; `counts` has the steps of each phase's run, where the last phase is None."""
    phases = {phase: Steps(count) for phase, count in counts.items()}

    def show(numbers: dict[str, Any]) -> None:
        phase = numbers.get("phase")
        steps = phases[phase]
        if "validation_half_mel" in numbers:
            off, half = numbers["validation_mel"], numbers["validation_half_mel"]
            line = f"validation mel bands off by {off:.4f} nats, with half of the codebooks {half:.4f}"
        elif "validation_mel" in numbers:
            used = ", ".join(f"{value:.0f}" for value in numbers["validation_perplexity"])
            line = f"validation mel distance {numbers['validation_mel']:.4f}, codes in use {used}"
        else:
            line = (
                f"loss {numbers['loss']:.3f} (mel {numbers['mel']:.4f}), "
                f"{steps.pace(numbers, 'audio_seconds', 's of audio per s')}"
            )
        typer.echo(f"{'' if phase is None else f'{phase}, '}{steps.place(numbers)}: {line}", err=True)

    return None if quiet else show
