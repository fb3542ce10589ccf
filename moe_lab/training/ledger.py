"""The ledger of a runs folder: one appended line per event, folded into one record per run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, Literal

from moe_lab.files import append_line, read_lines
from moe_lab.training.clock import utc_now
from moe_lab.training.lock import ProcessIdentity, is_held

LEDGER = "ledger.jsonl"
RESULT = "result.json"
LOCK = "lock"

Event = Literal["started", "resumed", "finished", "failed", "interrupted"]
Status = Literal["running", "finished", "failed", "interrupted"]
_WHOLE = {"time", "event", "run", "pid", "process_started", "host"}


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
    """Why the last attempt failed, or what interrupted it."""
    result: dict[str, Any] | None = None
    """What a finished run was finished with."""


def read_result(folder: Path) -> dict[str, Any] | None:
    """Returns what a run folder's `result.json` holds; None if there is none, or none that can be read."""
    try:
        result = json.loads((folder / RESULT).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def record_event(runs_dir: Path, event: Event, **fields: Any) -> None:
    """Appends one event with the time and the process that it comes from."""
    line = {"time": utc_now(), "event": event, **fields, **dataclasses.asdict(ProcessIdentity.current())}
    append_line(runs_dir / LEDGER, json.dumps(line, allow_nan=False))


def read_ledger(runs_dir: Path) -> list[RunRecord]:
    """Returns one record per run in the order in which the runs were first started."""
    events: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(runs_dir / LEDGER), start=1):
        if line is None or not line.keys() >= _WHOLE:
            warnings.warn(f"{runs_dir / LEDGER}:{number}: a torn line, skipped", stacklevel=2)
            continue
        events.setdefault(line["run"], []).append(line)
    return [_fold(runs_dir, run, lines) for run, lines in events.items()]


def _fold(runs_dir: Path, run: str, events: list[dict[str, Any]]) -> RunRecord:
    first, last = events[0], events[-1]
    status, reason, result = _state(runs_dir / run, last)
    return RunRecord(
        run=run,
        kind=first.get("kind", ""),
        name=first.get("name", ""),
        status=status,
        started=first["time"],
        updated=last["time"],
        attempts=sum(event["event"] in ("started", "resumed") for event in events),
        seconds=sum(event.get("seconds", 0.0) for event in events),
        reason=reason,
        result=result,
    )


def _state(folder: Path, last: dict[str, Any]) -> tuple[Status, str | None, dict[str, Any] | None]:
    """Returns the state of a run whose newest event is `last`, the reason, and the result."""
    result = read_result(folder)
    # A process killed between writing the result and the ledger's last line has finished its run.
    if result is not None:
        return "finished", None, result
    if (folder / RESULT).exists():
        return "interrupted", f"{RESULT} is empty or broken", None
    if last["event"] in ("failed", "interrupted", "finished"):
        return last["event"], last.get("reason"), None
    process = ProcessIdentity(pid=last["pid"], process_started=last["process_started"], host=last["host"])
    running = is_held(folder / LOCK) or not process.is_gone()
    return ("running" if running else "interrupted"), last.get("reason"), None
