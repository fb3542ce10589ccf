"""The commands that look after a registry, as somebody at a terminal sees them."""

import os
import time
import xml.etree.ElementTree as ElementTree

import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, fields, files, tensors


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_LAB_TRACEBACK", raising=False)
    assert main(["init", str(tmp_path / "lab")]) == 0
    return tmp_path / "lab"


@pytest.fixture
def root(lab):
    """Two versions and a child of the second, and an artifact whose reference is gone, all of it old."""
    root = lab / "registry"
    registry = Registry(root)
    for seed in (1, 2):
        done = registry.publish("team", "part", None, fields(), tensors(seed), BLOCKS)
    parent = {"ref": "team/part@2", "digest": done.digest, "relation": "teacher"}
    registry.publish("team", "child", None, fields(lineage={"parents": [parent]}), tensors(2, 2), BLOCKS)
    registry.publish("team", "gone", None, fields(), tensors(9), BLOCKS)
    (root / "refs/team/gone/1").unlink()
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 10 * 24 * 3600,) * 2)
    return root


@pytest.fixture
def say(lab, capsys):
    """Runs `moe-lab module ...` and returns the exit code and the lines of both outputs."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["--lab", str(lab), "module", *arguments])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return run


def test_retire_and_unretire(root, say):
    assert say("retire", "team/part@2", "--reason", "wrong")[:2] == (0, ["retired team/part@2: wrong"])
    assert say("retire", "team/part@2", "--reason", "x")[:2] == (0, ["already retired team/part@2: wrong"])
    assert "retired: wrong" in say("list")[1][2]
    assert say("unretire", "team/part@2")[:2] == (0, ["team/part@2 is in use again"])
    assert say("unretire", "team/part@2")[:2] == (0, ["team/part@2 is in use; it was not retired"])
    code, _, (error,) = say("retire", "team/part@3", "--reason", "wrong")
    assert (code, error) == (2, "error: team/part has no version 3. Published: 1, 2.")
    assert say("retire", "team/part@1")[0] == 2


def test_gc_lists_then_deletes_the_same_files(root, say):
    before = files(root)
    code, lines, _ = say("gc", "--dry-run")
    assert code == 0
    assert files(root) == before
    listed = set(lines[:-1])
    assert lines[-1].startswith(f"would delete {len(listed)} files, freeing ")
    assert (
        say("gc", "--grace", "11d")[1][-1] == f"deleted 0 files, freed 0 bytes; {len(listed)} younger unused files stay"
    )
    code, (line,), _ = say("gc")
    assert line == lines[-1].replace("would delete", "deleted").replace("freeing", "freed")
    assert before.keys() - files(root).keys() == listed
    assert say("verify")[0] == 0


@pytest.mark.parametrize("grace", ["5", "5w", "-1d", "d", "1e3s", "٣d", ""])
def test_a_grace_period_has_a_unit(root, say, grace):
    before = files(root)
    code, _, (error,) = say("gc", f"--grace={grace}")
    assert code == 2
    assert "is not a length of time; write a number with s, m, h or d" in error
    assert files(root) == before


def test_mirror_copies_and_tells_what_it_could_not(root, say, tmp_path):
    target = tmp_path / "copy"
    code, lines, _ = say("mirror", str(target))
    assert code == 0
    assert lines[:3] == ["copied team/child@1", "copied team/part@1", "copied team/part@2"]
    assert lines[3].startswith("copied 3 artifacts, 0 were there; ")
    assert Registry(target).verify().ok
    assert say("mirror", str(target))[1] == ["copied 0 artifacts, 3 were there; 0 files, 0 bytes"]
    chunk = Registry(root).manifest("team/part@1").record("ids").chunks[0]
    (root / "blobs" / chunk).write_bytes(b"x")
    code, lines, (error,) = say("mirror", str(tmp_path / "second"), "team/part@1", "team/part@2")
    assert code == 2
    assert lines[0] == "copied team/part@2"
    assert lines[1].startswith("problem: team/part@1: tensor 'ids': chunk 0")
    assert error == "error: 1 problem; all else was copied, and running it again continues"


def test_diff_and_lineage_with_a_picture(root, say, tmp_path):
    code, lines, _ = say("diff", "team/part@2", "team/child")
    assert code == 0
    assert lines[0].startswith('lineage: (absent) -> {"parents": [')
    assert "layers.0.down: reshaped float32[4, 3, 8] -> float32[2, 3, 8], 0 of 2 chunks, 0 bytes" in lines
    assert lines[-1] == "2 tensors are equal; 408 bytes are shared, of 792 and 408"
    assert say("diff", "team/part@2", "team/part")[1] == ["no difference; 792 bytes are shared, of 792 and 792"]
    picture = tmp_path / "lineage.svg"
    code, lines, _ = say("lineage", "team/child", "--picture", str(picture))
    assert (code, lines[-1]) == (0, f"drew {picture}")
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    code, _, (error,) = say("lineage", "team/child", "--picture", str(tmp_path / "x.png"))
    assert (code, error.endswith("it must end in .svg.")) == (2, True)
    code, _, (error,) = say("lineage", "team/child", "--picture", str(tmp_path / "no/x.svg"))
    assert (code, error.endswith("No such file or directory; choose another place.")) == (2, True)
