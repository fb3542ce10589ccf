"""Where the tokens go: shares by domain, and texts coloured piece by piece, with buttons but no script."""

from __future__ import annotations

from moe_lab.evaluation.results import Results, RoutingShare, Sample
from moe_lab.reports.colours import DARK_STRENGTHS, LIGHT_STRENGTHS, Scale
from moe_lab.reports.markup import Markup, element, join
from moe_lab.reports.page import folded
from moe_lab.reports.report_tables import pieces_table, routing_table
from moe_lab.reports.wording import count, share

_LABELLED_FROM = 0.06


def routing_bars(results: Results) -> Markup:
    """One bar for each domain, cut by module (hue) and width (strength)."""
    scale = Scale(results)
    bars = []
    for domain in results.domains:
        shares = [entry for entry in results.routing if entry.domain == domain.name and entry.share > 0]
        shares.sort(key=lambda entry: _place(entry, scale))
        if shares:
            segments = [_segment(entry, scale) for entry in shares]
            name = element("div", domain.name, class_="name")
            bars.append(element("div", name, element("div", segments, class_="bar"), class_="route"))
    table = folded("The same shares as a table", routing_table(results))
    return join(_module_legend(scale, "legend"), element("div", bars, class_="routes"), table)


def sample_texts(results: Results) -> Markup:
    """Each sample as running text; the buttons choose whether colour shows the width or the module."""
    scale = Scale(results)
    return element(
        "div",
        _switch("view-width", "colour by width", chosen=True),
        _switch("view-module", "colour by module", chosen=False),
        _width_legend(scale),
        _module_legend(scale, "legend by-module"),
        [_sample(sample, scale) for sample in results.samples],
        class_="samples",
    )


def scale_rules(scale: Scale) -> Markup:
    """CSS that gives each width its strength; hues are the page's variables."""
    light, dark = (
        "".join(f".w{i}{{--a:{scale.strength(width, ends):.3f}}}" for i, width in enumerate(scale.widths))
        for ends in (LIGHT_STRENGTHS, DARK_STRENGTHS)
    )
    rules = [light, f"@media (prefers-color-scheme: dark){{{dark}}}"]
    hues = {scale.hue(module) for module in scale.modules}
    rules += [f".m{hue}{{--hue:var(--module-{hue}-rgb)}}" for hue in sorted(h for h in hues if h is not None)]
    return Markup("".join(rules))


def _place(entry: RoutingShare, scale: Scale) -> tuple[int, int]:
    return (-1 if entry.module is None else scale.modules.index(entry.module), entry.width)


def _segment(entry: RoutingShare, scale: Scale) -> Markup:
    text = "trunk" if entry.module is None else count(entry.width)
    tip = f"{_tip(entry.module, entry.width)} · {share(entry.share)}"
    wide = entry.share >= _LABELLED_FROM
    return element(
        "span",
        text if wide else None,
        class_=_classes(entry.module, entry.width, scale),
        style=f"flex-grow:{entry.share:.5f}",
        data_tip=tip,
        role="img",
        aria_label=tip,
        # A sliver can be tapped but is no stop of the Tab key: with many modules there would be hundreds.
        tabindex="0" if wide else "-1",
    )


def _sample(sample: Sample, scale: Scale) -> Markup:
    mean = sum(sample.width) / max(len(sample.width), 1)
    pieces = [
        element(
            "span",
            piece,
            class_=_classes(module, width, scale) + (" nl" if "\n" in piece else ""),
            data_tip=_tip(module, width),
            tabindex="-1",
        )
        for piece, module, width in zip(sample.pieces, sample.module, sample.width, strict=True)
    ]
    title = element(
        "figcaption",
        element("b", sample.domain),
        f" {count(len(pieces))} pieces, mean width {count(round(mean))}",
    )
    table = folded("The same text as a table", pieces_table(sample))
    return element("figure", title, element("div", pieces, class_="text"), table, class_="sample")


def _classes(module: str | None, width: int, scale: Scale) -> str:
    hue = scale.hue(module)
    return f"w{scale.widths.index(width)}" + ("" if hue is None else f" m{hue}")


def _tip(module: str | None, width: int) -> str:
    return "trunk alone" if module is None else f"{module}, width {count(width)}"


def _switch(name: str, text: str, *, chosen: bool) -> Markup:
    button = element("input", type="radio", name="view", id=name, checked=chosen)
    return join(button, element("label", text, for_=name))


def _width_legend(scale: Scale) -> Markup:
    items = [
        element("li", element("i", class_=f"w{i}"), "0, trunk alone" if width == 0 else count(width))
        for i, width in enumerate(scale.widths)
    ]
    return element("ul", element("li", "width", class_="title"), items, class_="legend by-width")


def _module_legend(scale: Scale, class_: str) -> Markup:
    widest = f"w{len(scale.widths) - 1}"
    items = [element("li", element("i", class_=f"{widest} m{scale.hue(module)}"), module) for module in scale.modules]
    trunk = element("li", element("i", class_="w0"), "trunk alone")
    note = element("li", "stronger colour: wider", class_="title")
    return element("ul", items, trunk, note, class_=class_)
