"""What the commands share at the terminal: refusals, one-line messages, text input and the progress line."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

import typer

_BAD_INPUT = 2


def refuse(message: object) -> NoReturn:
    """Ends the command with one line on standard error and exit status 2."""
    typer.echo(f"error: {_one_line(message)}", err=True)
    raise typer.Exit(_BAD_INPUT)


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turns these exceptions into refusals; all others are errors of the program and keep their traceback."""
    try:
        yield
    except errors as error:
        problems = getattr(error, "problems", ())
        if problems:
            where = str(error).splitlines()[0].rpartition(":")[0]
            more = f" (the first of {len(problems)} problems; `info` lists them)" if len(problems) > 1 else ""
            refuse(f"{where}: {problems[0]}{more}")
        if isinstance(error, OSError) and error.filename is not None:
            refuse(f"{error.filename}: {error.strerror}")
        refuse(error)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextmanager
def plain_messages() -> Iterator[None]:
    """Warnings and log records of the libraries as one line each on standard error, and each once."""
    handler = _LineHandler(logging.WARNING)
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        line = _one_line(message)
        if line not in shown:
            typer.echo(f"warning: {line}", err=True)
        shown.add(line)

    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show
            yield
    finally:
        root.removeHandler(handler)


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.lower()}: {_one_line(record.getMessage())}", err=True)


def read_text(text: str | None, file: Path | None) -> str:
    """The text of the argument, of `file`, or of standard input (`text` is "-", or neither is given)."""
    if text is not None and file is not None:
        refuse("give the text as an argument or with --file, not both")
    if file is None and text not in (None, "-"):
        return _require_text(text, "the text")
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            refuse(f"cannot read {file}: {error.strerror}")
    elif text is None and sys.stdin.isatty():
        refuse("no text: give it as an argument, with --file, or on standard input")
    else:
        content = sys.stdin.buffer.read()
    where = "standard input" if file is None else str(file)
    try:
        return _require_text(content.decode("utf-8-sig").strip(), where)
    except UnicodeDecodeError as error:
        refuse(f"{where} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}")


def _require_text(text: str, where: str) -> str:
    if not text.strip():
        refuse(f"{where} is empty: there is nothing to speak")
    return text


class ProgressLine:
    """One line on standard error that says what is going on; nothing where that is no terminal.

    An instance is a `pipeline.Progress`, and knows the stage "save" beside those.

    Attributes:
        until_speech: seconds from the prompt to the first frames, most of which is compilation.
    """

    def __init__(self, frame_seconds: float, quiet: bool):
        # rich takes a tenth of a second to import, and --help has no use for it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._frame_seconds = frame_seconds
        self._prompted = self._first_frames = 0.0
        self._first_count = 0
        self.until_speech = 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows bytes loaded, frames spoken or utterances decoded."""
        if stage == "load":
            self._show(f"loading {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)
        elif stage == "prefill":
            if done == 0:
                self._prompted, self._first_frames = time.monotonic(), 0.0
            self._show("compiling")
        elif stage == "speak":
            self._show(self._spoken(done))
        elif stage == "decode":
            self._show("decoding")
        else:
            self._show("saving")

    def _spoken(self, frames: int) -> str:
        now = time.monotonic()
        text = f"speaking {frames * self._frame_seconds:.1f} s of audio"
        if not self._first_frames:
            self._first_frames, self._first_count = now, frames
            self.until_speech = now - self._prompted
            return text
        speed = (frames - self._first_count) * self._frame_seconds / max(now - self._first_frames, 1e-9)
        return f"{text}, {speed:.2f} x real time"

    def _show(self, text: str, done: int = 0, total: int | None = None) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)
