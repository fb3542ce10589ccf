"""A registry that format 1 wrote, committed: this version and every later one reads it, bit for bit."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from moe_lab.registry import Registry, RetiredWarning
from moe_lab.registry.trust import TrustPolicy
from tests.registry.scenario import files

GOLDEN = Path(__file__).with_name("golden")
ROOT = GOLDEN / "format-1"
WANTED = json.loads((GOLDEN / "format-1.json").read_text())


@pytest.fixture
def golden() -> Registry:
    return Registry(ROOT, create=False)


@pytest.mark.parametrize("ref", WANTED)
def test_names_digests_tensors_and_signers_are_what_they_were(golden, ref):
    wanted = WANTED[ref]
    entry = next(entry for entry in golden.list() if str(entry.ref) == ref)
    assert (entry.digest, entry.kind, entry.problem) == (wanted["digest"], wanted["kind"], None)
    assert [claim.key for claim, _ in golden.signatures(entry.ref)] == wanted["signed by"]
    assert [problem for _, problem in golden.signatures(entry.ref) if problem] == []
    read = golden.tensors(wanted["digest"])
    found = {name: [array.dtype.name, list(array.shape), array.tobytes().hex()] for name, array in read.items()}
    assert found == wanted["tensors"]


def test_nothing_else_is_there_and_reading_changes_nothing(golden):
    before = files(ROOT)
    assert {str(entry.ref) for entry in golden.list()} == WANTED.keys()
    report = golden.verify()
    assert report.problems == ()
    assert report.files == len(before) == 38
    assert files(ROOT) == before
    assert not (ROOT / "tmp").exists()


def test_a_version_that_is_retired_restored_and_retired_again_is_passed_over(golden):
    assert str(golden.resolve("snakes/python").ref) == "snakes/python@1"
    with pytest.warns(RetiredWarning, match="für immer"):
        assert golden.resolve("snakes/python@2").retired == "für immer"


def test_widths_and_lineage_of_the_child(golden):
    narrow = golden.tensors("snakes/python@1", blocks=2)
    mini = golden.tensors("snakes/python-mini")
    assert all(np.array_equal(narrow[name], mini[name]) for name in mini)
    tree = golden.lineage("snakes/python-mini")
    teacher, trunk = tree.parents
    assert (teacher.ref, teacher.relation, trunk.ref) == ("snakes/python@1", "teacher", "lab/trunk@1")
    assert teacher.parents[0].digest == trunk.digest == WANTED["lab/trunk@1"]["digest"]


def test_the_signatures_satisfy_a_policy():
    (first,) = WANTED["snakes/python@1"]["signed by"]
    (second,) = set(WANTED["snakes/python-mini@1.0"]["signed by"]) - {first}

    def refused(policy: TrustPolicy) -> list[str]:
        found = Registry(ROOT, create=False, trust=policy).list()
        return [str(entry.ref) for entry in found if entry.problem and entry.problem.startswith("untrusted: ")]

    assert refused(TrustPolicy(unsigned="allow", owners={"snakes": (first,)})) == []
    assert refused(TrustPolicy(unsigned="refuse", owners={"snakes": (first,)})) == ["lab/trunk@1"]
    of_second = TrustPolicy(unsigned="allow", owners={"snakes": (second,)})
    assert refused(of_second) == ["snakes/python@1", "snakes/python@2"]


def test_what_is_written_today_is_what_was_written_then(tmp_path):
    runpy.run_path(str(GOLDEN / "make.py"))["make"](tmp_path / "registry")
    assert files(tmp_path / "registry") == files(ROOT)


def test_the_script_refuses_to_replace_the_golden_files():
    before = files(GOLDEN)
    with pytest.raises(SystemExit, match="never changed"):
        runpy.run_path(str(GOLDEN / "make.py"), run_name="__main__")
    assert files(GOLDEN) == before


@pytest.mark.parametrize("path", sorted(files(ROOT)))
def test_each_golden_file_matters(tmp_path, path):
    root = Path(shutil.copytree(ROOT, tmp_path / "copy"))
    data = files(ROOT)[path]
    (root / path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    problems = Registry(root).verify().problems
    assert any(Path(path).name in problem for problem in problems)
