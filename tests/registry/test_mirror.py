"""A copy has every byte of what it names or does not name it, and nothing that was there is changed."""

import errno
import os

import pytest

import moe_lab.registry.stores.local as store_module
from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry, Signature, signatures
from tests.registry.scenario import BLOCKS, ShakyOs, assert_appears_once, fails_with, fields, files, owner_key, tensors


def publish(root, name, seed=1, blocks=2, version=None, **sections):
    return Registry(root).publish("team", name, version, fields(**sections), tensors(seed, blocks), BLOCKS)


def sign(root, ref, digest):
    claim = Signature(ref, digest, owner_key(1).public)
    signatures.sign(LocalStore(root), ref, digest, owner_key(1))
    return claim.path


@pytest.fixture
def source(quick):
    """A teacher, its child in two versions, the second retired and restored, the first retired; one is signed."""
    root = quick / "source"
    teacher = publish(root, "teacher", seed=1, blocks=3)
    parent = {"ref": "team/teacher@1", "digest": teacher.digest, "relation": "teacher"}
    for seed in (1, 2):
        done = publish(root, "part", seed=seed, lineage={"parents": [parent]})
    sign(root, done.ref, done.digest)
    Registry(root).retire("team/part@1", "old")
    Registry(root).retire("team/part@2", "wrong")
    Registry(root).unretire("team/part@2", "not wrong")
    return root


@pytest.fixture
def target(quick):
    return quick / "target"


def test_a_mirror_of_everything_is_the_same_files(source, target):
    seen = []
    done = Registry(source).mirror(target, progress=lambda *step: seen.append(step))
    assert files(target) == files(source)
    assert done.copied == ("team/part@1", "team/part@2", "team/teacher@1")
    assert (done.present, done.problems) == ((), ())
    assert (done.files, done.bytes) == (len(files(source)), sum(map(len, files(source).values())))
    assert seen[-1][1:] == (done.files, done.bytes)
    assert {label for label, *_ in seen} == set(done.copied)
    assert Registry(target).verify().ok
    again = Registry(source).mirror(target)
    assert (again.copied, again.present, again.files) == ((), done.copied, 0)


def test_what_is_left_behind_in_the_source_is_not_copied(source, target):
    gone = publish(source, "gone", seed=8)
    (source / "refs/team/gone/1").unlink()
    before = sign(source, Registry(source).resolve("team/part@2").ref, gone.digest)
    Registry(source).mirror(target)
    assert not (target / before).exists()
    assert not (target / "manifests" / f"{gone.digest}.json").exists()
    assert Registry(target).verify().files == len(files(target))


def test_one_artifact_comes_alone_or_with_the_manifests_of_its_ancestors(source, target):
    done = Registry(source).mirror(target, ["team/part"])
    assert done.copied == ("team/part@2",)
    assert [str(entry.ref) for entry in Registry(target).list()] == ["team/part@2"]
    assert Registry(target).lineage("team/part").parents[0].problem
    other = target.with_name("other")
    Registry(source).mirror(other, ["team/part@2"], parents=True)
    above = Registry(other).lineage("team/part").parents[0]
    assert (above.kind, above.problem) == ("module", None)
    assert Registry(other).verify().ok
    for path in other.rglob("*"):
        os.utime(path, (0, 0))
    before = files(other)
    assert Registry(other).gc(0).files == ()
    assert files(other) == before


def test_marks_that_came_later_follow_and_the_version_is_not_offered_meanwhile(source, target):
    Registry(source).mirror(target)
    Registry(source).retire("team/part@2", "wrong after all")
    done = Registry(source).mirror(target)
    assert done.files == 1
    assert files(target) == files(source)
    fresh, order = target.with_name("fresh"), []

    class Watched(LocalStore):
        def put_if_absent(self, key, data):
            order.append(key)
            return super().put_if_absent(key, data)

    registry = Registry(fresh)
    registry.store = Watched(fresh)
    Registry(source).mirror(registry, ["team/part@2"])
    assert order.index("refs/team/part/2.retired-2") < order.index("refs/team/part/2")
    kinds = [key.split("/")[0] for key in order]
    assert kinds == sorted(kinds, key=["blobs", "manifests", "signatures", "refs"].index)


def test_a_version_with_other_content_is_named_with_both_digests_and_the_others_are_copied(source, target):
    theirs = publish(target, "part", seed=9, version="1")
    ours = Registry(source).resolve("team/teacher").digest
    before = files(target)
    done = Registry(source).mirror(target)
    (problem,) = done.problems
    assert "team/part@1 is sha256-" in problem
    assert theirs.digest in problem
    assert (source / "refs/team/part/1").read_text().strip() in problem
    assert done.copied == ("team/part@2", "team/teacher@1")
    assert {path: files(target)[path] for path in before} == before
    assert not (target / "refs/team/part/1.retired-1").exists()
    assert Registry(target).resolve("team/teacher").digest == ours
    assert Registry(target).verify().ok


def test_a_version_that_appears_during_the_copy_is_a_conflict_as_well(source, target):
    registry = Registry(target)

    class Overtaken(LocalStore):
        def put_if_absent(self, key, data):
            if key == "refs/team/teacher/1":
                publish(target, "teacher", seed=9)
            return super().put_if_absent(key, data)

    registry.store = Overtaken(target)
    done = Registry(source).mirror(registry)
    assert len(done.problems) == 1
    assert "team/teacher@1 is sha256-" in done.problems[0]
    assert done.copied == ("team/part@1", "team/part@2")
    assert Registry(target).tensor("team/teacher", "ids").tolist() == tensors(9)["ids"].tolist()


class Collected(LocalStore):
    """Before its write with number `at`, time passes and somebody collects without any grace."""

    at = -1

    def put_if_absent(self, key, data):
        self.at -= 1
        if self.at == -1:
            for path in self.root.rglob("*"):
                os.utime(path, (0, 0))
            Registry(self.root).gc(0)
        return super().put_if_absent(key, data)


def test_a_copy_that_outlasts_the_grace_period_of_its_target_ends_whole(source, quick):
    for at in range(11):
        target = Registry(quick / f"to{at}")
        target.store = store = Collected(quick / f"to{at}")
        store.at = at
        assert Registry(source).mirror(target, ["team/part@2"]).ok
        assert store.at < -1
        assert Registry(store.root).verify().ok
        assert Registry(store.root).tensor("team/part", "ids").tolist() == tensors(2)["ids"].tolist()


def test_other_reasons_in_the_target_stay_and_are_told(source, target):
    Registry(source).mirror(target, ["team/part@2"])
    Registry(source).retire("team/part@2", "one reason")
    Registry(target).retire("team/part@2", "another")
    before = files(target)
    done = Registry(source).mirror(target, ["team/part@2"])
    (problem,) = done.problems
    assert "2.retired-2 holds other bytes than" in problem
    assert files(target) == before


@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_rot_in_the_source_is_named_and_not_copied(source, target, harm):
    """Every file in turn; whatever else was copied is sound."""
    for number, (path, data) in enumerate(sorted(files(source).items())):
        root, middle = target / str(number), len(data) // 2
        if harm == "delete":
            (source / path).unlink()
        else:
            (source / path).write_bytes(data[:middle] + bytes([data[middle] ^ 128]) + data[middle + 1 :])
        done = Registry(source).mirror(root)
        if harm == "flip" or path.startswith(("blobs", "manifests")):
            name = path.split("/")[-1]
            assert all(f"/{name}" in problem or f"@{name}" in problem for problem in done.problems)
            assert len(done.problems) + len(done.copied) == 3
            assert done.problems
        assert files(root).items() <= {**files(source), path: data}.items()
        assert Registry(root).verify().ok
        (source / path).write_bytes(data)
        assert Registry(source).mirror(root).ok
        assert files(root) == files(source)


def test_rot_in_the_target_stops_that_artifact_only(source, target):
    Registry(source).mirror(target, ["team/part@2"])
    chunk = Registry(source).manifest("team/part@2").record("ids").chunks[0]
    (target / "refs/team/part/2").unlink()
    (target / "blobs" / chunk).write_bytes(b"x" * 20)
    done = Registry(source).mirror(target)
    (problem,) = done.problems
    assert chunk in problem
    assert "damaged" in problem
    assert done.copied == ("team/part@1", "team/teacher@1")


@pytest.mark.parametrize(
    ("ref", "told"),
    [("team/prt", "no team/prt"), ("team/part@7", "no version 7"), ("sha256-" + "0" * 64, "does not name an artifact")],
)
def test_a_wrong_reference_is_refused_before_anything_is_copied(source, target, ref, told):
    with pytest.raises(LabError, match=told):
        Registry(source).mirror(target, ["team/part", ref])
    assert files(target) == {}


@pytest.mark.slow
def test_killed_at_any_operation_it_is_whole_or_not_there_and_goes_on(publishers, quick):
    source = quick / "small"
    done = publish(source, "small", blocks=1)
    Registry(source).retire("team/small@1", "old")
    sign(source, done.ref, done.digest)
    (whole,) = publishers(source, {"call": "mirror", "target": str(quick / "whole")})
    wanted, states = files(quick / "whole"), []
    for at in range(whole["operations"]):
        root = quick / f"to{at}"
        assert publishers(source, {"call": "mirror", "target": str(root), "kill_at": at}) == [None]
        after = files(root)
        assert after.items() <= wanted.items()
        states.append("refs/team/small/1" in after)
        if states[-1]:
            assert after == wanted
        assert Registry(root).verify().ok
        (repeat,) = publishers(source, {"call": "mirror", "target": str(root)})
        assert repeat["problems"] == []
        assert files(root) == wanted
    assert_appears_once(states)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_operation_is_one_line_and_a_repeat_completes(source, quick, monkeypatch, code):
    refs = ["team/part@2"]
    counting = ShakyOs()
    Registry(quick / "whole")
    monkeypatch.setattr(store_module, "os", counting)
    Registry(source).mirror(quick / "whole", refs)
    monkeypatch.setattr(store_module, "os", ShakyOs())
    for at, (operation, *_) in enumerate(counting.trace):
        root = quick / f"to{at}"
        Registry(root)
        monkeypatch.setattr(store_module, "os", ShakyOs(at, fails_with(code)))
        done = Registry(source).mirror(root, refs)
        assert done.ok == (operation == "unlink")
        for problem in done.problems:
            assert problem.startswith("cannot mirror team/part@2 from")
            assert os.strerror(code) in problem
            assert "\n" not in problem
        monkeypatch.setattr(store_module, "os", ShakyOs())
        assert Registry(root).verify().ok
        assert Registry(source).mirror(root, refs).ok
        assert files(root) == files(quick / "whole")


def test_many_mirrors_at_once_end_with_one_copy(publishers, source, quick):
    target = quick / "target"
    answers = publishers(source, *({"call": "mirror", "target": str(target)} for _ in range(4)))
    assert all(answer["problems"] == [] for answer in answers)
    assert files(target) == files(source)


@pytest.fixture
def composed(quick):
    """A trunk, a module beside it, and a router of both."""
    root = quick / "composed"
    trunk = publish(root, "trunk", seed=1, kind="trunk")
    beside = {"ref": "team/trunk@1", "digest": trunk.digest, "relation": "trunk"}
    module = publish(root, "part", seed=2, lineage={"parents": [beside]})
    learned = {"ref": "team/part@1", "digest": module.digest, "relation": "module"}
    publish(root, "router", seed=3, kind="router", lineage={"parents": [beside, learned]})
    return root


@pytest.mark.parametrize(
    ("named", "brought"),
    [("part", ("trunk", "part")), ("router", ("trunk", "part", "router")), ("trunk", ("trunk",))],
)
def test_what_an_artifact_works_beside_comes_with_it(composed, target, named, brought):
    done = Registry(composed).mirror(target, [f"team/{named}"])
    assert (done.copied, done.problems) == (tuple(f"team/{name}@1" for name in brought), ())
    for name in brought:
        assert Registry(target).tensors(f"team/{name}").keys() == Registry(composed).tensors(f"team/{name}").keys()
    assert Registry(target).verify().ok
    again = Registry(composed).mirror(target, [f"team/{named}"])
    assert (again.copied, again.files) == ((), 0)


def test_a_module_is_not_copied_where_its_trunk_is_left_out(composed, target):
    trunk = Registry(composed).manifest("team/trunk")
    (composed / f"blobs/{trunk['tensors']['scale']['chunks'][0]}").write_bytes(b"rot!")
    for refs in (None, ["team/part"]):
        done = Registry(composed).mirror(target, refs)
        assert done.copied == ()
        lost = [problem for problem in done.problems if problem.startswith("team/part@1")]
        assert len(lost) == 1
        assert lost[0].startswith(
            "team/part@1 is of no use without trunk team/trunk@1 and was not copied: team/trunk@1"
        )
    assert not (target / "refs/team/part").exists()


def test_a_trunk_whose_name_is_gone_is_brought_by_digest_or_missed(composed, target):
    trunk = Registry(composed).manifest("team/trunk")
    (composed / "refs/team/trunk/1").unlink()
    assert Registry(composed).mirror(target, ["team/part"]).copied == ("team/part@1",)
    assert Registry(target).tensors(trunk.digest).keys() == trunk["tensors"].keys()
    assert Registry(target).verify().ok
    (composed / f"manifests/{trunk.digest}.json").unlink()
    done = Registry(composed).mirror(target / "other", ["team/part"])
    assert done.copied == ()
    assert f"has no {trunk.digest}. Bring it there first." in done.problems[0]


def test_a_trunk_that_an_earlier_mirror_left_out_comes_with_the_next(composed, target):
    Registry(composed).mirror(target, ["team/part"])
    (target / "refs/team/trunk/1").unlink()
    done = Registry(composed).mirror(target, ["team/part"])
    assert (done.copied, done.present) == (("team/trunk@1",), ("team/part@1",))
