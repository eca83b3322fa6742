"""The text that a command is to speak: an argument, a file, or standard input, also while it is being written."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from qwen3_tts_jax.cli.console import refuse

_STANDARD_INPUT = "standard input"


def reads_standard_input(text: str | None, file: Path | None) -> bool:
    """Whether the text comes from standard input: `text` is "-", or neither is given."""
    if text is not None and file is not None:
        refuse("give the text as an argument or with --file, not both")
    if file is not None or text not in (None, "-"):
        return False
    if text is None and sys.stdin.isatty():
        refuse("no text: give it as an argument, with --file, or on standard input")
    return True


def read_text(text: str | None, file: Path | None) -> str:
    """The text of the argument, of `file`, or of standard input."""
    if reads_standard_input(text, file):
        return _decoded(sys.stdin.buffer.read(), _STANDARD_INPUT)
    return _require_text(text, "the text") if file is None else read_text_file(file)


def read_text_file(file: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        return _decoded(file.read_bytes(), str(file))
    except OSError as error:
        refuse(f"cannot read {file}: {error.strerror}")


def arriving_text() -> Iterator[str]:
    """The text of standard input, in pieces as they are written there; together they are what `read_text` gives."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    begun, space = False, ""
    # read1 returns what has arrived, where read and readline wait for more.
    for content in chain(iter(sys.stdin.buffer.read1, b""), [b""]):
        try:
            piece = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            refuse(f"{_STANDARD_INPUT} is not UTF-8 text: it has the byte 0x{error.object[error.start]:02x}")
        piece = space + piece if begun else piece.lstrip()
        # Space at the end of a piece is only spoken if something follows.
        spoken = piece.rstrip()
        space = piece[len(spoken) :]
        if spoken:
            begun = True
            yield spoken
    if not begun:
        _require_text("", _STANDARD_INPUT)


def _decoded(content: bytes, where: str) -> str:
    try:
        return _require_text(content.decode("utf-8-sig").strip(), where)
    except UnicodeDecodeError as error:
        refuse(f"{where} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}")


def _require_text(text: str, where: str) -> str:
    if not text.strip():
        refuse(f"{where} is empty: there is nothing to speak")
    return text
