"""JSON objects that others wrote: keys that are missing or of the wrong type are refused by name."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_tts_jax.config import require


class Keys:
    """A JSON object; its methods return the values of keys, each of the type that the method is named for.

    A default stands in for a key that is missing or null.

    Attributes:
        values: the object.
        where: what it is called in messages, such as "config.json: talker_config".

    Raises:
        ConfigError: from every method, with the full path of the key that is missing or has another value.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        require(isinstance(values, Mapping), f"{where} must be a JSON object, got {_shown(values)}")
        self.values, self.where = values, where

    def __getitem__(self, key: str) -> Any:
        require(key in self.values, f"{self.where} has no {key!r}")
        return self.values[key]

    def _value(self, key: str, default: Any) -> Any:
        return self[key] if default is None or self.values.get(key) is not None else default

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; without a default the key must be there, here and below."""
        return _whole(self._value(key, default), f"{self.where}: {key}", least)

    def wholes(self, key: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """The whole numbers of a list, each at least 1."""
        values, where = self._value(key, default), f"{self.where}: {key}"
        require(isinstance(values, list | tuple), f"{where} must be a list of whole numbers, got {_shown(values)}")
        return tuple(_whole(value, where, 1) for value in values)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(
            number and abs(value) <= sys.float_info.max, f"{self.where}: {key} must be a number, got {_shown(value)}"
        )
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self[key]
        require(isinstance(value, str), f"{self.where}: {key} must be text, got {_shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        require(isinstance(value, bool), f"{self.where}: {key} must be true or false, got {_shown(value)}")
        return value

    def child(self, key: str, default: Mapping[str, Any] | None = None) -> Keys:
        """An object in it."""
        return Keys(self._value(key, default), f"{self.where}: {key}")

    def lower_case(self, key: str) -> Keys:
        """A child, empty where it is missing, with its names in lower case: requests name them in any case."""
        child = self.child(key, {})
        lowered = {name.lower(): value for name, value in child.values.items()}
        require(len(lowered) == len(child.values), f"{child.where} has names that differ in nothing but case")
        return Keys(lowered, child.where)

    def ids(self, key: str) -> dict[str, int]:
        """Token ids by name in lower case."""
        names = self.lower_case(key)
        return {name: names.whole(name, least=0) for name in names.values}

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses a value that is not `allowed`; a missing key stands for the first of these."""
        value = self.values.get(key, allowed[0])
        require(
            value in allowed,
            f"{self.where}: {key}={_shown(value)} is not supported (supported: {', '.join(map(repr, allowed))})",
        )


def _whole(value: Any, where: str, least: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole, f"{where} must be a whole number, got {_shown(value)}")
    require(value >= least, f"{where} must be at least {least}, got {value}")
    return value


def _shown(value: Any) -> str:
    # An object or a list may be long.
    return reprlib.repr(value)
