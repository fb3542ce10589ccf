"""Figures and the PNG, the figures in words, and how numbers are written."""

from __future__ import annotations

import itertools
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.evaluation.results import Acceptance, CandidateEntry, Curve, CurvePoint, Results
from moe_lab.metrics.bootstrap import Interval
from moe_lab.reports.colours import LIGHT
from moe_lab.reports.draw_curve import draw_curve
from moe_lab.reports.findings import beside_group_table, cost_at_quality, findings, kept_at_half
from moe_lab.reports.matrix_view import Matrix
from moe_lab.reports.pictures import curve_svg, exact_match_lines, exact_match_svg, write_picture
from moe_lab.reports.wording import (
    bits,
    change,
    counted,
    duration,
    moment,
    percent,
    price,
    short_count,
    span,
)


def point(cost: float, quality: float, difference: tuple[float, float, float] | None = None) -> CurvePoint:
    return CurvePoint(
        cost=cost,
        bits_per_byte=Interval(mean=quality, low=quality, high=quality),
        difference_to_zero=None
        if difference is None
        else Interval(low=difference[0], mean=difference[1], high=difference[2]),
    )


def with_curves(results: Results, curves: list[Curve]) -> Results:
    return results.model_copy(update={"curves": curves})


@pytest.mark.slow
def test_figures_are_well_formed_and_take_their_colours_from_the_page(synthetic_results):
    drawn = curve_svg(synthetic_results)
    levels = exact_match_svg(synthetic_results)
    assert drawn is not None
    assert levels is not None
    ids = []
    for svg in (drawn[0], levels):
        ElementTree.fromstring(svg)
        assert set(re.findall(r"(?:fill|stroke): *([^;\"]+)", svg)) <= {"none"} | {f"var(--{n})" for n in LIGHT}
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        ids += re.findall(r' id="([^"]+)"', svg)
        for reference in re.findall(r'(?:href="|url\()#([^")]+)', svg):
            assert reference in ids
    assert len(ids) == len(set(ids))
    assert "python:2048" in drawn[0]


def test_many_systems_are_drawn_as_those_that_tell_most(synthetic_results):
    entries = list(synthetic_results.exact_match)
    for width in (8, 16, 32, 128):
        other = {
            "system": "alone",
            "module": "snakes/python",
            "width": width,
            "mean": 0.0,
            "low": 0.0,
            "high": 0.1,
        }
        entries += [entry.model_copy(update=other) for entry in synthetic_results.exact_match[:5]]
    few = exact_match_lines(synthetic_results)
    many = exact_match_lines(synthetic_results.model_copy(update={"exact_match": entries}))
    assert [lines for lines, _ in many] == [lines for lines, _ in few]


@pytest.mark.slow
def test_a_candidate_far_above_the_curves_does_not_flatten_them(synthetic_results):
    far = Curve(label="prose/english:512", role="fixed", points=[point(1e6, 50.0)])
    curves = [curve for curve in synthetic_results.curves if curve.label != far.label]
    drawn = curve_svg(with_curves(synthetic_results, [*curves, far]))
    assert drawn is not None
    assert drawn[1] == 1
    assert "english:512" not in drawn[0]
    assert curve_svg(with_curves(synthetic_results, curves))[1] == 0  # type: ignore[index]


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=14))
@settings(max_examples=12, deadline=None)
def test_labels_of_dots_lie_inside_and_touch_no_other_label(places):
    from matplotlib.figure import Figure

    names = [f"lab/module{number}:{8 << number}" for number in range(len(places))]
    curves = [
        Curve(label=name, role="fixed", points=[point(cost * 1e4, 1 + quality / 50)])
        for name, (cost, quality) in zip(names, places, strict=True)
    ]
    results = Results.model_construct(curves=curves)  # type: ignore[call-arg]
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    assert draw_curve(axes, results, LIGHT) == 0
    boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes, "the first label always has room"
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def png_size(file: Path) -> tuple[int, int]:
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    wide, high = struct.unpack(">II", head[16:24])
    return wide, high


@pytest.mark.slow
@pytest.mark.parametrize("missing", [{}, {"curves": []}, {"matrix": []}], ids=["both", "matrix", "curve"])
def test_the_picture_has_the_promised_size(synthetic_results, tmp_path, missing):
    results = synthetic_results.model_copy(update=missing)
    file = write_picture(results, tmp_path / "docs" / "picture.png")
    assert png_size(file) == (1400, 560)
    if not missing:
        again = write_picture(results, tmp_path / "again.png")
        assert again.read_bytes() == file.read_bytes()


def test_a_picture_of_nothing_is_refused(synthetic_results, tmp_path):
    with pytest.raises(LabError, match="neither a curve nor a matrix"):
        write_picture(synthetic_results.model_copy(update={"curves": [], "matrix": []}), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_names_with_odd_signs_can_be_drawn(synthetic_results, tmp_path):
    data = synthetic_results.model_dump_json().replace('"python"', '"$x_{1$ \u65e5\u672c a very long name"')
    file = write_picture(Results.model_validate_json(data), tmp_path / "picture.png")
    assert png_size(file) == (1400, 560)


def test_matrix_rows_come_in_the_order_of_the_candidates(synthetic_results):
    matrix = Matrix(synthetic_results)
    labels = [row.label for row in matrix.rows]
    assert labels[:4] == ["trunk", "python:128", "python:512", "python:2048"]
    assert labels[-5:] == [
        "composed",
        *(f"without {d}" for d in ("python", "english", "readmes", "arithmetic")),
    ]


def test_tints_follow_the_change_against_the_trunk(synthetic_results):
    matrix = Matrix(synthetic_results)
    cells = [cell for row in matrix.rows for cell in row.cells.values()]
    assert min(matrix.tint(cell) for cell in cells) == -1
    for cell in cells:
        trunk = matrix.cell(cell.domain, "trunk")
        assert trunk is not None
        better = cell.bits_per_byte.mean - trunk.bits_per_byte.mean
        assert matrix.tint(cell) == 0 if cell.system == "trunk" else (matrix.tint(cell) < 0) == (better < 0)
        assert -1 <= matrix.tint(cell) <= 1


@pytest.mark.parametrize(
    ("wanted", "cost"), [(5.0, 0.0), (3.0, 5.0), (2.0, 10.0), (1.5, 25.0), (1.0, 30.0), (0.9, None)]
)
def test_cost_at_a_quality_is_read_off_the_line(wanted, cost):
    points = [point(30, 1.0), point(0, 4.0), point(20, 2.0), point(10, 2.0)]
    assert cost_at_quality(points, wanted) == cost


def test_one_lucky_price_does_not_reach_a_quality():
    """From a cost on: a dip of one price counts only if the curve stays as good behind it."""
    dip = [point(0, 4.0), point(10, 1.9), point(20, 3.0), point(30, 1.0)]
    assert cost_at_quality(dip, 2.0) == 25.0
    assert cost_at_quality([*dip, point(40, 2.5)], 2.0) is None
    twice = [point(0, 4.0), point(10, 1.0), point(10, 3.0)]
    assert cost_at_quality(twice, 1.5) is None


def candidate_curves(learned: list[CurvePoint]) -> list[Curve]:
    fixed = [
        Curve(label="trunk", role="fixed", points=[point(0, 4.0)]),
        Curve(label="a/b:8", role="fixed", points=[point(100, 2.0)]),
    ]
    return [*fixed, Curve(label="gain", role="learned", points=learned)]


def test_findings_say_what_routing_saves_and_where_it_beats_chance(synthetic_results):
    points = [point(0, 4.0, (-1.0, 0.0, 1.0)), point(40, 1.0, (-2.0, -1.0, -0.5))]
    results = with_curves(synthetic_results, candidate_curves(points))
    saved, half, beats = findings(results.model_copy(update={"acceptance": []}))
    assert saved.figure == "\N{MINUS SIGN}73%"
    assert "a/b:8" in saved.headline
    assert half.figure == "50%"
    assert beats.figure == "1 of 2"


def test_findings_do_not_hide_a_loss(synthetic_results):
    worse = Acceptance(
        domain="english",
        trunk=1.0,
        best_single={"name": "trunk", "bits_per_byte": 1.0},  # type: ignore[arg-type]
        composed=1.1,
        no_worse_than_trunk=False,
        gap_to_best_percent=10.0,
    )
    results = with_curves(synthetic_results, candidate_curves([point(40, 3.0)]))
    kept, gap, saved, half = findings(results.model_copy(update={"acceptance": [worse]}))
    assert (kept.figure, kept.detail) == ("0 of 1", "worse on english")
    assert gap.figure == "+10.0%"
    assert saved.figure == "not reached"
    assert half.figure == "50%"


def test_what_is_left_at_half_the_cost_is_read_off_the_mixture_of_two_prices(synthetic_results):
    points = [point(80, 1.0), point(30, 1.6), point(20, 2.0)]
    results = with_curves(synthetic_results, candidate_curves(points))
    found = kept_at_half(results)
    assert found is not None
    quality = 1.6 + (40 - 30) / (80 - 30) * (1.0 - 1.6)
    assert found.figure == f"{100 * (4.0 - quality) / (4.0 - 1.0):.0f}%"
    assert kept_at_half(with_curves(synthetic_results, candidate_curves([point(40, 4.5)]))) is None


def test_beside_the_group_table_stands_the_router_that_knows_as_much_and_then_the_one_that_does_not(
    synthetic_results,
):
    def differing(untold: float, told: float | None) -> CurvePoint:
        given = {"routed_difference": untold, "told_difference": told}
        around = {
            name: None if mean is None else Interval(mean=mean, low=mean - 1, high=mean + 1)
            for name, mean in given.items()
        }
        return point(10, 1.0).model_copy(update=around)

    def found(*points: CurvePoint) -> tuple[str, str, str]:
        table = Curve(label="group table", role="group_table", points=list(points))
        finding = beside_group_table(with_curves(synthetic_results, [table]))
        assert finding is not None
        return finding.figure, finding.headline, finding.detail

    figure, headline, detail = found(differing(3, -2), differing(-2, 0), differing(2, 2))
    assert figure == "1 of 3"
    assert headline.endswith("routing beats it, both told the domain")
    assert detail.endswith("above zero at 1; not told the domain: below at 1 of 3, above at 2")
    figure, headline, detail = found(differing(3, None), differing(-2, None))
    assert (figure, headline[-8:]) == ("1 of 2", "beats it")
    assert "told" not in detail


def test_candidates_that_are_the_trunk_have_no_saving(synthetic_results):
    curves = [Curve(label="trunk", role="fixed", points=[point(0, 1.0)])]
    curves.append(Curve(label="gain", role="learned", points=[point(1, 1.0)]))
    results = with_curves(synthetic_results, curves).model_copy(update={"acceptance": []})
    assert findings(results) == []
    assert CandidateEntry(name="trunk", module=None, width=0, cost=0).cost == 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (short_count(0), "0"),
        (short_count(999), "999"),
        (short_count(999.6), "1\N{NO-BREAK SPACE}k"),
        (short_count(1_234_567), "1.23\N{NO-BREAK SPACE}M"),
        (short_count(12_340), "12.3\N{NO-BREAK SPACE}k"),
        (short_count(2e9), "2\N{NO-BREAK SPACE}G"),
        (bits(1.23456), "1.235"),
        (change(-0.0312), "\N{MINUS SIGN}0.031"),
        (change(0.0312), "+0.031"),
        (percent(-3.21), "\N{MINUS SIGN}3.2%"),
        (percent(0.04), "0.0%"),
        (percent(-0.04), "0.0%"),
        (percent(12, 0), "+12%"),
        (price(4e-6), "4e\N{MINUS SIGN}6"),
        (price(0.25), "0.25"),
        (span(Interval(low=1, mean=2, high=3)), "1.000\N{EN DASH}3.000"),
        (span(Interval(low=-1, mean=2, high=3)), "\N{MINUS SIGN}1.000 to 3.000"),
        (duration(59.4), "59 s"),
        (duration(754.2), "12 min 34 s"),
        (duration(7260), "2 h 1 min"),
        (moment("2026-03-03T16:05:00+02:00"), "3 March 2026, 14:05 UTC"),
        (counted(1, "row"), "1 row"),
        (counted(2345, "row"), "2,345 rows"),
    ],
)
def test_numbers_are_written_as_one_reads_them(written, expected):
    assert written == expected
