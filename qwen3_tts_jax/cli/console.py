"""What the commands share at the terminal: refusals, one-line messages, text input and the progress line."""

from __future__ import annotations

import codecs
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import typer

from qwen3_tts_jax.files import check_place

_FAILED, _BAD_INPUT = 1, 2
_STANDARD_INPUT = "standard input"
# Seconds; the first is late so that a quick command leaves no line in a log.
_FIRST_LOG, _LOG_EVERY = 10.0, 60.0


def refuse(message: object) -> NoReturn:
    """Ends the command with one line on standard error and exit status 2."""
    typer.echo(f"error: {_one_line(message)}", err=True)
    raise typer.Exit(_BAD_INPUT)


def cannot_write_standard_output(error: OSError) -> int:
    """Reports the error in one line; returns the exit status."""
    drop_standard_output()
    typer.echo(f"error: cannot write to standard output: {error.strerror}", err=True)
    return _BAD_INPUT


def drop_standard_output() -> None:
    """Discards what is left for standard output, which would otherwise fail again when the interpreter exits."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def fail(message: object) -> NoReturn:
    """Ends the command with one line on standard error and exit status 1: what was asked for could not be done."""
    typer.echo(f"error: {_one_line(message)}", err=True)
    raise typer.Exit(_FAILED)


@contextmanager
def refusing(*errors: type[Exception], end: Callable[[object], NoReturn] = refuse) -> Iterator[None]:
    """Turns these exceptions into refusals, or passes them to `end`; all others are bugs and keep their traceback."""
    try:
        yield
    except errors as error:
        problems = getattr(error, "problems", ())
        if problems:
            where = str(error).splitlines()[0].rpartition(":")[0]
            more = f" (the first of {len(problems)} problems; `info` lists them)" if len(problems) > 1 else ""
            end(f"{where}: {problems[0]}{more}")
        if isinstance(error, OSError) and error.filename is not None:
            end(f"{error.filename}: {error.strerror}")
        end(error)


def refuse_idle(context: typer.Context, idle: object, why: str, *options: str) -> None:
    """If `idle`, refuses those of `options` (names in Python) that the command line gives: they do nothing `why`."""
    for name in options:
        source = context.get_parameter_source(name)
        if idle and source is not None and source.name == "COMMANDLINE":
            refuse(f"--{name.replace('_', '-')} does nothing {why}: leave it out")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextmanager
def plain_messages() -> Iterator[None]:
    """Shows each warning and log record of the libraries once, as one line on standard error."""
    shown: set[str] = set()

    def show(kind: str, message: object) -> None:
        line = f"{kind}: {_one_line(message)}"
        if line not in shown:
            typer.echo(line, err=True)
        shown.add(line)

    handler = _LineHandler(show)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: show("warning", message)
            yield
    finally:
        root.removeHandler(handler)


class _LineHandler(logging.Handler):
    def __init__(self, show: Callable[[str, object], None]):
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.levelname.lower(), record.getMessage())


def quiet_orbax() -> None:
    """Keeps Orbax from warning that a checkpoint of one process has no parts from others to merge."""
    logging.getLogger("absl").setLevel(logging.ERROR)


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


def check_output(path: Path, *endings: str) -> None:
    """Refuses, before long work, a name that does not end in one of `endings`, or where no file can be written."""
    if path.suffix.lower() not in endings:
        refuse(f"cannot write {path.name!r}: the name must end in {' or '.join(endings)}")
    with refusing(OSError):
        check_place(path)


class StatusLine:
    """One line on standard error that says what is going on; where that is not a terminal, nothing or a few lines.

    If a Ctrl-C was lost, the next thing shown raises its KeyboardInterrupt.
    """

    def __init__(
        self,
        quiet: bool,
        *,
        elapsed: bool = False,
        logged: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`elapsed` also shows the time since the start; `logged` prints a line where there is no terminal, after 10 s
        and then every minute.
        """
        # rich takes a tenth of a second to import, and --help has no use for it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *[TimeElapsedColumn()] * elapsed]
        terminal = sys.stderr.isatty()
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not terminal)
        self._clock = clock
        self._next_log = clock() + _FIRST_LOG if logged and not quiet and not terminal else math.inf
        self._task = self._progress.add_task("starting", total=None)
        self._interrupted = self._notes_interrupts = False

    def __enter__(self) -> Self:
        self._note_interrupts()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._notes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note_interrupts(self) -> None:
        # JAX runs Python code during garbage collection, and what is raised there, even by a Ctrl-C, is lost.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
            self._notes_interrupts = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._progress.stop()
        typer.echo(_one_line(text), err=True)
        self._progress.start()

    def _show(self, text: str, done: int = 0, total: int | None = None) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        # `update` neither clears a total nor, once it was reached, keeps the clock running.
        (task,) = self._progress.tasks
        task.total, task.finished_time = total, None
        self._progress.update(self._task, description=text, completed=done)
        if self._clock() >= self._next_log:
            typer.echo(text, err=True)
            self._next_log = self._clock() + _LOG_EVERY

    def _show_loading(self, done: int, total: int) -> None:
        self._show(f"loading {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)


class CheckLine(StatusLine):
    """How much of a model's files has been compared with the published ones; a `progress` of `convert.resolve`."""

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic):
        super().__init__(quiet, logged=True, clock=clock)

    def __enter__(self) -> Self:
        self._note_interrupts()
        # A download comes first, and shows its own progress.
        return self

    def __call__(self, done: int, total: int) -> None:
        self._progress.start()
        self._show(f"checking {done / 1e9:.2f} of {total / 1e9:.2f} GB", done, total)


class ProgressLine(StatusLine):
    """The progress of one speech.

    An instance is a `speech.Progress` that knows more stages: a recording is heard ("listen"), recordings
    are encoded ("encode"), a file is saved ("save").

    Attributes:
        until_speech: seconds from the prompt to the first frames, most of which is compilation.
    """

    def __init__(self, frame_seconds: float, quiet: bool, clock: Callable[[], float] = time.monotonic):
        super().__init__(quiet, elapsed=True, logged=True, clock=clock)
        self._frame_seconds = frame_seconds
        self._prompted = self._first_frames = 0.0
        self._part, self._parts = 0, 1
        self._first_count = 0
        self.until_speech = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows bytes loaded, frames spoken or utterances decoded."""
        if stage == "load":
            self._show_loading(done, total)
        elif stage == "prefill":
            if done == 0:
                self._prompted, self._first_frames = self._clock(), 0.0
                self._show("compiling")
            self._part, self._parts = done, total
        elif stage == "speak":
            self._show_spoken(done)
        else:
            self._show({"listen": "listening", "encode": "encoding", "decode": "decoding", "save": "saving"}[stage])

    def _show_spoken(self, frames: int) -> None:
        now = self._clock()
        text = f"speaking {frames * self._frame_seconds:.1f} s of audio"
        if not self._first_frames:
            self._first_frames, self._first_count = now, frames
            self.until_speech = now - self._prompted
        else:
            speed = (frames - self._first_count) * self._frame_seconds / max(now - self._first_frames, 1e-9)
            text += f", {speed:.2f} x real time"
        if self._parts > 1:
            text += f", part {self._part} of {self._parts}"
        self._show(text)
