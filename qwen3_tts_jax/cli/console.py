"""What the commands share at the terminal: refusals and one-line messages."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from qwen3_tts_jax.files import check_place

_FAILED, _BAD_INPUT = 1, 2


def refuse(message: object) -> NoReturn:
    """Ends the command with one line on standard error and exit status 2."""
    typer.echo(f"error: {one_line(message)}", err=True)
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
    typer.echo(f"error: {one_line(message)}", err=True)
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


def one_line(message: object) -> str:
    """The message without line ends."""
    return " ".join(str(message).split())


@contextmanager
def plain_messages() -> Iterator[None]:
    """Shows each warning and log record of the libraries once, as one line on standard error."""
    shown: set[str] = set()

    def show(kind: str, message: object) -> None:
        line = f"{kind}: {one_line(message)}"
        if line not in shown:
            typer.echo(line, err=True)
        shown.add(line)

    def show_warning(text: str) -> None:
        if "compilation cache" in text:
            from qwen3_tts_jax.compile_cache import remove_damaged

            remove_damaged(text)
        show("warning", text)

    handler = _LineHandler(show)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: show_warning(str(message))
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


def check_output(path: Path, *endings: str) -> None:
    """Refuses, before long work, a name that does not end in one of `endings`, or where no file can be written."""
    if path.suffix.lower() not in endings:
        refuse(f"cannot write {path.name!r}: the name must end in {' or '.join(endings)}")
    with refusing(OSError):
        check_place(path)
