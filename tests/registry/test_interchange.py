"""The folder of an export: whole or not there, readable by the team, and taken back only if all of it is known."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import moe_lab.registry.stores.local as store_module
from moe_lab.errors import LabError
from moe_lab.registry import interchange
from moe_lab.registry.chunks import describe
from moe_lab.registry.interchange import CARD, README, TENSORS, Card, read_folder, write_folder
from tests.registry.scenario import BLOCKS, tensors

DIGEST = "sha256-" + "0" * 64


def card(**changes):
    sections = {"kind": "module", "summary": "Gedichte – ∂ <b>", "ladder": [8, 16], "config": {"rate": "0.1"}}
    return dataclasses.replace(Card("team/part@1", DIGEST, sections, frozenset(tensors()), BLOCKS), **changes)


def export(folder, content=None):
    content = content or tensors()
    write_folder(folder, card(), "# read me\n", describe(content, BLOCKS), content.__getitem__)


@pytest.fixture
def folder(quick):
    export(quick / "out")
    return quick / "out"


def test_a_folder_comes_back(folder):
    found, arrays = read_folder(folder)
    assert found == card()
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: np.asarray(array).tobytes() for name, array in tensors().items()
    }


def test_two_exports_are_the_same_bytes(folder, quick):
    export(quick / "again", dict(reversed(tensors().items())))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (quick / "again").iterdir()
    }


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_come_from_the_umask(quick, mask, file_mode, folder_mode):
    before = os.umask(mask)
    try:
        export(quick / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((quick / "out").stat().st_mode) == folder_mode
    assert {stat.S_IMODE(path.stat().st_mode) for path in (quick / "out").iterdir()} == {file_mode}


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(quick, there):
    path = quick / "out"
    if there == "file":
        path.write_text("mine")
    elif there == "dangling link":
        path.symlink_to(quick / "nowhere")
    else:
        path.mkdir()
        if there == "folder":
            (path / "mine").write_text("mine")
    before = sorted(quick.rglob("*"))
    with pytest.raises(LabError, match="exists already, and nothing is overwritten"):
        export(path)
    assert sorted(quick.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(quick):
    def broken(name):
        raise LabError("chunk 3 is damaged")

    with pytest.raises(LabError, match="chunk 3"):
        write_folder(quick / "out", card(), "", describe(tensors(), BLOCKS), broken)
    assert list(quick.iterdir()) == []
    with pytest.raises(LabError, match="cannot write .*No such file.*Nothing was exported"):
        export(quick / "no" / "such" / "out")


def test_everything_is_on_disk_before_the_folder_has_its_name(quick, monkeypatch):
    synced, renamed = [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(os, name)

        @staticmethod
        def fsync(descriptor):
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            renamed.append((quick / "out").exists())
            os.fsync(descriptor)

    for module in (interchange, store_module):
        monkeypatch.setattr(module, "os", Watched())
    export(quick / "out")
    names = [os.path.basename(path) for path in synced]  # noqa: PTH119
    assert names[:3] == [CARD, README, TENSORS]
    assert names[3].startswith(".out.")
    assert renamed == [False] * 4 + [True]
    assert synced[4] == str(quick)


CODE = ["model.bin", "model.pt", "a.pth", "a.PKL", "a.ckpt", "a.npy", "a.npz", "a.h5", "modeling.py", "a.joblib"]
ARCHIVES = ["a.tar", "a.zip", "a.tar.gz", "a.TGZ", "a.7z", "a.whl"]
OTHERS = ["config.json", "model.safetensors.index.json", ".git", "MODEL.SAFETENSORS", "card.json ", "\udcff", "-rf"]


@pytest.mark.parametrize("name", [*CODE, *ARCHIVES, *OTHERS])
def test_what_does_not_belong_is_refused_by_name(folder, name):
    (folder / name).write_bytes(b"x")
    rule = "can run code are never read" if name in CODE else "unpack it yourself" if name in ARCHIVES else "none of"
    with pytest.raises(LabError, match=rule) as caught:
        read_folder(folder)
    assert ascii(name) in str(caught.value)


@pytest.mark.parametrize("name", [CARD, README, TENSORS])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_links_and_special_files_are_refused(folder, quick, name, kind):
    (folder / name).rename(quick / "moved")
    if kind == "link":
        (folder / name).symlink_to(quick / "moved")
    elif kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    with pytest.raises(LabError, match="only plain files are read"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip", "x.safetensors", "absent"])
def test_a_folder_is_asked_for(quick, name):
    if name != "absent":
        (quick / name).write_bytes(b"PK\3\4")
    rule = {"absent": "cannot be read: No such", "x.safetensors": "give the one that holds"}.get(name, "unpack it")
    with pytest.raises(LabError, match=rule):
        read_folder(quick / name)


@pytest.mark.parametrize("name", [CARD, TENSORS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(LabError, match=f"has no {name}"):
        read_folder(folder)


def changed(**changes):
    def change(value):
        return {**value, **changes}

    return change


HOSTILE_CARDS = {
    "another format": (changed(format=2), "format 1; update"),
    "format is true": (changed(format=True), "format 1; update"),
    "one key more": (changed(code="x"), "with exactly"),
    "a list": (lambda value: [value], "with exactly"),
    "ref is a number": (changed(ref=7), "ref is text or null"),
    "digest of another kind": (changed(digest="sha512-" + "0" * 128), "64 lowercase hex"),
    "manifest is text": (changed(manifest="x"), "are objects"),
    "tensors is a list": (changed(tensors=[]), "are objects"),
    "blocks is 1": (changed(tensors={"a": {"blocks": 1}}), 'write {"blocks": true}'),
    "another tensor": (changed(tensors={"a": {"blocks": True}}), "do not name the same tensors"),
    "a float": (changed(manifest={"claims": 0.5}), "only integers are exact"),
    "not a number": (changed(manifest={"claims": float("nan")}), "only integers are exact"),
    "2^63": (changed(manifest={"cost": 2**63}), "does not fit 64 bits"),
    "half a surrogate": (changed(manifest={"summary": "\ud800"}), "not UTF-8"),
}


@pytest.mark.parametrize("label", HOSTILE_CARDS)
def test_a_hostile_card_is_refused(folder, label):
    change, reason = HOSTILE_CARDS[label]
    value = change(json.loads((folder / CARD).read_text()))
    (folder / CARD).write_text(json.dumps(value))
    with pytest.raises(LabError, match=reason) as caught:
        read_folder(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\x80\x04\x95", "not UTF-8"),
        (b'{"ref":1,"ref":2}', "the key 'ref' is there twice"),
        (b'{"a":' * 5000, "nested deeper|not JSON"),  # newer Pythons look further before they give up
        (b" " * (64 << 20) + b" ", "at most 67,108,864 are read"),
        (b"format: !!python/object/apply:os.system [touch pwned]", "not JSON"),
    ],
    ids=["empty", "pickle", "key twice", "deep", "large", "YAML tag"],
)
def test_bytes_that_are_no_card(folder, data, reason):
    (folder / CARD).write_bytes(data)
    with pytest.raises(LabError, match=reason):
        read_folder(folder)
    assert len(list(folder.iterdir())) == 3
