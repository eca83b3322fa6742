"""Text that a stream speaks while it is still arriving."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.prompt import PromptPlan, Request, plan_prompt
from qwen3_tts_jax.text.tokenizer import IncrementalText, TextTokenizer

# A piece of text that comes within this time was there already, and the next one may be, too.
_AT_HAND_SECONDS = 0.005


class SpokenText:
    """The text ids that go with the frames, some of which may still have to arrive.

    Attributes:
        ids: entry k goes with frame k, as far as they are known; `tts_pad` follows the last.
    """

    def __init__(self, ids: Iterable[int], arriving: Iterator[list[int]] | None = None, end: Sequence[int] = ()):
        """`arriving` yields more ids; once it is exhausted, `end` comes last."""
        self.ids = list(ids)
        self._arriving, self._end = arriving, end

    @property
    def complete(self) -> bool:
        """Whether all of it is known."""
        return self._arriving is None

    def has(self, frame: int, count: int) -> bool:
        """Whether `count` frames from `frame` on have their text, without waiting for any."""
        return self.complete or len(self.ids) >= frame + count

    def covered(self, frame: int, count: int) -> int:
        """How many of `count` frames from `frame` on have their text; waits only for the first frame's."""
        at_hand = True
        while not self.has(frame, count if at_hand else 1):
            asked = time.monotonic()
            self.wait()
            at_hand = time.monotonic() - asked < _AT_HAND_SECONDS
        return self.known(frame, count)

    def known(self, frame: int, count: int) -> int:
        """How many of `count` frames from `frame` on have their text, without waiting for any."""
        # In this order, since another thread may be at `wait`.
        return count if self.complete else max(0, min(count, len(self.ids) - frame))

    def wait(self) -> None:
        """Waits for more ids, or for the end; another thread may read meanwhile. There must be more to come."""
        more = next(self._arriving, None)
        self.ids += self._end if more is None else more
        if more is None:
            self._arriving = None

    def has_new(self, frame: int, in_prompt: int) -> bool:
        """Whether a window from `frame` on has ids that it lacked when the prompt was read with `in_prompt` ids."""
        return frame < len(self.ids) and (frame > 0 or len(self.ids) > in_prompt)

    def window(self, frame: int, length: int, pad: int) -> np.ndarray:
        """The ids of `length` frames from `frame` on, int32 [1, length]."""
        ids = self.ids[frame : frame + length]
        return np.array([ids + [pad] * (length - len(ids))], np.int32)


def close_source(pieces: Iterable[str] | None) -> None:
    """Closes a generator, which may hold a connection open; anything else, such as a file, is the caller's to close."""
    if isinstance(pieces, Generator):
        pieces.close()


def plan_arriving_text(
    request: Request, pieces: Iterable[str], tokenizer: TextTokenizer, config: ModelConfig
) -> tuple[PromptPlan, SpokenText]:
    """Reads the pieces that continue `request.text` until the prompt is certain.

    The request's text mode must be "as_it_comes". A voice cloned in context has room for text over its
    reference's frames, so its prompt needs more of the text than the first token.

    Raises:
        ValueError: as `prompt.plan_prompt`.
    """
    text = tokenizer.incremental()
    arriving = _arriving(text, chain([request.text], pieces))
    for _ in arriving:
        if text.text.strip():
            plan = plan_prompt(replace(request, text=text.text), tokenizer, config)
            trailing = plan.trailing_text_ids.tolist()
            if trailing:  # The last id ends the text, which has not ended yet; the prompt is final.
                return plan, SpokenText(trailing[:-1], arriving, trailing[-1:])
    plan = plan_prompt(replace(request, text=text.text), tokenizer, config)
    return plan, SpokenText(plan.trailing_text_ids.tolist())


def _arriving(text: IncrementalText, pieces: Iterable[str]) -> Iterator[list[int]]:
    for piece in pieces:
        yield text.add(piece)
    yield text.finish()
