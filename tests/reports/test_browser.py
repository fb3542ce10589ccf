"""Reports and pictures as a browser shows them: nothing runs out of a window, all text is read, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_lab.config import load_config
from moe_lab.evaluation.results import Results
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.model import model_of_spec
from moe_lab.planning.plan import Plan
from moe_lab.planning.spec import PlanSpec
from moe_lab.planning.topologies import parse_topology
from moe_lab.registry import LineageNode, lineage_svg
from moe_lab.reports.composed_report import render_report
from moe_lab.reports.plan_picture import write_plan_picture
from moe_lab.reports.route_report import render_route_report
from tests.browser import CONTRASTS, Browser, open_browser
from tests.questions.test_joined import joined, measure
from tests.reports.test_page_access import READABLE

pytestmark = pytest.mark.slow
PAGES, PICTURES = ("composed.html", "joined.html"), ("lineage.svg", "plan.svg")
LONG = "a-team-with-a-long-name/a-module-with-a-name-of-sixty-three-letters-without-a-space"
OUTSIDE = """[...document.querySelectorAll('svg > svg')].flatMap(box => {
  const frame = box.querySelector('rect').getBoundingClientRect();
  return [...box.querySelectorAll('text')].filter(text => {
    const r = text.getBoundingClientRect();
    return r.left < frame.left || r.right > frame.right || r.top < frame.top || r.bottom > frame.bottom;
  }).map(text => text.textContent);
})"""

# Whether each name of a module lies within the bar that is behind it.
BARS = """Object.fromEntries([...document.querySelectorAll('text')].flatMap(text => {
  const r = text.getBoundingClientRect();
  const stack = document.elementsFromPoint(r.x + r.width / 2, r.y + r.height / 2);
  const bar = stack.find(e => e instanceof SVGGeometryElement);
  if (!/^[a-z-]+[0-9]?-[0-9]+$/.test(text.textContent) || !bar) return [];
  const frame = bar.getBoundingClientRect();
  return [[text.textContent, frame.left <= r.left && r.right <= frame.right]];
}))"""


def lineage() -> LineageNode:
    """Two generations with names and summaries as long as people write them, and one that is not there."""

    def node(number: int, kind: str) -> LineageNode:
        summary = f"{kind} {number}, of which there is more to say than fits into a line or two of a box"
        return LineageNode(f"{LONG}-{number}@1", f"sha256-{number:064x}", "module", kind=kind, summary=summary)

    root, trunk = node(0, "router"), node(4, "trunk")
    root.parents.append(trunk)
    for number in (1, 2):
        root.parents.append(module := node(number, "module"))
        module.parents.append(trunk)
    root.parents.append(LineageNode("far/away@1", "sha256-" + "f" * 64, "module", problem="bring it here by mirror"))
    return root


def planned(folder: Path) -> Plan:
    """A plan whose program was never compiled."""
    config = folder / "plan.yaml"
    widths = [("of-a-team-with-a-long-name", 32768), *((f"size{n}", 32768 + 4096 * n) for n in range(1, 6))]
    config.write_text(
        "kind: plan\nname: tiny\nseq_len: 256\ntrunk: {vocab_size: 2048, d_model: 2048, num_layers: 2, num_heads: 4, "
        "ffn_width: 1024, routed_layers: [0, 1]}\nmodules:\n"
        + "".join(f"  - {{name: {name}, count: 2, width: {width}}}\n" for name, width in widths)
    )
    spec, topology = load_config(config, kind="plan"), parse_topology("v5e:2x2")
    assert isinstance(spec, PlanSpec)
    model = model_of_spec(spec)
    mesh = model.choose_mesh(topology)
    own = {"trunk": model.trunk_bytes, "pools": model.pool_bytes // mesh.expert}
    size = sum(own.values())
    result = Compiled(
        seconds=1.0,
        argument_bytes=size,
        output_bytes=0,
        alias_bytes=0,
        temporary_bytes=0,
        peak_bytes=size + size // 8,
        flops_loops_once=1.0,
        collectives=(),
    )
    return Plan(
        model=model,
        topology=topology,
        mesh=mesh,
        rows=16,
        placements=model.place(mesh.expert, 0.1),
        expected_rows=100,
        budget=140,
        backend="ragged",
        own_bytes=own,
        result=result,
        layer=None,
        changes=(),
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def folder(synthetic_results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages and pictures; names of modules and candidates are long ones."""
    folder = tmp_path_factory.mktemp("pages")
    made, measured = joined()
    (folder / "joined.html").write_text(render_route_report(measure(made, measured)).replace(">m2<", f">{LONG}<"))
    (folder / "composed.html").write_text(render_report(synthetic_results).replace("snakes/python", LONG))
    (folder / "lineage.svg").write_text(lineage_svg(lineage()))
    write_plan_picture(planned(folder), folder / "plan.svg")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_report_fits_into_a_window_and_all_its_text_is_read(
    browser: Browser, folder: Path, page: str, scheme: str
) -> None:
    for width in (1400, 800, 400):
        browser.show(folder / page, width, scheme)
        texts = browser.run(CONTRASTS)
        assert len(texts) > 100
        assert [(text, ratio) for text, ratio in texts if ratio < READABLE] == []
        assert browser.run("document.documentElement.scrollWidth") <= width, width
        assert browser.run("document.querySelectorAll('[title]').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("picture", PICTURES)
def test_all_text_of_a_picture_is_read(browser: Browser, folder: Path, picture: str, scheme: str) -> None:
    browser.show(folder / picture, 2000, scheme)
    texts = browser.run(CONTRASTS)
    assert len(texts) > 20
    assert [(text, ratio) for text, ratio in texts if ratio < READABLE] == []


def test_what_a_box_of_a_lineage_says_is_whole_without_pointing_at_it(browser: Browser, folder: Path) -> None:
    browser.show(folder / "lineage.svg", 2000, "light")
    assert browser.run(OUTSIDE) == []
    said = browser.run(
        "[...document.querySelectorAll('svg > svg')].map(box => "
        "[...box.querySelectorAll('text')].map(text => text.textContent).join(''))"
    )
    for node in (root := lineage(), *root.parents):
        for text in (node.ref, node.digest, node.summary, node.problem or ""):
            assert any(text.replace(" ", "") in box.replace(" ", "") for box in said), text


def test_no_name_of_a_plan_runs_over_the_next_device(browser: Browser, folder: Path) -> None:
    browser.show(folder / "plan.svg", 2000, "light")
    inside = browser.run(BARS)
    assert {name.rpartition("-")[0] for name in inside} >= {f"size{n}" for n in range(1, 6)}
    assert [name for name, fits in inside.items() if not fits] == []
