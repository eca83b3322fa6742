"""Sizes that programs are compiled for: few, so that compiled programs are reused."""

from __future__ import annotations

PROMPT_BUCKET = 32
"""The smallest bucket of prompts and, for most models, of what follows them."""
UTTERANCE_BUCKET = 256
"""The smallest bucket of what follows a prompt, for models that read phonemes."""


def bucket(size: int, smallest: int) -> int:
    """The next of `smallest` × (1, 2, 3, 4, 6, 8, 12, 16, …), and 0 for 0: few shapes.

    At most half is wasted, beyond `smallest`.
    """
    if size == 0:
        return 0
    step = smallest
    while size > 4 * step:
        step *= 2
    return min(n * step for n in (1, 2, 3, 4) if n * step >= size)
