"""Reads XLA's dump of a GPU program's thunks: what it launches, in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_THUNK = re.compile(r"^(?P<indent> *)\d+: k(?P<kind>\w+)\s*(?:\[[^\]]*\])?\s*(?P<name>[\w.\-]*)")


@dataclass
class Thunk:
    """One entry; a loop has the children "condition" and "body", a command buffer what it has captured."""

    kind: str
    name: str = ""
    children: list[Thunk] = field(default_factory=list)

    def walk(self) -> Iterator[Thunk]:
        """It and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def executions(self, trips: int) -> int:
        """Kernels and copies that it runs, with `trips` for every loop below it."""
        if self.kind == "While":
            return trips * self.children[1].executions(trips)
        if not self.children:
            return 1
        return sum(child.executions(trips) for child in self.children)

    def launches(self, trips: int) -> int:
        """What the host launches for it: a command buffer is one."""
        if self.kind == "While":
            return trips * self.children[1].launches(trips)
        if self.kind == "CommandBuffer" or not self.children:
            return 1
        return sum(child.launches(trips) for child in self.children)


def parse(text: str) -> Thunk:
    """The tree of a file *.thunk_sequence*.txt.

    Raises:
        ValueError: a line that is no thunk.
    """
    root = Thunk("Sequence")
    stack = [(-1, root)]
    for line in text.splitlines():
        word = line.strip()
        if word in ("condition:", "body:"):
            # The indentation of these lines is not that of what they belong to.
            while stack[-1][1].kind != "While" or len(stack[-1][1].children) == 2:
                stack.pop()
            part = Thunk(word[:-1])
            stack[-1][1].children.append(part)
            stack.append((stack[-1][0] + 1, part))
        elif match := _THUNK.match(line):
            indent = len(match["indent"])
            while stack[-1][0] >= indent:
                stack.pop()
            thunk = Thunk(match["kind"], match["name"])
            stack[-1][1].children.append(thunk)
            stack.append((indent, thunk))
        elif word:
            raise ValueError(f"no thunk: {line!r}")
    return root
