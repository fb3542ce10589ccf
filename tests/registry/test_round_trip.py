import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.registry import ArtifactRef, Published, Registry, RetiredWarning
from moe_lab.registry.chunks import CHUNK_BYTES
from moe_lab.registry.manifest import ITEM_BYTES
from tests.registry.scenario import BLOCKS, fields, files, tensors

REPOSITORY = str(Path(__file__).parents[2])


def publish(registry: Registry, version: str | None = None, seed: int = 0, name: str = "part", **kw) -> Published:
    content = tensors(seed, kw.pop("blocks", 4))
    return registry.publish("team", name, version, fields(**kw), content, BLOCKS)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


NAN_PAYLOAD = np.array([0x7FC01234, 0xFFC00001, 0x7F800001, 0x80000000], np.uint32).view(np.float32)
ODD = {
    "float32": np.array([[1.5, -0.0], [np.inf, 1e-45]], np.float32),
    "nan with payload": NAN_PAYLOAD,
    "bfloat16": np.arange(-4, 4).astype(ml_dtypes.bfloat16) / 3,
    "bfloat16 nan": np.array([0x7FC1, 0x8000], np.uint16).view(ml_dtypes.bfloat16),
    "float8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    "int4": np.arange(-8, 8).astype(ml_dtypes.int4),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([True, False, True]),
    "complex": np.array([1j, -0.0], np.complex64),
    "0-d": np.float32(-0.0),
    "0-d bfloat16": np.asarray(ml_dtypes.bfloat16(3)),
    "empty": np.zeros((0,), np.float32),
    "empty with axes": np.zeros((3, 0, 2), np.int32),
    "empty axis 0": np.zeros((0, 5), ml_dtypes.bfloat16),
    "zeros": np.zeros((4, 4), np.float32),
    "column major": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(20, dtype=np.int16)[::3],
    "backwards": np.arange(5, dtype=np.float64)[::-1],
    "one chunk and a byte": np.arange(CHUNK_BYTES + 1, dtype=np.uint8),
}


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "in blocks"])
def test_every_bit_of_every_kind_comes_back(registry, blocks):
    in_blocks = {name for name, array in ODD.items() if blocks and array.ndim and array.nbytes < 10_000}
    done = registry.publish("team", "odd", None, fields(), ODD, in_blocks)
    back = registry.tensors(done.digest)
    assert back.keys() == ODD.keys()
    for name, array in ODD.items():
        assert same_bits(back[name], np.asarray(array)), name
        assert back[name].flags.writeable
    assert registry.verify().ok


def test_every_dtype_of_the_table_round_trips_and_has_its_size(registry):
    random = np.random.default_rng(0)
    arrays = {}
    for name, size in ITEM_BYTES.items():
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        assert dtype.itemsize == size
        raw = random.integers(0, 2 if name == "bool" else 256, 16 * size, dtype=np.uint8)
        arrays[name] = raw.view(dtype)
    done = registry.publish("team", "all", None, fields(), arrays)
    for name, array in registry.tensors(done.digest).items():
        assert same_bits(array, arrays[name]), name


def test_big_endian_input_is_stored_by_value(registry):
    done = registry.publish("team", "part", None, fields(), {"x": np.arange(3, dtype=">i4")})
    assert same_bits(registry.tensor(done.digest, "x"), np.arange(3, dtype=np.int32))


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([b"raw"]),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "i4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_is_no_number_is_refused(registry, root, array):
    with pytest.raises(LabError, match=r"tensor 'x' has dtype .* cannot be stored"):
        registry.publish("team", "part", None, fields(), {"x": array})
    assert files(root) == {}


@pytest.mark.slow
@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 7), st.integers(0, 4), st.integers(1, 3)),
    start=st.integers(-8, 8) | st.none(),
    stop=st.integers(-8, 8) | st.none(),
    blocks=st.booleans(),
)
def test_rows_are_a_slice_of_axis_0(tmp_path_factory, shape, start, stop, blocks):
    registry = Registry(tmp_path_factory.mktemp("rows"))
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    done = registry.publish("team", "part", None, fields(), {"x": array}, {"x"} if blocks else ())
    assert same_bits(registry.tensor(done.digest, "x", slice(start, stop)), array[start:stop])


def test_rows_across_the_chunks_of_a_tensor_without_blocks(registry, root):
    array = np.random.default_rng(0).integers(0, 255, (5, CHUNK_BYTES // 2 + 1), dtype=np.uint8)
    done = registry.publish("team", "part", None, fields(), {"x": array})
    manifest = registry.manifest(done.digest)
    chunks = manifest.record("x").chunks
    assert len(chunks) == 3
    for start in range(5):
        for stop in range(start, 6):
            assert same_bits(registry.tensor(manifest, "x", slice(start, stop)), array[start:stop])
    (root / "blobs" / chunks[2]).unlink()
    assert same_bits(registry.tensor(manifest, "x", slice(0, 3)), array[:3])
    with pytest.raises(LabError, match="chunk 2 is missing"):
        registry.tensor(manifest, "x", slice(0, 5))


def test_a_narrow_read_touches_only_its_own_chunks(registry, root):
    done = publish(registry, blocks=8)
    manifest = registry.manifest(done.digest)
    for name in BLOCKS:
        for chunk in manifest.record(name).chunks[3:]:
            (root / "blobs" / chunk).unlink()
    narrow = registry.tensors(manifest, blocks=3)
    for name, array in tensors(0, 8).items():
        assert same_bits(narrow[name], array[:3] if name in BLOCKS else np.asarray(array))
    with pytest.raises(LabError, match="chunk 3 is missing"):
        registry.tensors(manifest, blocks=4)


def test_a_narrower_artifact_stores_nothing_but_its_manifest_and_reference(registry, root):
    publish(registry, blocks=8)
    before = files(root)
    narrow = publish(registry, name="narrow", blocks=3)
    new = files(root).keys() - before.keys()
    assert new == {f"manifests/{narrow.digest}.json", "refs/team/narrow/1"}
    wide = registry.tensors("team/part", blocks=3)
    assert all(same_bits(array, wide[name]) for name, array in registry.tensors("team/narrow").items())


def test_tensors_with_fewer_blocks_come_whole_and_too_many_are_refused(registry):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.arange(12).reshape(4, 3), "c": np.arange(9)}
    done = registry.publish("team", "part", None, fields(), arrays, {"a", "b"})
    assert {name: array.shape for name, array in registry.tensors(done.digest, blocks=3).items()} == {
        "a": (2, 3),
        "b": (3, 3),
        "c": (9,),
    }
    for blocks in (0, -1, 5):
        with pytest.raises(LabError, match="it has 4"):
            registry.tensors("team/part", blocks=blocks)


def test_rows_of_a_row_sized_chunk_are_not_mistaken_for_blocks(registry):
    """A stack of layers whose rows happen to fill a chunk is still no run of blocks."""
    arrays = {"stack": np.zeros((3, CHUNK_BYTES), np.uint8), "gate": np.zeros((4, 2), np.float32)}
    done = registry.publish("team", "part", None, fields(), arrays, {"gate"})
    assert registry.tensors(done.digest, blocks=1)["stack"].shape == (3, CHUNK_BYTES)


def test_what_is_read_wrongly_is_said(registry):
    done = publish(registry)
    with pytest.raises(LabError, match=r'no tensor \'layers\.0\.gat\'\. Did you mean "layers\.0\.gate"'):
        registry.tensor(done.digest, "layers.0.gat")
    with pytest.raises(LabError, match="no axes"):
        registry.tensor(done.digest, "scale", slice(0, 1))
    with pytest.raises(LabError, match="step"):
        registry.tensor(done.digest, "ids", slice(0, 4, 2))
    with pytest.raises(LabError, match=r"block tensor \'layers\.0\.gat\' .* Did you mean"):
        registry.publish("team", "part", None, fields(), tensors(), {"layers.0.gat"})
    with pytest.raises(LabError, match="no axes"):
        registry.publish("team", "part", None, fields(), tensors(), {"scale"})
    with pytest.raises(LabError, match="not a manifest"):
        registry.tensor({"format": 1}, "ids")


def test_a_plain_dict_of_a_manifest_will_do(registry):
    done = publish(registry)
    assert same_bits(registry.tensor(dict(registry.manifest(done.digest)), "ids"), tensors()["ids"])


def test_versions_count_up_and_the_same_content_keeps_its_own(registry):
    first = publish(registry, seed=1)
    assert first == Published(ArtifactRef("team", "part", "1"), first.digest, created=True)
    assert publish(registry, seed=1) == Published(first.ref, first.digest, created=False)
    second = publish(registry, seed=2)
    assert (second.ref.version, second.created) == ("2", True)
    # Only the latest counts: going back to older content is a new version.
    third = publish(registry, seed=1)
    assert (third.ref.version, third.digest, third.created) == ("3", first.digest, True)
    assert publish(registry, "5.1", seed=4).created
    assert publish(registry, seed=5).ref.version == "6"
    assert publish(registry, "4", seed=6).created
    assert registry.resolve("team/part").ref == ArtifactRef("team", "part", "6")


def test_a_version_never_changes(registry, root):
    first = publish(registry, "1", seed=1)
    assert not publish(registry, "1", seed=1).created
    before = files(root)
    with pytest.raises(LabError, match=r"team/part@1 is already published .* Publish it as team/part@2"):
        publish(registry, "1", seed=2)
    assert files(root) == before
    assert registry.resolve("team/part@1").digest == first.digest


def test_names_resolve_to_digests(registry):
    first, second = publish(registry, seed=1), publish(registry, seed=2)
    assert registry.resolve("team/part").digest == second.digest
    assert registry.resolve("team/part@1").digest == first.digest
    narrow = registry.resolve("team/part@1:512")
    assert (narrow.ref, narrow.digest) == (ArtifactRef("team", "part", "1", 512), first.digest)
    assert registry.resolve(ArtifactRef("team", "part")).digest == second.digest
    assert registry.resolve(first.digest).digest == first.digest
    assert registry.manifest("team/part@1").label == "team/part@1"
    assert same_bits(registry.tensor("team/part@1", "ids"), tensors(1)["ids"])


def test_a_miss_says_what_there_is(registry):
    with pytest.raises(LabError, match=r"no team/part\. Available: none"):
        registry.resolve("team/part")
    publish(registry)
    with pytest.raises(LabError, match=r'no team/prt\. Did you mean "team/part"\? Available: team/part'):
        registry.resolve("team/prt")
    with pytest.raises(LabError, match=r"no version 7\. Published: 1\."):
        registry.resolve("team/part@7")
    with pytest.raises(LabError, match="no artifact sha256-0000"):
        registry.resolve("sha256-" + "0" * 64)


def retire(root, version, reason="wrong data", name="part"):
    """By hand, as the format page says."""
    text = f"{reason}\n".encode()
    line = f"sha256-{hashlib.sha256(text).hexdigest()}\n".encode()
    (root / "refs" / "team" / name / f"{version}.retired-1").write_bytes(line + text)


def test_retired_versions_are_passed_over_and_warn(registry, root):
    publish(registry, seed=1)
    second = publish(registry, seed=2)
    retire(root, "2", "wrong\n\x1b[31mdata ")
    assert registry.resolve("team/part").ref == ArtifactRef("team", "part", "1")
    with pytest.warns(RetiredWarning, match=r"team/part@2 is retired: wrong \[31mdata\.") as caught:
        resolved = registry.resolve("team/part@2")
    assert caught[0].filename == __file__
    assert (resolved.digest, resolved.retired) == (second.digest, "wrong [31mdata")
    assert [entry.retired for entry in registry.list()] == [None, "wrong [31mdata"]
    assert registry.verify().ok
    assert registry.verify("team/part@2").ok
    retire(root, "1", "")
    with pytest.raises(LabError, match=r"every version of team/part is retired; name one: team/part@2"):
        registry.resolve("team/part")


def test_a_retired_number_is_never_used_again(registry, root):
    publish(registry, seed=1)
    publish(registry, seed=2)
    retire(root, "2")
    assert publish(registry, seed=2).ref.version == "3"
    retire(root, "3")
    (root / "refs/team/part/3").unlink()
    with pytest.raises(LabError, match=r"team/part@3 was retired and removed.* as team/part@4"):
        publish(registry, "3", seed=5)
    with pytest.raises(LabError, match=r"no version 3\."):
        registry.resolve("team/part@3")
    assert publish(registry, seed=5).ref.version == "4"


def test_listing_is_sorted_by_number_and_shows_what_is_damaged(registry, root):
    for version in ("10", "9", "1.5"):
        publish(registry, version, seed=int(version[0]))
    other = publish(registry, name="other", seed=7, summary="another")
    entries = registry.list()
    assert [str(entry.ref) for entry in entries] == [
        "team/other@1",
        "team/part@1.5",
        "team/part@9",
        "team/part@10",
    ]
    assert (entries[0].kind, entries[0].summary, entries[0].digest) == ("module", "another", other.digest)
    (root / "manifests" / f"{other.digest}.json").unlink()
    entries = registry.list()
    assert len(entries) == 4
    assert "is missing" in entries[0].problem
    assert all(entry.problem is None for entry in entries[1:])


def parent(done: Published, relation: str) -> dict[str, str]:
    return {"ref": str(done.ref), "digest": done.digest, "relation": relation}


def test_lineage_follows_parents_and_says_which_are_not_here(registry):
    trunk = publish(registry, name="trunk", seed=1)
    teacher = publish(registry, name="teacher", seed=2, lineage={"parents": [parent(trunk, "trunk")]})
    absent = {"ref": "else/where@3", "digest": "sha256-" + "0" * 64, "relation": "data"}
    parents = [parent(teacher, "teacher"), parent(trunk, "trunk"), absent]
    publish(registry, name="child", seed=3, lineage={"parents": parents})
    tree = registry.lineage("team/child")
    assert (tree.ref, tree.relation, tree.kind) == ("team/child@1", "", "module")
    assert [(node.ref, node.relation) for node in tree.parents] == [
        ("team/teacher@1", "teacher"),
        ("team/trunk@1", "trunk"),
        ("else/where@3", "data"),
    ]
    assert [node.ref for node in tree.parents[0].parents] == ["team/trunk@1"]
    assert tree.parents[0].parents[0].kind == "module"
    assert tree.parents[2].kind == ""
    assert "is missing" in tree.parents[2].problem


def test_a_long_and_braided_lineage_is_not_walked_twice(registry):
    done = publish(registry, seed=0)
    for seed in range(1, 60):
        section = fields(lineage={"parents": [parent(done, "left"), parent(done, "right")]})
        done = registry.publish("team", "part", None, section, {"x": np.int32(seed)})
    node, generations = registry.lineage("team/part"), 0
    while node.parents:
        assert [parent.relation for parent in node.parents] == ["left", "right"]
        assert node.parents[0].parents is node.parents[1].parents
        node, generations = node.parents[1], generations + 1
    assert (node.ref, generations) == ("team/part@1", 59)


@pytest.mark.slow
def test_the_digest_does_not_depend_on_order_or_hash_seed(tmp_path):
    program = """if True:
        import sys, random
        from moe_lab.registry import Registry
        from tests.registry.scenario import BLOCKS, fields, tensors
        content = list(tensors(3).items())
        random.shuffle(content)
        sections = list(fields(config={"b": 1, "a": 2}).items())
        random.shuffle(sections)
        registry = Registry(sys.argv[1])
        print(registry.publish("team", "part", None, dict(sections), dict(content), BLOCKS).digest)
    """
    digests = set()
    for seed in range(4):
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / str(seed))],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1
    registry = Registry(tmp_path / "0")
    assert not registry.publish("team", "part", "1", fields(config={"a": 2, "b": 1}), tensors(3), BLOCKS).created


def test_listing_and_resolving_load_no_numerical_stack(registry, root):
    publish(registry)
    program = """if True:
        import sys
        from moe_lab.registry import Registry
        registry = Registry(sys.argv[1], create=False)
        assert len(registry.list()) == 1 and registry.verify().ok
        registry.lineage(registry.resolve("team/part").digest)
        heavy = {"numpy", "jax", "flax", "ml_dtypes", "pydantic", "orbax", "pyarrow"} & sys.modules.keys()
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", program, str(root)], env={**os.environ, "PYTHONPATH": REPOSITORY}, check=True)


def test_a_reader_written_from_the_format_page_alone_sees_the_same(registry, root):
    publish(registry, "1.9", seed=1, blocks=5)
    publish(registry, "1.10", seed=2, blocks=5)
    retire(root, "2")
    folder = root / "refs/team/part"
    newest = max(
        (path.name for path in folder.iterdir() if ".retired-" not in path.name),
        key=lambda version: [int(part) for part in version.split(".")],
    )
    digest = (folder / newest).read_text().strip()
    text = (root / "manifests" / f"{digest}.json").read_bytes()
    assert f"sha256-{hashlib.sha256(text).hexdigest()}" == digest
    manifest = json.loads(text)
    assert (manifest["format"], manifest["kind"], manifest["claims"]) == (
        1,
        "module",
        {"bits_per_byte": "1.25"},
    )
    for name, array in tensors(2, 5).items():
        record = manifest["tensors"][name]
        raw = b"".join((root / "blobs" / chunk).read_bytes() for chunk in record["chunks"])
        assert same_bits(np.frombuffer(raw, record["dtype"]).reshape(record["shape"]), np.asarray(array))
        assert record["blocks"] == (name in BLOCKS)
        if record["blocks"]:
            assert len(record["chunks"]) == 5
            assert (root / "blobs" / record["chunks"][3]).read_bytes() == array[3].tobytes()


def test_reading_changes_nothing_on_disk(registry, root):
    publish(registry)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again = Registry(root)
    again.tensors("team/part")
    again.verify()
    again.list()
    again.lineage("team/part")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
