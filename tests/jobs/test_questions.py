"""`moe-lab train` and `moe-lab route-report` on somebody's outcome table, through the command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.errors import LabError
from moe_lab.jobs.questions import find_table, finished_results, load_question_router
from moe_lab.lab import find_lab, init_lab
from moe_lab.questions.results import RouteResults
from moe_lab.registry import Registry
from tests.questions.synthetic import word_table

OUTCOMES = """
kind: outcomes
name: words
items: {path: words.csv}
text: [question]
group: half
cost_unit: cents
candidates:
  - {name: small, cost: 1}
  - {name: large, cost: 10}
"""
ROUTER = """
kind: question_router
name: toys/words
licence: Apache-2.0
table: words
features: {buckets: 1024}
neighbours: 10
iterations: 10
penalty: 1.0
resamples: 30
prices: 16
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab with a table of 300 questions, on which a router was trained."""
    lab = init_lab(tmp_path_factory.mktemp("questions") / "lab")
    (lab / "configs" / "outcomes").mkdir(parents=True)
    table = word_table(300)
    assert table.text_N is not None
    with (lab / "configs" / "outcomes" / "words.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "half", "small", "large", "middle"])
        for text, group, scores in zip(table.text_N, table.group_N, table.outcome_NC.tolist(), strict=True):
            writer.writerow([text, table.groups[group], *scores, scores[1]])
    (lab / "configs" / "outcomes" / "words.yaml").write_text(OUTCOMES)
    (lab / "configs" / "words-router.yaml").write_text(ROUTER)
    assert main(["--lab", str(lab), "train", "words-router"]) == 0
    return lab


def run_folder(lab: Path) -> Path:
    [folder] = lab.glob("runs/question_router-toys-words-*")
    return folder


def events(lab: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (lab / "runs" / "ledger.jsonl").read_text().splitlines()]


def test_the_same_config_and_table_are_already_done(trained_lab: Path, capsys: Capture) -> None:
    before = events(trained_lab)
    stamp = (run_folder(trained_lab) / "route-results.json").stat().st_mtime_ns
    assert main(["--lab", str(trained_lab), "train", "words-router"]) == 0
    assert events(trained_lab) == before == ["started", "finished"]
    assert (run_folder(trained_lab) / "route-results.json").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(["--lab", str(trained_lab), "runs"]) == 0
    listed = capsys.readouterr().out
    assert "question_router" in listed
    assert "toys/words" in listed


def test_the_kept_router_routes_as_a_file(trained_lab: Path) -> None:
    result = json.loads((run_folder(trained_lab) / "result.json").read_text())
    router = load_question_router(Registry(run_folder(trained_lab) / "candidate", create=False), result["candidate"])
    table = word_table(50, seed=5)
    choice = router.route(table, 0.2)
    assert table.text_N is not None
    gained = np.array(["algebra" in text for text in table.text_N])
    assert router.mode == "learned"
    assert (choice == 1)[gained].mean() > 0.9
    assert (choice == 1)[~gained].mean() < 0.1


def test_the_report_is_one_page_that_fetches_nothing(trained_lab: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report"
    assert main(["--lab", str(trained_lab), "route-report", run_folder(trained_lab).name, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "microseconds a question" in printed
    page = (out / "route-report.html").read_text()
    assert not re.search(r"<script|<link|src=|@import|url\(https?:", page)
    for told in (
        "zero router",
        "group table",
        "difficulty alone",
        "oracle",
        "microseconds",
        "CPT(50%)",
        "left",
        "right",
    ):
        assert told in page
    assert page.count("<svg") >= 2
    results = RouteResults.model_validate_json((out / "route-results.json").read_text())
    apgr = {f.role: f.value for f in results.figures if f.metric == "APGR"}
    assert apgr["zero_router"] == pytest.approx(0.5)
    assert apgr["difficulty"] < apgr["routed"] < apgr["oracle"]
    assert results.items == 300


def test_the_report_of_a_config_trains_what_is_not_trained(trained_lab: Path, tmp_path: Path) -> None:
    lab, out = str(trained_lab), str(tmp_path / "report")
    command = ["--lab", lab, "route-report", "words-router", "name=toys/other", "head=difficulty", "--out", out]
    assert main(command) == 0
    [folder] = trained_lab.glob("runs/question_router-toys-other-*")
    assert finished_results(folder).head == "difficulty"
    own, baseline = (finished_results(f).figure("APGR") for f in (run_folder(trained_lab), folder))
    assert own is not None
    assert baseline is not None
    assert baseline < own


def test_it_is_published_like_any_router_but_not_composed(trained_lab: Path) -> None:
    assert main(["--lab", str(trained_lab), "train", "words-router", "--publish"]) == 0
    registry = Registry(find_lab(str(trained_lab)).registry_path)
    manifest = registry.manifest(registry.resolve("toys/words").digest)
    assert manifest["kind"] == "router"
    assert [candidate["name"] for candidate in manifest["interface"]["candidates"]] == ["small", "large"]


def test_another_table_is_another_run(trained_lab: Path) -> None:
    first, _ = find_table(find_lab(str(trained_lab)), "words", trained_lab)
    path = trained_lab / "configs" / "outcomes" / "words.csv"
    text = path.read_text()
    try:
        path.write_text(text.replace(",0.0,", ",1.0,", 1))
        assert find_table(find_lab(str(trained_lab)), "words", trained_lab)[0].digest != first.digest
    finally:
        path.write_text(text)


JOIN = """
kind: question_join
name: toys/three
licence: Apache-2.0
extends: {extends}
table: middle
"""
MIDDLE = """
kind: outcomes
name: middle
items: {path: middle.csv}
text: [question]
cost_unit: UNIT
candidates:
  - {name: middle, column: large, cost: 4}
"""


ALL = OUTCOMES.replace("name: words", "name: all") + "  - {name: middle, cost: 4}\n"


@pytest.mark.slow
def test_a_candidate_joins_on_twenty_questions(trained_lab: Path, capsys: Capture) -> None:
    folder = trained_lab / "configs" / "outcomes"
    (folder / "middle.csv").write_text("\n".join((folder / "words.csv").read_text().split("\n")[:21]))
    (folder / "middle.yaml").write_text(MIDDLE.replace("UNIT", "cents"))
    config = trained_lab / "configs" / "three.yaml"
    config.write_text(JOIN.format(extends=run_folder(trained_lab).name))
    assert main(["--lab", str(trained_lab), "train", "three", "--publish"]) == 0
    assert "middle joins on 20 items" in capsys.readouterr().err
    registry = Registry(find_lab(str(trained_lab)).registry_path)
    digest = registry.resolve("toys/three").digest
    assert [card["name"] for card in registry.manifest(digest)["interface"]["candidates"]] == [
        "small",
        "large",
        "middle",
    ]
    joined, table = load_question_router(registry, digest), word_table(60, seed=7)
    first = json.loads((run_folder(trained_lab) / "result.json").read_text())["candidate"]
    router = load_question_router(Registry(run_folder(trained_lab) / "candidate", create=False), first)
    np.testing.assert_array_equal(joined.predict(joined.read(table))[:, :2], router.predict(router.read(table)))
    # Without the others' outcomes there is nothing to compare; with them there is a report.
    [folder_made] = trained_lab.glob("runs/question_join-toys-three-*")
    assert main(["--lab", str(trained_lab), "route-report", folder_made.name]) == 2
    assert "name such a table as measured_on" in capsys.readouterr().err
    (folder / "all.yaml").write_text(ALL)
    assert main(["--lab", str(trained_lab), "route-report", "three", "name=toys/measured", "measured_on=all"]) == 0
    assert "middle joined on 20 items and gets" in capsys.readouterr().out
    [folder_made] = trained_lab.glob("runs/question_join-toys-measured-*")
    assert finished_results(folder_made).left_out == 20
    assert finished_results(folder_made).items == 300
    assert "What joined" in (folder_made / "route-report.html").read_text()
    # A published router is extended by its name; what is known already cannot join again.
    config.write_text(JOIN.format(extends="toys/three"))
    assert main(["--lab", str(trained_lab), "train", "three"]) == 2
    assert "the router knows middle already" in capsys.readouterr().err
    (folder / "middle.yaml").write_text(MIDDLE.replace("UNIT", "dollars"))
    assert main(["--lab", str(trained_lab), "train", "three"]) == 2
    assert 'costs are in "dollars", those of toys/three in "cents"' in capsys.readouterr().err


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="holds no finished question router"):
        finished_results(tmp_path)


def test_the_report_names_the_licences_and_has_its_figures_as_tables(trained_lab: Path) -> None:
    page = (run_folder(trained_lab) / "route-report.html").read_text()
    parts = page[page.index('<th scope="col">part</th>') :]
    assert "<td>toys/words</td><td>Apache-2.0</td>" in parts
    assert "<td>table words</td><td>none stated</td>" in parts
    assert page.count("The same points as a table") == 2
    assert not re.search(r'class="drawing scroll"(?![^>]*tabindex="0")', page)
