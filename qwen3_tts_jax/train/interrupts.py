"""Signals that end training at a point where nothing is lost and nothing is being compiled."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a run at a point where it can be resumed.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, when: str):
        """`when` says at which point, as in "after step 7"."""
        super().__init__(f"stopped {when}")
        self.number = number


class Signals:
    """Holds the first SIGINT or SIGTERM until `stop`; the next has the system's default effect.

    Python's own handler would raise an exception wherever the main thread is, even where it waits for XLA, which
    compiles in threads of its own: the interpreter would free what they use, and crash. Entered while another one
    listens, it gives that one.

    Attributes:
        number: of the signal that came.
    """

    _listening: ClassVar[Signals | None] = None

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Only the main thread may set handlers. Where these signals are already handled or ignored, that stays so.
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
        # No message from here: the signal may come amid a write to the same stream, which is not reentrant.
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if Signals._listening is self:
            Signals._listening = None
            for number, handler in self._before.items():
                signal.signal(number, handler)
