"""The cache before a registry far away: never a wrong byte, never in the way, and enough to work offline."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import moe_lab.registry.stores.local as local_module
from moe_lab.cli.app import main
from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry
from moe_lab.registry.stores import CachedStore, CacheWarning, ObjectStore, origin
from tests.registry import servers
from tests.registry.scenario import BLOCKS, ShakyOs, fails_with, fields, files, tensors

s3_only = pytest.mark.parametrize("proxy", ["s3"], indirect=True)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def far(isolated, root, quick):
    """A registry in a folder that is read through a cache, with one artifact."""
    isolated.setenv("MOE_LAB_CACHE", str(quick / "cache"))
    publish(root, 0)
    return root


def publish(place, seed, version=None):
    return Registry(place).publish("team", "part", version, fields(), tensors(seed), BLOCKS)


def cached(place):
    """The folder and the files of the cache of this registry."""
    folder = Registry(place).store.folder
    return folder, files(folder) if folder.exists() else {}


def assert_right(place, seed=0, ref="team/part"):
    back, wanted = Registry(place).tensors(ref), tensors(seed)
    assert back.keys() == wanted.keys()
    assert all(back[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_it_holds_what_was_read_and_nothing_else(far):
    assert cached(far)[1] == {}
    Registry(far).tensor("team/part", "scale")
    kept = cached(far)[1]
    assert len(kept) == 3
    assert kept.items() <= files(far).items()
    assert_right(far)
    assert cached(far)[1] == files(far)


@s3_only
def test_content_crosses_the_network_once_and_references_always(proxy):
    publish(proxy.url, 0)
    assert_right(proxy.url)
    proxy.seen.clear()
    assert_right(proxy.url)
    assert proxy.seen
    assert all("/refs/" in line or "prefix=" in line for line in proxy.seen)


@pytest.mark.parametrize("kind", ["blobs", "manifests", "refs"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty", "link", "folder", "fifo"])
def test_a_damaged_file_is_never_served(far, kind, damage):
    assert_right(far)
    folder, kept = cached(far)
    for key in [key for key in kept if key.startswith(kind)]:
        path, data = folder / key, kept[key]
        path.unlink()
        if damage == "link":
            path.symlink_to("/dev/zero")
        elif damage == "folder":
            path.mkdir()
        elif damage == "fifo":
            os.mkfifo(path)
        else:
            new = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"\0", "empty": b""}
            path.write_bytes(new[damage])
    with warnings.catch_warnings(record=damage == "folder"):
        assert_right(far)
        assert_right(far)
    if damage != "folder":
        assert cached(far)[1] == kept


def test_it_does_not_hide_damage_of_the_registry(far):
    assert_right(far)
    whole = files(far)
    blob = next(key for key, data in whole.items() if key.startswith("blobs/") and any(data))
    (far / blob).write_bytes(b"\0" * len(whole[blob]))
    assert_right(far)
    report = Registry(far).verify()
    assert any(str(far / blob) in problem for problem in report.problems)
    with pytest.raises(LabError, match="is damaged.*Nothing was published"):
        publish(far, 0, "2")
    with pytest.raises(LabError, match="is damaged"):
        Registry(far).fetch("team/part")
    (far / blob).unlink()
    assert publish(far, 0, "2").created
    assert Registry(far).verify().ok


def test_references_are_those_of_the_registry(far, isolated):
    assert_right(far)
    publish(far, 1)
    assert_right(far, 1)
    owner = Registry(far)
    owner.retire("team/part@1", "reason")
    owner.unretire("team/part@1")
    marks = ["refs/team/part/1.restored-1", "refs/team/part/1.retired-1"]
    assert set(marks) < set(Registry(far).store.list("refs/team/part"))
    (far / "refs/team/part/2").unlink()
    assert_right(far)
    isolated.setenv("MOE_LAB_OFFLINE", "1")
    offline = Registry(far).store
    assert offline.list("refs") == ["refs/team/part/1", *marks]
    assert all(offline.get(mark, 99) == (far / mark).read_bytes() for mark in marks)
    with pytest.raises(FileNotFoundError):
        offline.get("refs/team/part/1.retired-2", 99)


def test_offline_the_cache_is_all_there_is(far, isolated):
    publish(far, 1, "2")
    publish(far, 2, "3")
    done = Registry(far).fetch("team/part@1")
    assert (done.name, done.bytes) == ("team/part@1", sum(array.nbytes for array in tensors(0).values()))
    digest = Registry(far).resolve("team/part@2").digest
    isolated.setenv("MOE_LAB_OFFLINE", "1")
    shutil.rmtree(far)
    assert_right(far, 0, "team/part@1")
    assert_right(far, 0, done.digest)
    registry = Registry(far, create=False)
    assert [entry.ref.version for entry in registry.list()] == ["1", "2"]
    for use, name in (
        (lambda: registry.resolve("team/part@3"), r"team/part@3 \(of its versions there is 1, 2\)"),
        (lambda: registry.resolve("team/other@1"), "team/other"),
        (lambda: registry.resolve("team/other"), "team/other"),
        (lambda: registry.tensors("team/part@2"), f"{digest}.json"),
    ):
        with pytest.raises(LabError, match=rf"{name} is not in the cache .* MOE_LAB_OFFLINE=1 .*module fetch REF"):
            use()
    with pytest.raises(LabError, match="MOE_LAB_OFFLINE=1 forbids"):
        publish(far, 5)
    assert not far.exists()


@pytest.mark.slow
@s3_only
def test_fetched_then_used_with_the_server_gone(isolated, quick, capsys, monkeypatch, proxy):
    monkeypatch.chdir(quick)
    isolated.setenv("MOE_LAB_STORE_PATIENCE", "0")
    with servers.s3_server() as server:
        isolated.setenv("AWS_ENDPOINT_URL", server.url)
        isolated.setenv("MOE_LAB_REGISTRY", "s3://bucket/registry")
        publish("s3://bucket/registry", 0)
        publish("s3://bucket/registry", 1)
        assert main(["module", "fetch", "team/part@1"]) == 0
        assert "fetched team/part@1" in capsys.readouterr().out
        server.kill()
        assert main(["module", "show", "team/part@1"]) == 2
        assert f"{server.url} cannot be reached" in capsys.readouterr().err
        isolated.setenv("MOE_LAB_OFFLINE", "1")
        assert main(["module", "show", "team/part@1"]) == 0
        assert main(["module", "list"]) == 0
        assert "team/part@1" in capsys.readouterr().out
        assert main(["module", "verify", "team/part@1"]) == 0
        assert main(["module", "fetch", "team/part@2"]) == 2
        assert "team/part@2 (of its versions there is 1) is not in the cache" in capsys.readouterr().err
        assert_right("s3://bucket/registry", 0, "team/part@1")


def test_a_full_disk_is_warned_of_once(far, monkeypatch):
    whole = tensors(0)
    shaky = ShakyOs()
    monkeypatch.setattr(local_module, "os", shaky)
    registry = Registry(far)
    shaky.at, shaky.fault = len(shaky.trace) + 3, fails_with(28)
    with pytest.warns(CacheWarning, match=r"cannot be written \(No space left on device\).*MOE_LAB_CACHE") as caught:
        back = registry.tensors("team/part")
    assert len(caught) == 1
    assert all(back[name].tobytes() == whole[name].tobytes() for name in whole)
    monkeypatch.undo()


def test_a_place_that_cannot_be_a_folder_is_warned_of_once(far, isolated, quick):
    (quick / "file").write_text("")
    isolated.setenv("MOE_LAB_CACHE", str(quick / "file"))
    with pytest.warns(CacheWarning, match="cannot be written") as caught:
        assert_right(far)
    assert len(caught) == 1
    with pytest.warns(CacheWarning), pytest.raises(LabError, match="team/part@1 is not whole in the cache"):
        Registry(far).fetch("team/part")


READER = """
import sys
from moe_lab.registry import Registry
from tests.registry.scenario import tensors
wanted = tensors(0)
for _ in range(int(sys.argv[2])):
    back = Registry(sys.argv[1]).tensors("team/part")
    assert all(back[name].tobytes() == wanted[name].tobytes() for name in wanted)
"""


def reader(place, rounds):
    command = [sys.executable, "-W", "error", "-c", READER, str(place), str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
def test_several_processes_share_it_while_it_is_deleted(far):
    readers = [reader(far, 70) for _ in range(3)]
    folder, deletions = cached(far)[0], 0
    while any(process.poll() is None for process in readers):
        time.sleep(0.02)
        shutil.rmtree(folder, ignore_errors=True)
        deletions += 1
    errors = [process.communicate()[1].decode() for process in readers]
    assert errors == [""] * 3
    assert deletions > 3
    assert_right(far)


@pytest.mark.slow
def test_a_reader_that_is_killed_leaves_nothing_wrong(far, isolated):
    for delay in (0.25, 0.3, 0.35, 0.4):
        process = reader(far, 10_000)
        stop = threading.Event()
        folder = cached(far)[0]
        eraser = threading.Thread(
            target=lambda folder=folder, stop=stop: [
                shutil.rmtree(folder, True) for _ in iter(lambda: stop.wait(0.01), True)
            ]
        )
        eraser.start()
        time.sleep(delay)
        stop.set()
        eraser.join()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        kept = cached(far)[1]
        assert kept.items() <= files(far).items()
        assert_right(far)


def test_where_it_is(isolated, quick, root, tmp_path):
    bucket = Registry("s3://bucket/registry").store
    assert isinstance(bucket, CachedStore)
    assert isinstance(origin(bucket), ObjectStore)
    assert bucket.folder.parent == quick / "cache" / "moe-lab" / "registries"
    assert Registry("s3://bucket/other").store.folder != bucket.folder
    isolated.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    assert Registry("s3://bucket/registry").store.folder != bucket.folder
    isolated.delenv("XDG_CACHE_HOME")
    assert Registry("s3://bucket/registry").store.folder.parent == quick / ".cache" / "moe-lab" / "registries"
    assert isinstance(Registry(root).store, LocalStore)
    isolated.setenv("MOE_LAB_CACHE", str(tmp_path))
    assert Registry(root).store.folder.parent == Registry("s3://bucket/registry").store.folder.parent == tmp_path
    isolated.setenv("MOE_LAB_CACHE", "off")
    assert isinstance(Registry(root).store, LocalStore)
    assert isinstance(Registry("s3://bucket/registry").store, ObjectStore)
    isolated.setenv("MOE_LAB_OFFLINE", "1")
    with pytest.raises(LabError, match="MOE_LAB_CACHE=off forbids one"):
        Registry("s3://bucket/registry")
    isolated.setenv("MOE_LAB_OFFLINE", "yes")
    with pytest.raises(LabError, match="MOE_LAB_OFFLINE is 'yes': it must be 1"):
        Registry("s3://bucket/registry")


@pytest.mark.parametrize("chosen", ["", "~/cache"])
def test_an_account_without_a_home_is_asked_for_a_place(isolated, root, chosen):
    def nobody(_):
        raise KeyError

    isolated.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        isolated.delenv(name)
    isolated.setenv("MOE_LAB_CACHE", chosen)
    with pytest.raises(LabError, match="no home to keep a cache in: set MOE_LAB_CACHE"):
        Registry("s3://bucket/registry")
    isolated.setenv("MOE_LAB_CACHE", "off")
    publish(root, 0)
    assert len(Registry(root).list()) == 1


def test_without_a_cache_there_is_nothing_to_fetch_into(isolated, root):
    publish(root, 0)
    with pytest.raises(LabError, match="is read without a cache.*set MOE_LAB_CACHE=DIR"):
        Registry(root).fetch("team/part")
