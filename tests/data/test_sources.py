"""Each kind of source: what it reads, and what it says when it cannot."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.data import DataSpec, Document, read_documents
from moe_lab.data.spec import (
    AnySource,
    ExercisesSource,
    FilesSource,
    JsonlSource,
    PackageSource,
    ParquetSource,
    PydocSource,
    ReadmesSource,
    StdlibSource,
)
from moe_lab.errors import LabError


def domain(*sources: AnySource, **options: Any) -> DataSpec:
    return DataSpec(name="d", sources=sources, **options)


def read(base: Path, *sources: AnySource, **options: Any) -> list[Document]:
    return read_documents(domain(*sources, **options), base)


def by_source(documents: list[Document]) -> dict[str, str]:
    return {document.source: document.text for document in documents}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose import would fail."""
    folder = tmp_path / "site" / "noimport"
    (folder / "include").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "include" / "a.h").write_text("int a;\n")
    (folder / "include" / "old.h").write_text("int old;\n")
    (folder.parent / "single.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_files_are_relative_to_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("one\r\ntwo\rthree\n", newline="")
    (tmp_path / "notes" / "b.md").write_text("skipped\n")
    source = FilesSource(paths=("notes/*.md",), exclude=("notes/b.*",))
    assert by_source(read(tmp_path, source)) == {"files:notes/a.md": "one\ntwo\nthree\n"}


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "one", "n": 1}, {"text": "zwei\u2028é"}, {"text": None}, {"text": ""}]
    (tmp_path / "x.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert by_source(read(tmp_path, JsonlSource(path="x.jsonl"))) == {
        "jsonl:x.jsonl:1": "one",
        "jsonl:x.jsonl:3": "zwei\u2028é",
    }


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["one", None, "drei é"], pa.string()).cast(kind)
    pq.write_table(pa.table({"body": column, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    assert by_source(read(tmp_path, ParquetSource(path="*.parquet", column="body"))) == {
        "parquet:x.parquet:1": "one",
        "parquet:x.parquet:3": "drei é",
    }


def test_stdlib_leaves_out_tests_caches_and_other_sources(tmp_path: Path) -> None:
    documents = read(tmp_path, StdlibSource(), longest_document=10**9)
    names = {document.source for document in documents}
    assert {"stdlib:json/decoder.py", "stdlib:argparse.py"} <= names
    parts = {part for name in names for part in name.removeprefix("stdlib:").split("/")[:-1]}
    assert parts.isdisjoint({"test", "tests", "idle_test", "site-packages", "pydoc_data", "__pycache__"})
    assert all(name.endswith(".py") for name in names)
    assert not any("_sysconfigdata" in name for name in names)


def test_pydoc_and_readmes_are_english(tmp_path: Path) -> None:
    documents = read(tmp_path, PydocSource(), ReadmesSource())
    kinds = {document.source.split(":")[0] for document in documents}
    assert kinds == {"pydoc", "readmes"}
    assert any(document.source.startswith("readmes:numpy") for document in documents)
    assert sum(" the " in document.text for document in documents) > len(documents) / 2


def test_the_readme_of_the_distribution_that_is_imported_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, header in (("first", "\nthe first\n"), ("second", "Description: the second\n")):
        info = tmp_path / folder / "Some_Thing-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Some.Thing\n{header}")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / folder)])
    texts = by_source(read(tmp_path, ReadmesSource()))
    assert texts["readmes:some-thing"].strip() == "the first"


def test_the_readme_of_an_old_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "old-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 1.0\nName: old\nDescription: an old header\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert by_source(read(tmp_path, ReadmesSource()))["readmes:old"] == "an old header"


def test_named_distributions_are_read_and_no_others(tmp_path: Path) -> None:
    documents = read(tmp_path, ReadmesSource(distributions=("NumPy", "ml_dtypes")))
    assert {document.source for document in documents} == {"readmes:numpy", "readmes:ml-dtypes"}


def test_package_files_are_read_without_importing_it(tmp_path: Path, package: Path) -> None:
    source = PackageSource(name="noimport", globs=("include/**/*.h",), exclude=("**/old.h",))
    assert by_source(read(tmp_path, source)) == {"package:noimport/include/a.h": "int a;\n"}
    assert "noimport" not in sys.modules


def test_several_sources_make_one_domain_in_any_order(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"a line that both of these files have\n{name}\n")
    first, second = FilesSource(paths=("a.txt",)), FilesSource(paths=("b.txt",))
    documents = read(tmp_path, first, second)
    assert documents == read(tmp_path, second, first)
    assert sum("both of these" in document.text for document in documents) == 1
    assert {document.source for document in documents} == {"files:a.txt", "files:b.txt"}


@settings(max_examples=20)
@given(st.lists(st.text("abc\n", min_size=1, max_size=15), min_size=1, max_size=8, unique=True))
def test_a_document_is_in_the_same_split_with_and_without_others(tmp_path_factory, texts) -> None:
    folder = tmp_path_factory.mktemp("x")
    for count in (1, len(texts)):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in ["z", *texts[:count]])
        (folder / f"{count}.jsonl").write_text(rows)
    few = {d.text: d.split for d in read(folder, JsonlSource(path="1.jsonl"), heldout=0.5)}
    many = {d.text: d.split for d in read(folder, JsonlSource(path=f"{len(texts)}.jsonl"), heldout=0.5)}
    assert few.items() <= many.items()


def test_max_bytes_takes_whole_documents(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number:03}\n" * 25)
    few = read(tmp_path, FilesSource(paths=("*.txt",), max_bytes=1050))
    more = read(tmp_path, FilesSource(paths=("*.txt",), max_bytes=2000))
    assert len(few) == 10
    assert len(more) == 20
    assert by_source(few).items() <= by_source(more).items()


def test_long_files_are_cut(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"this is line {n} of the book\n" for n in range(2000)))
    documents = read(tmp_path, FilesSource(paths=("book.txt",)), longest_document=1024)
    assert len(documents) > 40
    assert all(len(document.text) <= 1024 for document in documents)
    assert {document.split for document in documents} == {"train", "validation", "test"}


def test_exercises_come_with_level_and_split(tmp_path: Path) -> None:
    documents = read(tmp_path, ExercisesSource(levels=(2,), count=100))
    assert {document.level for document in documents} == {2}
    assert {document.split for document in documents} == {"train", "validation", "test"}


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "tags": [["x"]]}), path)


def write_latin1_parquet(path: Path) -> None:
    """Arrow does not look at what it is told is text; the third row is none."""
    cells = pa.array([b"one", b"two", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"text": cells.view(pa.string())}), path, row_group_size=2)


BAD_SOURCES = [
    (FilesSource(paths=("none.txt",)), "none.txt does not exist"),
    (FilesSource(paths=("*.none",)), r"no file matches \*.none in .*relative to the folder of the YAML file"),
    (FilesSource(paths=("empty.txt",)), "holds no text"),
    (FilesSource(paths=("latin1.txt",)), "latin1.txt is not UTF-8: byte 2 is 0xe9"),
    (FilesSource(paths=("\0",)), "does not exist"),
    (FilesSource(paths=("x" * 300,)), "File name too long"),
    (
        FilesSource(paths=("good.jsonl",), max_bytes=3),
        r"max_bytes=3 is less than its first document \(17 bytes\)",
    ),
    (JsonlSource(path="none.jsonl"), "none.jsonl does not exist"),
    (JsonlSource(path="good.jsonl", column="txt"), 'good.jsonl:1: no column "txt". Did you mean "text"?'),
    (JsonlSource(path="number.jsonl"), 'number.jsonl:1: column "text" holds 5, not text'),
    (JsonlSource(path="broken.jsonl"), "broken.jsonl:2: not JSON"),
    (JsonlSource(path="list.jsonl"), "list.jsonl:1: a list, not an object"),
    (JsonlSource(path="surrogate.jsonl"), "surrogate.jsonl:1: half of a surrogate pair at character 1"),
    (JsonlSource(path="latin1.txt"), "latin1.txt is not UTF-8"),
    (ParquetSource(path="none.parquet"), "none.parquet does not exist"),
    (ParquetSource(path="x.parquet", column="bdy"), 'x.parquet: no column "bdy". Did you mean "body"?'),
    (ParquetSource(path="x.parquet", column="tags"), 'x.parquet: column "tags" holds list.*, not text'),
    (ParquetSource(path="good.jsonl"), "good.jsonl: not readable as Parquet"),
    (
        ParquetSource(path="latin1.parquet"),
        'latin1.parquet: column "text", row 3 is not UTF-8: byte 3 is 0xe9; write the file anew',
    ),
    (ParquetSource(path="twice.parquet"), 'twice.parquet: 2 columns are named "text"; rename all but one'),
    (
        ReadmesSource(distributions=("numpy", "some-thng")),
        "not installed: some-thng; install it or leave it out of `distributions`",
    ),
    (
        PackageSource(name="nunpy", globs=("*.h",)),
        '"nunpy" is not installed; install it. Did you mean "numpy"?',
    ),
    (PackageSource(name="numpy.core", globs=("*.h",)), 'package "numpy.core": give the name of a top-level'),
    (PackageSource(name="__main__", globs=("*.h",)), '"__main__" is'),
    (PackageSource(name="single", globs=("*.h",)), '"single" is a single module'),
    (PackageSource(name="noimport", globs=("*.h",)), r"no file of package noimport matches \['\*.h'\]"),
    (PackageSource(name="noimport", globs=("../*.py",)), 'glob "../\\*.py" leaves the package'),
    (PackageSource(name="noimport", globs=("/etc/*",)), 'glob "/etc/\\*" leaves the package'),
]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("source", "message"), BAD_SOURCES)
def test_bad_sources_say_what_is_wrong(tmp_path: Path, source: AnySource, message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin1").replace(b"f", b""))
    (tmp_path / "good.jsonl").write_text('{"text": "hello"}')
    (tmp_path / "number.jsonl").write_text('{"text": 5}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"text"\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "surrogate.jsonl").write_text('{"text": "a\\ud800"}\n')
    write_parquet(tmp_path / "x.parquet")
    write_latin1_parquet(tmp_path / "latin1.parquet")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(LabError, match=message) as caught:
        read(tmp_path, PydocSource(max_bytes=20_000), source)
    kind = source.model_dump()["type"]
    assert str(caught.value).startswith(f'data "d", source 2 ({kind}): ')
    assert "\n" not in str(caught.value)
