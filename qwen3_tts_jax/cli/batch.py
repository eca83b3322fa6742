"""The command `batch`: a manifest → a folder of speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.options import examples

EXAMPLES = examples(
    "qwen3-tts-jax batch lines.jsonl -o out/",
    "qwen3-tts-jax batch sentences.txt -o out/",
    "qwen3-tts-jax batch lines.csv -o out/ --model 1.7B-VoiceDesign --format flac --batch-size 16",
    "qwen3-tts-jax batch clones.jsonl -o out/ --model 0.6B-Base --save-codes --skip-bad",
    "qwen3-tts-jax batch lines.jsonl -o out/ --format parquet --retry 2 --engine ray",
    "",
    'A manifest, as JSON lines or (.csv) as CSV with the same names in its first line; only "text" is needed.',
    "Plain text (.txt) is one text in each line.",
    '  {"id": "a1", "text": "Good morning.", "speaker": "henry", "language": "english"}',
    '  {"id": "a2", "text": "It rains.", "instruct": "sadly", "max_seconds": 6, "seed": 3}',
    '  {"id": "b1", "text": "Hello.", "reference": "me.wav", "reference_text": "What I say."}',
    '  {"id": "b2", "text": "Hello.", "voice": "me.safetensors", "text_mode": "all-at-once"}',
)


def batch(
    manifest: Annotated[
        Path,
        typer.Argument(
            help='JSON lines, or .csv or .txt by its ending; "-" is JSON lines from standard input.', show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the job; created if it does not exist.", show_default=False),
    ],
    model: option.MiniOrModel = None,
    audio_format: Annotated[
        Literal["wav", "flac", "parquet"],
        typer.Option("--format", help="Sound files, or shards for Hugging Face datasets with FLAC in them."),
    ] = "wav",
    shard_items: Annotated[int | None, typer.Option(min=1, help="Items in a Parquet shard; 1000 by default.")] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Items at a time; every batch is padded to this size, so that no item changes another."
        ),
    ] = 8,
    save_codes: Annotated[
        bool, typer.Option("--save-codes", help="Write codes/ID.npy too, or a column codes: int16 [T, Q].")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip lines that cannot be spoken.")] = False,
    retry: Annotated[
        int,
        typer.Option(min=0, help="Repeat speech that was cut at its limit, up to this many times, with other seeds."),
    ] = 0,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many of this machine share each batch; all by default.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="In this process, or on the machines of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="How many of Ray; by default one for each of its GPUs, or one if it has none."),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="For items without it; by default 2 s and 0.64 s per token of the text, in mini its length and 1 s."
        ),
    ] = None,
    split: option.Split = None,
    seed: option.Seed = 0,
    greedy: option.Greedy = False,
    temperature: option.Temperature = None,
    top_k: option.TopK = None,
    top_p: option.TopP = None,
    repetition_penalty: option.Penalty = None,
    dtype: option.Dtypes = "auto",
    attention: option.Attention = "auto",
    weights: option.Weights = "float",
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
    verify: option.Verify = False,
    quiet: option.Quiet = False,
) -> None:
    """Speak a list of texts into a folder.

    Any model will do. Run again, the command resumes where it was interrupted.

    Finished items are written to out/ID.wav or out/data/*.parquet, each with a line in out/index.jsonl. If standard
    error is not a terminal, it gets a line of progress every minute. The same manifest and seed give the same codes,
    whatever the order of the lines and wherever the job was interrupted. Exit status: 0 when all items are finished, 1
    when some failed or the job was stopped, for example by a full disk or a lack of memory, 2 when it was refused, 130
    when it was interrupted, 143 by SIGTERM.
    """
    _batch(locals())


def _batch(options: dict[str, Any]) -> None:
    from qwen3_tts_jax.cli.batch_job import BatchOptions, run_batch

    run_batch(BatchOptions(**options))
