"""Text of the environment stays as it was first read, until somebody says otherwise."""

from pathlib import Path

import pytest

from moe_lab.data import DataSpec, read_documents
from moe_lab.data.frozen import ENVIRONMENT, FrozenText
from moe_lab.data.spec import FilesSource, PackageSource, PydocSource, ReadmesSource, StdlibSource
from moe_lab.errors import LabError
from tests.data.distributions import install_distribution


def test_what_is_installed_later_changes_nothing_until_the_file_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, notes = DataSpec(name="d", sources=(ReadmesSource(),)), []
    frozen = FrozenText(tmp_path / "text", notes.append)
    install_distribution(tmp_path / "first", "first-thing", monkeypatch)
    first = read_documents(spec, tmp_path, frozen)
    assert first == read_documents(spec, tmp_path)
    install_distribution(tmp_path / "second", "second-thing", monkeypatch)
    assert read_documents(spec, tmp_path, frozen) == first
    assert read_documents(spec, tmp_path) != first
    path = frozen.path(ReadmesSource())
    [note] = notes
    assert note.startswith(f"text of readmes kept in {path} (sha256-")
    assert note.endswith("; delete the file to read it anew")
    path.unlink()
    assert read_documents(spec, tmp_path, frozen) == read_documents(spec, tmp_path)
    assert [file.name for file in (tmp_path / "text").iterdir()] == [path.name]


def test_a_cap_reads_the_same_file_and_other_settings_another(tmp_path: Path) -> None:
    frozen = FrozenText(tmp_path)
    assert frozen.path(StdlibSource(max_bytes=5)) == frozen.path(StdlibSource())
    others = (
        StdlibSource(),
        StdlibSource(exclude_tests=False),
        PydocSource(),
        ReadmesSource(),
        ReadmesSource(distributions=("numpy",)),
        PackageSource(name="numpy", globs=("*.h",)),
        PackageSource(name="numpy", globs=("*.py",)),
    )
    assert len({frozen.path(source) for source in others}) == len(others)
    assert {type(source) for source in others} == set(ENVIRONMENT)


def test_a_person_s_own_files_are_read_every_time(tmp_path: Path) -> None:
    spec, frozen = DataSpec(name="d", sources=(FilesSource(paths=("a.txt",)),)), FrozenText(tmp_path / "text")
    for text in ("one", "two"):
        (tmp_path / "a.txt").write_text(text)
        assert [document.text for document in read_documents(spec, tmp_path, frozen)] == [text]
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"text"])
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    spec, frozen = DataSpec(name="d", sources=(PydocSource(),)), FrozenText(tmp_path)
    read_documents(spec, tmp_path, frozen)
    path = frozen.path(PydocSource())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        LabError, match=r"source 1 \(pydoc\): .*pydoc-.*: not whole .*; delete it to read the text anew"
    ):
        read_documents(spec, tmp_path, frozen)
