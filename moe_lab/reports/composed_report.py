"""results.json as one HTML page that fetches nothing, runs no script and opens from disk, light or dark."""

from __future__ import annotations

import json
from pathlib import Path

from moe_lab.evaluation.results import Results
from moe_lab.reports.colours import Scale, line_styles
from moe_lab.reports.draw_curve import outside_of_curve
from moe_lab.reports.findings import budget_lines, describe_size, findings
from moe_lab.reports.markup import Markup, element, join
from moe_lab.reports.page import folded, note, render_page, section
from moe_lab.reports.pictures import curve_svg, exact_match_lines, exact_match_svg
from moe_lab.reports.report_figures import drawing, legend
from moe_lab.reports.report_routing import routing_bars, sample_texts, scale_rules
from moe_lab.reports.report_tables import (
    curve_table,
    digests_table,
    exact_match_table,
    headline_table,
    matrix_table,
    modules_table,
)
from moe_lab.reports.wording import counted, duration, moment

_WORDS = (
    (
        "bits per byte",
        "How many bits the model needs on average to tell the next byte of the text. Lower is better, and "
        "models with different tokenizers can be compared.",
    ),
    (
        "multiply-adds per token",
        "The work of the routed layers for one token, counted from what the router chose. The trunk's own "
        "work comes on top and is the same for all.",
    ),
    (
        "zero router",
        "The best that throwing dice between fixed candidates can reach at a cost. A router that is not "
        "below it has learnt nothing of use.",
    ),
    (
        "group table",
        "One fixed candidate for each domain, the best at the price, chosen while told the domain of "
        "every text. A router has to find out the domain by itself.",
    ),
    (
        "oracle",
        "The best candidate for every single token, chosen with the outcome in sight. It shows how much "
        "room there is, not what can be reached.",
    ),
    (
        "95% interval",
        "Whole rows of text were drawn again and again with replacement; 95% of the figures found that "
        "way lie between the two small grey numbers.",
    ),
)


def write_report(results: Results, path: str | Path) -> Path:
    """Writes the report as one self-contained HTML file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(results), encoding="utf-8")
    return path


def render_report(results: Results) -> str:
    """The whole page. Every text from the results is escaped."""
    sections = [
        _headline(results),
        _curves(results),
        _matrix(results),
        _exact_match(results),
        _routing(results),
        _samples(results),
        _artifacts(results),
        _words(),
    ]
    footer = f"Made by moe-lab from results.json, format {results.format}."
    return render_page(results.name, _header(results), sections, footer, scale_rules(Scale(results)))


def _header(results: Results) -> Markup:
    spent = duration(results.elapsed_seconds)
    line = f"{describe_size(results)} · evaluated {moment(results.created)} in {spent}"
    tiles = [
        element(
            "div",
            element("strong", finding.figure),
            element("span", finding.headline),
            element("small", finding.detail),
            class_="tile",
        )
        for finding in findings(results)
    ]
    beside = element("p", "beside the trunk ", element("span", results.trunk.ref, class_="name"), class_="line")
    tiled = element("div", tiles, class_="tiles") if tiles else None
    accepted = [element("p", line, class_="line") for line in _replaced(results)]
    return element("header", element("h1", results.name), element("p", line, class_="line"), beside, *accepted, tiled)


def _replaced(results: Results) -> list[str]:
    """What the reader must know before any figure: modules that the router never met."""
    return [
        f"The router learned from {learned.ref} ({learned.digest[:19]}), but {module.ref} ({module.digest[:19]}) is "
        "composed in its place. Whoever composed this accepted that (--accept-replaced)."
        for module in results.modules
        if (learned := module.in_place_of)
    ]


def _headline(results: Results) -> Markup | None:
    if not results.acceptance:
        return None
    caption = (
        "Bits per byte on held-out text, lower is better; the small grey figures are 95% intervals. The best"
        " single candidate is the one module and width that does best on a domain when it is used for every "
        "token of it. A gap near zero means that the composed model found the right module without being "
        "told the domain."
    )
    return section("Does composing work?", caption, headline_table(results))


def _curves(results: Results) -> Markup | None:
    drawn = curve_svg(results)
    if drawn is None:
        return None
    svg, above = drawn
    caption = (
        "All domains together. Each point is one price: how dear compute was made for the router. Further "
        "left is cheaper, lower is better. The learned router should run below the dashed grey line, which "
        "needs no router at all, and near the group table, which is told the domain. The lower panel shows "
        "the same points as differences to the dashed line at equal cost: where the whole band lies below "
        "zero, routing helps."
    )
    left_out = f"{counted(above, 'candidate')} too far above to be shown: see the table." if above else None
    outside = outside_of_curve(results)
    cut = f"Runs out of the figure: {', '.join(outside)}. The points are in the table." if outside else None
    figure = drawing(svg, "Bits per byte against multiply-adds per token, one line for each router")
    table = folded("The same points as a table", curve_table(results))
    named = [(curve.label, style) for curve, style in line_styles(results) if curve.role != "fixed"]
    dots = next((style for curve, style in line_styles(results) if curve.role == "fixed"), None)
    lines = legend([*named, ("dots", dots)] if dots else named)
    budgets = [note(f"{line[0].upper()}{line[1:]}.") for line in budget_lines(results)]
    return section("Quality against compute", caption, lines, figure, note(left_out), note(cut), *budgets, table)


def _matrix(results: Results) -> Markup | None:
    if not results.matrix:
        return None
    caption = (
        "Every system on every domain, in bits per byte. Blue cells are better than the trunk on that domain"
        " and orange ones worse, the stronger the more, on a scale of its own for each column; the figure in italics"
        " is the change in percent. Bold is the best of its column. Rows with a module left out show what that "
        "module was worth to the "
        "composition."
    )
    return section("Every system on every domain", caption, matrix_table(results))


def _exact_match(results: Results) -> Markup | None:
    svg = exact_match_svg(results)
    if svg is None:
        return None
    caption = (
        "Share of exercises whose whole answer is right, by level; thin strokes are 95% intervals. Where a "
        "narrow width is as good as a wide one, the exercise is easy for the module: a router can save "
        "there."
    )
    drawn = exact_match_lines(results)
    lines = legend([("", style) for _, style in drawn])
    hidden = len({(e.system, e.module, e.width) for e in results.exact_match}) - len(drawn)
    left_out = f"{counted(hidden, 'other system')} left out of the picture: see the table." if hidden else None
    figure = drawing(svg, "Share of right answers against the level of the exercise")
    table = folded("The same points as a table", exact_match_table(results))
    return section("Exercises by level", caption, lines, figure, note(left_out), table)


def _routing(results: Results) -> Markup | None:
    if not results.routing:
        return None
    caption = (
        "How the routing decisions of each domain are divided between modules (hue) and their widths "
        "(strength, and the figure in the bar). Point at a part, tap it or move to it with the Tab key for its share; "
        "the table has them all."
    )
    return section("Which module gets the tokens, and how much of it", caption, routing_bars(results))


def _samples(results: Results) -> Markup | None:
    if not results.samples:
        return None
    caption = (
        "Held-out texts as the router saw them. The colour lies on the piece that was read when the decision"
        " was made: the stronger, the more hidden units were run to predict what follows. Point at a piece "
        "or tap it for module and width; the tables have them all."
    )
    return section("Texts, piece by piece", caption, sample_texts(results))


def _artifacts(results: Results) -> Markup:
    caption = "What the composed model is made of. The digests name the exact bytes in the registry."
    lock = json.dumps(results.lockfile, indent=2, ensure_ascii=False)
    digests = folded("Digests in full", digests_table(results))
    lockfile = folded("Lockfile", element("pre", lock, tabindex="0"))
    return section("Trunk, modules and routers", caption, modules_table(results), digests, lockfile)


def _words() -> Markup:
    terms = [join(element("dt", word), element("dd", meaning)) for word, meaning in _WORDS]
    return element("section", element("h2", "Words"), element("dl", terms))
