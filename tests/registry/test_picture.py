"""The drawing is well-formed whatever people write, shows every artifact once, and nothing lies over a box."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.registry import LineageNode, lineage_svg

SVG = "{http://www.w3.org/2000/svg}"


def node(number, **about):
    about = {"kind": "module", "summary": f"number {number}", **about}
    return LineageNode(f"team/part{number}@1", f"sha256-{number:064x}", "made from", **about)


def boxes(drawing):
    """Left, top, right and bottom of each box by its digest."""
    found = {}
    for box in drawing.findall(f"{SVG}svg"):
        left, top = float(box.get("x")), float(box.get("y"))
        digest = re.search(r"sha256-[0-9a-f]{64}", box.find(f"{SVG}title").text)[0]
        assert digest not in found
        found[digest] = (left, top, left + float(box.get("width")), top + float(box.get("height")))
    return found


def points(path):
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


graphs = st.integers(1, 9).flatmap(
    lambda count: (
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1]),
            max_size=16,
        )
        if count > 1
        else st.just([])
    )
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs)
def test_every_artifact_is_drawn_once_below_its_parents_and_nothing_overlaps(edges):
    nodes = {number: node(number) for number in range(9)}
    for child, parent in edges:
        nodes[child].parents.append(nodes[parent])
    reachable, pending = {0}, [0]
    while pending:
        child = pending.pop()
        for parent in {parent for below, parent in edges if below == child} - reachable:
            reachable.add(parent)
            pending.append(parent)
    drawing = ElementTree.fromstring(lineage_svg(nodes[0]))
    drawn = boxes(drawing)
    assert drawn.keys() == {nodes[number].digest for number in reachable}
    wanted = {(parent, child) for child, parent in edges if child in reachable}
    lines = drawing.findall(f"{SVG}path")
    assert len(lines) == len(wanted) == len(drawing.findall(f"{SVG}text"))
    for parent, child in wanted:
        assert drawn[nodes[parent].digest][3] < drawn[nodes[child].digest][1]
    rectangles = list(drawn.values())
    for index, (left, top, right, bottom) in enumerate(rectangles):
        assert left >= 0
        assert top >= 0
        assert right <= float(drawing.get("width"))
        assert bottom <= float(drawing.get("height"))
        for other in rectangles[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        for line in lines:
            assert not [(x, y) for x, y in points(line) if left < x < right and top < y < bottom]


@pytest.mark.parametrize(
    "hostile",
    ['<script>alert("x")</script>', "a & b", "]]>", "\x00\x1b[31m", "\ufffe", "x" * 5000, "‮", "&#0;", "'\"", "日本語"],
    ids=lambda text: ascii(text)[:12],
)
def test_hostile_text_stays_text(hostile):
    root = node(0, summary=hostile)
    root.parents.append(LineageNode(f"team/{hostile}@1", "sha256-" + "f" * 64, hostile, problem=hostile))
    svg = lineage_svg(root)
    drawing = ElementTree.fromstring(svg)
    assert not [element for element in drawing.iter() if element.tag == f"{SVG}script"]
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert len(boxes(drawing)) == 2
    texts = [element.text or "" for element in drawing.iter(f"{SVG}text")]
    assert max(map(len, texts)) < 60
    if hostile.isprintable() and len(hostile) < 20:
        assert hostile in texts


@pytest.mark.slow
def test_the_same_lineage_gives_the_same_bytes_and_a_long_one_is_no_trouble():
    def chain():
        nodes = [node(number) for number in range(3000)]
        for child, parent in itertools.pairwise(nodes):
            child.parents.append(parent)
        return nodes[0]

    svg = lineage_svg(chain())
    assert svg == lineage_svg(chain())
    assert len(boxes(ElementTree.fromstring(svg))) == 3000


def test_what_is_not_here_is_dashed(registry):
    parent = {"ref": "far/away@1", "digest": "sha256-" + "0" * 64, "relation": "teacher"}
    registry.publish("team", "part", "1", {"kind": "module", "lineage": {"parents": [parent]}}, {})
    drawing = ElementTree.fromstring(lineage_svg(registry.lineage("team/part")))
    dashed = [box for box in drawing.findall(f"{SVG}svg") if box.find(f"{SVG}rect").get("stroke-dasharray")]
    assert len(dashed) == 1
    assert "far/away@1" in dashed[0].find(f"{SVG}title").text
