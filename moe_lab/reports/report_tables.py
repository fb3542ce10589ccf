"""The report's tables: headline, tinted matrix, points of curves, exercises, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from moe_lab.evaluation.results import Acceptance, CurvePoint, MatrixCell, Results, Sample
from moe_lab.metrics.bootstrap import Interval
from moe_lab.reports.colours import TINT_STRENGTH, line_styles
from moe_lab.reports.markup import Content, Markup, element, join
from moe_lab.reports.matrix_view import GROUPS, Matrix, Row
from moe_lab.reports.wording import bits, change, count, percent, price, share, short_count, span

DASH = "\N{EN DASH}"


def headline_table(results: Results) -> Markup:
    """Trunk, best single candidate and composition for each domain."""
    matrix = Matrix(results)
    heads = ("domain", "trunk", "best single candidate", "composed", "gap to best", "against the trunk")
    return _table(heads, [_headline_row(entry, results, matrix) for entry in results.acceptance], "headline")


def matrix_table(results: Results) -> Markup:
    """Every system on every domain, each cell tinted by its change against the trunk."""
    matrix = Matrix(results)
    heads = ("system", *matrix.domains, "multiply-adds per token")
    bodies = [
        element(
            "tbody",
            element("tr", element("th", GROUPS[system], colspan=str(len(heads)), scope="rowgroup", class_="group")),
            [_matrix_row(row, matrix) for row in rows],
        )
        for system, rows in groupby(matrix.rows, key=lambda row: row.system)
    ]
    return _scrolling(element("table", _head(heads), bodies, class_="matrix"))


def curve_table(results: Results) -> Markup:
    """All points of all curves as figures."""
    heads = ("router", "price", "multiply-adds per token", "bits per byte", "minus zero router")
    rows = [
        _point_row(curve.label, point)
        for curve, _ in line_styles(results)
        for point in sorted(curve.points, key=lambda point: point.cost)
    ]
    return _table(heads, rows)


def exact_match_table(results: Results) -> Markup:
    """Share of right answers of every system and level."""
    heads = ("system", "level", "exercises", "right")
    rows = []
    for entry in results.exact_match:
        system = Row(entry.system, entry.module, entry.width, {}).label
        between = f"{100 * entry.low:.0f}{DASH}{100 * entry.high:.0f}%"
        rows.append((_name(system), str(entry.level), count(entry.items), _figure(share(entry.mean), between)))
    return _table(heads, rows)


def modules_table(results: Results) -> Markup:
    """The trunk and the modules: who made them, how big they are, on what terms, and from what."""
    heads = ("artifact", "what it is", "widths", "parameters", "licence", "made from", "digest")
    trunk = results.trunk
    rows: list[tuple[Content, ...]] = [
        _artifact(trunk.ref, "trunk", None, count(trunk.parameters), _licence(trunk.licence), None, trunk.digest)
    ]
    for module in results.modules:
        parents = [element("div", f"{p.relation} from {p.ref}") for p in module.parents]
        rows.append(
            _artifact(
                module.ref,
                f"module by {module.owner}",
                " / ".join(count(width) for width in module.widths),
                count(module.parameters),
                _licence(module.licence),
                parents,
                module.digest,
            )
        )
    for router in results.routers:
        # A router without weights is code of the lab: no artifact, and no licence of its own.
        licence = _licence(router.licence) if router.ref else None
        rows.append(_artifact(router.ref or router.label, "router", None, None, licence, None, router.digest))
    return _table(heads, rows, "artifacts")


def digests_table(results: Results) -> Markup:
    """The digests in full, of the parts and of what they were made from."""
    parents = [parent for module in results.modules for parent in module.parents]
    named = [(results.trunk.ref, results.trunk.digest)]
    named += [(module.ref, module.digest) for module in results.modules]
    named += [(parent.ref, parent.digest) for parent in parents]
    named += [(router.ref, router.digest) for router in results.routers if router.ref and router.digest]
    rows = [(_name(ref), element("code", digest)) for ref, digest in dict.fromkeys(named)]
    return _table(("artifact", "digest"), rows, "artifacts")


def routing_table(results: Results) -> Markup:
    """The share of every module and width in each domain."""
    rows = [
        (_name(entry.domain), entry.module or "trunk alone", count(entry.width), share(entry.share))
        for entry in results.routing
        if entry.share > 0
    ]
    return _table(("domain", "module", "width", "share of decisions"), rows)


def pieces_table(sample: Sample) -> Markup:
    """A text in order with what was decided while reading it; pieces of the same choice stand together."""
    pieces = zip(sample.pieces, sample.module, sample.width, strict=True)
    rows = [
        (element("code", "".join(piece for piece, _, _ in run)), module or "trunk alone", count(width))
        for (module, width), run in groupby(pieces, key=lambda piece: piece[1:])
    ]
    return _table(("text", "module", "width"), rows)


def _headline_row(entry: Acceptance, results: Results, matrix: Matrix) -> tuple[Content, ...]:
    best = next((c for c in results.candidates if c.name == entry.best_single.name), None)
    cells = [matrix.cell(entry.domain, "trunk"), matrix.cell(entry.domain, "composed")]
    single = matrix.cell(entry.domain, "alone", best.module, best.width) if best and best.module else cells[0]
    verdict = ("no worse", "verdict good") if entry.no_worse_than_trunk else ("worse", "verdict bad")
    against = percent(100 * (entry.composed / entry.trunk - 1)) if entry.trunk > 0 else ""
    return (
        _name(entry.domain),
        _figure(bits(entry.trunk), _span_of(cells[0])),
        _figure(bits(entry.best_single.bits_per_byte), _span_of(single), entry.best_single.name),
        _figure(element("b", bits(entry.composed)), _span_of(cells[1])),
        percent(entry.gap_to_best_percent),
        join(element("span", verdict[0], class_=verdict[1]), " ", element("small", against)),
    )


def _matrix_row(row: Row, matrix: Matrix) -> Markup:
    owner = (row.module or "").rpartition("/")[0]
    title = element("th", row.label, " ", element("small", owner) if owner else None, scope="row")
    cells = [_matrix_cell(row.cells.get(domain), matrix) for domain in matrix.domains]
    return element("tr", title, cells, element("td", short_count(row.mean_cost), class_="cost"))


def _matrix_cell(cell: MatrixCell | None, matrix: Matrix) -> Markup:
    if cell is None:
        return element("td", DASH)
    tint, relative = matrix.tint(cell), matrix.relative(cell)
    figure = bits(cell.bits_per_byte.mean)
    return element(
        "td",
        element("b", figure) if cell.bits_per_byte.mean == matrix.best(cell.domain) else element("span", figure),
        element("em", percent(relative)) if relative is not None else None,
        element("small", span(cell.bits_per_byte)),
        class_="heat better" if tint < 0 else "heat worse",
        style=f"--a:{TINT_STRENGTH * abs(tint):.3f}",
    )


def _point_row(label: str, point: CurvePoint) -> tuple[Content, ...]:
    difference = point.difference_to_zero
    return (
        _name(label),
        DASH if point.price is None else price(point.price),
        short_count(point.cost),
        _interval(point.bits_per_byte),
        DASH if difference is None else _figure(change(difference.mean), span(difference)),
    )


def _interval(interval: Interval) -> Markup:
    return _figure(bits(interval.mean), span(interval))


def _figure(figure: Content, interval: str | None, name: str | None = None) -> Markup:
    named = element("span", name, class_="named") if name else None
    return join(figure, element("small", interval) if interval else None, named)


def _span_of(cell: MatrixCell | None) -> str | None:
    return None if cell is None else span(cell.bits_per_byte)


def _name(text: str) -> Markup:
    return element("span", text, class_="name")


def _artifact(ref: str, kind: str, *cells: Content) -> tuple[Content, ...]:
    *described, digest = cells
    short = _digest(digest) if isinstance(digest, str) else None
    return (_name(ref), kind, *(cell or DASH for cell in (*described, short)))


def _digest(digest: str) -> Markup:
    return element("code", digest.removeprefix("sha256-")[:12])


def _licence(licence: str | None) -> str:
    return licence or "none stated"


def _head(heads: tuple[str, ...]) -> Markup:
    return element("thead", element("tr", [element("th", head, scope="col") for head in heads]))


def _table(heads: tuple[str, ...], rows: Sequence[tuple[Content, ...]], class_: str | None = None) -> Markup:
    body = [element("tr", [element("td", cell) for cell in row]) for row in rows]
    return _scrolling(element("table", _head(heads), element("tbody", body), class_=class_))


def _scrolling(table: Markup) -> Markup:
    return element("div", table, class_="scroll", tabindex="0")
