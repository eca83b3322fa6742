"""A request → the utterances that a stream speaks one after the other, each as soon as its prompt is certain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.prompt import PromptPlan, Request, plan_prompt, validate
from qwen3_tts_jax.streaming.text import SpokenText, plan_arriving_text
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import spoken_as, spoken_as_it_arrives


class Utterance(NamedTuple):
    """An utterance, its prompt, what follows the prompt's text, and whether it is known to be the last."""

    request: Request
    plan: PromptPlan
    text: SpokenText
    last: bool


def planned(
    request: Request, pieces: Iterable[str] | None, tokenizer: TextTokenizer, config: ModelConfig
) -> Iterator[Utterance]:
    """The utterances of a request, whose text `pieces` continue where they are given.

    Raises:
        ValueError: at once, a request that cannot be spoken; where the text arrives in pieces, later, one that turns
            out to be empty or too long.
    """
    if pieces is None:
        utterances = _of_text(request, tokenizer, config)
        return chain([next(utterances)], utterances)
    if request.text_mode != "as_it_comes":
        raise ValueError(
            'a text in pieces is spoken as it comes: it needs a Request with text_mode="as_it_comes", or '
            "non_streaming_mode=False"
        )
    if request.split is not None:
        raise ValueError("a text in pieces is not split: give the whole text, or leave split out")
    validate(replace(request, text="…"), config)  # The text itself is checked once it is there.
    return _of_pieces(request, pieces, tokenizer, config)


def _of_text(request: Request, tokenizer: TextTokenizer, config: ModelConfig) -> Iterator[Utterance]:
    """The utterances of a whole text: the first of many waits for the phonemes of the second, not of all."""
    parts = spoken_as_it_arrives(request, (), tokenizer) if tokenizer.phonemes else iter(spoken_as(request, tokenizer))
    part = next(parts)
    for following in parts:
        yield _plan(part, tokenizer, config)
        part = following
    yield _plan(part, tokenizer, config, last=True)


def _of_pieces(
    request: Request, pieces: Iterable[str], tokenizer: TextTokenizer, config: ModelConfig
) -> Iterator[Utterance]:
    """The utterances of a text that is still arriving."""
    if tokenizer.phonemes:
        for part in spoken_as_it_arrives(request, pieces, tokenizer):
            yield _plan(part, tokenizer, config)
    else:
        yield Utterance(request, *plan_arriving_text(request, pieces, tokenizer, config), last=True)


def _plan(request: Request, tokenizer: TextTokenizer, config: ModelConfig, *, last: bool = False) -> Utterance:
    plan = plan_prompt(request, tokenizer, config)
    return Utterance(request, plan, SpokenText(plan.trailing_text_ids.tolist()), last)
