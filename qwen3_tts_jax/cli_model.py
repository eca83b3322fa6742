"""The commands about a model itself: its place, voices, languages, sizes, conversion and parity."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.config import ConfigError, ModelConfig, TransformerConfig
from qwen3_tts_jax.console import CheckLine, ProgressLine, quiet_orbax, refuse, refusing
from qwen3_tts_jax.files import check_place, require_absent
from qwen3_tts_jax.packaged import MINI, MINI_VOICES, local_folder
from qwen3_tts_jax.presets import PRESETS, preset

_RANDOM_WEIGHTS = "python -m tests.parity.random_checkpoint FOLDER --preset {} --small"

COMMANDS = {"custom_voice": "say", "voice_design": "design", "base": "clone"}
"""The command that speaks with a model, by its type."""

_PARITY_TEXTS = {"english": "Good morning! The train leaves at 9:45.", "chinese": "今天天气很好。"}

_OF_TYPE = {
    "custom_voice": "mini, 0.6B-CustomVoice or 1.7B-CustomVoice",
    "voice_design": "1.7B-VoiceDesign",
    "base": "0.6B-Base or 1.7B-Base",
}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: the options that the commands share."""

    model: str
    revision: str | None = None
    cache_dir: Path | None = None
    offline: bool = False
    verify: bool = False

    def folder(self, quiet: bool = False) -> Path:
        """Its folder, downloaded if necessary; refuses a model that cannot be found.

        Unless `quiet`, --verify shows its progress.
        """
        from qwen3_tts_jax.convert import resolve

        if not self.verify:
            return self._resolved(resolve)
        with CheckLine(quiet) as line:
            return self._resolved(partial(resolve, verify=True, progress=line))

    def codec_folder(self) -> Path:
        """The folder of its codec, which alone is downloaded if necessary; refuses a model without one."""
        from qwen3_tts_jax.convert import resolve_codec

        return self._resolved(resolve_codec)

    def _resolved(self, resolve: Callable[..., Path]) -> Path:
        from qwen3_tts_jax.convert import CheckpointError, ModelNotFoundError

        if self.revision is not None and local_folder(self.model) is not None:
            refuse(f"--revision is for repositories, and {self.model} is not one")
        try:
            with refusing(ConfigError):
                # None lets the environment variable HF_HUB_OFFLINE decide.
                return resolve(self.model, self.revision, self.cache_dir, self.offline or None)
        except CheckpointError as error:
            # Files differ from the published ones, which `info` does not check.
            refuse(f"{self.model}: {'; '.join(error.problems)}")
        except ModelNotFoundError as error:
            hint, name = "", self.published()
            if name is not None:
                hint = f"; to try without it, write random weights (README, Parity): {_RANDOM_WEIGHTS.format(name)}"
            refuse(f"{error}{hint}")
        except FileNotFoundError as error:
            refuse(f"{self.model} is no model: {Path(error.filename).name} is missing")

    def published(self) -> str | None:
        """Its short name if it is a published model, named by that or by its repository."""
        if "/" in self.model:
            from qwen3_tts_jax.convert.hub import PREFIX

            name = self.model.removeprefix(PREFIX)
        else:
            name = self.model
        return name if name in PRESETS and local_folder(self.model) is None else None

    def config_at_hand(self) -> ModelConfig | None:
        """Its config if that needs no download: for `mini`, a folder, or a published model."""
        folder = local_folder(self.model)
        if folder is not None:
            return read_config(folder)
        name = self.published()
        return None if name is None else preset(name)

    def config(self) -> ModelConfig:
        """Its config, downloaded if necessary."""
        return self.config_at_hand() or read_config(self.folder())


def speaking_with_mini(voice: str | None, quiet: bool) -> None:
    """Says that `mini` speaks, since no model was chosen, and with which voice if none was chosen either."""
    if not quiet:
        voice = "" if voice is None else f" ({voice}; `voices` lists others)"
        typer.echo(
            f"speaking with mini, the small English voice in the package{voice}; "
            "--model 0.6B-CustomVoice downloads the published one",
            err=True,
        )


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder; refuses one that is missing or that this package cannot run."""
    try:
        with refusing(ConfigError):
            return hf_config.read_folder(folder)
    except FileNotFoundError as error:
        refuse(f"{folder} is no model: {Path(error.filename).relative_to(folder)} is missing")


def check_type(model: str, config: ModelConfig, needed: str, command: str) -> None:
    """Refuses a model of another type than a command needs."""
    if config.model_type != needed:
        refuse(
            f"{model} is a {config.model_type} model: use it with `{COMMANDS[config.model_type]}`; `{command}` needs "
            f"a {needed} model, such as {_OF_TYPE[needed]}"
        )


def print_voices(source: Source) -> None:
    """A line per voice, the default first, with the dialect that it speaks instead of Chinese; in `mini`, who it is."""
    config = source.config()
    speakers = config.prompt.speakers
    if not speakers:
        other = {
            "base": "it clones voices from recordings (`clone`)",
            "voice_design": "it speaks with voices that you describe (`design`)",
        }
        refuse(
            f"{source.model} is a {config.model_type} model and has no voices of its own: {other[config.model_type]}"
        )
    width = max(map(len, speakers))
    words = MINI_VOICES if source.model == MINI else config.prompt.dialects
    for name in speakers:
        typer.echo(f"{name:{width}}  {words.get(name, '')}".rstrip())


def print_languages(source: Source) -> None:
    """A line per language, the dialects after the languages."""
    names = sorted(source.config().prompt.languages, key=lambda name: ("dialect" in name, name))
    for name in ["auto", *names]:
        typer.echo(name)


def print_info(source: Source) -> None:
    """What a model is, what it can do, and its parts. Reads headers only, and downloads no published model."""
    from qwen3_tts_jax.convert import CheckpointError, ModelNotFoundError, resolve

    folder: Path | None = None
    if source.published():
        try:
            folder = resolve(source.model, source.revision, source.cache_dir, local_files_only=True)
        except ModelNotFoundError:
            typer.echo(f"{source.model} is not on this machine: its published config follows", err=True)
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


def stored_sizes(folder: Path, config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Dtypes and bytes of the parts that a folder holds, whatever its layout."""
    from qwen3_tts_jax.convert.check import MARKER, check_folder, is_converted
    from qwen3_tts_jax.convert.rules import all_rules
    from qwen3_tts_jax.convert.safetensors_file import DTYPES

    sizes = {}
    if is_converted(folder):
        for part, dtypes in json.loads((folder / MARKER).read_text(encoding="utf-8"))["dtypes"].items():
            sizes[part] = "/".join(dtypes), folder_bytes(folder / "params" / part)
        return sizes
    stored = check_folder(folder, config)
    rules = all_rules(config)
    for part in dict.fromkeys(rule.part for rule in rules):
        tensors = [stored[name] for rule in rules if rule.part == part for name in rule.torch]
        dtypes = sorted({str(DTYPES[tensor.dtype]) for tensor in tensors})
        sizes[part] = "/".join(dtypes), sum(tensor.nbytes for tensor in tensors)
    return sizes


def folder_bytes(folder: Path) -> int:
    """The total size of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def parts_of(config: ModelConfig) -> list[str]:
    """The members of `convert.PARTS` that a model has: only base models have a speaker encoder."""
    from qwen3_tts_jax.convert import PARTS

    return [part for part in PARTS if part != "speaker_encoder" or config.speaker_encoder is not None]


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


def convert_model(source: Source, destination: Path, dtype: str, quiet: bool) -> None:
    """All parts of a published checkpoint → an Orbax checkpoint in `destination`."""
    with refusing(OSError):
        require_absent(destination)
    from qwen3_tts_jax.convert import CheckpointError, load_params
    from qwen3_tts_jax.convert.check import check_folder, is_converted

    folder = source.folder(quiet)
    if is_converted(folder):
        refuse(f"{folder} is converted already")
    config = read_config(folder)
    with refusing(CheckpointError):
        stored = check_folder(folder, config)
        if dtype == "auto":
            talker = {tensor.dtype for name, tensor in stored.items() if name.startswith("talker.")}
            dtype = "bfloat16" if talker == {"BF16"} else "float32"
        config = config.with_dtypes(dtype)
        parts = parts_of(config)
        with ProgressLine(1 / config.codec.frame_rate, quiet) as progress:
            params = load_params(folder, config, parts, partial(progress, "load"))
            progress("save", 0, 1)
            quiet_orbax()
            from qwen3_tts_jax.convert import orbax_checkpoint

            with refusing(OSError):
                orbax_checkpoint.save(destination, params, config, folder)
    typer.echo(f"{destination}: {folder_bytes(destination) / 1e6:,.1f} MB, {', '.join(parts)}; talker in {dtype}")


def compare_with_official(
    source: Source, texts: list[str] | None, report: Path | None, quiet: bool, **options: Any
) -> None:
    """The numbers of `verify.run_parity` as a table; exit status 1 if a stage is beyond its tolerance."""
    if report is not None:
        with refusing(OSError):
            check_place(report)
    from rich.console import Console

    from qwen3_tts_jax.convert.reference import OracleMissingError
    from qwen3_tts_jax.convert.verify import run_parity

    folder = source.folder()
    languages = read_config(folder).prompt.languages
    texts = texts or [text for language, text in _PARITY_TEXTS.items() if language in languages]
    with refusing(OracleMissingError, ValueError, OSError):
        result = run_parity(folder, texts, progress=None if quiet else partial(typer.echo, err=True), **options)
    # A pipe has no width, and in 80 columns the table would be squeezed.
    Console(width=None if sys.stdout.isatty() else 140).print(result.to_table())
    typer.echo(result.verdict)
    if report is not None:
        with refusing(OSError):
            result.write(report)
    if not result.passed:
        raise typer.Exit(1)
