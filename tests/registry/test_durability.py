"""A full disk, a failing one, a power cut: what is published is durable, and what failed is not there."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import moe_lab.registry.stores.local as store_module
from moe_lab.errors import LabError
from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, ShakyOs, fails_with, fields, files, safe_order, tensors

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def shaky(monkeypatch):
    def install(at: int = -1, fault=None) -> ShakyOs:
        made = ShakyOs(at, fault)
        monkeypatch.setattr(store_module, "os", made)
        return made

    return install


def publish(root, version="2", seed=2, blocks=1):
    return Registry(root).publish("team", "part", version, fields(), tensors(seed, blocks), BLOCKS)


@pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors come from /proc")
def test_whatever_a_reference_needs_is_on_disk_before_it(root, shaky):
    links = ["blobs"] * 4 + ["manifests", "refs"]
    root = root / "in" / "new folders"
    shaken = shaky()
    registry = Registry(root)
    registry.publish("team", "part", None, fields(), tensors(1, blocks=1), BLOCKS)
    assert safe_order(shaken.trace, root, {str(root), str(root.parent), str(root.parent.parent)}) == links
    shutil.rmtree(root)
    root.mkdir()
    shaken.trace.clear()
    registry.publish("team", "part", None, fields(), tensors(1, blocks=1), BLOCKS)
    assert safe_order(shaken.trace, root, set()) == links


@pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors come from /proc")
def test_finding_content_of_another_publisher_waits_for_its_folder_too(root, shaky):
    """The other one may have been killed between its link and its fsync."""
    publish(root)
    shaken = shaky()
    assert not publish(root).created
    assert {name for name, *_ in shaken.trace} == {"fsync", "utime"}
    assert {os.path.relpath(path, root) for name, path in shaken.trace if name == "fsync"} >= {
        "blobs",
        "manifests",
        "refs/team/part",
    }


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_operation_leaves_the_old_state_and_a_repeat_completes(quick, shaky, code):
    old = quick / "old"
    publish(old, "1", seed=1)
    before = files(old)
    shutil.copytree(old, quick / "whole")
    counting = shaky()
    publish(quick / "whole")
    for at, (operation, *_) in enumerate(counting.trace):
        root = quick / str(at)
        shutil.copytree(old, root)
        shaky(at, fails_with(code))
        if operation == "unlink":
            # A temporary file that cannot be removed harms nobody.
            publish(root)
        else:
            assert_failed_cleanly(root, before, os.strerror(code))
        shaky()
        publish(root)
        assert Registry(root).verify().ok
        for version, seed in (("1", 1), ("2", 2)):
            assert Registry(root).tensor(f"team/part@{version}", "ids").tolist() == tensors(seed)["ids"].tolist()
    assert len(counting.trace) > 30


def assert_failed_cleanly(root, before, reason):
    with pytest.raises(LabError) as caught:
        publish(root)
    told, after = str(caught.value), files(root)
    assert reason in told
    assert "run the same command again" in told
    assert "\n" not in told
    assert {path: after[path] for path in before} == before
    # Only the very last fsync can fail when the reference is in place.
    published = "refs/team/part/2" in after
    assert ("Whether team/part@2 is published is not certain" if published else "Nothing was published") in told
    assert list((root / "tmp").iterdir()) == []


def test_short_writes_are_continued(root, monkeypatch):
    class Stingy(ShakyOs):
        @staticmethod
        def write(descriptor, data):
            return os.write(descriptor, data[:7])

    monkeypatch.setattr(store_module, "os", Stingy())
    publish(root)
    assert Registry(root).verify().ok


def test_a_link_whose_answer_the_network_lost_counts_as_made(root, monkeypatch):
    """NFS repeats the request, and the repetition finds the name taken by its own first try."""

    class Forgetful(ShakyOs):
        @staticmethod
        def link(*arguments, **options):
            os.link(*arguments, **options)
            raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(store_module, "os", Forgetful())
    assert publish(root).created
    assert Registry(root).verify().ok


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_is_refused_not_worked_around(root, monkeypatch, code):
    class Plain(ShakyOs):
        @staticmethod
        def link(*arguments, **options):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store_module, "os", Plain())
    with pytest.raises(LabError, match=r"no hard links.*Nothing was published"):
        publish(root)
    assert files(root) == {}


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)],
)
def test_modes_come_from_the_umask(tmp_path, mask, file_mode, folder_mode):
    before = os.umask(mask)
    try:
        publish(tmp_path / "registry")
    finally:
        os.umask(before)
    modes = {(path.is_dir(), path.stat().st_mode & 0o7777) for path in (tmp_path / "registry").rglob("*")}
    assert modes == {(True, folder_mode), (False, file_mode)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try")
@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_another_users_permissions_are_respected(tmp_path_factory, tmp_path, mode):
    """In a child process: the rest of the tests keep their user."""
    root = tmp_path / "registry"
    publish(root, "1", seed=1)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(mode)
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    answers = as_nobody(root)
    if mode:
        assert answers == ["1", "cannot publish team/part@2"]
    else:
        assert answers == ["registry"]


def as_nobody(root) -> list[str]:
    program = f"""if True:
        import os, sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        from moe_lab.errors import LabError
        from moe_lab.registry import Registry
        from tests.registry.test_durability import publish
        import numpy, pathlib
        root = pathlib.Path({str(root)!r})
        os.setgid(65534), os.setuid(65534)
        try:
            print(Registry(root).resolve("team/part").ref.version)
            publish(root)
        except LabError as error:
            assert "ermission" in str(error), error
            print(str(error).split(" to ")[0].split(" '")[0])
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\n")[:-1]


def test_threads_of_one_process_may_publish_at_once(root):
    registry = Registry(root)
    errors = []

    def work(seed):
        try:
            registry.publish("team", f"part{seed % 3}", None, fields(), tensors(seed), BLOCKS)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(registry.list()) == 9
    assert registry.verify().ok


def test_a_disk_that_fills_up_under_many_threads_is_one_error(root, shaky):
    large = {"x": np.random.default_rng(0).integers(0, 255, (64, 1 << 16), dtype=np.uint8)}
    writes = itertools.count()
    full = shaky()

    def write(descriptor, data):
        if next(writes) >= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    full.write = write
    with pytest.raises(LabError, match=r"No space left on device\. Nothing was published\. Free space"):
        Registry(root).publish("team", "large", None, fields(), large, {"x"})
    assert not (root / "refs").exists()
    shaky()
    done = Registry(root).publish("team", "large", None, fields(), large, {"x"})
    assert (Registry(root).tensor(done.digest, "x") == large["x"]).all()
    assert Registry(root).verify().ok
