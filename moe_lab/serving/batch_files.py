"""What batches leave on the disk: uploaded files, the state of each batch, and its results line by line.

A result is appended by one write once it is there. So after a kill the files themselves say what is done; at most their
last lines are torn, and those are dropped. All names are made here: what a client sends is never a path.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import ValidationError

from moe_lab.config.spec import Spec
from moe_lab.errors import Damaged, LabError, NotFound
from moe_lab.files import append_line, claim, explain_full_disk, open_replacement, sync, write_json
from moe_lab.serving.bodies import BatchBody, BatchLine, Endpoint, Metadata, read_body

MOST_LINES = 50_000
"""Of one file; as OpenAI's."""
MOST_LINE_BYTES = 1 << 20
_FILE_ID = re.compile("file-[0-9a-f]{32}")
_BATCH_ID = re.compile("batch_[0-9a-f]{32}")


class StoredFile(Spec):
    """A file that clients know: one that they sent, or the results of a batch.

    Attributes:
        filename: as the client calls it; nothing here is called so.
        created_at: seconds since 1970.
    """

    id: str
    filename: str
    purpose: Literal["batch", "batch_output"]
    bytes: int
    created_at: int

    def as_json(self) -> dict[str, Any]:
        """OpenAI's file."""
        return {"object": "file", "status": "processed", **self.model_dump()}


class Batch(Spec):
    """The state of a batch.

    Attributes:
        composition: digest of the lockfile whose model answers it.
        total: lines of the input file.
        completed, failed: lines that were answered and refused; known once the batch has ended.
        output_file, error_file: where their results go.
        created_at, cancelling_at, ended_at: seconds since 1970.
    """

    id: str
    endpoint: Endpoint
    input_file_id: str
    completion_window: str
    metadata: Metadata | None
    composition: str
    status: Literal["in_progress", "completed", "cancelling", "cancelled"] = "in_progress"
    total: int
    completed: int = 0
    failed: int = 0
    output_file: str
    error_file: str
    created_at: int
    cancelling_at: int | None = None
    ended_at: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.ended_at is not None

    def as_json(self, completed: int, failed: int, trouble: str | None) -> dict[str, Any]:
        """OpenAI's batch.

        Args:
            completed: lines that were answered so far.
            failed: lines that were refused so far.
            trouble: why it does not go on, if it does not.
        """
        errors = {"object": "list", "data": [{"code": "waiting", "message": trouble, "line": None, "param": None}]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors if trouble else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file if self.ended and self.completed else None,
            "error_file_id": self.error_file if self.ended and self.failed else None,
            "created_at": self.created_at,
            "in_progress_at": self.created_at,
            "completed_at": self.ended_at if self.status == "completed" else None,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.ended_at if self.status == "cancelled" else None,
            "request_counts": {"total": self.total, "completed": completed, "failed": failed},
            "metadata": self.metadata,
        }


@dataclass
class Done:
    """The lines of a batch that have a result, by their names."""

    completed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.completed or name in self.failed


class BatchFolder:
    """A folder of files and batches.

    Args:
        path: made once there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep_upload(self, data: BinaryIO, filename: str) -> StoredFile:
        """Keeps what a client sent, under an id of its own.

        Args:
            data: to be read from here on.
            filename: as the client calls it.

        Raises:
            Unavailable: the disk is full.
        """
        number = f"file-{uuid.uuid4().hex}"
        with self._explain_full_disk():
            with open_replacement(self._lines(number)) as file:
                shutil.copyfileobj(data, file)
            return self._keep_file(number, filename, "batch")

    def file(self, number: str) -> StoredFile:
        """What is known of a file.

        Raises:
            NotFound: there is none of this id.
            Damaged: it is not as it was written.
        """
        if not _FILE_ID.fullmatch(number) or not self._state(number).exists():
            raise NotFound(f'there is no file "{number[:60]}"; POST /v1/files takes one and tells its id')
        return _read_state(self._state(number), StoredFile)

    def content(self, number: str) -> Path:
        """Where a file's bytes lie.

        Raises:
            NotFound: there is none of this id.
        """
        return self._lines(self.file(number).id)

    def check(self, asked: BatchBody) -> int:
        """The number of lines that a batch has.

        Raises:
            NotFound: there is no such file.
            LabError: a line is not one of a batch of this endpoint, or has the name of another.
        """
        names: dict[str, int] = {}
        for number, _, data in numbered_lines(self.content(asked.input_file_id)):
            line = _read_line(number, data, asked.endpoint)
            earlier = names.setdefault(line.custom_id, number)
            if earlier != number:
                raise LabError(f"line {number}: its custom_id is that of line {earlier}; give each line one of its own")
            if len(names) > MOST_LINES:
                raise LabError(f"line {number}: a batch has {MOST_LINES:,} lines at most; make several of this one")
        if not names:
            raise LabError("the file has no lines; write one request on each")
        return len(names)

    def make(self, asked: BatchBody, composition: str) -> Batch:
        """Checks the file and keeps a batch of its lines.

        Raises:
            NotFound: there is no such file.
            LabError: a line is not one of a batch of this endpoint, or has the name of another.
        """
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            **asked.model_dump(),
            composition=composition,
            total=self.check(asked),
            output_file=f"file-{uuid.uuid4().hex}",
            error_file=f"file-{uuid.uuid4().hex}",
            created_at=int(time.time()),
        )
        self.keep(batch)
        return batch

    def keep(self, batch: Batch) -> None:
        """Writes the state of a batch in place of what it was.

        Raises:
            Unavailable: the disk is full.
        """
        with self._explain_full_disk():
            write_json(self._state(batch.id), batch.model_dump())

    def batch(self, number: str) -> Batch:
        """A batch as it was last written.

        Raises:
            NotFound: there is none of this id.
            Damaged: it is not as it was written.
        """
        if not _BATCH_ID.fullmatch(number) or not self._state(number).exists():
            raise NotFound(f'there is no batch "{number[:60]}"; GET /v1/batches lists those there are')
        return _read_state(self._state(number), Batch)

    def batches(self) -> list[Batch]:
        """All that can be read, the newest first."""
        found = []
        for path in self._path.glob("batch_*.json"):
            try:
                found.append(self.batch(path.stem))
            except (Damaged, NotFound):
                continue  # whoever asks for it by its id is told
        return sorted(found, key=lambda batch: (batch.created_at, batch.id), reverse=True)

    def claim(self, batch: Batch) -> BinaryIO | None:
        """The right to work on a batch, until it is closed or the process is gone; None if another has it."""
        return claim(self._path / f"{batch.id}.lock")

    def let_go(self, batch: Batch, right: BinaryIO) -> None:
        """Gives the right to work on a batch back, which has ended."""
        (self._path / f"{batch.id}.lock").unlink(missing_ok=True)
        right.close()

    def recover(self, batch: Batch) -> Done:
        """What is done of a batch; lines that a crash left torn are dropped from its files."""
        done = Done()
        for number, names in ((batch.output_file, done.completed), (batch.error_file, done.failed)):
            path = self._lines(number)
            if path.exists() and not _read_names(path, done, names):
                _drop_torn(path, names)
        return done

    def counts(self, batch: Batch) -> tuple[int, int]:
        """Lines of a batch that were answered and refused so far, as its files say."""
        if batch.ended:
            return batch.completed, batch.failed
        return _count_lines(self._lines(batch.output_file)), _count_lines(self._lines(batch.error_file))

    def left(self, batch: Batch, done: Done) -> list[int]:
        """Where in the input file the lines begin that have no result yet."""
        lines = numbered_lines(self.content(batch.input_file_id))
        return [first for _, first, data in lines if json.loads(data)["custom_id"] not in done]

    def line(self, batch: Batch, first: int) -> BatchLine:
        """The line of the input file that begins at this byte."""
        with self._lines(batch.input_file_id).open("rb") as file:
            file.seek(first)
            return read_body(file.readline(), BatchLine)

    def append(self, batch: Batch, result: dict[str, Any], *, failed: bool) -> None:
        """Appends the result of one line."""
        append_line(self._lines(batch.error_file if failed else batch.output_file), json.dumps(result, allow_nan=False))

    def sync_results(self, batch: Batch) -> None:
        """Makes the results survive a power cut."""
        for number in (batch.output_file, batch.error_file):
            if self._lines(number).exists():
                sync(self._lines(number))

    def end(self, batch: Batch) -> None:
        """Keeps a batch that has ended, its results first: who sees the one finds the others."""
        for number, lines, name in (
            (batch.output_file, batch.completed, "output"),
            (batch.error_file, batch.failed, "error"),
        ):
            if lines:
                self._keep_file(number, f"{batch.id}_{name}.jsonl", "batch_output")
        self.keep(batch)

    def _keep_file(self, number: str, filename: str, purpose: Literal["batch", "batch_output"]) -> StoredFile:
        size = self._lines(number).stat().st_size
        kept = StoredFile(id=number, filename=filename, purpose=purpose, bytes=size, created_at=int(time.time()))
        write_json(self._state(number), kept.model_dump())
        return kept

    def _explain_full_disk(self) -> contextlib.AbstractContextManager[None]:
        return explain_full_disk(self._path, lambda: "keeps what is already there")

    def _state(self, number: str) -> Path:
        return self._path / f"{number}.json"

    def _lines(self, number: str) -> Path:
        return self._path / f"{number}.jsonl"


def numbered_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file that are not blank: number from 1, place of the first byte, bytes.

    Raises:
        LabError: one is longer than a request may be.
    """
    number = first = 0
    with path.open("rb") as file:
        while data := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(data) > MOST_LINE_BYTES:
                raise LabError(f"line {number} has more than {MOST_LINE_BYTES:,} bytes; ask for less in one line")
            if data.strip():
                yield number, first, data
            first += len(data)


def _read_line(number: int, data: bytes, endpoint: Endpoint) -> BatchLine:
    try:
        line = read_body(data, BatchLine, "the line")
    except LabError as error:
        raise type(error)(f"line {number}: {error}") from None
    if line.url != endpoint:
        raise LabError(f"line {number}: its url is {json.dumps(line.url[:60])}, and the batch is one for {endpoint}")
    return line


AnyState = TypeVar("AnyState", bound=Spec)


def _read_state(path: Path, kind: type[AnyState]) -> AnyState:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(f"{path} is not as it was written ({error.errors()[0]['msg']}); delete it") from None


def _read_names(path: Path, done: Done, names: set[str]) -> bool:
    """Adds the names of a file's results; False if there are lines that hold none, or one that is there already."""
    whole = True
    with path.open("rb") as file:
        for data in file:
            name = _name_in(data)
            if name is None or name in done:
                whole = False
            else:
                names.add(name)
    return whole


def _drop_torn(path: Path, names: set[str]) -> None:
    """Leaves one line for each of these names."""
    left = set(names)
    with path.open("rb") as old, open_replacement(path) as new:
        for data in old:
            name = _name_in(data)
            if name in left:
                left.remove(name)
                new.write(data.rstrip(b"\n") + b"\n")


def _name_in(data: bytes) -> str | None:
    """Whose result a line is; None if it is torn."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    name = value.get("custom_id") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
