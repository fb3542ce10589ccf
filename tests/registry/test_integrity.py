"""Whatever happens to a file, nobody reads other numbers than the ones published, and the file is named."""

import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, fields, files, tensors


@pytest.fixture
def published(registry, root):
    """Two artifacts, the second a cut and a child of the first; returns what a reader should see."""
    teacher = registry.publish("team", "wide", "1", fields(), tensors(1, blocks=4), BLOCKS)
    parent = {"ref": "team/wide@1", "digest": teacher.digest, "relation": "teacher"}
    registry.publish("team", "cut", "1", fields(lineage={"parents": [parent]}), tensors(1, blocks=2), BLOCKS)
    return read_all(Registry(root))


def read_all(registry: Registry) -> dict[str, dict[str, bytes]]:
    """As a reader does who starts from names alone."""
    return {
        name: {key: array.tobytes() for key, array in registry.tensors(name).items()}
        for name in ("team/wide", "team/cut", "team/wide@1", "team/cut@1")
    }


def refusal(root) -> str:
    """What a reader is told, who must not be given anything."""
    with pytest.raises(LabError) as caught:
        read_all(Registry(root))
    return str(caught.value)


def assert_detected(root, *paths):
    """Reading by name fails and verifying does; the one names a damaged file, the other all of them."""
    names = [Path(path).name for path in paths]
    told, problems = refusal(root), Registry(root).verify().problems
    assert any(name in told for name in names), told
    for name in names:
        assert any(name in problem for problem in problems), (name, problems)
    assert not any("\n" in text for text in (told, *problems))


def sorts(paths):
    """One file of each sort."""
    return [next(path for path in sorted(paths) if path.startswith(sort)) for sort in ("blobs", "manifests", "refs")]


def test_a_sound_registry_verifies_and_every_byte_is_read(registry, root, published):
    seen = []
    report = registry.verify(progress=lambda count, size: seen.append((count, size)))
    stored = files(root)
    assert report.ok
    assert (report.files, report.bytes) == (len(stored), sum(map(len, stored.values())))
    assert seen == sorted(seen)
    assert seen[-1] == (report.files, report.bytes)


@pytest.mark.slow
def test_every_single_bit_flip_is_detected_and_named(root, published):
    chance = random.Random(0)
    stored = files(root)
    for path, data in stored.items():
        flips = {chance.randrange(len(data) * 8) for _ in range(12)} | {0, len(data) * 8 - 1}
        for bit in flips:
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            (root / path).write_bytes(damaged)
            assert_detected(root, path)
        (root / path).write_bytes(data)
    assert Registry(root).verify().ok
    assert len(stored) >= 14


def test_every_byte_of_a_reference_counts(root, published):
    path = root / "refs/team/wide/1"
    data = path.read_bytes()
    for position in range(len(data)):
        for change in (1, 32, 128):
            path.write_bytes(data[:position] + bytes([data[position] ^ change]) + data[position + 1 :])
            with pytest.raises(LabError, match=r"team/wide@1"):
                Registry(root).tensors("team/wide@1")


@pytest.mark.parametrize("harm", ["truncate", "empty", "extend", "zero", "delete"])
def test_every_file_is_missed_or_found_changed(root, published, harm):
    for path, data in files(root).items():
        if harm == "delete":
            (root / path).unlink()
        else:
            changed = {"truncate": data[:-1], "empty": b"", "extend": data + b"\0", "zero": bytes(len(data))}[harm]
            assert changed != data
            (root / path).write_bytes(changed)
        if harm == "delete" and path.startswith("refs"):
            assert "the registry has no team/" in refusal(root)
        else:
            assert_detected(root, path)
        (root / path).write_bytes(data)


def test_no_missing_chunk_reads_as_zeros(registry, root):
    done = registry.publish("team", "zeros", None, fields(), {"x": np.zeros((4, 4), np.float32)})
    assert not registry.tensor(done.digest, "x").any()
    (chunk,) = registry.manifest(done.digest).record("x").chunks
    (root / "blobs" / chunk).unlink()
    with pytest.raises(LabError, match=rf"{done.digest}: tensor 'x': chunk 0 is missing: .*{chunk}"):
        registry.tensor(done.digest, "x")


def test_damage_names_artifact_tensor_and_file(registry, root, published):
    chunk = registry.manifest("team/wide").record("layers.0.down").chunks[3]
    (root / "blobs" / chunk).write_bytes(b"x" * 96)
    with pytest.raises(LabError, match=rf"team/wide@1: tensor 'layers\.0\.down': chunk 3 .*{chunk} is damaged"):
        registry.tensors("team/wide")
    registry.tensors("team/cut")
    (problem,) = registry.verify().problems
    assert problem.startswith("team/wide@1: tensor 'layers.0.down': chunk 3 ")
    assert registry.verify("team/cut").ok
    assert registry.verify("team/wide").problems == (problem,)


def test_files_of_equal_size_that_change_places_are_detected(root, published):
    stored = files(root)
    blobs = [path for path in sorted(stored) if path.startswith("blobs") and len(stored[path]) == 96]
    one, other = blobs[:2]
    (root / one).write_bytes(stored[other])
    (root / other).write_bytes(stored[one])
    assert_detected(root, one, other)


def test_a_chunk_of_another_length_than_the_manifest_says_is_refused(registry, root):
    """Right digest, wrong place: a manifest that nobody here would write, made by hand."""
    from moe_lab.files import digest_of
    from moe_lab.registry.manifest import TensorRecord, build

    chunk = digest_of(b"12345678")
    registry.store.put_if_absent(f"blobs/{chunk}", b"12345678")
    for shape, reason in (((1,), "more than 4"), ((3,), "8 bytes and the manifest says 12")):
        manifest, data = build({"kind": "module"}, {"x": TensorRecord("float32", shape, 4096, (chunk,), False)})
        registry.store.put_if_absent(f"manifests/{manifest.digest}.json", data)
        with pytest.raises(LabError, match=reason):
            registry.tensor(manifest.digest, "x")


def test_a_manifest_with_the_right_digest_must_still_be_sound(registry, root):
    from moe_lab.files import digest_of

    for text, reason in (
        (b"{}", "format is None"),
        (b'{"format":2}', "update moe-lab"),
        (b"[" * 9999, "nested"),
    ):
        digest = digest_of(text)
        registry.store.put_if_absent(f"manifests/{digest}.json", text)
        registry.store.put_if_absent(f"refs/team/part{len(text)}/1", f"{digest}\n".encode())
        with pytest.raises(LabError, match=reason):
            registry.manifest(f"team/part{len(text)}")
    assert len(registry.verify().problems) == 3
    assert all(entry.problem for entry in registry.list())


def replace_with(kind, path, outside):
    data = path.read_bytes()
    path.unlink()
    if kind == "link":
        outside.write_bytes(data)
        path.symlink_to(outside)
    elif kind == "dangling link":
        path.symlink_to(outside.with_name("nowhere"))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "x").write_bytes(data)


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder"])
def test_only_plain_files_are_read(root, published, tmp_path, kind):
    for path in sorts(files(root)):
        data = (root / path).read_bytes()
        replace_with(kind, root / path, tmp_path / "outside")
        assert re.search(r"neither a plain file|no team/", refusal(root))
        assert any(path in problem for problem in Registry(root).verify().problems)
        shutil.rmtree(root / path) if kind == "folder" else (root / path).unlink()
        (root / path).write_bytes(data)


@pytest.mark.parametrize("folder", ["blobs", "manifests", "refs", "refs/team", "refs/team/wide"])
def test_a_link_in_place_of_a_folder_is_not_followed(root, published, tmp_path, folder):
    shutil.move(root / folder, tmp_path / "moved")
    (root / folder).symlink_to(tmp_path / "moved", target_is_directory=True)
    before = files(tmp_path / "moved")
    assert re.search(r"neither a plain file|no team/", refusal(root))
    with pytest.raises(LabError, match="neither a plain file"):
        Registry(root).publish("team", "wide", "7", fields(summary="new"), tensors(9), BLOCKS)
    assert files(tmp_path / "moved") == before


def test_the_registry_itself_may_be_a_link(root, published, tmp_path):
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert read_all(Registry(tmp_path / "link")) == published


def test_publishing_over_damage_is_refused_and_mends_after_deletion(registry, root, published):
    chunk = registry.manifest("team/wide").record("layers.0.gate").chunks[0]
    (root / "blobs" / chunk).write_bytes(b"x" * 96)
    with pytest.raises(LabError, match=rf"{chunk} is damaged.* Nothing was published\. Delete that file"):
        registry.publish("team", "new", None, fields(summary="new"), tensors(1), BLOCKS)
    assert not (root / "refs/team/new").exists()
    (root / "blobs" / chunk).unlink()
    assert not registry.publish("team", "wide", None, fields(), tensors(1), BLOCKS).created
    assert read_all(registry) == published
    assert registry.verify().ok


def test_stray_files_are_reported_and_never_used(registry, root, published):
    strays = [
        "blobs/notes.txt",
        "manifests/x.json",
        "refs/README",
        "refs/team/wide/latest",
        "refs/team/wide/1.0.json",
    ]
    strays += [
        "refs/team/wide/deep/1",
        "refs/Team/wide/1",
        "blobs/sha256-" + "0" * 64,
        "manifests/sha256-" + "0" * 64,
        "blobs/bad\udcff",
    ]
    for stray in strays:
        path = root / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stray")
    (root / "refs/team/folder").symlink_to(root / "refs/team/wide", target_is_directory=True)
    strays.append("refs/team/folder")
    (root / "tmp/123-abc").write_text("left by a publisher that was killed")
    problems = registry.verify().problems
    assert len(problems) == len(strays)
    for stray in strays:
        assert any(ascii(Path(stray).name)[1:-1] in problem for problem in problems), stray
    assert read_all(registry) == published
    assert len(registry.list()) == 2


def test_a_file_that_is_far_too_large_is_not_read_into_memory(registry, root, published):
    for path in sorts(files(root)):
        os.truncate(root / path, 1 << 40)
    with pytest.raises(LabError, match="1,099,511,627,776 bytes"):
        registry.resolve("team/cut")
    report = registry.verify()
    assert len(report.problems) >= 2
    assert report.bytes < 100_000
