"""The HTML page: whole, harmless, self-contained, and showing what is in the results."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from moe_lab.evaluation.results import Results
from moe_lab.reports.colours import DARK, LIGHT, MODULE_HUES
from moe_lab.reports.composed_report import render_report, write_report
from moe_lab.reports.wording import bits, count, percent, span

HOSTILE = '</style></pre><script>alert("1")</script><img src=x onerror=alert(2)>\'$a_1$&amp;'
VOID = {"meta", "input"}


class Page(HTMLParser):
    """All elements, attributes and texts of a page; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all_text(self) -> str:
        return "".join(text for tag, text in self.texts if tag != "style")

    def styles(self) -> str:
        return "".join(text for tag, text in self.texts if tag == "style")


@pytest.fixture(scope="module")
def html(synthetic_results: Results) -> str:
    return render_report(synthetic_results)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def assert_loads_nothing(page: Page, html: str) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {
        "script",
        "link",
        "iframe",
        "img",
        "image",
        "object",
        "embed",
        "base",
        "form",
        "foreignobject",
    }
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith("#")
            assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", value or ""))
    assert "@import" not in page.styles()
    assert "url(" not in page.styles()
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert html.index("Content-Security-Policy") < html.index("<style")


def test_is_one_file_that_loads_nothing(page, html):
    assert html.startswith("<!doctype html>\n<html")
    assert_loads_nothing(page, html)


def test_text_from_the_results_stays_text(synthetic_results):
    data = synthetic_results.model_dump(mode="json")
    text = str(data).replace("'python'", repr(HOSTILE)).replace("'snakes/python'", repr("evil/" + HOSTILE))
    data = eval(text, {"nan": None})
    data["name"] = data["trunk"]["ref"] = data["routers"][0]["label"] = data["curves"][0]["label"] = HOSTILE
    data["modules"][0] |= {"licence": HOSTILE, "owner": HOSTILE, "ref": HOSTILE, "digest": HOSTILE}
    data["lockfile"] = {HOSTILE: [HOSTILE]}
    data["samples"][0] |= {"pieces": [HOSTILE], "module": ["evil/" + HOSTILE], "width": [128]}
    data["exact_match"][5] |= {"system": "alone", "module": "evil/" + HOSTILE}
    html = render_report(Results.model_validate(data))
    page = Page(html)
    assert_loads_nothing(page, html)
    shown = [text for _, text in page.texts]
    assert HOSTILE in shown
    assert page.all_text().count(HOSTILE) >= 10
    tips = [attributes["data-tip"] for _, attributes in page.tags if "data-tip" in attributes]
    assert f"evil/{HOSTILE}, width 128" in tips


def test_shows_every_figure_with_its_interval(page, synthetic_results):
    text = page.all_text()
    for cell in synthetic_results.matrix:
        assert bits(cell.bits_per_byte.mean) in text
        assert span(cell.bits_per_byte) in text
    for entry in synthetic_results.acceptance:
        assert percent(entry.gap_to_best_percent) in text
        assert entry.best_single.name in text
    for module in synthetic_results.modules:
        assert module.ref in text
        assert count(module.parameters) in text
    for curve in synthetic_results.curves:
        assert curve.label in text


def test_a_sample_reads_as_the_text_it_was_cut_from(html, synthetic_results):
    for sample, shown in zip(
        synthetic_results.samples, re.findall(r'<div class="text">(.*?)</div>', html, re.S), strict=True
    ):
        page = Page(f"<div>{shown}</div>")
        assert page.all_text() == "".join(sample.pieces)
        tips = [attributes["data-tip"] for tag, attributes in page.tags if tag == "span"]
        assert tips == [
            "trunk alone" if module is None else f"{module}, width {count(width)}"
            for module, width in zip(sample.module, sample.width, strict=True)
        ]


def test_a_wider_piece_has_a_stronger_colour(html, synthetic_results):
    strength = {int(rank): float(alpha) for rank, alpha in re.findall(r"\.w(\d+)\{--a:([\d.]+)\}", html)}
    widths = sorted({width for sample in synthetic_results.samples for width in sample.width})
    assert len(strength) == len(widths)
    assert strength[0] == 0
    assert list(strength.values()) == sorted(set(strength.values()))


def test_control_characters_are_shown_not_swallowed(synthetic_results):
    sample = synthetic_results.samples[0].model_copy(
        update={"pieces": ["a\x00b", "\r\n"], "module": [None, None], "width": [0, 0]}
    )
    html = render_report(synthetic_results.model_copy(update={"samples": [sample]}))
    assert ">a\u2400b</span>" in html
    assert ">\u240d\n</span>" in html


def test_what_was_not_measured_is_left_out(synthetic_results):
    lists = ("acceptance", "matrix", "exact_match", "curves", "routing", "samples")
    empty: dict[str, list] = {name: [] for name in lists}
    html = render_report(synthetic_results.model_copy(update=empty))
    assert Page(html).all_text().count("Trunk, modules and routers") == 1
    assert "<svg" not in html
    for title in ("Does composing work?", "Quality against compute", "Exercises by level", "Texts, piece"):
        assert title not in html


def test_is_the_same_text_every_time(html, synthetic_results, tmp_path):
    file = write_report(synthetic_results, tmp_path / "new" / "report.html")
    assert file.read_text(encoding="utf-8") == html


def test_every_colour_it_uses_is_defined_in_light_and_dark(html, page):
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    defined = set(re.findall(r"--([\w-]+):", page.styles())) | {"a", "hue"}
    assert used - defined == set()
    assert {f"module-{hue}" for hue in range(MODULE_HUES)} <= LIGHT.keys()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(palette):
    page = palette["page"]
    assert contrast(palette["ink"], page) > 12
    assert contrast(palette["muted"], page) > 4.5
    assert contrast(palette["faint"], page) > 3
    for name in ("learned", "second", "third", "group", "uniform", "oracle", "zero"):
        assert contrast(palette[name], page) > 3, name
    strongest = {"better": 0.7, "worse": 0.7, "learned": 0.62}
    strongest |= {f"module-{hue}": 0.62 for hue in range(MODULE_HUES)}
    for name, strength in strongest.items():
        mixed = [
            round(strength * int(palette[name][i : i + 2], 16) + (1 - strength) * int(page[i : i + 2], 16))
            for i in (1, 3, 5)
        ]
        assert contrast(palette["ink"], "#{:02x}{:02x}{:02x}".format(*mixed)) > 3.5, name


def test_importing_the_report_imports_no_matplotlib():
    code = (
        "import sys, moe_lab.reports.composed_report, moe_lab.evaluation.curves;"
        "print([name for name in ('matplotlib', 'jax', 'flax', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
