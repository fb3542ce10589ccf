"""The fast listing shows what the full one shows, whatever is in the cache."""

import json
import os
import shutil

import pytest

import moe_lab.registry.catalogue as catalogue_module
from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry
from moe_lab.registry.catalogue import cache_file
from moe_lab.registry.read import read_manifest
from moe_lab.registry.refs import published, read_ref, retired_reason
from tests.registry.scenario import fields


@pytest.fixture
def many(root, monkeypatch):
    """Twelve versions; a cache is kept from ten new ones on."""
    monkeypatch.setattr(catalogue_module, "_WORTH_KEEPING", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    registry = Registry(root)
    for number in range(12):
        about = {"ladder": [64, number + 65]} if number % 2 else {}
        registry.publish("team", f"part{number % 5}", None, fields(summary=f"number {number}", **about), {})
    return registry


def rows(registry, **options):
    return [
        (row.ref, row.digest, row.kind, row.summary, row.ladder, row.retired, bool(row.problem))
        for row in registry.list(**options)
    ]


def full(registry):
    """The long way: every file of every version by its own name."""
    return [slow_row(registry.store, ref, last) for ref, last in published(registry.store)]


def slow_row(store, ref, last):
    digest, retired = "", None
    try:
        digest = read_ref(store, ref)
        retired = retired_reason(store, last)
        manifest = read_manifest(store, digest, str(ref))
    except LabError:
        return ref, digest, "", "", (), retired, True
    return ref, digest, manifest["kind"], manifest["summary"], tuple(manifest.get("ladder", ())), retired, False


def watch(registry):
    """Lists every file that is read through the store."""
    seen = []

    class Watched(LocalStore):
        def get(self, key, limit):
            seen.append(key)
            return super().get(key, limit)

    registry.store = Watched(registry.store.root)
    return seen


def test_it_shows_what_the_full_listing_shows_cold_and_warm(many, root):
    assert rows(many) == full(many)
    assert cache_file(many.store).is_file()
    many.retire("team/part1@2", "wrong")
    many.publish("team", "late", None, fields(), {})
    seen = watch(many)
    warm = rows(many)
    # One mark and one new manifest.
    assert len(seen) == 2
    assert warm == full(many)
    assert [row[5] for row in warm].count("wrong") == 1
    assert rows(many, cached=False) == warm
    (root / "refs/team/part0/1").unlink()
    assert rows(many) == full(many)


@pytest.mark.parametrize("what", ["manifest", "reference", "mark", "link", "stray", "folder", "large"])
def test_damage_is_shown_as_the_full_listing_shows_it(many, root, what):
    many.list()
    many.retire("team/part1@2", "wrong")
    one = root / "refs/team/part2/1"
    if what == "manifest":
        (root / "manifests" / f"{one.read_text().strip()}.json").unlink()
    elif what == "mark":
        (root / "refs/team/part1/2.retired-1").write_text("x")
    elif what == "stray":
        (root / "refs/team/part2/notes.txt").write_text("x")
        (root / "refs/notes").write_text("x")
    elif what == "link":
        one.rename(root / "elsewhere")
        one.symlink_to(root / "elsewhere")
    elif what == "folder":
        shutil.rmtree(root / "refs/team/part2")
        (root / "refs/team/part2").symlink_to(root / "refs/team/part1", target_is_directory=True)
    else:
        one.write_bytes(b"x" if what == "reference" else b"x" * 1000)
    assert [row[:1] + row[5:] for row in rows(many)] == [row[:1] + row[5:] for row in full(many)]


@pytest.mark.parametrize("harm", ["flip", "empty", "garbage", "folder"])
def test_a_spoilt_cache_is_read_anew(many, harm):
    before = rows(many)
    path = cache_file(many.store)
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flip": data.replace(b"number 3", b"number 4"), "empty": b"", "garbage": b"\xff\n\n"}[harm])
    assert rows(many) == before
    if harm != "folder":
        assert path.read_bytes() == data


def test_small_registries_and_lists_without_a_cache_leave_none(many, root, monkeypatch):
    rows(many, cached=False)
    assert not cache_file(many.store).exists()
    monkeypatch.setattr(catalogue_module, "_WORTH_KEEPING", 13)
    rows(many)
    assert not cache_file(many.store).exists()


def test_a_cache_that_cannot_be_written_is_no_trouble(many, root, monkeypatch):
    (root.parent / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "file"))
    assert rows(many) == full(many)


def test_what_is_gone_leaves_the_cache_too(many, root, monkeypatch):
    many.list()
    shutil.rmtree(root / "refs/team/part0")
    monkeypatch.setattr(catalogue_module, "_WORTH_KEEPING", 0)
    many.list()
    kept = json.loads(cache_file(many.store).read_bytes().partition(b"\n")[2])
    assert kept.keys() == {row[1] for row in full(many)}


def test_another_store_gives_the_same(many):
    class Elsewhere:
        """Not a folder, as far as anybody can tell."""

        def __init__(self, store):
            self.list, self.get, self.where, self.exists = store.list, store.get, store.where, store.exists

    expected = full(many)
    many.store = Elsewhere(many.store)
    assert rows(many) == expected == rows(many)


def test_every_registry_has_its_own_file(many, tmp_path, monkeypatch):
    assert cache_file(many.store) != cache_file(LocalStore(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert cache_file(many.store).parent == tmp_path / ".cache/moe-lab"
