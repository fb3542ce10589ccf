"""What the report of a question router says where candidates joined it."""

from __future__ import annotations

from moe_lab.questions.results import CurveRole, NewcomerRow, RouteResults
from moe_lab.reports.markup import Content, Markup, element, join
from moe_lab.reports.page import note, section
from moe_lab.reports.route_cells import number, table
from moe_lab.reports.wording import count, counted, share

Words = tuple[tuple[str, str], ...]

CURVES = (
    "Each line is one router at every price. Further left is cheaper, higher is better. The thick line is the router "
    "with the newcomer, the line before joining the same router without it: where the two part, the newcomer is "
    "given questions. The lower panel shows what the router gains over dice at equal cost."
)
LEGEND: dict[CurveRole, str] = {
    "routed": "may choose the newcomer; with its 95% interval",
    "group_table": "best candidate of each group, as the router's means say",
}
_WORDS = {
    "left out": "A question that the newcomer joined on is predicted by a fit to its other questions alone.",
    "before joining": (
        "The same router, which may not choose the newcomer. What it says of the other candidates is the same to the "
        "last bit, so the two differ by the newcomer alone."
    ),
    "group table": (
        "One candidate for each group and price, the best by the means that the router keeps: those of its training, "
        "and for the newcomer what its own questions make of them."
    ),
    "zero router": (
        "Throws dice between the candidates that are best by the means that the router keeps. A router that is not "
        "above it has learnt nothing of use."
    ),
    "deferral area": (
        "The mean height of the curve as it is drawn, from the cost of the cheapest candidate that was there before to "
        "that of the dearest of all. Its difference to another router's is what is gained at equal cost."
    ),
    "AIQ": (
        "The same of the concave hull of the curve. The hull picks the prices that did best on the very questions it "
        "counts, so it is no policy that could have been run, and finds gains in noise."
    ),
}
_NOT_THERE = ("out of fold", "APGR", "CPT(x)")


def joined_section(results: RouteResults) -> Markup:
    """A row for each newcomer: what it was given, what that said of it, and the questions it gets."""
    caption = (
        "What each newcomer was given to join, how good it was said to be before and after, and the share of the "
        "report's questions that the router sends to it. The losses are of one of its questions: joining helps where "
        "the second is the lower one."
    )
    heads = (
        "newcomer",
        "questions it joined on",
        "quality on them",
        "predicted from its card",
        "predicted with them",
        "loss from its card",
        "loss from the others of them",
        f"share of questions at price {results.shown_price:.4g}",
        "greatest share at any price",
    )
    above, below, of = results.beside("before")
    beside = note(
        f"At {above} of {of} of the costs that it had before, the whole 95% interval of this router minus itself "
        f"without the newcomer lies above zero, at {below} below."
    )
    return section("What joined", caption, table(heads, [_row(row) for row in results.newcomers]), beside)


def joined_words(words: Words) -> Words:
    """The glossary, with what reads otherwise where candidates joined."""
    kept = {word: meaning for word, meaning in words if word not in _NOT_THERE}
    return tuple((kept | _WORDS).items())


def measured_how(results: RouteResults) -> str:
    """How the questions were kept apart from what the newcomers joined on."""
    if not results.left_out:
        return "none of which a newcomer joined on"
    return f"{count(results.left_out)} of which newcomers joined on, each predicted with itself left out"


def made_caption(results: RouteResults) -> str:
    """What running the router takes."""
    cost = results.router_cost
    return (
        f"Nothing but the newcomer was measured or trained. Running the router takes "
        f"{cost.microseconds_per_question:,.1f} microseconds a question, text included, measured on one batch of "
        f"{counted(cost.questions_per_batch, 'question')}; it has {count(cost.parameters)} parameters."
    )


def _row(row: NewcomerRow) -> tuple[Content, ...]:
    most = element("small", f"at price {row.greatest_share_price:.4g}")
    within = element("small", f"{share(row.share.low)} to {share(row.share.high)}")
    return (
        element("span", row.name, class_="name"),
        count(row.items),
        *(
            number(value)
            for value in (row.measured, row.by_card, row.by_items, row.loss_by_card, row.loss_by_other_items)
        ),
        join(share(row.share.mean), within),
        join(share(row.greatest_share), most),
    )
