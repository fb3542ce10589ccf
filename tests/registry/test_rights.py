"""Missing rights are told with the file or folder that has them, not with a bare name or the registry's folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe_lab.errors import LabError
from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, fields, tensors

_NOBODY = 65534


@contextmanager
def without_rights(path: Path, mode: int) -> Iterator[None]:
    """As a user to whom a mode means something: for root it does not."""
    before, user = path.stat().st_mode, os.geteuid()
    path.chmod(mode)
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(before)


@pytest.fixture
def open_root(root: Path) -> Path:
    """A registry that everybody may enter and write, with one artifact whose modules Python has loaded already."""
    registry = Registry(root)
    registry.publish("team", "part", None, fields(), tensors(1, 1), BLOCKS)
    registry.list()
    registry.verify()
    for folder in (root, root.parent, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o777)
    return root


@pytest.mark.parametrize(
    ("place", "mode", "call"),
    [
        ("refs/team", 0o000, lambda registry: registry.list()),
        ("refs/team/part", 0o000, lambda registry: registry.resolve("team/part")),
        ("refs/team/part", 0o000, lambda registry: registry.manifest("team/part@1")),
        ("refs/team/part/1", 0o000, lambda registry: registry.manifest("team/part@1")),
        ("manifests", 0o000, lambda registry: registry.manifest("team/part@1")),
    ],
)
def test_what_may_not_be_read_is_named_in_full(open_root: Path, place: str, mode: int, call) -> None:
    with without_rights(open_root / place, mode), pytest.raises(LabError) as refused:
        call(Registry(open_root, create=False))
    assert "Permission denied" in str(refused.value)
    assert str(open_root / place) in str(refused.value)


@pytest.mark.parametrize("place", ["refs/team/part", "tmp"])
def test_what_may_not_be_written_is_named_in_full(open_root: Path, place: str) -> None:
    with without_rights(open_root / place, 0o555), pytest.raises(LabError) as refused:
        Registry(open_root, create=False).publish("team", "part", None, fields(), tensors(2, 1), BLOCKS)
    assert f"Permission denied: {open_root / place}" in str(refused.value)
