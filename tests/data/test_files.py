"""Globs and text files."""

from pathlib import Path

import pytest

from moe_lab.data.files import find_files, read_text
from moe_lab.errors import LabError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.txt",
        "b.md",
        "sub/c.txt",
        "sub/deep/d.txt",
        ".hidden/e.txt",
        "sub/.f.txt",
        "we[i]rd/g.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(root: Path, *patterns: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [str(path.relative_to(root)) for path in find_files(root, patterns, exclude)]


def test_globs(tree: Path) -> None:
    assert found(tree, "*.txt") == ["a.txt"]
    assert found(tree, "**/*.txt") == ["a.txt", "sub/c.txt", "sub/deep/d.txt", "we[i]rd/g.txt"]
    assert found(tree, "sub/*.txt", "b.md", "sub/c.txt") == ["b.md", "sub/c.txt"]
    assert found(tree, "sub/**") == ["sub/c.txt", "sub/deep/d.txt"]
    assert found(tree, "**/*.txt", exclude=("sub/**", "nothing/*")) == ["a.txt", "we[i]rd/g.txt"]
    assert found(tree, "we[i]rd/g.txt") == ["we[i]rd/g.txt"]
    assert found(tree, "*.rst") == []


def test_hidden_files_need_a_pattern_that_names_the_dot(tree: Path) -> None:
    assert found(tree, ".hidden/*.txt") == [".hidden/e.txt"]
    assert found(tree, "sub/.f.txt") == ["sub/.f.txt"]


def test_absolute_home_and_parent_patterns(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tree / "sub" / "deep"
    monkeypatch.setenv("HOME", str(tree))
    assert find_files(elsewhere, [f"{tree}/*.txt"]) == [tree / "a.txt"]
    assert find_files(elsewhere, ["~/*.txt"]) == [tree / "a.txt"]
    assert [path.resolve() for path in find_files(elsewhere, ["../../*.txt"])] == [tree / "a.txt"]


def test_a_root_with_wildcard_characters_is_taken_as_it_is(tree: Path) -> None:
    assert found(tree / "we[i]rd", "*.txt") == ["g.txt"]


def test_loops_of_links_end_and_a_file_counts_once(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree / "sub", target_is_directory=True)
    (tree / "self").symlink_to("self")
    (tree / "self.txt").symlink_to("self.txt")
    (tree / "twin.txt").symlink_to("a.txt")
    (tree / "gone.txt").symlink_to("nothing")
    assert found(tree, "**/*.txt") == ["a.txt", "sub/c.txt", "sub/deep/d.txt", "we[i]rd/g.txt"]
    assert found(tree, "sub/**/*.txt") == ["sub/c.txt", "sub/deep/d.txt"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", "none.txt does not exist; paths are relative to the folder of the YAML file"),
        ("sub", 'sub is a folder; name the files in it, e.g. "sub/\\*\\*/\\*.txt"'),
        ("sub/**.txt", '"sub/\\*\\*.txt": "\\*\\*" must be a whole path part'),
    ],
)
def test_bad_patterns(tree: Path, pattern: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        find_files(tree, [pattern])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\xff", "x.txt is not UTF-8: byte 3 is 0xff"),
        ("utf-16".encode("utf-16-le"), "x.txt holds NUL bytes"),
        (None, "cannot read .*x.txt: No such file"),
    ],
)
def test_unreadable_text(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "x.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(LabError, match=message):
        read_text(path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("é".encode("utf-8-sig"))
    assert read_text(path) == "é"
