"""The tables of reports: each is written beside the results that it is made from, and a new one is one line."""

from __future__ import annotations

from pathlib import Path

from moe_lab.evaluation.results import Results
from moe_lab.files import write_text
from moe_lab.reports.written import EVALUATION_REPORTS, PLAN_REPORTS, QUESTION_REPORTS, Report, write_reports


def write_names(results: Results, path: Path) -> Path:
    write_text(path, "\n".join(candidate.name for candidate in results.candidates))
    return path


def test_a_report_more_is_one_function_and_one_line(synthetic_results: Results, tmp_path: Path) -> None:
    written = write_reports(
        (*EVALUATION_REPORTS, Report("names", "names.txt", write_names)), synthetic_results, tmp_path
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.txt", "picture.png", "report.html"]
    assert written["names"].read_text().splitlines() == [c.name for c in synthetic_results.candidates]


def test_reports_of_one_kind_of_results_do_not_overwrite_each_other() -> None:
    for reports in (EVALUATION_REPORTS, QUESTION_REPORTS, PLAN_REPORTS):
        assert len({report.name for report in reports}) == len({report.file for report in reports}) == len(reports)
