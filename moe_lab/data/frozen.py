"""Text of the environment, kept as it was first read: installing a package must not make another domain of it.

One file for each source, gzip of one JSON object `{"documents": [[label, text], ...]}`, beside the runs that learned
from it. To read the text anew, delete the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_lab.data.documents import Document
from moe_lab.data.spec import AnySource, PackageSource, PydocSource, ReadmesSource, StdlibSource
from moe_lab.errors import Damaged, classify
from moe_lab.files import write_bytes

ENVIRONMENT = (StdlibSource, PydocSource, PackageSource, ReadmesSource)
"""Sources whose text is that of the interpreter and of what is installed."""


@dataclass(frozen=True)
class FrozenText:
    """A folder of frozen text.

    Attributes:
        folder: where the files are; made when needed.
        note: is told of each file that is made.
    """

    folder: Path
    note: Callable[[str], None] = lambda _: None

    def documents(self, source: AnySource, read: Iterable[Document]) -> list[Document]:
        """The source's whole texts: those that were kept, or else those of `read`, which are kept from now on.

        Raises:
            LabError: the file cannot be written, or it is damaged.
        """
        path = self.path(source)
        if not path.exists():
            data = json.dumps({"documents": [[document.source, document.text] for document in read]}).encode()
            _write(path, gzip.compress(data, compresslevel=6, mtime=0))
            digest = hashlib.sha256(data).hexdigest()
            self.note(f"text of {source.type} kept in {path} (sha256-{digest[:12]}); delete the file to read it anew")
        return _read(path)

    def path(self, source: AnySource) -> Path:
        """The file of a source. How much of the text is taken (`max_bytes`) makes no other file."""
        settings = source.model_dump(mode="json", exclude={"max_bytes"})
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{source.type}-{digest[:16]}.json.gz"


def _read(path: Path) -> list[Document]:
    try:
        pairs = json.loads(gzip.decompress(path.read_bytes()))["documents"]
        return [Document(text, label) for label, text in pairs]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: not whole ({error}); delete it to read the text anew") from error


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as error:
        raise classify(error)(
            f"cannot keep text in {path}: {error.strerror}; free some space or make it writable"
        ) from error
