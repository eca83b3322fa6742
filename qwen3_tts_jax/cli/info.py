"""The commands `voices`, `languages` and `info`: what a model can do, and how large it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from qwen3_tts_jax.cli import options as option
from qwen3_tts_jax.cli.console import refuse
from qwen3_tts_jax.cli.model import Source, read_config, stored_sizes
from qwen3_tts_jax.cli.options import examples
from qwen3_tts_jax.config import ModelConfig, TransformerConfig
from qwen3_tts_jax.packaged import MINI, MINI_VOICES

VOICES_EXAMPLES = examples(
    "qwen3-tts-jax voices --model ./my-checkpoint",
)
LANGUAGES_EXAMPLES = examples(
    "qwen3-tts-jax languages --model 1.7B-Base",
)
INFO_EXAMPLES = examples(
    "qwen3-tts-jax info ./my-checkpoint",
)


def voices(
    model: option.Model = MINI,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """List a model's voices, with their Chinese dialects."""
    config = Source(model, revision, cache_dir, offline).config()
    speakers = config.prompt.speakers
    if not speakers:
        other = {
            "base": "it clones voices from recordings (`clone`)",
            "voice_design": "it speaks with voices that you describe (`design`)",
        }
        refuse(f"{model} is a {config.model_type} model and has no voices of its own: {other[config.model_type]}")
    width = max(map(len, speakers))
    words = MINI_VOICES if model == MINI else config.prompt.dialects
    for name in speakers:
        typer.echo(f"{name:{width}}  {words.get(name, '')}".rstrip())


def languages(
    model: option.Model = MINI,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """List a model's languages and dialects."""
    config = Source(model, revision, cache_dir, offline).config()
    names = sorted(config.prompt.languages, key=lambda name: ("dialect" in name, name))
    for name in ["auto", *names]:
        typer.echo(name)


def info(
    model: option.ModelArgument,
    revision: option.Revision = None,
    cache_dir: option.CacheDir = None,
    offline: option.Offline = False,
) -> None:
    """Show what a model can do and the sizes of its parts."""
    from qwen3_tts_jax.convert import CheckpointError, ModelNotFoundError, resolve

    source = Source(model, revision, cache_dir, offline)
    folder: Path | None = None
    if source.published():
        try:
            folder = resolve(model, revision, cache_dir, local_files_only=True)
        except ModelNotFoundError:
            typer.echo(f"{model} is not on this machine: its published config follows", err=True)
        config = source.config_at_hand() if folder is None else read_config(folder)
    else:
        folder = source.folder()
        config = read_config(folder)
    sizes: dict[str, tuple[str, int]] = {}
    problems: tuple[str, ...] = ()
    if folder is not None:
        try:
            sizes = stored_sizes(folder, config)
        except CheckpointError as error:
            problems = error.problems
    for name, value in _abilities(config):
        typer.echo(f"{name:13}{value}")
    if folder is not None:
        typer.echo(f"{'folder':13}{folder}")
    typer.echo()
    for line in _parts(config, sizes):
        typer.echo(line)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(2)


def _abilities(config: ModelConfig) -> Iterator[tuple[str, str]]:
    languages = list(config.prompt.languages)
    dialects = [name for name in languages if "dialect" in name]
    seconds = (config.max_new_tokens - 1) / config.codec.frame_rate
    yield "model", f"{config.model_type}, size {config.model_size}"
    yield (
        "voices",
        {
            "custom_voice": f"its own: {', '.join(config.prompt.speakers)}",
            "voice_design": "designed from a description",
            "base": "cloned from recordings",
        }[config.model_type],
    )
    yield "languages", f"{len(languages) - len(dialects)}" + f" and {len(dialects)} dialects" * bool(dialects)
    yield "instruct", "yes" if config.supports_instruct else "no"
    yield (
        "speech",
        f"{config.codec.sample_rate} Hz, {config.codec.frame_rate:g} frames a second of "
        f"{config.codec.num_codebooks} codes, at most {seconds:.0f} s",
    )


def _parts(config: ModelConfig, sizes: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """A table of the parts, with the dtypes and sizes of those that are stored."""
    from qwen3_tts_jax.convert.rules import all_rules

    stacks = {
        "talker": config.talker.transformer,
        "code_predictor": config.code_predictor.transformer,
        "codec/encoder": config.codec.encoder.transformer,
        "codec/decoder": config.codec.decoder.transformer,
    }
    parameters: Counter[str] = Counter()
    for rule in all_rules(config):
        parameters[rule.part] += sum(map(math.prod, rule.torch.values()))
    yield f"{'part':17}{'parameters':>15}{'dtype':>18}{'MB':>9}  layers"
    for part, count in parameters.items():
        dtype, size = sizes.get(part, ("", None))
        megabytes = "" if size is None else f"{size / 1e6:.1f}"
        layers = _layers(stacks[part]) if part in stacks else ""
        yield f"{part:17}{count:>15,}{dtype:>18}{megabytes:>9}  {layers}".rstrip()
    total = f"{sum(size for _, size in sizes.values()) / 1e6:.1f}" if sizes else ""
    yield f"{'all':17}{parameters.total():>15,}{'':>18}{total:>9}".rstrip()


def _layers(stack: TransformerConfig) -> str:
    heads = f"{stack.num_heads} heads"
    if stack.num_kv_heads != stack.num_heads:
        heads += f" ({stack.num_kv_heads} kv)"
    return f"{stack.num_layers} of width {stack.width}, mlp {stack.mlp_width}, {heads} of {stack.head_dim}"
