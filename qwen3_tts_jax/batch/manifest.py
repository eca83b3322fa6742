"""Manifests: the list of what a batch job speaks, as JSON lines, CSV or plain text. No JAX.

A manifest is UTF-8. In CSV (.csv) the first line names the columns, and an empty cell is a field that is not given; in
plain text (.txt) each line is a text; in JSON lines (any other name, or "-" for standard input) each line is an object.
The fields:

    id              name of the files that are written; the number of the line by default
    text            what is said; the only field that must be given
    language, speaker, instruct
    text_mode       "all-at-once" or "as-it-comes"
    max_seconds     the longest speech to make
    split           approximate maximum length of an utterance, in text tokens; by default the text is one utterance
    seed            in place of the job's
    reference       recording to clone: a file or a URL; with reference_text (what it says) or x_vector_only
    voice           file of a voice to clone, in place of a recording

File names are relative to the manifest's folder or, from standard input, to the current one.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_tts_jax.audio import is_file_name
from qwen3_tts_jax.batch.fields import FIELDS, contradictions, kind_of


@dataclass(frozen=True)
class Item:
    """One line of a manifest. The module describes the fields; one that is not given is None."""

    line: int
    id: str
    text: str
    language: str | None = None
    speaker: str | None = None
    instruct: str | None = None
    text_mode: str | None = None
    max_seconds: float | None = None
    split: int | None = None
    seed: int | None = None
    reference: str | None = None
    reference_text: str | None = None
    x_vector_only: bool = False
    voice: str | None = None


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be spoken, and why.

    Attributes:
        line: its number, from 1.
        id: None where it is not known.
        reason: all that is wrong with it, in one line.
    """

    line: int
    id: str | None
    reason: str

    def __str__(self) -> str:
        name = "" if self.id in (None, str(self.line)) else f" ({self.id})"
        return f"line {self.line}{name}: {self.reason}"


class ManifestError(ValueError):
    """A file that is no manifest at all."""


def read(path: Path) -> tuple[list[Item], list[BadLine]]:
    """Reads a manifest and checks all that can be checked without a model.

    Returns:
        The good lines and the bad ones, each in the order of the file.

    Raises:
        ManifestError: the file is empty, not text, or a CSV file without usable columns or with an open quote.
        OSError: it cannot be read.
    """
    given = str(path) == "-"
    name, content = ("standard input", sys.stdin.buffer.read()) if given else (path, path.read_bytes())
    # Sound, a picture, an archive or UTF-16: every single line of it would be wrong.
    if b"\0" in content:
        raise ManifestError(f"{name} is no manifest: it is not UTF-8 text")
    forms = {".csv": _csv_rows, ".txt": _text_rows}
    rows = forms.get(path.suffix.lower(), _json_rows)(path, content)
    items: list[Item] = []
    bad: list[BadLine] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        item = row if isinstance(row, BadLine) else _item(line, row, path.parent)
        if isinstance(item, Item):
            # File systems may take two names for one if they differ only in case or in how letters are composed.
            file = unicodedata.normalize("NFC", item.id).casefold()
            first = lines.setdefault(file, line)
            if first != line:
                item = BadLine(line, item.id, f"the id {item.id!r} is a duplicate of that of line {first}")
        (items if isinstance(item, Item) else bad).append(item)
    if not items and not bad:
        raise ManifestError(f"{name} is empty: it has no line to speak")
    return items, bad


def _text_rows(_: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """The lines that are not empty, with their numbers."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            row = {"text": line.decode("utf-8").strip()}
        except UnicodeDecodeError as error:
            row = BadLine(number, None, f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}")
        if isinstance(row, BadLine) or row["text"]:
            yield number, row


def _json_rows(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    for number, line in _text_rows(path, content):
        if isinstance(line, BadLine):
            yield number, line
            continue
        try:
            row = json.loads(line["text"], object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            row = BadLine(number, None, f"is not JSON: {error.msg} at character {error.colno}")
        except (ValueError, RecursionError) as error:
            row = BadLine(number, None, f"is not usable JSON: {error}")
        if not isinstance(row, dict | BadLine):
            row = BadLine(number, None, f"is not a JSON object but {kind_of(row)}")
        yield number, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the field {twice[0]!r} is given twice")
    return dict(pairs)


def _csv_rows(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}"
        ) from None
    # Numbers are of lines in the file, which the reader counts: a row whose text has line ends takes several.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    names: list[str] | None = None
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = _columns(path, cells)
            elif len(cells) > len(names):
                yield number, BadLine(number, None, f"has {len(cells)} cells for {len(names)} columns; quote commas")
            else:
                yield number, {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
    except csv.Error as error:
        # Where a quote is not closed, nobody knows what the lines after it are.
        raise ManifestError(f"{path} is not CSV from line {start} on: {error}") from None


def _columns(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise ManifestError(
            f"{path} has the unknown column{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}: its first line "
            f"must name the columns, of which there are {', '.join(FIELDS)}"
        )
    if len(set(names)) < len(names):
        raise ManifestError(f"{path} names a column twice: {', '.join(names)}")
    if "text" not in names:
        raise ManifestError(f"{path} has no column 'text'")
    return names


def _item(line: int, row: Mapping[str, Any], folder: Path) -> Item | BadLine:
    problems: list[str] = []
    unknown = [name for name in row if name not in FIELDS]
    if unknown:
        names = ", ".join(map(repr, unknown))
        problems.append(f"unknown field{'s' * (len(unknown) > 1)} {names}; there are {', '.join(FIELDS)}")
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in FIELDS and value is not None:
            try:
                values[name] = FIELDS[name](value)
            except ValueError as error:
                problems.append(f"{name} {error}")
    if row.get("text") is None:
        problems.append("the text is missing")
    if row.get("id") is None:
        values["id"] = str(line)
    for name in ("reference", "voice"):
        if name in values and is_file_name(values[name]):
            try:
                values[name] = str(folder / Path(values[name]).expanduser())
            except RuntimeError:
                problems.append(f"{name} is of a user who is not known here: {values[name]!r}")
    problems += contradictions({name: values.get(name, value) for name, value in row.items()})
    if problems:
        return BadLine(line, values.get("id"), "; ".join(problems))
    return Item(line=line, **values)
