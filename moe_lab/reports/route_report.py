"""A question router's results as one HTML page, in the style of the other reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe_lab.files import write_text
from moe_lab.questions.results import AREA, CurveRole, FoldVerdict, GroupRow, RouteResults
from moe_lab.reports.markup import Content, Markup, element, join
from moe_lab.reports.page import folded, note, render_page, section
from moe_lab.reports.report_figures import drawing, legend
from moe_lab.reports.route_cells import EN_DASH, cell, number, span, table, tile
from moe_lab.reports.route_claims import claimed_gains, describe_doubts
from moe_lab.reports.route_joined import (
    CURVES,
    LEGEND,
    joined_section,
    joined_words,
    made_caption,
    measured_how,
)
from moe_lab.reports.route_pictures import STYLES, calibration_colours, calibration_svg, quality_limits, quality_svg
from moe_lab.reports.wording import count, counted, duration, moment, share

_MODES = {
    "learned": "routes by what it learnt",
    "group_table": "abstains: answers as the group table does",
    "zero_router": "abstains: answers as the zero router does",
}
_WORDS = (
    ("out of fold", "Every question was scored by a router that had not seen it, nor one that looks the same."),
    (
        "zero router",
        "The best that throwing dice between the candidates can reach at a cost. A router that is not above it has "
        "learnt nothing of use.",
    ),
    (
        "group table",
        "One candidate for each group and price, the best on the other folds. It is told the group of every question "
        "and reads nothing else.",
    ),
    (
        "difficulty alone",
        "Sends away what the cheapest candidate will fail at, whether or not a dearer one would do better. Kept to "
        "show why gain is predicted instead.",
    ),
    (
        "oracle",
        "The best candidate for every question, chosen with the outcome in sight; of equally good ones the cheapest, "
        "so a question that nobody solves costs what the cheapest candidate costs.",
    ),
    (
        "APGR",
        "Two candidates: the share of the gap between them that is recovered, averaged over all shares of questions "
        "sent to the dearer one. Dice have 0.5.",
    ),
    ("CPT(x)", "The least share of questions to send to the dearer candidate so that x of the gap is recovered."),
    (
        "deferral area",
        "The mean height of the curve as it is drawn, between the cheapest and the dearest candidate's cost: of the "
        "router's own prices, and between two neighbours of dice thrown between them. Its difference to another "
        "router's is what is gained at equal cost, as a mean over all costs.",
    ),
    (
        "AIQ",
        "The mean height of the concave hull of quality against cost, between the cheapest and the dearest "
        "candidate's cost. The hull picks the prices that did best on the very questions it counts, so it is no policy "
        "that could have been run, and finds gains in noise. RouterBench's code divides the area by the greatest cost "
        "instead.",
    ),
    (
        "95% interval",
        "Questions were drawn again and again with replacement; those that look the same were drawn together.",
    ),
)


def write_route_report(results: RouteResults, path: Path) -> Path:
    """Writes the report as one self-contained HTML file."""
    write_text(path, render_route_report(results))
    return path


def render_route_report(results: RouteResults) -> str:
    """The whole page. Every text from the results is escaped."""
    sections = [
        _curves(results),
        joined_section(results) if results.newcomers else None,
        _figures(results),
        _groups(results),
        _calibration(results),
        _made(results),
        _words(results),
    ]
    footer = f"Made by moe-lab from route-results.json, format {results.format}."
    return render_page(results.name, _header(results), sections, footer)


def main_metric(results: RouteResults) -> str:
    """APGR for two candidates, the deferral area for any other number."""
    return "APGR" if results.figure("APGR") is not None else AREA


def _header(results: RouteResults) -> Markup:
    done = "joined" if results.newcomers else "trained and evaluated"
    line = (
        f"{counted(results.items, 'question')} of {results.table}, {counted(len(results.candidates), 'candidate')}, "
        f"{_folds(results)} · {done} {moment(results.created)} in {duration(results.seconds)}"
    )
    metric = main_metric(results)
    own = next(f for f in results.figures if f.metric == metric and f.role == "routed")
    cost = results.router_cost
    tiles = [
        tile(number(own.value), _headline(results, metric), span(own.interval)),
        *(tile(number(gain.mean, sign=True), told, span(gain)) for told, gain in claimed_gains(results).values()),
        tile(
            f"{cost.microseconds_per_question:,.0f} µs", "to route one question", f"{count(cost.parameters)} parameters"
        ),
    ]
    verdict = element("p", element("span", _MODES[results.mode], class_="name"), class_="line")
    tiled = element("div", tiles, class_="tiles")
    warned = [element("p", text, class_="note") for text in (*results.warnings, *describe_doubts(results))]
    return element("header", element("h1", results.name), element("p", line, class_="line"), verdict, warned, tiled)


def _folds(results: RouteResults) -> str:
    if results.newcomers:
        return measured_how(results)
    return f"each of {results.folds} groups left out in turn" if results.by_group else f"{results.folds} folds"


def _headline(results: RouteResults, metric: str) -> str:
    plain = "mean quality over all costs" if metric == AREA else metric
    return plain if results.newcomers else f"{plain}, out of fold"


def _curves(results: RouteResults) -> Markup:
    caption = (
        "Each line is one router at every price. Further left is cheaper, higher is better. The router should run "
        "above the dashed grey line, which needs no router at all, and above the group table, which is told the group. "
        "The lower panel shows what it gains at equal cost. The band is the 95% interval of each cost by itself, of "
        "the policy that is drawn: of 20 costs one may lie outside of it by chance."
    )
    roles = [curve.role for curve in results.curves]
    labels: dict[CurveRole, str] = {curve.role: curve.label for curve in results.curves if curve.role != "fixed"}
    words = LEGEND if results.newcomers else {}
    named = [
        (labels.get(role, "dots"), dataclasses.replace(style, words=words.get(role, style.words)))
        for role, style in STYLES.items()
        if role in roles
    ]
    figure = drawing(quality_svg(results), "Mean quality against mean cost, one line for each router")
    above, below, of = results.beside_group_table
    beside = note(
        f"At {above} of {of} of the group table's own costs the whole 95% interval of this router minus the group "
        f"table lies above zero, at {below} below."
        if of and results.groups_tell
        else None
    )
    seen = [point.quality for curve in results.curves if curve.role == "oracle" for point in curve.points]
    out = max(seen, default=0.0) > quality_limits(results)[1]
    cut = note("The oracle runs out of the top of the figure: its points are in the table." if out else None)
    rows: list[tuple[Content, ...]] = [
        (
            curve.label,
            "" if point.price is None else f"{point.price:.4g}",
            f"{point.cost:.4g}",
            number(point.quality),
            span(point.routed_difference) or "",
        )
        for curve in results.curves
        for point in curve.points
    ]
    heads = ("router", "price", "mean cost", "mean quality", "this router at that cost, minus it")
    points = folded("The same points as a table", table(heads, rows))
    return section(
        "Quality against cost", CURVES if results.newcomers else caption, legend(named), figure, beside, cut, points
    )


def _figures(results: RouteResults) -> Markup:
    caption = (
        "Every metric by its paper's definition, and beside it what the paper's public code computes where that "
        "differs. Small grey figures are 95% intervals; differences are paired."
    )
    labels = {curve.role: curve.label for curve in results.curves if curve.role != "fixed"}
    roles = [role for role in STYLES if role in labels]
    metrics = list(dict.fromkeys(figure.metric for figure in results.figures))
    metrics.sort(
        key=lambda metric: (
            not metric.startswith(main_metric(results)),
            not metric.startswith(AREA),
            metric.split(" ")[0] not in ("APGR", "AIQ"),
            "code" in metric,
            metric.startswith("cost"),
        )
    )
    rows = []
    for metric in metrics:
        cells: list[Content] = [element("span", metric, class_="name")]
        for role in roles:
            figures = [f for f in results.figures if f.metric == metric and f.role == role]
            cells.append(cell(figures[0].value, figures[0].interval, sign="gained" in metric) if figures else EN_DASH)
        rows.append(tuple(cells))
    heads = ("metric", *(labels[role] for role in roles))
    free = f"{results.oracle_free_cost:.4g}"
    convention = note(
        f"Charging nothing for questions that nobody solves, as RouterBench does, the oracle's mean cost is {free}."
    )
    return section("All figures", caption, table(heads, rows, "headline"), convention)


def _groups(results: RouteResults) -> Markup:
    caption = (
        f"Where the router sends each group at the price {results.shown_price:.4g}, whose mean cost is nearest to the "
        "middle between the cheapest and the dearest candidate. In each candidate's column: its own quality on the "
        "group, and below it the share of the group's questions it was given."
    )
    heads = ("group", "questions", *(c.name for c in results.candidates), "routed quality", "routed cost")
    rows = [_group_row(row) for row in results.groups]
    return section("Group by group", caption, table(heads, rows))


def _group_row(row: GroupRow) -> tuple[Content, ...]:
    cells = [
        join(number(quality), element("small", share(part)))
        for quality, part in zip(row.quality, row.share, strict=True)
    ]
    best = max(row.quality)
    routed = number(row.routed_quality)
    return (
        element("span", row.group, class_="name"),
        count(row.items),
        *cells,
        element("b", routed) if row.routed_quality >= best else routed,
        f"{row.routed_cost:.4g}",
    )


def _calibration(results: RouteResults) -> Markup:
    caption = (
        "Questions sorted by what was predicted for a candidate, in ten equally large bins, against what the candidate "
        "scored on them. On the dashed line a predicted 70% is 70% right. Strokes are 95% intervals."
    )
    figure = drawing(calibration_svg(results), "Measured against predicted quality, one line for each candidate")
    items = [
        element("li", element("i", style=f"background:var(--{colour})"), name)
        for name, colour in calibration_colours(results)
    ]
    rows: list[tuple[Content, ...]] = [
        (bin_.candidate, count(bin_.items), number(bin_.predicted), cell(bin_.measured.mean, bin_.measured, sign=False))
        for bin_ in results.calibration
    ]
    points = folded("The same points as a table", table(("candidate", "questions", "predicted", "measured"), rows))
    return section("Are the predictions true?", caption, element("ul", items, class_="legend"), figure, points)


def _made(results: RouteResults) -> Markup:
    cost = results.router_cost
    caption = (
        f"The router that was kept learnt from all {count(results.items)} questions and {_MODES[results.mode]}. "
        f"Running it takes {cost.microseconds_per_question:,.1f} microseconds a question, text included, measured on "
        f"one batch of {cost.questions_per_batch}; it has {count(cost.parameters)} parameters. For each fold: what "
        "its router was let do, the area under the deferral curve on held-back questions, and the paired differences "
        "that decided: it routes by what it learnt where their whole 95% intervals lie above zero."
    )
    compared = [
        name
        for name in ("learned", "group_table", "zero_router")
        if all(name in verdict.validation for verdict in results.verdicts)
    ]
    over = [name for name in compared if name != "learned"]
    rows = [_verdict_row(verdict, compared, over) for verdict in results.verdicts]
    candidates: list[tuple[Content, ...]] = [
        (
            c.name,
            c.family or EN_DASH,
            EN_DASH if c.size is None else f"{c.size:g}",
            f"{c.cost:.4g}",
            number(c.quality),
        )
        for c in results.candidates
    ]
    heads = ("candidate", "family", "size", f"cost ({results.cost_unit})", "quality")
    parts = table(
        ("part", "licence", "digest"),
        [
            (results.name, results.licence or "none stated", EN_DASH),
            (f"table {results.table}", results.table_licence or "none stated", element("code", results.table_digest)),
        ],
    )
    if results.newcomers:
        return section("The router and its table", made_caption(results), table(heads, candidates), parts)
    unseen = note(
        "Every group was scored by a router that never saw it. A group table has no row for such a group: it answers "
        "with the mean of all items, as the zero router does. The items held back are whole groups too."
    )
    labels = {"learned": "learned", "group_table": "group table", "zero_router": "zero router"}
    folds = table(
        (
            "group left out" if results.by_group else "fold",
            "verdict",
            *(labels[name] for name in compared),
            *(f"learned minus {labels[name]}" for name in over),
        ),
        rows,
    )
    told = [unseen] if results.by_group else []
    return section("The router and its table", caption, folds, *told, table(heads, candidates), parts)


def _verdict_row(verdict: FoldVerdict, compared: list[str], over: list[str]) -> tuple[Content, ...]:
    gains = [verdict.gains[f"learned over {name}"] for name in over]
    return (
        str(verdict.fold + 1) if verdict.group is None else verdict.group,
        _MODES[verdict.mode],
        *(number(verdict.validation[name]) for name in compared),
        *(cell(gain.mean, gain, sign=True) for gain in gains),
    )


def _words(results: RouteResults) -> Markup:
    words = joined_words(_WORDS) if results.newcomers else _WORDS
    terms = [join(element("dt", word), element("dd", meaning)) for word, meaning in words]
    return element("section", element("h2", "Words"), element("dl", terms))
