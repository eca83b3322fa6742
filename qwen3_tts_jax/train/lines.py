"""Training data as it is stored: files of JSON lines, one utterance each, checked before any work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3_tts_jax.config import ModelConfig

_FIELDS = ("audio", "codes", "key", "text", "durations", "ref_audio", "ref_text", "language", "speaker", "instruct")
_CODES_ENDINGS = (".npy", ".npz")
# New speakers get rows among this many last ones of the codec embedding, skipping those of published speakers.
_NEW_SPEAKERS = 72
_SHOWN = 10


class DataError(ValueError):
    """Data that cannot be learnt from; the message names the file and the line."""


@dataclass(frozen=True)
class Line:
    """One utterance to learn.

    Attributes:
        where: "FILE line N", for messages.
        audio: a sound file that says `text`; None where there are codes instead.
        text: what is said.
        ref_audio: a recording of the voice to clone; None takes `audio` itself.
        ref_text: what `ref_audio` says; the voice is then cloned in context.
        language: a language of the model, or "auto".
        speaker: the name of the voice in a custom-voice model; None for the other models.
        instruct: how it is said, or who says it, in words.
        codes: a .npy or .npz file with codes [T, Q] of speech that says `text`.
        key: the name of the array in a .npz file.
        durations: frames that each id of the text takes, where an aligner gave them; see `alignment.guide_loss`.
    """

    where: str
    audio: Path | None
    text: str
    ref_audio: Path | None = None
    ref_text: str | None = None
    language: str = "auto"
    speaker: str | None = None
    instruct: str | None = None
    codes: Path | None = None
    key: str | None = None
    durations: tuple[int, ...] | None = None


def read_lines(path: str | Path, config: ModelConfig) -> list[Line]:
    """Reads and checks a file of JSON lines for fine-tuning a model with this config.

    A line is an object with `text` and `audio` and, as needed, `ref_audio`, `ref_text`, `language`, `speaker`
    and `instruct`. Models that hear no voice also take, instead of `audio`, `codes`: a .npy file, or a .npz file with
    the array's name as `key`. `durations`, a list, may say how many frames each id of the text takes. Paths are
    relative to the file.

    Raises:
        DataError: an unreadable or empty file, a line that is no such object, missing audio, a text
            without a letter, an unknown language, speakers for some lines only, or a field that the model
            does not read. The first ten are named.
    """
    path = Path(path)
    problems: list[str] = []
    lines = []
    for where, fields in json_lines(path, problems):
        try:
            lines.append(_read_line(fields, where, path.parent, config))
        except DataError as error:
            problems.append(str(error))
    problems += _speaker_problems(lines, config)
    raise_problems(problems)
    _require(lines, path)
    return lines


def check_lines(path: str | Path) -> None:
    """Checks what needs no config: that such a file has lines, and that they are JSON objects.

    Raises:
        DataError: as `read_lines`.
    """
    problems: list[str] = []
    lines = list(json_lines(Path(path), problems))
    raise_problems(problems)
    _require(lines, Path(path))


def _require(lines: Sequence[Any], path: Path) -> None:
    if not lines:
        raise DataError(f"{path} has no lines; give one JSON object per utterance, with audio and text")


def json_lines(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place, "FILE line N"; what is no object joins `problems`.

    Raises:
        DataError: a file that cannot be read.
    """
    try:
        # `splitlines` would also split at line ends that JSON allows within a string, such as U+2028.
        rows = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds no JSON lines: it is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            fields = json.loads(row)
        except json.JSONDecodeError as error:
            problems.append(f"{where} is not JSON: {error}")
            continue
        if isinstance(fields, dict):
            yield where, fields
        else:
            problems.append(f"{where} is not a JSON object")


def raise_problems(problems: Sequence[str]) -> None:
    """Raises a `DataError` with the first ten problems, if there are any."""
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataError("; ".join(problems[:_SHOWN]) + more)


def _read_line(fields: dict[str, Any], where: str, folder: Path, config: ModelConfig) -> Line:
    fields = {name: value for name, value in fields.items() if value is not None}
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise DataError(f"{where} has the unknown field {unknown[0]!r}; there are {', '.join(_FIELDS)}")
    for names in (("audio", "codes"), ("text",)):
        if not fields.keys() & set(names):
            raise DataError(f"{where} has no {names[0]}")
    durations = fields.pop("durations", None)
    if durations is not None:
        durations = _durations(durations, where)
    for name, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name} must be a text that is not empty, got {value!r}")
    for name in ("text", "ref_text"):
        if name in fields and not any(map(str.isalnum, fields[name])):
            raise DataError(f"{where}: {name} says nothing, it has no letter: {fields[name]!r}")
    _check_meaning(fields, where, config)
    paths = {name: folder / fields[name] for name in ("audio", "ref_audio", "codes") if name in fields}
    for name, file in paths.items():
        if not file.is_file():
            raise DataError(f"{where}: {name} {file} is not there")
    return Line(where, **{"audio": None} | fields | paths, durations=durations)


def _durations(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise DataError(f"{where}: durations must be a list of whole numbers of frames, got {str(value)[:60]}")
    return tuple(value)


def codes_problem(codes: Any, key: Any, where: str) -> str | None:
    """What is wrong with the name of a file of codes and the key of an array in it; None if they go together."""
    ending = Path(codes).suffix if isinstance(codes, str) else None
    if ending not in _CODES_ENDINGS:
        return f"{where}: codes must be a {' or '.join(_CODES_ENDINGS)} file, got {codes!r}"
    if (ending == ".npz") != (isinstance(key, str) and bool(key)):
        return f"{where}: a .npz file of codes needs a key, the name of the array in it; others have none"
    return None


def _check_meaning(fields: dict[str, Any], where: str, config: ModelConfig) -> None:
    languages = config.prompt.languages
    if fields.get("language", "auto").lower() not in ("auto", *languages):
        known = ", ".join(sorted(languages))
        raise DataError(f"{where}: unknown language {fields['language']!r}; there are auto, {known}")
    if "codes" in fields:
        if "audio" in fields:
            raise DataError(f"{where} has audio and codes: one of them says what is learnt")
        if config.model_type == "base":
            raise DataError(f"{where} has codes, but a base model hears voices: give audio")
        problem = codes_problem(fields["codes"], fields.get("key"), where)
        if problem is not None:
            raise DataError(problem)
    elif "key" in fields:
        raise DataError(f"{where} has a key but no codes")
    if "ref_text" in fields and "ref_audio" not in fields:
        raise DataError(f"{where} has a ref_text but no ref_audio that says it")
    if config.model_type != "base" and "ref_audio" in fields:
        raise DataError(f"{where} has a ref_audio, but a {config.model_type} model hears none; a base model does")
    if "speaker" in fields and "ref_text" in fields:
        raise DataError(f"{where} has a speaker and a ref_text: a voice is learnt, or cloned in context, not both")
    if "speaker" in fields and config.model_type == "voice_design":
        raise DataError(f"{where} has a speaker, but a voice_design model has none")
    becomes = "custom_voice" if "speaker" in fields else config.model_type
    if "instruct" in fields and (config.model_size == "0b6" or becomes == "base"):
        raise DataError(f"{where} has an instruct, which a {config.model_size} {becomes} model does not read")


def _speaker_problems(lines: Sequence[Line], config: ModelConfig) -> list[str]:
    missing = [line for line in lines if line.speaker is None]
    if not missing or (config.model_type != "custom_voice" and len(missing) == len(lines)):
        return []
    return [f"{line.where} has no speaker" for line in missing]


def add_speakers(
    config: ModelConfig, lines: Iterable[Line], *, known: bool = False
) -> tuple[ModelConfig, dict[str, int]]:
    """The config of the model that the lines turn `config` into, and its new speakers' rows by name.

    A base model becomes a custom-voice model where the lines have speakers. Names are kept in lower case.

    Args:
        config: of the model to start from.
        lines: of one run, from `read_lines`.
        known: allow speakers that the model already has, and train them further.

    Raises:
        DataError: a speaker's name that is taken and not `known`, or more speakers than there is room for.
    """
    names = {}
    for line in lines:
        if line.speaker is not None:
            names.setdefault(line.speaker.lower(), line)
    taken = [name for name in names if name in config.prompt.speakers]
    if taken and not known:
        raise DataError(
            f"{names[taken[0]].where}: the model has a speaker {taken[0]!r} already; choose another name, or train "
            "it further (--known-speakers)"
        )
    ids = config.prompt
    used = {getattr(ids, name) for name in vars(ids) if name.startswith("codec_")}
    used |= {*ids.languages.values(), *ids.speakers.values()}
    size = config.talker.codec_vocab_size
    free = [row for row in range(size - _NEW_SPEAKERS, size) if row not in used]
    new = [name for name in names if name not in taken]
    if len(new) > len(free):
        raise DataError(f"{len(new)} new speakers do not fit: the codec embedding has {len(free)} free rows for them")
    if not names:
        return config, {}
    rows = dict(zip(new, free, strict=False))
    speakers = {**ids.speakers, **rows}
    config = replace(config, model_type="custom_voice", speaker_encoder=None, prompt=replace(ids, speakers=speakers))
    return config, rows


def check_speakers(lines: Iterable[Line], config: ModelConfig) -> None:
    """Refuses, with a `DataError`, held-out lines whose speaker a model of this config neither learns nor knows."""
    speakers = config.prompt.speakers
    for line in lines:
        if line.speaker is None and config.model_type == "custom_voice":
            raise DataError(f"{line.where} has no speaker, and what is learnt has")
        if line.speaker is not None and line.speaker.lower() not in speakers:
            raise DataError(
                f"{line.where}: nothing is learnt of the speaker {line.speaker!r}; there are {', '.join(speakers)}"
            )
