"""The command `train talker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import plain_messages, quiet_orbax, refuse, refuse_idle, refusing
from qwen3_tts_jax.cli.model import Source
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.cli.train_common import (
    EXPORT_LAST,
    FROM_ZERO,
    NORM,
    PART,
    PART_ABOVE,
    PART_BELOW,
    POSITIVE,
    ROWS,
    SECONDS,
    STEPS_OR_NONE,
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
from qwen3_tts_jax.presets import preset

EXAMPLES = examples(
    "qwen3-tts-jax codec encode clips/*.wav -o codes.npz --model my-codec/codec",
    'echo \'{"codes": "codes.npz", "key": "one", "text": "What one.wav says.", "speaker": "anna"}\' > pairs.jsonl',
    "qwen3-tts-jax train talker pairs.jsonl --config talker.json --codec my-codec/codec -o mine",
    'qwen3-tts-jax say "Good morning." --model mine/model --speaker anna',
)


def talker(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help="An object per line: text, speaker, and audio or codes (.npy, or .npz with key); if needed language.",
        ),
    ],
    config: Annotated[
        Path, typer.Option("--config", "-c", help="JSON: talker and code_predictor with their sizes, see above.")
    ],
    codec: Annotated[str, typer.Option(help="Whose codes they are: folder, repository or short name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; continued if interrupted.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of a text tokenizer; one of bytes is made by default.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="More such lines, to judge by: the best is kept.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Model of these sizes and speakers to start from; from nothing by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 10_000,
    batch_seconds: Annotated[float, typer.Option(help="Of speech in a batch, padding included.")] = 120.0,
    buckets: Annotated[int, typer.Option(help="Shapes of batches, by length; each compiles once.")] = 6,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    optimizer: Annotated[
        Literal["adamw", "muon"], typer.Option(help="Muon learns more per step from nothing, and costs a little.")
    ] = "adamw",
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    final_rate: Annotated[float, typer.Option(help="The last learning rate, as a part of the highest.")] = 0.1,
    warmup: Annotated[int | None, typer.Option(help="Steps up to it; a twentieth of all, at most 500.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    clip: Annotated[float, typer.Option(help="The largest norm of a gradient.")] = 1.0,
    code_weight: Annotated[float, typer.Option(help="Of the loss of codes 1 and up, where code 0 has 1.")] = 1.0,
    codebook_weights: Annotated[
        str, typer.Option(help="Of each of codes 1 and up among them, such as 3,2,1.5,1; all alike by default.")
    ] = "",
    end_weight: Annotated[float, typer.Option(help="Of an end of speech, where a frame has 1.")] = 1.0,
    predictor_share: Annotated[
        float, typer.Option(help="Part of the frames that codes 1 and up are learnt from in a step; less is faster.")
    ] = 1.0,
    noise: Annotated[float, typer.Option(help="Part of codes 1 and up that are read as random ones.")] = 0.0,
    noise_0: Annotated[float, typer.Option("--noise-0", help="Part of codes 0, likewise.")] = 0.0,
    forget: Annotated[float, typer.Option(help="Part of frames that the talker does not see.")] = 0.0,
    dropout: Annotated[float, typer.Option(help="Part of the outputs of attention and MLPs, in 256ths.")] = 0.0,
    alignment: Annotated[
        float, typer.Option(help="Weight of reading the text off a middle layer (CTC), which helps early; 0 is none.")
    ] = 0.0,
    guide: Annotated[
        float, typer.Option(help="Weight of keeping a head's attention near a frame's place in its text; 0 is none.")
    ] = 0.0,
    alignment_layer: Annotated[
        int | None, typer.Option(help="Of the talker, from 0; the one after its middle by default.")
    ] = None,
    alignment_steps: Annotated[int | None, typer.Option(help="When that ends; after half of all by default.")] = None,
    average: Annotated[
        float, typer.Option(help="Decay of an average of the weights, to be judged and written; 0: none.")
    ] = 0.0,
    text_mode: Annotated[
        Literal["all-at-once", "as-it-comes", "both"], typer.Option(help="How the model reads the text; both by turns.")
    ] = "all-at-once",
    remat: Annotated[bool, typer.Option(help="Save memory by computing activations twice.")] = False,
    log_every: Annotated[int, typer.Option(help="Steps between numbers in log.jsonl.")] = 10,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on the validation data.")] = 250,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    sample_every: Annotated[int, typer.Option(help="Steps between samples of speech; 0 makes none.")] = 0,
    patience: Annotated[int, typer.Option(help="End after this many evaluations without a better one; 0 never.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of encoded recordings; in the run's by default.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Numbers for it too (tensorboardX).")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and all that is random.")] = 0,
    dtype: option.Dtype = "auto",
    export_dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the model that is written.")
    ] = "float32",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    quiet: option.Quiet = False,
) -> None:
    """Train a talker, by default from nothing.

    A custom-voice model is written to OUTPUT/model.

    The config has "talker" and "code_predictor", each with "num_layers", "width", "mlp_width", "num_heads" and
    "head_dim" and optionally "num_kv_heads", "rope_theta" and "norm_eps"; and optionally "text_width",
    "max_positions", "max_frames", "languages" and "speakers". Codebooks follow from the codec, the text vocabulary
    from the tokenizer, speakers from the data. With validation data of two clips or more the log has text_gap: by
    how much the loss of code 0 rises with the text of another clip. It is 0 until the model listens to its text.
    """
    check_run(context)
    refuse_idle(context, guide and not alignment, "without --alignment", "guide")
    refuse_idle(context, not alignment, "without --alignment", "alignment_layer", "alignment_steps")
    check_numbers(ROWS, buckets=buckets, accumulate=accumulate)
    check_numbers(SECONDS, batch_seconds=batch_seconds)
    check_numbers(POSITIVE, learning_rate=learning_rate)
    check_numbers(NORM, clip=clip)
    check_numbers(FROM_ZERO, weight_decay=weight_decay, code_weight=code_weight, end_weight=end_weight)
    check_numbers(FROM_ZERO, alignment=alignment, guide=guide)
    check_numbers(PART, final_rate=final_rate)
    check_numbers(PART_ABOVE, predictor_share=predictor_share)
    check_numbers(PART_BELOW, noise=noise, noise_0=noise_0, forget=forget, dropout=dropout, average=average)
    check_numbers(STEPS_OR_NONE, alignment_layer=alignment_layer, alignment_steps=alignment_steps)
    try:
        weights = tuple(float(weight) for weight in names(codebook_weights)) or None
    except ValueError:
        refuse(f"--codebook-weights must be numbers with commas between them, got {codebook_weights!r}")
    for weight in weights or ():
        check_numbers(FROM_ZERO, codebook_weights=weight)
    if tensorboard:
        check_tensorboard()
    with plain_messages():
        import jax

        from qwen3_tts_jax.devices import automatic_dtype
        from qwen3_tts_jax.sharding import make_mesh
        from qwen3_tts_jax.train.alignment import AlignmentConfig
        from qwen3_tts_jax.train.loss import LossConfig
        from qwen3_tts_jax.train.optimizer import OptimizerConfig
        from qwen3_tts_jax.train.progress import Schedule
        from qwen3_tts_jax.train.regularization import Regularization
        from qwen3_tts_jax.train.talker_job import TalkerTraining, check_without_codec, prepare_talker, run_talker

        if dtype == "auto":
            dtype = automatic_dtype()
        with refusing(ValueError, OSError):
            aligned = None
            if alignment:
                until = steps // 2 if alignment_steps is None else alignment_steps
                aligned = AlignmentConfig(alignment, alignment_layer, until, guide=guide)
            corrupted = Regularization(noise, noise_0, forget, dropout, predictor_share)
            settings = TalkerTraining(
                optimizer=OptimizerConfig(
                    learning_rate,
                    steps,
                    warmup_steps(warmup, steps),
                    final_rate=final_rate,
                    weight_decay=weight_decay,
                    clip=clip,
                    kind=optimizer,
                ),
                loss=LossConfig(codes=code_weight, codebooks=weights, end=end_weight),
                regularization=None if corrupted == Regularization() else corrupted,
                alignment=aligned,
                average=average,
                dtype=dtype,
                batch_seconds=batch_seconds,
                buckets=buckets,
                accumulate=accumulate,
                text_modes=text_modes(text_mode),
                remat=remat,
                seed=seed,
                schedule=Schedule(log_every, evaluate_every, save_every, sample_every, patience),
                export_dtype=export_dtype,
            )
            source = Source(codec, revision, cache_dir, offline)
            files = {"tokenizer": tokenizer, "validation": validation, "start": start, "cache": cache}
            if local_folder(codec) is None:
                published = source.published()
                shape = None if published is None else preset(published).codec
                check_without_codec(data, config, output, settings, codec=shape, **files)
        codec_folder = source.codec_folder()
        with refusing(ValueError, OSError):
            job = prepare_talker(data, config, codec_folder, output, settings, **files)
        quiet_orbax()
        mesh = make_mesh() if jax.device_count() > 1 else None
        smaller = "a smaller --batch-seconds"
        with (
            training(output, quiet, smaller if remat else f"{smaller}, or --remat", EXPORT_LAST),
            tensorboard_writer(output, tensorboard) as write_scalars,
        ):
            report = reporter(quiet, write_scalars, steps)
            result = run_talker(job, mesh=mesh, encoding=counter(quiet), report=report)
    end = "ended early" if result.ended_early else "done"
    typer.echo(f"{output / 'model'}: {end}, the state after step {result.step}, loss {result.loss:.3f}")
