"""The options that say how codes are drawn, and for how long."""

from __future__ import annotations

import math
from typing import Any

from qwen3_tts_jax.arguments import part_dtypes
from qwen3_tts_jax.cli.console import refuse, refusing
from qwen3_tts_jax.cli.options import SpeechOptions
from qwen3_tts_jax.config import ConfigError, SamplingConfig
from qwen3_tts_jax.prompt import check_seed

GREEDY = {"do_sample": False, "subtalker_dosample": False}
"""What --greedy means to `arguments.merge_sampling`."""


def check_max_seconds(seconds: float | None) -> None:
    """Refuses a limit that is no time."""
    if seconds is not None and not 0 < seconds < math.inf:
        refuse(f"--max-seconds must be a number above 0, got {seconds:g}")


def sampling_arguments(options: SpeechOptions) -> dict[str, Any]:
    """The sampling arguments of `arguments.merge_sampling`; refuses impossible ones, and impossible limits, seeds and
    dtypes.
    """
    check_max_seconds(options.max_seconds)
    with refusing(ValueError):
        check_seed(options.seed, "--seed")
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    unused = [f"--{name.replace('_', '-')}" for name in given if name != "repetition_penalty"]
    if options.greedy and unused:
        refuse(f"--greedy draws nothing and takes no {' or '.join(unused)}")
    if "temperature" in given and not options.temperature > 0:
        refuse(f"--temperature must be above 0 (for the most likely codes use --greedy), got {options.temperature:g}")
    with refusing(ConfigError):
        SamplingConfig(**given)
        part_dtypes(options.dtype, "auto")
    return given | (GREEDY if options.greedy else {})
