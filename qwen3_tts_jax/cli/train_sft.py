"""The command `train sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refuse, refuse_idle, refusing
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.options import DEFAULT_CLONER, examples
from qwen3_tts_jax.cli.train_common import (
    EXPORT_LAST,
    FROM_ZERO,
    NORM,
    POSITIVE,
    ROWS,
    SECONDS,
    Interval,
    check_numbers,
    check_run,
    check_tensorboard,
    counter,
    names,
    reporter,
    tensorboard_writer,
    text_modes,
    training,
    warmup_steps,
)
from qwen3_tts_jax.packaged import local_folder

EXAMPLES = examples(
    "qwen3-tts-jax train sft anna.jsonl --model 0.6B-Base -o anna",
    "qwen3-tts-jax train sft voices.jsonl --model 1.7B-Base -o voices --lora 16 --validation held-out.jsonl",
    'qwen3-tts-jax say "Good morning." --model anna/model --speaker anna',
)

_FULL_RATE, _LORA_RATE = 2e-5, 2e-4


def sft(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help="An object per line: audio, text; if needed ref_audio, ref_text, language, speaker, instruct.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; continued if interrupted.")],
    model: option.Model = DEFAULT_CLONER,
    validation: Annotated[Path | None, typer.Option(help="More such lines, to judge by: the best is kept.")] = None,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Utterances per batch.")] = 8,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Of speech per batch, clips of like length together; not --batch-size.")
    ] = None,
    buckets: Annotated[int, typer.Option(help="With --batch-seconds, shapes of batches; each compiles once.")] = 6,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"The highest; {_FULL_RATE:g} by default, {_LORA_RATE:g} with --lora.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps up to it; a twentieth of all, at most 500.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    clip: Annotated[float, typer.Option(help="The largest norm of a gradient.")] = 1.0,
    lora: Annotated[int, typer.Option(help="Rank of low-rank adapters; 0 trains all weights.")] = 0,
    lora_alpha: Annotated[float | None, typer.Option(help="Their scale; twice the rank by default.")] = None,
    lora_modules: Annotated[str, typer.Option(help="Which weights get them, by parts of paths.")] = "attention,mlp",
    freeze: Annotated[str, typer.Option(help="Paths that stay as they are, such as talker/text_embedding.")] = "",
    code_weight: Annotated[float, typer.Option(help="Of the loss of codes 1 and up, where code 0 has 1.")] = 1.0,
    text_mode: Annotated[
        Literal["all-at-once", "as-it-comes", "both"] | None,
        typer.Option(
            help="How the model reads the text; both by turns. By default both if it goes on cloning, else all-at-once."
        ),
    ] = None,
    known_speakers: Annotated[
        bool, typer.Option("--known-speakers", help="Train speakers that the model has already.")
    ] = False,
    remat: Annotated[bool, typer.Option(help="Save memory by computing activations twice.")] = True,
    log_every: Annotated[int, typer.Option(help="Steps between numbers in log.jsonl.")] = 10,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on the validation data.")] = 100,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    sample_every: Annotated[int, typer.Option(help="Steps between samples of speech; 0 makes none.")] = 0,
    patience: Annotated[int, typer.Option(help="End after this many evaluations without a better one; 0 never.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of encoded recordings; in the run's by default.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Numbers for it too (tensorboardX).")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0,
    dtype: option.Dtype = "auto",
    export_dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the model that is written.")
    ] = "bfloat16",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Fine-tune a model on recordings with transcripts.

    The new model is written to OUTPUT/model.

    Lines with a speaker turn a base model into a custom-voice model, for `say --speaker NAME`. Without speakers, a
    base model learns to clone ref_audio (by default the recording itself), and a voice-design model to follow
    instruct.
    """
    check_run(context)
    refuse_idle(context, not lora, "without --lora", "lora_alpha", "lora_modules")
    refuse_idle(context, batch_seconds is None, "without --batch-seconds", "buckets")
    refuse_idle(context, batch_seconds is not None, "with --batch-seconds", "batch_size")
    check_numbers(ROWS, batch_size=batch_size, buckets=buckets, accumulate=accumulate)
    check_numbers(SECONDS, batch_seconds=batch_seconds)
    check_numbers(POSITIVE, learning_rate=learning_rate, lora_alpha=lora_alpha)
    check_numbers(NORM, clip=clip)
    check_numbers(FROM_ZERO, weight_decay=weight_decay, code_weight=code_weight)
    check_numbers(Interval(0, ROWS.high), lora=lora)
    if lora and freeze:
        refuse("--freeze is for runs without --lora: there the adapters alone are trained")
    if tensorboard:
        check_tensorboard()
    with plain_messages():
        import jax

        from qwen3_tts_jax.devices import automatic_dtype
        from qwen3_tts_jax.sharding import make_mesh
        from qwen3_tts_jax.train.lora import LoraConfig
        from qwen3_tts_jax.train.loss import LossConfig
        from qwen3_tts_jax.train.optimizer import OptimizerConfig
        from qwen3_tts_jax.train.progress import Schedule
        from qwen3_tts_jax.train.sft import SftConfig, check_without_model, prepare, run

        if dtype == "auto":
            dtype = automatic_dtype()
        rate = learning_rate if learning_rate is not None else (_LORA_RATE if lora else _FULL_RATE)
        alpha = lora_alpha if lora_alpha is not None else 2.0 * lora
        with refusing(ValueError, OSError):
            config = SftConfig(
                dtype=dtype,
                optimizer=OptimizerConfig(
                    rate, steps, warmup_steps(warmup, steps), weight_decay=weight_decay, clip=clip
                ),
                loss=LossConfig(codes=code_weight),
                lora=LoraConfig(lora, alpha, names(lora_modules)) if lora else None,
                frozen=names(freeze),
                batch_size=batch_size,
                batch_seconds=batch_seconds,
                buckets=buckets,
                accumulate=accumulate,
                text_modes=None if text_mode is None else text_modes(text_mode),
                known_speakers=known_speakers,
                remat=remat,
                seed=seed,
                schedule=Schedule(log_every, evaluate_every, save_every, sample_every, patience),
                export_dtype=export_dtype,
            )
            source = Source(model, revision, cache_dir, offline)
            if local_folder(model) is None:
                check_without_model(data, output, config, validation, cache, source.config_at_hand())
        folder = source.folder()
        with refusing(ValueError, OSError):
            job = prepare(folder, data, output, config, validation, cache)
        quiet_orbax()
        count = jax.device_count()
        mesh = make_mesh() if count > 1 and (batch_seconds or batch_size % count == 0) else None
        if mesh is None and count > 1:
            typer.echo(f"warning: {count} devices cannot share batches of {batch_size}: one works alone", err=True)
        smaller = f"a smaller --{'batch-size' if batch_seconds is None else 'batch-seconds'}"
        with (
            training(output, quiet, smaller if remat else f"{smaller}, or --remat", EXPORT_LAST),
            tensorboard_writer(output, tensorboard) as write_scalars,
        ):
            report = reporter(quiet, write_scalars, steps)
            result = run(job, mesh=mesh, encoding=counter(quiet), report=report)
    end = "ended early" if result.ended_early else "done"
    typer.echo(f"{output / 'model'}: {end}, the state after step {result.step}, loss {result.loss:.3f}")
