"""A stream of a batch, how far it has been spoken, and the thread that reads its text while that arrives."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from threading import Condition, Thread

import numpy as np

from qwen3_tts_jax.speech import FinishReason
from qwen3_tts_jax.streaming.text import SpokenText, close_source
from qwen3_tts_jax.streaming.utterances import Utterance


@dataclass(eq=False)
class Member:
    """A stream of a batch, and how far it has been spoken.

    Attributes:
        number: what the caller knows it by.
        seed: seeds its draws.
        reference: codes [R, Q] that the decoder hears first.
        frames_left: frames that the request may still make.
        utterances: those that are still to come, as far as they are known.
        text_ended: whether all of its text has arrived.
        error: what kept its text from being read.
        cancelled: whether its caller wants no more of it.
        place: index of the current utterance, −1 before the first.
        text: what follows that utterance's prompt.
        known_at_prompt: ids of that text that were known when the prompt was read.
        slots: cache slots that its prompt takes.
        frame: frames of it made so far, of at most `limit`.
        last: whether no other comes after it.
        speaking: whether it has not ended yet.
        chunks: how many were begun.
        cut: whether a limit has cut any of it.
        finished: whether its last chunk is certain.
    """

    number: int
    seed: int
    reference: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    frames_left: float = math.inf
    utterances: deque[Utterance] = field(default_factory=deque)
    text_ended: bool = False
    error: BaseException | None = None
    cancelled: bool = False
    place: int = -1
    text: SpokenText = field(default_factory=lambda: SpokenText(()))
    known_at_prompt: int = 0
    slots: int = 0
    frame: int = 0
    limit: int = 0
    last: bool = False
    speaking: bool = False
    chunks: int = 0
    cut: bool = False
    finished: bool = False

    @property
    def open(self) -> bool:
        """Whether more of its text is wanted."""
        return not (self.cancelled or self.finished)

    @property
    def failed(self) -> bool:
        """Whether all of the text that could be read was spoken, and the rest cannot be read."""
        ready = self.speaking and self.text.has(self.frame, 1)
        return self.error is not None and not (ready or self.over or self.utterances)

    @property
    def over(self) -> bool:
        """Whether all of it was spoken."""
        # In this order, since another thread may be at `read_text`.
        return not self.speaking and (self.last or (self.text_ended and not self.utterances and self.error is None))

    @property
    def reason(self) -> FinishReason:
        """Why it ended."""
        return "length" if self.cut else "stop"

    @property
    def has_new_text(self) -> bool:
        """Whether there is text for the coming frames that did not come with the prompt."""
        return self.text.has_new(self.frame, self.known_at_prompt)

    def begin(self, text: SpokenText, *, slots: int, limit: int, last: bool) -> None:
        """Goes on to the next utterance."""
        self.place += 1
        self.text, self.known_at_prompt, self.slots = text, len(text.ids), slots
        self.frame, self.limit, self.last, self.speaking = 0, limit, last, True

    def count(self, frames: int, *, ended: bool) -> None:
        """Accounts for frames that were made; `ended` says whether the model ended the utterance after them."""
        self.frame += frames
        self.frames_left -= frames
        if ended or self.frame == self.limit:
            self.speaking = False
            self.cut |= not ended
        if self.frames_left == 0:
            self.stop()

    def stop(self) -> None:
        """Leaves out what is still to come."""
        self.cut = self.last = True

    def while_open(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of its text, until it ends."""
        for piece in pieces:
            if not self.open:
                return
            yield piece


class Arrivals:
    """Counts what comes from other threads."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = Condition()

    def note(self) -> None:
        """Something has come."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Waits until more than `count` have come."""
        with self._changed:
            self._changed.wait_for(lambda: self.count > count)


def read_text(member: Member, utterances: Iterator[Utterance], pieces: Iterable[str], arrivals: Arrivals) -> None:
    """Starts a thread that gives a stream its utterances, which are made of `pieces`, as they arrive."""

    def work() -> None:
        try:
            for utterance in utterances:
                member.utterances.append(utterance)
                arrivals.note()
                while member.open and not utterance.text.complete:
                    utterance.text.wait()
                    arrivals.note()
        except BaseException as error:  # `StreamBatch.step` raises it.
            member.error = error
        finally:
            # First of all: closing may take long, or fail.
            member.text_ended = True
            arrivals.note()
            close_source(pieces)

    Thread(target=work, daemon=True, name=f"text of stream {member.number}").start()
