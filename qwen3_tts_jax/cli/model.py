"""The model that a command is given: where it comes from, its config, and the sizes of its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.console import refuse, refusing
from qwen3_tts_jax.cli.progress import CheckLine
from qwen3_tts_jax.config import ConfigError, ModelConfig
from qwen3_tts_jax.packaged import local_folder
from qwen3_tts_jax.presets import PRESETS, preset

_RANDOM_WEIGHTS = "python -m tests.parity.random_checkpoint FOLDER --preset {} --small"

COMMANDS = {"custom_voice": "say", "voice_design": "design", "base": "clone"}
"""The command that speaks with a model, by its type."""

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
                hint = f"; to try without it, write random weights (README, Start): {_RANDOM_WEIGHTS.format(name)}"
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


def stored_sizes(folder: Path, config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Dtypes and bytes of the parts that a folder holds, whatever its layout."""
    from qwen3_tts_jax.convert.check import MARKER, PARAMS, check_folder, is_converted
    from qwen3_tts_jax.convert.rules import all_rules
    from qwen3_tts_jax.convert.safetensors_file import DTYPES

    sizes = {}
    if is_converted(folder):
        for part, dtypes in json.loads((folder / MARKER).read_text(encoding="utf-8"))["dtypes"].items():
            sizes[part] = "/".join(dtypes), folder_bytes(folder / PARAMS / part)
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
    """Those of the package `convert`'s `PARTS` that a model has: only base models have a speaker encoder."""
    from qwen3_tts_jax.convert import PARTS

    return [part for part in PARTS if part != "speaker_encoder" or config.speaker_encoder is not None]
