"""What the fields of a manifest may hold, one by one and together. No JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qwen3_tts_jax.prompt import MAX_SEED

_TEXT_MODES = ("all-at-once", "as-it-comes")

# Bytes: file systems allow 255, of which the ending takes some.
_LONGEST_ID = 200
_UNSAFE = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')
# Device names on Windows, whatever their ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def contradictions(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of a line taken together."""
    given = {name for name, value in row.items() if value is not None}
    alone = row.get("x_vector_only") not in (None, False)
    if {"reference", "voice"} <= given:
        yield "reference and voice are two voices: give one"
    elif "reference" in given:
        if alone and "reference_text" in given:
            yield "x_vector_only leaves out what the recording says and takes no reference_text"
        if not alone and "reference_text" not in given:
            yield "reference_text is missing: give what the reference says, or x_vector_only"
    elif "reference_text" in given:
        yield "reference_text is for a reference" + ("; the voice has its own" if "voice" in given else "")
    elif alone and "voice" not in given:
        yield "x_vector_only is for a reference or a voice"


def kind_of(value: Any) -> str:
    """What a value is in JSON."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


# What a field's value must be: each function returns the value or raises a ValueError that says what is wrong.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, not {kind_of(value)}")
    if not value.strip():
        raise ValueError("is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    return value


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    name = _text(value)
    shown = repr(name if len(name) <= 60 else f"{name[:60]}…")
    if _UNSAFE.search(name):
        raise ValueError(f'{shown} is no file name: it must be one without / \\ < > : " | ? * and control characters')
    if name.startswith((".", " ", "-")) or name.endswith((".", " ")):
        raise ValueError(f"{shown} is no safe file name: it starts with '.', '-' or a space, or ends in '.' or a space")
    if _DEVICES.fullmatch(name):
        raise ValueError(f"{shown} is no safe file name: on Windows it is a device")
    if len(name.encode()) > _LONGEST_ID:
        raise ValueError(f"{shown} is too long: {len(name.encode())} bytes, at most {_LONGEST_ID} are allowed")
    return name


def _text_mode(value: Any) -> str:
    if value not in _TEXT_MODES:
        raise ValueError(f"must be {' or '.join(_TEXT_MODES)}, got {value!r}")
    return value


def _seconds(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"must be a number above 0, got {value!r}")
    return number


def _seed(value: Any) -> int:
    number = _whole(value)
    if number is None or not 0 <= number <= MAX_SEED:
        raise ValueError(f"must be a whole number 0 … {MAX_SEED}, got {value!r}")
    return number


def _split(value: Any) -> int:
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError(f"must be a whole number of tokens, got {value!r}")
    return number


def _whole(value: Any) -> int | None:
    # Pandas writes 3.0 for the whole numbers of a column that has gaps.
    if isinstance(value, str) and re.fullmatch(r"\d{1,19}(?:\.0)?", value.strip(), re.ASCII):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _truth(value: Any) -> bool:
    number = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(number, bool):
        raise ValueError(f"must be true or false, got {value!r}")
    return number


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "id": _id,
    "text": _text,
    "language": _text,
    "speaker": _text,
    "instruct": _text,
    "text_mode": _text_mode,
    "max_seconds": _seconds,
    "split": _split,
    "seed": _seed,
    "reference": _text,
    "reference_text": _text,
    "x_vector_only": _truth,
    "voice": _text,
}
"""The fields that a line may have, and what checks each."""
