"""The commands `say` and `design`: check everything, load, speak, write."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen3_tts_jax.cli_model import Source, read_config
from qwen3_tts_jax.config import ConfigError, ModelConfig, SamplingConfig
from qwen3_tts_jax.console import ProgressLine, plain_messages, read_text, refuse, refusing

if TYPE_CHECKING:
    from qwen3_tts_jax.pipeline import Speech
    from qwen3_tts_jax.prompt import PromptPlan, Request

_MAX_SEED = 2**31 - 1
_COMMANDS = {"custom_voice": "say", "voice_design": "design"}


@dataclass(frozen=True, kw_only=True)
class SpeakOptions:
    """The options of `say` and `design`, as they were given."""

    text: str | None
    file: Path | None
    output: Path
    model: str
    speaker: str | None
    language: str
    instruct: str | None
    max_seconds: float | None
    text_mode: str
    seed: int
    greedy: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    dtype: str
    codec_dtype: str
    revision: str | None
    cache_dir: Path | None
    offline: bool
    verify: bool
    quiet: bool


def speak(model_type: str, options: SpeakOptions) -> None:
    """Speaks one utterance into a file with a model of `model_type`.

    What can be refused is refused first: the options, then what the config tells, then the prompt, and only
    then are the weights loaded.
    """
    from qwen3_tts_jax import audio

    with refusing(ValueError, OSError):
        audio.check_writable(options.output)
    sampling = _sampling(options)
    if options.max_seconds is not None and not 0 < options.max_seconds < math.inf:
        refuse(f"--max-seconds must be a number above 0, got {options.max_seconds:g}")
    if not 0 <= options.seed <= _MAX_SEED:
        refuse(f"--seed must be 0 … {_MAX_SEED}, got {options.seed}")
    if model_type == "voice_design" and not (options.instruct or "").strip():
        refuse("--instruct is missing: say in words who speaks, and how")
    text = read_text(options.text, options.file)

    with plain_messages():
        source = Source(options.model, options.revision, options.cache_dir, options.offline, options.verify)
        # Before a download, too.
        at_hand = source.config_at_hand()
        if at_hand is not None:
            _request(text, options, at_hand, model_type)
        folder = source.folder()
        config = read_config(folder)
        request = _request(text, options, config, model_type)
        plan = _plan(request, folder, config)
        with ProgressLine(1 / config.codec.frame_rate, options.quiet) as progress:
            speech, taken = _synthesize(folder, request, sampling, options, progress)
        with refusing(OSError):
            audio.write(options.output, speech.samples, speech.sample_rate)
    typer.echo(
        f"{options.output}: {speech.seconds:.2f} s of audio in {taken:.1f} s "
        f"({speech.seconds / taken:.2f} x real time; {progress.until_speech:.1f} s until the first frames)"
        + _cut(speech, plan, config)
    )


def _sampling(options: SpeakOptions) -> dict[str, Any]:
    """The sampling arguments of `pipeline.merge_sampling`."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    unused = [f"--{name.replace('_', '-')}" for name in given if name != "repetition_penalty"]
    if options.greedy and unused:
        refuse(f"--greedy draws nothing and takes no {' or '.join(unused)}")
    if "temperature" in given and not 0 < options.temperature < math.inf:
        refuse(f"--temperature must be above 0 (for the most likely codes use --greedy), got {options.temperature:g}")
    with refusing(ConfigError):
        SamplingConfig(**given)
    return given | ({"do_sample": False, "subtalker_dosample": False} if options.greedy else {})


def _request(text: str, options: SpeakOptions, config: ModelConfig, model_type: str) -> Request:
    """The request, with the first voice that the config lists if none is chosen; refuses what it cannot speak."""
    from qwen3_tts_jax.prompt import Request, validate

    if config.model_type != model_type:
        _refuse_type(options.model, config.model_type, model_type)
    speaker = options.speaker
    if speaker is None and config.prompt.speakers:
        speaker = next(iter(config.prompt.speakers))
    max_frames = None
    if options.max_seconds is not None:
        max_frames = max(1, int(options.max_seconds * config.codec.frame_rate))
    mode = options.text_mode.replace("-", "_")
    request = Request(text, options.language, speaker, options.instruct, mode, max_frames)
    with refusing(ValueError):
        validate(request, config)
    return request


def _refuse_type(model: str, found: str, needed: str) -> None:
    command = _COMMANDS[needed]
    if found == "base":
        refuse(
            f"{model} is a base model: it clones voices from recordings; `{command}` needs a {needed} model, "
            "such as " + {"say": "0.6B-CustomVoice or 1.7B-CustomVoice", "design": "1.7B-VoiceDesign"}[command]
        )
    refuse(f"{model} is a {found} model: use `{_COMMANDS[found]}`; `{command}` needs a {needed} model")


def _plan(request: Request, folder: Path, config: ModelConfig) -> PromptPlan:
    from qwen3_tts_jax.prompt import plan_prompt
    from qwen3_tts_jax.text import TextTokenizer

    with refusing(ValueError, FileNotFoundError):
        return plan_prompt(request, TextTokenizer.from_folder(folder), config)


def _synthesize(
    folder: Path, request: Request, sampling: dict[str, Any], options: SpeakOptions, progress: ProgressLine
) -> tuple[Speech, float]:
    """The speech, and the seconds that it took with the weights in memory."""
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.pipeline import Qwen3TTS, merge_sampling

    with refusing(CheckpointError):
        tts = Qwen3TTS.from_pretrained(folder, options.dtype, options.codec_dtype, progress=progress)
    if request.speaker and options.speaker is None and not options.quiet:
        typer.echo(f"voice: {request.speaker} (choose with --speaker; `voices` lists them)", err=True)
    generation, _ = merge_sampling(tts.config, sampling)
    start = time.monotonic()
    (speech,) = tts.synthesize([request], generation, options.seed, progress=progress)
    return speech, time.monotonic() - start


def _cut(speech: Speech, plan: PromptPlan, config: ModelConfig) -> str:
    """What to say of a speech that did not end by itself."""
    if speech.finish_reason == "stop":
        return ""
    if len(plan.text_ids) + len(speech.codes) >= config.talker.max_positions:
        return f"; cut at the model's context of {config.talker.max_positions} positions: split the text"
    return f"; cut at the limit of {speech.seconds:.2f} s: raise --max-seconds"
