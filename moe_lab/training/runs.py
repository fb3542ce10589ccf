"""A run: the folder of one config with one set of inputs, found again by the same command."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_lab.config import fingerprint, to_yaml
from moe_lab.errors import Interrupted, LabError, classify
from moe_lab.files import explain_full_disk, is_full_disk, write_json, write_text
from moe_lab.training.clock import utc_now
from moe_lab.training.ledger import LOCK, RESULT, Event, read_result, record_event
from moe_lab.training.lock import RunLock
from moe_lab.training.processes import first_goes_first, is_first, together
from moe_lab.training.provenance import changes, environment, git_state
from moe_lab.training.seal import CHECKPOINTS, sealed_steps

_SHORT = 8
_NOT_IN_FOLDER_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Run:
    """One run folder, open for this process alone until it ends. Made by `open_run`, used in a `with` block.

    Leaving the block with an exception records the failure; leaving it without a result is a failure too.

    Attributes:
        path: the folder. `fit` keeps `checkpoints/` and `metrics.jsonl` in it; the caller may add files.
        kind, name: what the run makes, as given to `open_run`.
        fingerprint: sha256 of kind, name, config and inputs; its first digits end the folder's name.
        notes: what changed on this machine since the run began, for the person who resumes it.
    """

    def __init__(
        self, path: Path, kind: str, name: str, full_fingerprint: str, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.path = path
        self.kind = kind
        self.name = name
        self.fingerprint = full_fingerprint
        self.notes: list[str] = []
        self._say = say
        self._lock = RunLock(path / LOCK)
        self._opened = time.monotonic()
        self._open = False

    @property
    def done(self) -> dict[str, Any] | None:
        """The result of the finished run; None while there is none that can be read."""
        return read_result(self.path)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result and ends the run: from now on `done` answers for the same config and inputs."""
        assert self._open, "a run is finished once, by the process that opened it"
        with explain_full_disk(self.path, lambda: "goes on from the newest checkpoint"):
            if is_first():
                write_json(self.path / RESULT, result)
            self._close("finished")
        together(f"finished {self.path.name}")

    def fail(self, reason: str) -> None:
        """Ends this attempt; the next `open_run` for the same config and inputs resumes it."""
        self._give_up("failed", reason)

    def _give_up(self, event: Event, reason: str) -> None:
        assert self._open, "a run fails once, in the process that opened it"
        try:
            self._close(event, reason=" ".join(reason.split()))
        except OSError as error:
            # A full disk cannot take the line either, and the error that led here is on its way to the user.
            if not is_full_disk(error):
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if error is None:
            self.fail("ended without a result")
        elif isinstance(error, LabError):
            self.fail(str(error))
        elif isinstance(error, (Interrupted, KeyboardInterrupt)):
            if not getattr(error, "kept", ""):
                error.add_note(f"{self.kind} {self.name} {self._goes_on()}")
            self._give_up("interrupted", str(error) or "SIGINT")
        else:
            self.fail(f"{type(error).__name__}: {error}".removesuffix(": "))

    def _goes_on(self) -> str:
        step = max(sealed_steps(self.path / CHECKPOINTS), default=None)
        return "starts over" if step is None else f"goes on from step {step}"

    def _begin(self, resolved: dict[str, Any], inputs: dict[str, str]) -> None:
        """Takes the lock and brings the folder's descriptions up to date."""
        if not is_first():
            self._open = True
            return
        self._lock.acquire()
        try:
            if self.done is not None:  # the process that held the lock a moment ago has finished the run
                self._lock.release()
                return
            self._open = True
            if (self.path / RESULT).exists():
                self._say(f"{self.path / RESULT} is empty or broken: this run is not finished; it {self._goes_on()}")
            resumed = (self.path / "run.json").exists()
            if not resumed:
                write_text(self.path / "config.yaml", to_yaml(resolved))
            self._describe_machine()
            if not resumed:
                write_json(self.path / "run.json", self._identity() | {"inputs": inputs, "created": utc_now()})
            self._record("resumed" if resumed else "started", changed=self.notes)
        except BaseException:
            self._open = False
            self._lock.release()
            raise

    def _describe_machine(self) -> None:
        """Writes where this attempt runs, and notes what differs from the attempt before."""
        file, now = self.path / "environment.json", environment()
        if file.exists():
            changed = changes(_read_facts(file), now)
            if changed:
                self.notes.append(f"changed since the last attempt, so bits may differ: {', '.join(changed)}")
        write_json(file, now)
        write_json(self.path / "git.json", git_state(Path.cwd()))

    def _identity(self) -> dict[str, str]:
        return {"kind": self.kind, "name": self.name, "fingerprint": self.fingerprint}

    def _record(self, event: Event, **fields: Any) -> None:
        present = {key: value for key, value in fields.items() if value}
        record_event(self.path.parent, event, run=self.path.name, **self._identity(), **present)

    def _close(self, event: Event, **fields: Any) -> None:
        self._open = False
        if not is_first():
            return
        try:
            self._record(event, seconds=round(time.monotonic() - self._opened, 3), **fields)
        finally:
            self._lock.release()


def _read_facts(file: Path) -> dict[str, Any]:
    """Returns what an earlier attempt ran on; nothing if the file broke, for it only describes and is written anew."""
    try:
        facts = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _say_on_stderr(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def open_run(
    runs_dir: Path | str,
    kind: str,
    name: str,
    resolved: dict[str, Any],
    inputs: dict[str, str],
    *,
    begin: bool = True,
    say: Callable[[str], None] = _say_on_stderr,
) -> Run:
    """Opens the run of a config, new or begun before, for this process alone.

    A run that is done comes back with `done` set, unlocked, and nothing is recorded.

    Args:
        runs_dir: the folder of all runs and of their ledger; made if it is missing.
        kind: what the run makes, such as `trunk`.
        name: the name of what it makes; `owner/name` is fine.
        resolved: the whole config as JSON-able values. Any change makes another run.
        inputs: digests of what the run reads (data, trunk, ...). Any change makes another run.
        begin: False only looks whether the run is done, and touches nothing.
        say: told when the folder holds a result that cannot be read; by default it goes to standard error.

    Raises:
        LabError: another process works on this run, or the folder cannot be written.
    """
    identity = fingerprint({"kind": kind, "name": name, "config": resolved, "inputs": inputs})
    slug = _NOT_IN_FOLDER_NAMES.sub("-", name)
    folder = Path(runs_dir).absolute() / f"{kind}-{slug}-{identity[:_SHORT]}"
    run = Run(folder, kind, name, identity, say)
    try:
        with (
            explain_full_disk(folder, lambda: "goes on from the newest checkpoint, if there is one"),
            first_goes_first(f"opened {folder.name}"),
        ):
            if begin and run.done is None:
                folder.mkdir(parents=True, exist_ok=True)
                run._begin(resolved, inputs)
    except OSError as error:
        raise classify(error)(
            f"{error.filename or folder}: {error.strerror}; the runs folder must be one that you may write to"
        ) from error
    return run
