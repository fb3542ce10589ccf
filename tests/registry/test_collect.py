"""Collecting garbage: nothing that is used ever goes, everything that is not does, and doubts delete nothing."""

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_lab.registry.collect as collect_module
import moe_lab.registry.stores.local as store_module
import moe_lab.registry.stores.sweep as sweep_module
from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry
from tests.registry.scenario import BLOCKS, ShakyOs, fails_with, fields, files, killed_everywhere, tensors

DAY = 24 * 3600


def publish(root, name="part", seed=1, blocks=1, version=None, **sections):
    return Registry(root).publish("team", name, version, fields(**sections), tensors(seed, blocks), BLOCKS)


def remove(root, name, version="1"):
    (root / "refs/team" / name / version).unlink()


def age(root, days=8.0):
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * DAY,) * 2)


def content_of(root, *names):
    """Keys that these artifacts use, from what any reader sees."""
    registry, keys = Registry(root), set()
    for name in names:
        manifest = registry.manifest(name)
        keys.add(f"manifests/{manifest.digest}.json")
        keys.update(f"blobs/{chunk}" for record in manifest.records.values() for chunk in record.chunks)
    return keys


def stored(root):
    return {path for path in files(root) if not path.startswith("refs/")}


def assert_whole(root, name="part", seed=1, blocks=1):
    back = Registry(root).tensors(f"team/{name}")
    assert {key: array.tobytes() for key, array in back.items()} == {
        key: array.tobytes() for key, array in tensors(seed, blocks).items()
    }


@pytest.fixture
def shaky(monkeypatch):
    def install(at=-1, fault=None):
        made = ShakyOs(at, fault)
        monkeypatch.setattr(store_module, "os", made)
        monkeypatch.setattr(sweep_module, "os", made)
        return made

    return install


@pytest.fixture
def littered(quick):
    """One artifact in use, one whose reference is gone and which shares a part, and a killed publisher's file."""
    root = quick / "littered"
    publish(root, "part", seed=1, blocks=2)
    publish(root, "gone", seed=1, blocks=3)
    remove(root, "gone")
    (root / "tmp/123-abc").write_bytes(b"half of a blob")
    age(root)
    return root


def test_what_nothing_uses_goes_and_shared_parts_stay(littered):
    used, before = content_of(littered, "team/part"), stored(littered)
    planned = Registry(littered).gc(dry_run=True)
    assert stored(littered) == before
    done = Registry(littered).gc()
    assert set(done.files) == before - used | {"tmp/123-abc"}
    assert stored(littered) == used
    assert len(done.files) == 4
    assert done.bytes == planned.bytes
    assert planned.files == done.files
    assert_whole(littered, "part", 1, 2)
    assert Registry(littered).gc().files == ()
    assert Registry(littered).verify().ok


def test_bytes_freed_are_those_of_the_files_that_are_gone(littered):
    size = lambda: sum(path.stat().st_size for path in littered.rglob("*") if path.is_file())  # noqa: E731
    # A publisher that was killed between its two last steps: one file, two names.
    blob = max(stored(littered) - content_of(littered, "team/part"))
    os.link(littered / blob, littered / "tmp/456-def")
    before = size() - (littered / blob).stat().st_size
    done = Registry(littered).gc()
    assert done.bytes == before - size()
    assert {blob, "tmp/456-def"} <= set(done.files)


def test_retired_versions_and_ancestors_are_in_use(root):
    first = publish(root, "teacher", seed=1)
    parent = {"ref": "team/teacher@1", "digest": first.digest, "relation": "teacher"}
    second = publish(root, "part", seed=2, lineage={"parents": [parent]})
    grandparent = {"ref": "team/part@1", "digest": second.digest, "relation": "teacher"}
    absent = {"ref": "other/absent@1", "digest": "sha256-" + "0" * 64, "relation": "trunk"}
    publish(root, "part", seed=3, lineage={"parents": [grandparent, absent]})
    remove(root, "teacher")
    remove(root, "part")
    Registry(root).retire("team/part@2", "wrong")
    age(root)
    before = files(root)
    assert Registry(root).gc().files == ()
    assert files(root) == before
    assert not Registry(root).lineage("team/part@2").parents[0].parents[0].problem


@pytest.mark.parametrize("skew", [-2 * 3600, 0, 2 * 3600])
def test_young_garbage_stays_whatever_the_clock_of_this_machine_says(littered, monkeypatch, skew):
    age(littered, days=6.99)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + skew)
    done = Registry(littered).gc()
    assert (done.files, done.young) == ((), 4)
    assert len(Registry(littered).gc(grace_seconds=6.98 * DAY).files) == 4


def test_publishing_content_again_makes_it_young(littered):
    lone = Registry(littered).publish("team", "gone", "2", fields(), tensors(1, 3), BLOCKS)
    remove(littered, "gone", "2")
    done = Registry(littered).gc()
    assert done.files == ("tmp/123-abc",)
    assert done.young == 3
    assert Registry(littered).manifest(lone.digest)


def harm_torn_manifest(root):
    path = next((root / "manifests").iterdir())
    for path in (root / "manifests").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    return path.parent.name


def harm_missing_manifest(root):
    (path,) = [root / key for key in content_of(root, "team/part") if key.startswith("manifests")]
    path.unlink()
    return path.name


def harm_torn_reference(root):
    (root / "refs/team/part/1").write_bytes(b"sha256-")
    return "refs/team/part/1"


def harm_torn_mark(root):
    (root / "refs/team/part/1.retired-1").write_bytes(b"x")
    return "1.retired-1"


def stray(path):
    def harm(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("stray")
        age(root)
        return path

    return harm


def harm_link(root):
    gone = sorted(stored(root) - content_of(root, "team/part"))[0]
    shutil.move(root / gone, root.parent / "moved")
    (root / gone).symlink_to(root.parent / "moved")
    return gone


HARMS = {
    "torn manifest": harm_torn_manifest,
    "missing manifest": harm_missing_manifest,
    "torn reference": harm_torn_reference,
    "torn mark": harm_torn_mark,
    "a link": harm_link,
    **{
        path: stray(path)
        for path in ("refs/README", "refs/team/part/latest", "refs/team/part/deep/1", "blobs/notes.txt",
                     "blobs/sha256-" + "A" * 64, "manifests/x.json", "manifests/sha256-" + "0" * 64, "tmp/bad name")
    },
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("dry_run", [False, True], ids=["real", "dry"])
def test_on_any_doubt_nothing_is_deleted_and_the_file_is_named(littered, harm, dry_run):
    named = HARMS[harm](littered)
    before = {path: path.lstat().st_mtime_ns for path in littered.rglob("*") if not path.is_dir()}
    with pytest.raises(LabError, match="nothing was deleted") as caught:
        Registry(littered).gc(0, dry_run)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.lstat().st_mtime_ns for path in littered.rglob("*") if not path.is_dir()} == before


def test_only_folders_are_collected(registry):
    class Elsewhere:
        def where(self, key):
            return f"s3://bucket/{key}"

    registry.store = Elsewhere()
    with pytest.raises(LabError, match=r"s3://bucket/ cannot be collected: only folders can\. Mirror it"):
        registry.gc()
    with pytest.raises(LabError, match=r"grace period of -1 seconds is not possible"):
        Registry(tempfile.mkdtemp()).gc(-1)


class Overtaken(LocalStore):
    """Before its write with number `at`, time passes and somebody collects without any grace."""

    at = -1

    def put_if_absent(self, key, data):
        self.at -= 1
        if self.at == -1:
            age(self.root)
            Registry(self.root).gc(0)
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("known", [False, True], ids=["new content", "content that is there, unused"])
def test_an_upload_that_outlasts_the_grace_period_ends_whole(quick, known):
    for at in range(8):
        root = quick / str(at)
        publish(root, "other", seed=7)
        if known:
            publish(root, "part")
            remove(root, "part")
        late = Registry(root)
        late.store = Overtaken(root)
        late.store.at = at
        late.publish("team", "part", "1", fields(), tensors(1, 1), BLOCKS)
        assert_whole(root)
        assert_whole(root, "other", 7)
        assert Registry(root).verify().ok


def publish_without_touching(root):
    """As another user does, who may add files but not change the times of these."""
    sane, store_module.os = store_module.os, Untouching()
    publish(root)
    store_module.os = sane


class Untouching(ShakyOs):
    @staticmethod
    def utime(*arguments, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("somebody", [publish, publish_without_touching])
def test_somebody_publishes_between_any_two_operations_of_a_collection(quick, shaky, somebody):
    """The content that is being collected is exactly what is published at that moment."""
    old = quick / "old"
    publish(old, "other", seed=7)
    publish(old, "part")
    remove(old, "part")
    age(old)
    shutil.copytree(old, quick / "whole")
    counting = shaky()
    assert len(Registry(quick / "whole").gc(0).files) == 5
    kept = 0
    for at in range(len(counting.trace)):
        root = quick / str(at)
        shutil.copytree(old, root)
        shaky(at, lambda name, arguments, root=root: somebody(root))
        done = Registry(root).gc(0)
        shaky()
        assert_whole(root)
        assert_whole(root, "other", 7)
        assert Registry(root).verify().ok
        assert not [path for path in (root / "tmp").iterdir() if path.name.startswith("aside")]
        kept += not done.files
    assert 0 < kept < len(counting.trace)


def test_what_is_touched_after_the_plan_is_not_even_set_aside(quick, monkeypatch):
    """Else an upload that relies on it could miss it for a moment."""
    publish(quick)
    keys = stored(quick)
    remove(quick, "part")
    age(quick)
    touched, asked = sorted(keys)[0], []
    plan, set_aside = collect_module._Sweep.plan, sweep_module.SweepFolder.set_aside

    def plan_and_touch(sweep, grace_ns):
        plan(sweep, grace_ns)
        os.utime(quick / touched)

    def noted(folder, key):
        asked.append(key)
        set_aside(folder, key)

    monkeypatch.setattr(collect_module._Sweep, "plan", plan_and_touch)
    monkeypatch.setattr(sweep_module.SweepFolder, "set_aside", noted)
    done = Registry(quick).gc(DAY)
    assert set(done.files) == set(asked) == keys - {touched}


def test_an_upload_that_has_found_its_parts_finds_them_later(quick, shaky):
    """Its reference comes much later: what it touched before a part was taken is put back."""
    old = quick / "old"
    publish(old)
    parts = {key: (old / key).read_bytes() for key in stored(old)}
    remove(old, "part")
    age(old)
    shutil.copytree(old, quick / "whole")
    counting = shaky()
    Registry(quick / "whole").gc(0)
    # What was touched before the collection looked at the clock is old, if only by a moment: there is no grace here.
    after_clock = [name for name, *_ in counting.trace].index("unlink")
    for at, (operation, *_) in list(enumerate(counting.trace))[after_clock:]:
        root = quick / str(at)
        shutil.copytree(old, root)
        found, here = [], LocalStore(root)

        def look(name, arguments, store=here, found=found):
            found += [key for key, data in parts.items() if not store.put_if_absent(key, data)]

        shaky(at, look)
        Registry(root).gc(0)
        shaky()
        if operation == "rename":
            assert found
        assert stored(root) >= set(found)


@pytest.mark.slow
def test_killed_at_any_operation_nothing_used_is_lost_and_a_repeat_completes(publishers, littered, quick):
    used, kills = content_of(littered, "team/part"), 0
    for root, _ in killed_everywhere(publishers, littered, {"call": "gc"}):
        kills += 1
        assert used <= stored(root)
        assert Registry(root).verify().ok
        planned = Registry(root).gc(0, dry_run=True).files
        time.sleep(0.01)  # or the clock file of the killed one is as old as the new one
        (repeat,) = publishers(root, {"call": "gc"})
        assert set(planned) <= set(repeat["files"])
        assert stored(root) == used
        assert list((root / "tmp").iterdir()) == []
    assert kills > 10


def test_what_a_killed_collection_had_set_aside_comes_back_when_it_is_in_use(littered, quick):
    """As if its publisher had written the reference just before the kill, on a disk that two machines share."""
    for key in content_of(littered, "team/part"):
        folder, name = key.split("/")
        (littered / key).rename(littered / f"tmp/aside.{'0' * 16}.{folder}.{name}")
    assert not Registry(littered).verify().ok
    done = Registry(littered).gc()
    assert len(done.files) == 4
    assert_whole(littered, "part", 1, 2)
    assert Registry(littered).verify().ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_operation_loses_nothing_and_a_repeat_completes(littered, quick, shaky, code):
    used = content_of(littered, "team/part")
    shutil.copytree(littered, quick / "whole")
    counting = shaky()
    Registry(quick / "whole").gc(0)
    failed = 0
    for at in range(len(counting.trace)):
        root = quick / str(at)
        shutil.copytree(littered, root)
        shaky(at, fails_with(code))
        try:
            Registry(root).gc(0)
        except LabError as error:
            failed += 1
            assert "cannot collect garbage in" in str(error)
            assert os.strerror(code) in str(error)
            gone = len(stored(littered)) + 1 - len(stored(root)) - (root / "tmp/123-abc").exists()
            assert (f"{gone} unused files were deleted" if gone else "Nothing was deleted.") in str(error)
        shaky()
        assert used <= stored(root)
        assert not [path for path in (root / "tmp").iterdir() if path.name.startswith("aside")]
        time.sleep(0.01)
        Registry(root).gc(0)
        assert stored(root) == used
        assert list((root / "tmp").iterdir()) == []
    # Everything but removing the file that told the time.
    assert failed == len(counting.trace) - 1


def test_publishers_and_readers_beside_collectors_without_any_grace(publishers, quick):
    """Nothing that was published is lost or changed, and what was there before is never even missed."""
    root = quick / "registry"
    publish(root, "part", seed=5, blocks=4)
    answers = publishers(
        root,
        {"call": "gc_often", "times": 40},
        *({"call": "publish_often", "seed": seed, "times": 8} for seed in range(3)),
        {"call": "read_often", "seed": 5, "times": 40},
    )
    assert all(answer is not None and "error" not in answer for answer in answers), answers
    assert answers[0]["deleted"] > 0
    report = Registry(root).verify()
    assert report.ok, report.problems
    assert len(Registry(root).list()) == 25
    for entry in Registry(root).list():
        assert len(Registry(root).tensors(entry.digest)) == 4


published = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 3), st.sampled_from(["keep", "retire", "remove"])
    ),
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(published, st.sets(st.integers(0, 60)), st.booleans())
def test_a_dry_run_lists_what_a_real_one_deletes_and_that_is_all_and_only_garbage(artifacts, young, aside):
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root = Path(folder)
        registry, kept = Registry(root), []
        for name, seed, blocks, fate in artifacts:
            done = publish(root, name, seed, blocks)
            if fate == "retire":
                registry.retire(done.ref, "wrong")
            if fate == "remove" and done.created:
                remove(root, name, done.ref.version)
        kept = [entry.digest for entry in registry.list()]
        used = content_of(root, *kept)
        age(root)
        for index, path in enumerate(sorted(stored(root))):
            if index in young:
                os.utime(root / path)
        if aside and stored(root):
            key = max(stored(root))
            (root / "tmp").mkdir(exist_ok=True)
            (root / key).rename(root / f"tmp/aside.{'f' * 16}.{key.replace('/', '.')}")
        planned = registry.gc(dry_run=True)
        before = stored(root) | ({key} if aside and artifacts else set())
        done = registry.gc()
        assert done.files == planned.files
        assert (done.bytes, done.young) == (planned.bytes, planned.young)
        assert before - stored(root) == set(done.files)
        assert used <= stored(root)
        assert {path for path in stored(root) - used if (root / path).stat().st_mtime < time.time() - 7 * DAY} == set()
        assert registry.verify().ok
