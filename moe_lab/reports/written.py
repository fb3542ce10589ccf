"""The reports there are, by what they are made from. A new one is a file beside this one and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moe_lab.reports.composed_report import write_report
from moe_lab.reports.pictures import write_picture
from moe_lab.reports.plan_picture import write_plan_picture
from moe_lab.reports.route_report import write_route_report


@dataclasses.dataclass(frozen=True)
class Report:
    """A page or picture of one kind of results.

    Attributes:
        name: what the run's result calls it.
        file: its name in the run folder.
        write: called with the results and the path; returns the path.
    """

    name: str
    file: str
    write: Callable[[Any, Path], Path]


EVALUATION_REPORTS = (Report("report", "report.html", write_report), Report("picture", "picture.png", write_picture))
QUESTION_REPORTS = (Report("report", "route-report.html", write_route_report),)
PLAN_REPORTS = (Report("picture", "plan.svg", write_plan_picture),)


def write_reports(reports: Sequence[Report], results: Any, folder: Path) -> dict[str, Path]:
    """Writes all of them into a folder; returns where each lies by its name."""
    return {report.name: report.write(results, folder / report.file) for report in reports}
