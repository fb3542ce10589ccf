"""The ledger of a runs folder: one appended line per event, folded into one record per run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, Literal

from moe_lab.training.durable import append_line, read_lines, utc_now
from moe_lab.training.lock import ProcessIdentity

LEDGER = "ledger.jsonl"
RESULT = "result.json"

Event = Literal["started", "resumed", "finished", "failed", "interrupted"]
Status = Literal["running", "finished", "failed", "interrupted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the ledger knows of one run."""

    run: str
    """The name of the run's folder inside the runs folder."""
    kind: str
    name: str
    status: Status
    """`interrupted`: stopped by a signal, or begun, not ended, and its process is gone. A run on another host whose end
    nobody recorded counts as `running`."""
    started: str
    updated: str
    attempts: int
    """How often a process began to work on it."""
    seconds: float
    """Summed over the attempts that ended by themselves; what a killed attempt took is not known."""
    reason: str | None = None
    """Why the last attempt failed."""


def record_event(runs_dir: Path, event: Event, **fields: Any) -> None:
    """Appends one event with the time and the process that it comes from."""
    line = {"time": utc_now(), "event": event, **fields, **dataclasses.asdict(ProcessIdentity.current())}
    append_line(runs_dir / LEDGER, json.dumps(line, allow_nan=False))


def read_ledger(runs_dir: Path) -> list[RunRecord]:
    """Returns one record per run in the order in which the runs were first started."""
    events: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(runs_dir / LEDGER), start=1):
        if line is None or "event" not in line or "run" not in line:
            warnings.warn(f"{runs_dir / LEDGER}:{number}: a torn line, skipped", stacklevel=2)
            continue
        events.setdefault(line["run"], []).append(line)
    return [_fold(runs_dir, run, lines) for run, lines in events.items()]


def _fold(runs_dir: Path, run: str, events: list[dict[str, Any]]) -> RunRecord:
    first, last = events[0], events[-1]
    return RunRecord(
        run=run,
        kind=first.get("kind", ""),
        name=first.get("name", ""),
        status=_status(runs_dir / run, last),
        started=first["time"],
        updated=last["time"],
        attempts=sum(event["event"] in ("started", "resumed") for event in events),
        seconds=sum(event.get("seconds", 0.0) for event in events),
        reason=last.get("reason"),
    )


def _status(folder: Path, last: dict[str, Any]) -> Status:
    """Returns the state of a run whose newest event is `last`."""
    if last["event"] in ("failed", "interrupted"):
        return last["event"]
    # A process killed between writing the result and the ledger's last line has finished its run.
    if last["event"] == "finished" or (folder / RESULT).exists():
        return "finished"
    process = ProcessIdentity(pid=last["pid"], process_started=last["process_started"], host=last["host"])
    return "interrupted" if process.is_gone() else "running"
