"""An artifact's ancestors as the lines of a tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moe_lab.errors import printable

if TYPE_CHECKING:
    from moe_lab.registry import LineageNode


def tree_lines(root: LineageNode) -> Iterator[str]:
    """One line for each artifact. Ancestors reached on several ways are drawn once: their paths can be without number.

    A list of what is left to draw instead of recursion, for a lineage may be longer than Python's stack.
    """
    drawn: set[str] = set()
    left = [(root, "", "")]
    while left:
        node, first, rest = left.pop()
        again = bool(node.parents) and node.digest in drawn
        drawn.add(node.digest)
        yield printable(f"{first}{_about(node)}{', as above' if again else ''}")
        last = len(node.parents) - 1
        above = [
            (parent, rest + ("└── " if index == last else "├── "), rest + ("    " if index == last else "│   "))
            for index, parent in enumerate(node.parents)
        ]
        left += [] if again else reversed(above)


def _about(node: LineageNode) -> str:
    relation = f"{node.relation}: " if node.relation else ""
    return f"{relation}{node.ref}  {node.digest[7:19]}  {node.problem or f'{node.kind}. {node.summary}'}"
