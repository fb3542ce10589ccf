"""A lineage as a drawing: one box for each artifact, ancestors above, arrows to what was made from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moe_lab.registry.lineage import LineageNode

_BOX_WIDTH, _BOX_HEIGHT = 264, 68
_BEND_WIDTH = 28
_GAP, _LAYER_GAP, _MARGIN = 32, 76, 24
_SWEEPS = 6
_FILLS = {"module": "#e8f0fe", "trunk": "#f1efe9", "router": "#e6f4ea", "": "#ffffff"}


@dataclass
class _Spot:
    """A box, or with `node` None a bend of a line that passes through a layer; `x` is its middle."""

    layer: int
    node: LineageNode | None = None
    x: float = 0.0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)

    @property
    def width(self) -> float:
        return _BEND_WIDTH if self.node is None else _BOX_WIDTH


@dataclass(frozen=True)
class _Line:
    """From a parent through bends, downwards, to its child."""

    spots: tuple[_Spot, ...]
    relation: str


def lineage_svg(root: LineageNode) -> str:
    """The tree of `Registry.lineage` as a self-contained SVG; an ancestor of several artifacts is drawn once."""
    nodes, edges = _graph(root)
    depths = _depths(root.digest, edges)
    boxes = {digest: _Spot(depths[digest], node) for digest, node in nodes.items()}
    layers: list[list[_Spot]] = [[] for _ in range(max(depths.values()) + 1)]
    for box in boxes.values():
        layers[box.layer].append(box)
    lines = [_line(boxes[parent], boxes[child], relation, layers) for parent, child, relation in edges]
    width = _place(layers)
    height = len(layers) * (_BOX_HEIGHT + _LAYER_GAP) - _LAYER_GAP + 2 * _MARGIN
    drawn = [*_draw_lines(lines, len(layers)), *(_draw_box(box, len(layers)) for box in boxes.values())]
    return _document(f"Lineage of {root.ref}", width, height, drawn)


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


def _top(spot: _Spot, layers: int) -> float:
    return _MARGIN + (layers - 1 - spot.layer) * (_BOX_HEIGHT + _LAYER_GAP)


def _draw_lines(lines: list[_Line], layers: int) -> list[str]:
    """Curves first, then their labels, so that no line crosses a word."""
    starts = _ports(lines, lambda line: line.spots[0], lambda line: line.spots[1].x)
    ends = _ports(lines, lambda line: line.spots[-1], lambda line: line.spots[-2].x)
    curves, labels = [], []
    for index, line in enumerate(lines):
        points = [(starts[index], _top(line.spots[0], layers) + _BOX_HEIGHT)]
        for bend in line.spots[1:-1]:
            points += [(bend.x, _top(bend, layers)), (bend.x, _top(bend, layers) + _BOX_HEIGHT)]
        points.append((ends[index], _top(line.spots[-1], layers) - 7))
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


def _draw_box(box: _Spot, layers: int) -> str:
    node = box.node
    assert node is not None
    about = "not in this registry, or not readable" if node.problem else node.summary
    left, top = box.x - _BOX_WIDTH / 2, _top(box, layers)
    fill, about_kind = _FILLS.get(node.kind, "#ffffff"), f"{node.kind or 'kind unknown'} · {node.digest[7:19]}"
    dashed = "" if node.kind else ' stroke-dasharray="5 4"'
    # An inner svg cuts off what is too wide in a font that we cannot measure.
    return (
        f'<svg x="{left:.1f}" y="{top:.1f}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}">'
        f"<title>{_text(f'{node.digest} {node.ref}: {node.problem or node.summary}', 2000)}</title>"
        f'<rect class="box" x="1" y="1" width="{_BOX_WIDTH - 2}" height="{_BOX_HEIGHT - 2}" rx="8" '
        f'fill="{fill}"{dashed}/>'
        f'<text class="name" x="12" y="23">{_text(node.ref, 29, keep_end=True)}</text>'
        f'<text class="kind" x="12" y="41">{_text(about_kind, 44)}</text>'
        f'<text class="about" x="12" y="58">{_text(about, 37)}</text></svg>'
    )


def _text(text: str, limit: int, keep_end: bool = False) -> str:
    """Cut to a length, and safe in XML, which has no place for most control characters even when escaped."""
    clean = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if len(clean) > limit:
        end = 8 if keep_end else 0
        clean = f"{clean[: limit - 1 - end]}…{clean[len(clean) - end :]}"
    # By hand: the library's own function brings half of its networking along.
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _document(title: str, width: float, height: float, drawn: Iterable[str]) -> str:
    style: Mapping[str, str] = {
        ".box": "stroke: #5f6368; stroke-width: 1.2",
        ".arrow": "fill: none; stroke: #5f6368; stroke-width: 1.4",
        "text": "font-family: system-ui, 'DejaVu Sans', sans-serif; fill: #202124",
        ".name": "font-size: 13px; font-weight: 600",
        ".kind": "font-size: 11px; fill: #5f6368",
        ".about": "font-size: 11px",
        ".relation": "font-size: 11px; text-anchor: middle; stroke: #ffffff; stroke-width: 4px; paint-order: stroke",
    }
    rules = " ".join(f"{name} {{ {rule} }}" for name, rule in style.items())
    head = '<marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{_text(title, 2000)}</title>",
            f"<style>{rules}</style>",
            f'<defs>{head}<path d="M0,0 L8,4 L0,8 z" fill="#5f6368"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
            *drawn,
            "</svg>\n",
        ]
    )
