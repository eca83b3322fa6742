"""Signals that end training: at a point where nothing is lost, and where nothing is being compiled."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a run where it can go on.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, when: str):
        """`when` it was: "after step 7"."""
        super().__init__(f"stopped {when}")
        self.number = number


class Signals:
    """Keeps the first SIGINT or SIGTERM until `stop`; the next does what the system does with it.

    Python's own handler would raise an exception wherever the main thread is, also where it waits for XLA, which
    compiles in threads of its own: the interpreter would free what they use, and crash. Within one that listens,
    entering another gives the first.

    Attributes:
        number: of the signal that came.
    """

    _listening: ClassVar[Signals | None] = None

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Only the main thread may have handlers; whoever handles or ignores these signals goes on doing so.
        if threading.current_thread() is not threading.main_thread():
            return self
        if Signals._listening is not None:
            return Signals._listening
        Signals._listening = self
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def stop(self, when: str) -> None:
        """Raises `Interrupted` if a signal came."""
        if self.number is not None:
            raise Interrupted(self.number, when)

    def _hear(self, number: int, _: FrameType | None) -> None:
        # Nothing is told here: it may come in the midst of a write to the same stream, which takes no other.
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if Signals._listening is self:
            Signals._listening = None
            for number, handler in self._before.items():
                signal.signal(number, handler)
