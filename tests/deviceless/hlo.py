"""Reads the text of optimised HLO: what runs in its loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\w+\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction: `shape` and `rest` (arguments and attributes) as they are written."""

    name: str
    opcode: str
    shape: str
    rest: str
    is_root: bool

    @property
    def size(self) -> int:
        """Elements of the largest array that it makes."""
        return max(
            (math.prod(int(n) for n in match["sizes"].split(",") if n) for match in _ARRAY.finditer(self.shape)),
            default=0,
        )

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        branches = _BRANCHES.search(self.rest)
        names = [] if branches is None else [name.strip().lstrip("%") for name in branches[1].split(",")]
        return [*_CALLED.findall(self.rest), *names]


class Module:
    """A module's computations, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head["name"], [])
            elif match := _INSTRUCTION.match(line):
                current.append(
                    Instruction(match["name"], match["opcode"], match["shape"], match["rest"], bool(match["root"]))
                )

    def instructions(self) -> Iterator[Instruction]:
        """All of them."""
        for computation in self.computations.values():
            yield from computation

    def exchanges(self) -> list[tuple[str, str]]:
        """Opcode and shape of each exchange between devices."""
        return [
            (name, each.shape)
            for each in self.instructions()
            for name in _COLLECTIVES
            if each.opcode in (name, f"{name}-start")
        ]

    def loops(self) -> list[Instruction]:
        """The `while` instructions."""
        return [instruction for instruction in self.instructions() if instruction.opcode == "while"]

    def in_loops(self) -> list[Instruction]:
        """What the bodies of loops run, a fusion as one instruction."""
        todo = [loop.called[0] for loop in self.loops()]
        seen: set[str] = set()
        found: list[Instruction] = []
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for instruction in self.computations[name]:
                found.append(instruction)
                if instruction.opcode in ("while", "call", "conditional", "async-start"):
                    todo += instruction.called
        return found

    def writes_in_place(self, instruction: Instruction) -> bool:
        """Whether it is an update of a part of its argument, alone or at the end of a fusion."""
        if instruction.opcode in ("dynamic-update-slice", "scatter"):
            return True
        if instruction.opcode != "fusion":
            return False
        body = self.computations[instruction.called[0]]
        by_name = {each.name: each for each in body}
        todo = [each for each in body if each.is_root]
        while todo:
            each = todo.pop()
            if each.opcode in ("bitcast", "tuple", "convert", "fusion") and each.size:
                if each.opcode == "fusion":
                    if not self.writes_in_place(each):
                        return False
                    continue
                arguments = re.findall(r"%([\w.\-]+)", each.rest.split("metadata=")[0])
                todo += [by_name[name] for name in arguments if name in by_name]
            elif each.opcode not in ("dynamic-update-slice", "scatter") and each.size >= instruction.size:
                return False
        return True
