"""What people write to name a domain's text and a tokenizer. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from moe_lab.config.spec import Spec
from moe_lab.data.exercises import FAMILY_NAMES, FamilyName


def _named(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("is empty; name at least one")
    if len(set(value)) < len(value):
        raise ValueError("names something twice; name each once")
    return value


# Not `min_length`: pydantic reports that too when an element is wrong, because it counts what is left.
Named = AfterValidator(_named)


class SourceSpec(Spec):
    """What every source has.

    Attributes:
        max_bytes: takes whole documents, in an order made from their content, until the next would pass this
            many bytes. Counted before repeated lines are dropped. None takes all.
    """

    max_bytes: int | None = Field(default=None, ge=1)


class FilesSource(SourceSpec):
    """UTF-8 text files, one document each. Globs are relative to the folder of the YAML file."""

    type: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], Named]
    exclude: tuple[str, ...] = ()


class JsonlSource(SourceSpec):
    """JSON Lines; the text is in `column`. `path` may be a glob, relative to the folder of the YAML file."""

    type: Literal["jsonl"] = "jsonl"
    path: str = Field(min_length=1)
    column: str = "text"


class ParquetSource(SourceSpec):
    """Parquet; the text is in `column`. `path` may be a glob, relative to the folder of the YAML file."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(min_length=1)
    column: str = "text"


class StdlibSource(SourceSpec):
    """The `.py` files of the running interpreter's own library."""

    type: Literal["stdlib"] = "stdlib"
    exclude_tests: bool = True


class PydocSource(SourceSpec):
    """The help topics that come with Python: technical English about the language."""

    type: Literal["pydoc"] = "pydoc"


class PackageSource(SourceSpec):
    """Files of an installed top-level package, which is found without importing it."""

    type: Literal["package"] = "package"
    name: str = Field(min_length=1)
    globs: Annotated[tuple[str, ...], Named]
    exclude: tuple[str, ...] = ()


class ReadmesSource(SourceSpec):
    """The long descriptions of installed distributions: technical English.

    Attributes:
        distributions: whose; empty reads those of all that are installed, whatever they are.
    """

    type: Literal["readmes"] = "readmes"
    distributions: tuple[str, ...] = ()


class ExercisesSource(SourceSpec):
    """Generated exercises of exact difficulty; see `moe_lab.data.exercises` for the level of each family.

    Attributes:
        families: kinds of exercise, all by default.
        levels: difficulties, each from 1 to 9.
        count: items drawn for each family and level; a family that has fewer distinct ones gives those.
        seed: of the draw.
    """

    type: Literal["exercises"] = "exercises"
    families: Annotated[tuple[FamilyName, ...], Named] = FAMILY_NAMES
    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=9)], ...], Named] = (1, 2, 3, 4)
    count: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)


AnySource = (
    FilesSource
    | JsonlSource
    | ParquetSource
    | StdlibSource
    | PydocSource
    | PackageSource
    | ReadmesSource
    | ExercisesSource
)
Source = Annotated[AnySource, Field(discriminator="type")]


class DataSpec(Spec):
    """One domain: where its text comes from and how much of it is held out.

    Attributes:
        name: lowercase; the domain's name in reports.
        sources: read one after the other; their order changes nothing.
        heldout: share of the documents kept from training, half for validation and half for test.
        longest_document: bytes; a longer text is cut at line ends into documents of at most that many. Lower
            it if a split stays empty; raise it beyond the longest file to split by whole files.
    """

    kind: Literal["data"] = "data"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    sources: Annotated[tuple[Source, ...], Named]
    heldout: float = Field(default=0.1, gt=0, le=0.5)
    longest_document: int = Field(default=8192, ge=1024)


class ByteTokenizerSpec(Spec):
    """Every byte of UTF-8 is a token."""

    type: Literal["byte"] = "byte"


class HFTokenizerSpec(Spec):
    """A Hugging Face `tokenizer.json`.

    Attributes:
        path: the file, relative to the folder of the YAML file.
        eos: text of the token that ends a document; None looks for the usual ones.
        start: text of the token that stands in front of a document, where that is not the end of the one before.
    """

    type: Literal["hf"] = "hf"
    path: str = Field(min_length=1)
    eos: str | None = None
    start: str | None = Field(default=None, exclude_if=lambda token: token is None)


TokenizerSpec = Annotated[ByteTokenizerSpec | HFTokenizerSpec, Field(discriminator="type")]


DataRef = str | DataSpec
"""A domain: the name of a file in `configs/data/` (or a path to one), or the domain itself."""


class DataShare(Spec):
    """One domain of a mixture; weights are relative."""

    domain: DataRef
    weight: Annotated[float, Field(gt=0)] = 1.0
