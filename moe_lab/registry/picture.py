"""A lineage as a drawing: one box for each artifact, ancestors above, arrows to what was made from them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moe_lab.registry.lineage import LineageNode

_BOX_WIDTH, _PADDING = 264, 11
_BEND_WIDTH = 28
_GAP, _LAYER_GAP, _MARGIN = 32, 76, 24
_SWEEPS = 6
_KINDS = ("module", "trunk", "router")
# How a text of a box is written: letters that fit on a line, the most lines, and a line's height.
_NAME, _KIND, _DIGEST, _ABOUT = (28, 6, 17), (40, 2, 15), (36, 2, 14), (36, 12, 15)
_STYLE = {
    ".ground": "fill: #ffffff",
    ".box": "fill: #ffffff; stroke: #5f6368; stroke-width: 1.2",
    ".module": "fill: #e8f0fe",
    ".trunk": "fill: #f1efe9",
    ".router": "fill: #e6f4ea",
    ".arrow": "fill: none; stroke: #5f6368; stroke-width: 1.4",
    ".head": "fill: #5f6368",
    "text": "font-family: system-ui, 'DejaVu Sans', sans-serif; font-size: 11px; fill: #202124",
    ".name": "font-size: 13px; font-weight: 600",
    ".kind, .digest": "fill: #5f6368",
    ".digest": "font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 10px",
    ".relation": "text-anchor: middle; stroke: #ffffff; stroke-width: 4px; paint-order: stroke",
}
# Programs that do not know the question draw it light.
_DARK = {
    ".ground": "fill: #121519",
    ".box": "fill: #1a1e24; stroke: #9aa4b0",
    ".module": "fill: #1c2a42",
    ".trunk": "fill: #2d2a22",
    ".router": "fill: #1a3023",
    ".arrow": "stroke: #9aa4b0",
    ".head": "fill: #9aa4b0",
    "text": "fill: #e7eaee",
    ".kind, .digest": "fill: #a4adb8",
    ".relation": "stroke: #121519",
}


@dataclass
class _Spot:
    """A box, or with `node` None a bend of a line that passes through a layer; `x` is its middle."""

    layer: int
    node: LineageNode | None = None
    lines: list[_TextLine] = field(default_factory=list)
    x: float = 0.0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)

    @property
    def width(self) -> float:
        return _BEND_WIDTH if self.node is None else _BOX_WIDTH

    @property
    def height(self) -> float:
        return sum(line.height for line in self.lines) + 2 * _PADDING


@dataclass(frozen=True)
class _TextLine:
    """A line of text of a box, with the height that it takes."""

    style: str
    text: str
    height: int


@dataclass(frozen=True)
class _Rows:
    """Where each layer lies, the root's first: all boxes of a layer are as high as its highest."""

    tops: tuple[float, ...]
    heights: tuple[float, ...]

    @classmethod
    def of(cls, layers: list[list[_Spot]]) -> _Rows:
        heights = [max(spot.height for spot in layer) for layer in layers]
        tops, top = [], float(_MARGIN)
        for height in reversed(heights):
            tops.append(top)
            top += height + _LAYER_GAP
        return cls(tuple(reversed(tops)), tuple(heights))

    @property
    def end(self) -> float:
        return self.tops[0] + self.heights[0] + _MARGIN

    def top(self, spot: _Spot) -> float:
        return self.tops[spot.layer]

    def bottom(self, spot: _Spot) -> float:
        return self.tops[spot.layer] + self.heights[spot.layer]


@dataclass(frozen=True)
class _Line:
    """From a parent through bends, downwards, to its child."""

    spots: tuple[_Spot, ...]
    relation: str


def lineage_svg(root: LineageNode) -> str:
    """The tree of `Registry.lineage` as a self-contained SVG; an ancestor of several artifacts is drawn once."""
    nodes, edges = _graph(root)
    depths = _depths(root.digest, edges)
    boxes = {digest: _Spot(depths[digest], node, _lines_of(node)) for digest, node in nodes.items()}
    layers: list[list[_Spot]] = [[] for _ in range(max(depths.values()) + 1)]
    for box in boxes.values():
        layers[box.layer].append(box)
    lines = [_line(boxes[parent], boxes[child], relation, layers) for parent, child, relation in edges]
    width, rows = _place(layers), _Rows.of(layers)
    drawn = [*_draw_lines(lines, rows), *(_draw_box(box, rows) for box in boxes.values())]
    return _document(f"Lineage of {root.ref}", width, rows.end, drawn)


def _graph(root: LineageNode) -> tuple[dict[str, LineageNode], list[tuple[str, str, str]]]:
    """Nodes by digest, and edges (parent, child, relation) without repetitions."""
    nodes, pending = {root.digest: root}, [root]
    edges: dict[tuple[str, str, str], None] = {}
    while pending:
        child = pending.pop()
        for parent in child.parents:
            edges[parent.digest, child.digest, parent.relation] = None
            if parent.digest not in nodes:
                nodes[parent.digest] = parent
                pending.append(parent)
    return nodes, list(edges)


def _depths(root: str, edges: Iterable[tuple[str, str, str]]) -> dict[str, int]:
    """The longest way from each artifact to the root, so that every arrow points down."""
    parents: dict[str, list[str]] = {}
    waiting: dict[str, int] = {}
    for parent, child, _ in edges:
        parents.setdefault(child, []).append(parent)
        waiting[parent] = waiting.get(parent, 0) + 1
    depths, ready = {root: 0}, [root]
    while ready:
        child = ready.pop()
        for parent in parents.get(child, ()):
            depths[parent] = max(depths.get(parent, 0), depths[child] + 1)
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return depths


def _line(parent: _Spot, child: _Spot, relation: str, layers: list[list[_Spot]]) -> _Line:
    """Adds a bend in each layer between, so that no line runs through a box."""
    bends = [_Spot(layer) for layer in range(parent.layer - 1, child.layer, -1)]
    spots = (parent, *bends, child)
    for bend in bends:
        layers[bend.layer].append(bend)
    for upper, lower in itertools.pairwise(spots):
        upper.below.append(lower)
        lower.above.append(upper)
    return _Line(spots, relation)


def _place(layers: list[list[_Spot]]) -> float:
    """Orders each layer by the middle of its neighbours, which leaves few crossings; returns the width."""
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            if sweep:
                layer.sort(key=lambda spot: _middle(spot.below if sweep % 2 == 0 else spot.above, spot.x))
            _pack(layer, 0.0)
    widest = max(sum(spot.width + _GAP for spot in layer) for layer in layers) - _GAP
    for layer in layers:
        _pack(layer, _MARGIN + widest / 2)
    return widest + 2 * _MARGIN


def _middle(neighbours: list[_Spot], otherwise: float) -> float:
    return sum(spot.x for spot in neighbours) / len(neighbours) if neighbours else otherwise


def _pack(layer: list[_Spot], centre: float) -> None:
    left = centre - (sum(spot.width + _GAP for spot in layer) - _GAP) / 2
    for spot in layer:
        spot.x = left + spot.width / 2
        left += spot.width + _GAP


def _draw_lines(lines: list[_Line], rows: _Rows) -> list[str]:
    """Curves first, then their labels, so that no line crosses a word."""
    starts = _ports(lines, lambda line: line.spots[0], lambda line: line.spots[1].x)
    ends = _ports(lines, lambda line: line.spots[-1], lambda line: line.spots[-2].x)
    curves, labels = [], []
    for index, line in enumerate(lines):
        points = [(starts[index], rows.bottom(line.spots[0]))]
        for bend in line.spots[1:-1]:
            points += [(bend.x, rows.top(bend)), (bend.x, rows.bottom(bend))]
        points.append((ends[index], rows.top(line.spots[-1]) - 7))
        curves.append(_curve(points))
        (x0, y0), (x1, y1) = points[-2:]
        # Nearer to the child, where its arrows have been spread; each a little higher than its neighbour.
        share = 0.62 - 0.14 * (index % 3)
        x, y = x0 + (x1 - x0) * share * share * (3 - 2 * share), y0 + (y1 - y0) * share + 4
        labels.append(f'<text class="relation" x="{x:.1f}" y="{y:.1f}">{_text(line.relation, 24)}</text>')
    return curves + labels


def _ports(lines: list[_Line], end: Callable[[_Line], _Spot], other_x: Callable[[_Line], float]) -> dict[int, float]:
    """Where each line meets its box: several are spread over the edge, in the order of their other ends."""
    groups: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        groups.setdefault(id(end(line)), []).append(index)
    ports = {}
    for members in groups.values():
        members.sort(key=lambda index: other_x(lines[index]))
        box = end(lines[members[0]])
        for place, index in enumerate(members, start=1):
            ports[index] = box.x - box.width / 2 + box.width * place / (len(members) + 1)
    return ports


def _curve(points: list[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        path += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return f'<path class="arrow" d="{path}" marker-end="url(#head)"/>'


def _lines_of(node: LineageNode) -> list[_TextLine]:
    """All that there is to read, so that nobody has to point at a box. Only what is very long is cut."""
    lines = [*_wrapped("name", node.ref, _NAME), *_wrapped("kind", node.kind or "kind unknown", _KIND)]
    lines += _wrapped("digest", node.digest, _DIGEST)
    about = f"not in this registry, or not readable: {node.problem}" if node.problem else node.summary
    return lines + _wrapped("about", about, _ABOUT)


def _wrapped(style: str, text: str, shape: tuple[int, int, int]) -> list[_TextLine]:
    letters, most, height = shape
    whole = style == "digest"
    lines = textwrap.wrap(_clean(text), letters, max_lines=most, placeholder="…", break_on_hyphens=not whole)
    return [_TextLine(style, line, height) for line in lines]


def _draw_box(box: _Spot, rows: _Rows) -> str:
    node = box.node
    assert node is not None
    left, top, height = box.x - _BOX_WIDTH / 2, rows.top(box), rows.heights[box.layer]
    dashed = "" if node.kind else ' stroke-dasharray="5 4"'
    kind = f" {node.kind}" if node.kind in _KINDS else ""
    written, y = [], float(_PADDING)
    for line in box.lines:
        y += line.height
        written.append(f'<text class="{line.style}" x="12" y="{y - 4:.0f}">{_escaped(line.text)}</text>')
    # An inner svg cuts off what is too wide in a font that we cannot measure.
    return (
        f'<svg x="{left:.1f}" y="{top:.1f}" width="{_BOX_WIDTH}" height="{height:.0f}">'
        f"<title>{_text(f'{node.digest} {node.ref}: {node.problem or node.summary}', 2000)}</title>"
        f'<rect class="box{kind}" x="1" y="1" width="{_BOX_WIDTH - 2}" height="{height - 2:.0f}" rx="8"{dashed}/>'
        f"{''.join(written)}</svg>"
    )


def _text(text: str, limit: int) -> str:
    """Cut to a length, and safe in XML."""
    clean = _clean(text)
    return _escaped(clean if len(clean) <= limit else f"{clean[: limit - 1]}…")


def _clean(text: str) -> str:
    """In one line; XML has no place for most control characters even when escaped."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _escaped(text: str) -> str:
    # By hand: the library's own function brings half of its networking along.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _document(title: str, width: float, height: float, drawn: Iterable[str]) -> str:
    head = '<marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}">',
            f"<title>{_text(title, 2000)}</title>",
            f"<style>{_rules(_STYLE)} @media (prefers-color-scheme: dark) {{ {_rules(_DARK)} }}</style>",
            f'<defs>{head}<path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>',
            f'<rect class="ground" width="{width:.0f}" height="{height:.0f}"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _rules(style: Mapping[str, str]) -> str:
    return " ".join(f"{name} {{ {rule} }}" for name, rule in style.items())
