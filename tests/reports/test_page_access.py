"""Pages can be read on 400 pixels, without a pointer, light or dark: held by text and styles, without a browser."""

from __future__ import annotations

import re

import pytest

from moe_lab.evaluation.results import Results
from moe_lab.reports.colours import DARK, DARK_STRENGTHS, LIGHT, LIGHT_STRENGTHS, TINT_STRENGTH, Palette
from moe_lab.reports.composed_report import render_report
from moe_lab.reports.draw_curve import _limits, outside_of_curve
from moe_lab.reports.findings import findings
from moe_lab.reports.matrix_view import Matrix
from moe_lab.reports.wording import count, share
from tests.reports.test_report import Page, contrast

READABLE = 4.5  # WCAG 2.2, 1.4.3
PALETTES = pytest.mark.parametrize(
    ("palette", "strengths"), [(LIGHT, LIGHT_STRENGTHS), (DARK, DARK_STRENGTHS)], ids=["light", "dark"]
)


def over(colour: str, ground: str, strength: float) -> str:
    """A colour of some strength laid over a ground."""
    channels = ((int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(strength * a + (1 - strength) * b):02x}" for a, b in channels)


@pytest.fixture(scope="module")
def html(synthetic_results: Results) -> str:
    return render_report(synthetic_results)


@pytest.fixture(scope="module")
def rules(html: str) -> list[tuple[str, str]]:
    styles = re.sub(r"/\*.*?\*/", "", Page(html).styles())
    return re.findall(r"([^{}]+)\{([^{}]*)\}", styles)


@PALETTES
def test_text_can_be_read_on_every_ground(palette: Palette, strengths: tuple[float, float]) -> None:
    grounds = [palette["page"], palette["panel"]]
    assert contrast(palette["page"], palette["ink"]) > READABLE
    for text in ("ink", "muted"):
        assert all(contrast(palette[text], ground) >= READABLE for ground in grounds), text
    tints = [over(palette[name], palette["panel"], TINT_STRENGTH) for name in ("better", "worse")]
    hues = [name for name in palette if name == "learned" or name.startswith("module-")]
    tints += [over(palette[hue], palette["page"], strengths[1]) for hue in hues]
    assert min(contrast(palette["ink"], tint) for tint in tints) >= READABLE


@PALETTES
def test_the_narrowest_width_is_seen(palette: Palette, strengths: tuple[float, float]) -> None:
    least = 1.5 if palette is DARK else 1.2
    for hue in (name for name in palette if name == "learned" or name.startswith("module-")):
        assert contrast(over(palette[hue], palette["page"], strengths[0]), palette["page"]) >= least, hue


def test_no_text_is_fainter_than_muted_or_half_transparent(rules: list[tuple[str, str]]) -> None:
    for selector, body in rules:
        colours = re.findall(r"(?<![\w-])color: *var\(--([\w-]+)\)", body)
        assert set(colours) <= {"ink", "muted", "page"}, selector
        assert "page" not in colours or "background: var(--ink)" in body, selector
        assert "opacity" not in body or "input" in selector, selector


def test_nothing_outside_of_a_scrolling_box_is_wider_than_400_pixels(rules: list[tuple[str, str]]) -> None:
    scrolled = (".drawing svg", ".headline td", ".heat", ".matrix")
    for selector, body in rules:
        if selector.strip().startswith(scrolled):
            continue
        for least in re.findall(r"min-width: *([\d.]+)rem|minmax\(([\d.]+)rem", body):
            assert float(least[0] or least[1]) * 16 < 400 - 2 * 16, selector
    assert "minmax(min(25rem, 100%), 1fr)" in "".join(body for _, body in rules)


def test_what_a_pointer_shows_is_shown_on_focus_and_stands_in_a_table(
    html: str, rules: list[tuple[str, str]], synthetic_results: Results
) -> None:
    page = Page(html)
    assert not [tag for tag, attributes in page.tags if "title" in attributes]
    tipped = [attributes for _, attributes in page.tags if "data-tip" in attributes]
    assert tipped
    assert all("tabindex" in attributes for attributes in tipped)
    hover = [selector for selector, _ in rules if ":hover" in selector and "::after" in selector and "content" in _]
    assert hover
    assert all(":focus" in selector for selector in hover)
    assert all(a.get("tabindex") == "0" for _, a in page.tags if "scroll" in (a.get("class") or "").split())
    for entry in synthetic_results.routing:
        if entry.share:
            cells = (entry.module or "trunk alone", count(entry.width), share(entry.share))
            row = "".join(f"<td>{cell.replace('<', '&lt;')}</td>" for cell in cells)
            assert f'<span class="name">{entry.domain}</span></td>{row}' in html
    for sample in synthetic_results.samples:
        for module, width in set(zip(sample.module, sample.width, strict=True)):
            assert f"</code></td><td>{module or 'trunk alone'}</td><td>{count(width)}</td>" in html
    for module in synthetic_results.modules:
        for part in (module, *module.parents):
            assert f"<code>{part.digest}</code>" in html


def test_one_strong_module_does_not_bleach_the_other_columns(synthetic_results: Results) -> None:
    def improved(domain: str, factor: float) -> Results:
        cells = [
            cell.model_copy(
                update={
                    "bits_per_byte": cell.bits_per_byte.model_copy(
                        update={name: getattr(cell.bits_per_byte, name) * factor for name in ("low", "mean", "high")}
                    )
                }
            )
            if cell.domain == domain and cell.system != "trunk"
            else cell
            for cell in synthetic_results.matrix
        ]
        return synthetic_results.model_copy(update={"matrix": cells})

    before, after = Matrix(synthetic_results), Matrix(improved("python", 0.1))
    for domain in before.domains:
        tints = [before.tint(row.cells[domain]) for row in before.rows]
        assert min(tints) == pytest.approx(-1), "the best of each column has the full colour"
        if domain != "python":
            assert [after.tint(row.cells[domain]) for row in after.rows] == tints


def test_the_oracle_does_not_rule_the_axis(synthetic_results: Results) -> None:
    def lowered(by: float) -> Results:
        curves = [
            curve.model_copy(
                update={
                    "points": [
                        point.model_copy(
                            update={
                                "bits_per_byte": point.bits_per_byte.model_copy(
                                    update={n: getattr(point.bits_per_byte, n) - by for n in ("low", "mean", "high")}
                                )
                            }
                        )
                        for point in curve.points
                    ]
                }
            )
            if curve.role == "oracle"
            else curve
            for curve in synthetic_results.curves
        ]
        return synthetic_results.model_copy(update={"curves": curves})

    far = lowered(100)
    assert _limits(far) == _limits(lowered(200))
    assert _limits(far)[0] > 0
    assert "oracle" in outside_of_curve(far)
    assert "Runs out of the figure: oracle" in render_report(far)


def test_every_part_has_a_licence(synthetic_results: Results) -> None:
    trunk = synthetic_results.trunk.model_copy(update={"licence": "CC0-1.0"})
    routers = [router.model_copy(update={"licence": "MIT-0"}) for router in synthetic_results.routers]
    html = render_report(synthetic_results.model_copy(update={"trunk": trunk, "routers": routers}))
    for licence in ("CC0-1.0", "MIT-0", "Apache-2.0"):
        assert f"<td>{licence}</td>" in html
    assert render_report(synthetic_results).count("<td>none stated</td>") == 1 + len(routers)


def test_tiles_say_what_was_compared(synthetic_results: Results) -> None:
    told = " ".join(finding.headline for finding in findings(synthetic_results))
    assert "than the bare trunk" in told
    assert "best single candidate" not in told
