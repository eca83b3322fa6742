"""The commands `say`, `design` and `clone`: check everything, load, speak, write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen3_tts_jax.arguments import merge_sampling
from qwen3_tts_jax.cli.console import plain_messages, refuse, refusing
from qwen3_tts_jax.cli.model import COMMANDS, Source, check_type, read_config, speaking_with_mini
from qwen3_tts_jax.cli.options import SpeechOptions
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.cli.sampling import sampling_arguments
from qwen3_tts_jax.cli.stream import check_standard_output, write_stream
from qwen3_tts_jax.cli.text_input import arriving_text, read_text, reads_standard_input
from qwen3_tts_jax.cli.voices import Recording, Reference, load_voice
from qwen3_tts_jax.config import ConfigError, GenerationConfig, ModelConfig
from qwen3_tts_jax.packaged import MINI
from qwen3_tts_jax.prompt import PromptPlan, Request, plan_prompt, validate
from qwen3_tts_jax.text.phonemes import UnspeakableError

if TYPE_CHECKING:
    from qwen3_tts_jax.pipeline import Qwen3TTS
    from qwen3_tts_jax.speech import FinishReason
    from qwen3_tts_jax.text.tokenizer import TextTokenizer
    from qwen3_tts_jax.voice_prompt import VoicePrompt

_DEFAULT_OUTPUT = Path("speech.wav")

# Stands in for a text that has not arrived yet, when the request is checked.
_TO_COME = "To come."


@dataclass(frozen=True, kw_only=True)
class SpeakOptions(SpeechOptions):
    """The options of `say`, `design` and `clone`, as they were given."""

    text: str | None
    file: Path | None
    output: Path | None
    stream: bool
    raw: bool
    speaker: str | None = None
    reference: str | None = None
    reference_text: str | None = None
    reference_text_file: Path | None = None
    voice: Path | None = None
    x_vector_only: bool = False
    language: str
    instruct: str | None = None
    text_mode: str
    split: int | None


def speak(model_type: str, options: SpeakOptions) -> None:
    """Speaks one utterance into a file, or to standard output, with a model of `model_type`.

    What can be refused is refused first: the options, then what the config shows, then the prompt; only then
    are the weights loaded. Only text that arrives while it is spoken is read later.
    """
    from qwen3_tts_jax import audio

    unasked = options.model is None
    options = replace(options, model=MINI if unasked else options.model)
    output = _check_options(model_type, options)
    sampling = sampling_arguments(options)
    with plain_messages():
        source = Source(options.model, options.revision, options.cache_dir, options.offline, options.verify)
        # Checked before a download, too.
        at_hand = source.config_at_hand()
        if at_hand is not None:
            check_type(options.model, at_hand, model_type, COMMANDS[model_type])
        voice = _voice(options) if model_type == "base" else None
        arriving = _arrives(options)
        text = _TO_COME if arriving else read_text(options.text, options.file)
        if at_hand is not None:
            _request(text, voice, options, at_hand)
        folder = source.folder(options.quiet)
        config = read_config(folder)
        check_type(options.model, config, model_type, COMMANDS[model_type])
        request = _request(text, voice, options, config)
        tokenizer, plan = _read(request, folder, config)
        interrupts = nullcontext() if options.stream else _interrupts_explained(output)
        with interrupts, ProgressLine(1 / config.codec.frame_rate, options.quiet) as progress:
            tts, generation = _load(folder, sampling, options, progress)
            unchosen = request.speaker if options.speaker is None else None
            if unasked:
                speaking_with_mini(unchosen, options.quiet)
            elif unchosen and not options.quiet:
                typer.echo(f"voice: {unchosen} (choose with --speaker; `voices` lists them)", err=True)
            if isinstance(voice, Recording):
                progress("listen", 0, 1)
                request = replace(request, voice=voice.voice(tts.params, tts.config))
            start = time.monotonic()
            if options.stream:
                pieces = None
                if arriving:
                    request, pieces = replace(request, text=""), arriving_text()
                chunks = tts.stream(request, generation, options.seed, pieces=pieces)
                with refusing(UnspeakableError):
                    frames, reason = write_stream(chunks, config.codec.sample_rate, raw=options.raw, progress=progress)
            else:
                (speech,) = tts.synthesize([request], generation, options.seed, progress=progress)
                frames, reason = len(speech.codes), speech.finish_reason
            taken = time.monotonic() - start
        if not options.stream:
            with refusing(OSError):
                audio.write(output, speech.samples, speech.sample_rate)
    if reason is None or (options.stream and options.quiet):
        return
    where, first = ("", "sound") if options.stream else (f"{output}: ", "frames")
    seconds = frames / config.codec.frame_rate
    typer.echo(
        f"{where}{seconds:.2f} s of audio in {taken:.1f} s ({seconds / taken:.2f} x real time; "
        f"{progress.until_speech:.1f} s until the first {first})"
        + _cut(reason, frames, request, tokenizer, plan, config),
        err=options.stream,
    )


@contextmanager
def _interrupts_explained(output: Path) -> Iterator[None]:
    """If a whole text is interrupted, says how to get its first sound sooner."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: {output} is not written; for a long text, --stream gives the sound as it is made, and "
            "`batch` keeps each text that is finished",
            err=True,
        )
        raise


def _check_options(model_type: str, options: SpeakOptions) -> Path:
    """Refuses impossible options; returns the file to write, which --stream has no use for."""
    from qwen3_tts_jax import audio

    output = options.output or _DEFAULT_OUTPUT
    if not options.stream:
        if options.raw:
            refuse("--raw is for --stream; the format of a file is that of its name")
        if str(output) == "-":
            refuse("--output takes the name of a file; sound for standard output is made with --stream")
        with refusing(ValueError, OSError):
            audio.check_writable(output)
    elif options.output is not None:
        refuse("--stream writes to standard output and takes no --output")
    else:
        check_standard_output()
    if options.split is not None and _arrives(options):
        refuse("--split needs the whole text, not one that is still being written: leave one of them out")
    if options.speaker == "":
        refuse("--speaker is empty; the command `voices` lists them")
    if model_type == "voice_design" and not (options.instruct or "").strip():
        refuse("--instruct is missing: say in words who speaks, and how")
    return output


def _arrives(options: SpeakOptions) -> bool:
    """Whether the text is spoken while it is still being written to standard input."""
    in_time = options.stream and options.text_mode == "as-it-comes"
    return in_time and reads_standard_input(options.text, options.file)


def _voice(options: SpeakOptions) -> Recording | VoicePrompt:
    """The voice to clone; refuses one that is missing, given twice or unusable."""
    if (options.reference is None) == (options.voice is None):
        given = "no voice" if options.voice is None else "two voices"
        refuse(f"{given} to clone: give a recording with --reference or a file of `voice save` with --voice")
    if options.reference is not None:
        return Reference(
            recording=options.reference,
            text=options.reference_text,
            text_file=options.reference_text_file,
            x_vector_only=options.x_vector_only,
        ).read()
    if options.reference_text is not None or options.reference_text_file is not None:
        refuse("--voice takes no --reference-text: the file has its own")
    voice = load_voice(options.voice)
    return replace(voice, codes=None, text=None) if options.x_vector_only else voice


def _request(text: str, voice: Recording | VoicePrompt | None, options: SpeakOptions, config: ModelConfig) -> Request:
    """The request, with the first voice that the config lists if none is chosen; refuses what the model cannot speak.

    A stand-in of the same size takes the place of a recording's voice.
    """
    speaker = options.speaker
    if speaker is None and config.prompt.speakers:
        speaker = next(iter(config.prompt.speakers))
    max_frames = None
    if options.max_seconds is not None:
        max_frames = config.codec.frames_in(options.max_seconds)
    mode = options.text_mode.replace("-", "_")
    prompt = voice.stand_in(config) if isinstance(voice, Recording) else voice
    request = Request(text, options.language, speaker, options.instruct, mode, max_frames, prompt, options.split)
    with refusing(ValueError):
        validate(request, config)
    return request


def _read(request: Request, folder: Path, config: ModelConfig) -> tuple[TextTokenizer, PromptPlan]:
    """The model's tokenizer, and the longest prompt of the request's utterances; refuses what cannot be spoken."""
    from qwen3_tts_jax.text.tokenizer import TextTokenizer
    from qwen3_tts_jax.utterances import spoken_as

    with refusing(ValueError, FileNotFoundError):
        tokenizer = TextTokenizer.from_folder(folder)
        plans = [plan_prompt(part, tokenizer, config) for part in spoken_as(request, tokenizer)]
    return tokenizer, max(plans, key=lambda plan: len(plan.text_ids))


def _load(
    folder: Path, sampling: dict[str, Any], options: SpeakOptions, progress: ProgressLine
) -> tuple[Qwen3TTS, GenerationConfig]:
    from qwen3_tts_jax.compile_cache import keep_compiled
    from qwen3_tts_jax.convert import CheckpointError
    from qwen3_tts_jax.pipeline import Qwen3TTS

    keep_compiled()
    with refusing(CheckpointError, ConfigError):
        tts = Qwen3TTS.from_pretrained(folder, **options.computing, progress=progress)
    return tts, merge_sampling(tts.config, sampling)[0]


def _cut(
    reason: FinishReason,
    frames: int,
    request: Request,
    tokenizer: TextTokenizer,
    plan: PromptPlan,
    config: ModelConfig,
) -> str:
    """What to say about a speech that did not end by itself."""
    if reason == "stop":
        return ""
    if (tokenizer.phonemes or request.split) and (request.max_frames is None or frames < request.max_frames):
        return f"; a {'sentence' if tokenizer.phonemes else 'part'} that did not end was cut: try another --seed"
    if len(plan.text_ids) + frames >= config.talker.max_positions:
        return f"; cut at the model's context of {config.talker.max_positions} positions: give --split 100"
    return f"; cut at the limit of {frames / config.codec.frame_rate:.2f} s: raise --max-seconds"
