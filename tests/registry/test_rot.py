"""Rot at full count: a thousand flipped bits over every kind of file, none of them silent.

The kinds are taken from the folder, so whatever a registry comes to store is in the count without a change here: add
what writes it to `WRITERS`.
"""

import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, fields, files, owner_key, tensors

REPOSITORY = str(Path(__file__).parents[2])
FLIPS = 1000


def publish_two(registry):
    """The second is a cut and a child of the first."""
    teacher = registry.publish("team", "wide", "1", fields(), tensors(1, blocks=4), BLOCKS)
    parent = {"ref": "team/wide@1", "digest": teacher.digest, "relation": "teacher"}
    registry.publish("team", "cut", "1", fields(lineage={"parents": [parent]}), tensors(2, blocks=2), BLOCKS)


def publish_odd_ones(registry):
    """No tensors; versions of two numbers; zeros, which a reader must not mistake for a hole."""
    registry.publish("team", "router", "1", {"kind": "router"}, {})
    registry.publish("other", "zeros", "1.2", fields(), {"x": np.zeros((4, 4), np.float32)})


def retire_and_sign(registry):
    """Two versions, of which one is retired and the other was; both are signed."""
    for version in ("1", "2"):
        done = registry.publish("team", "marked", version, fields(summary=version), tensors(3, blocks=1), BLOCKS)
        registry.sign(done.ref, owner_key(1))
        registry.retire(done.ref, "wrong data")
    registry.unretire("team/marked@2", "it was right")


WRITERS = [publish_two, publish_odd_ones, retire_and_sign]


@pytest.fixture
def sound(registry, root):
    """A registry with every kind of file; returns its files and what is read from it."""
    for write in WRITERS:
        write(registry)
    assert registry.verify().ok
    return files(root), read_all(root)


def kind(path: str) -> str:
    """What sort of file this is: its folder, and its ending where one folder holds several sorts."""
    return path.split("/")[0] + "".join(suffix.split("-")[0] for suffix in Path(path).suffixes if suffix[1:2].isalpha())


def by_kind(stored) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(stored):
        groups.setdefault(kind(path), []).append(path)
    return groups


def read_all(root: Path):
    """As somebody does who starts from the listing: versions in use, digests, lineage and every byte."""
    registry = Registry(root)
    seen = {}
    for entry in registry.list():
        if entry.problem:
            raise LabError(entry.problem)
        arrays = registry.tensors(entry.ref)
        seen[str(entry.ref)] = (entry.retired, entry.digest, {name: array.tobytes() for name, array in arrays.items()})
    return seen


def harmed(root: Path, path: str, data: bytes, truth) -> bool:
    """Writes damaged bytes; whether verifying names the file, while no reader gets anything but the truth."""
    (root / path).write_bytes(data)
    try:
        assert read_all(root) == truth, f"{path}: read without an error, but not what was published"
    except LabError as error:
        assert str(error).isprintable()
    return any(Path(path).name in problem for problem in Registry(root).verify().problems)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::moe_lab.registry.RetiredWarning")
def test_a_thousand_flipped_bits_and_none_is_silent(root, sound):
    stored, truth = sound
    groups = by_kind(stored)
    assert {"blobs", "manifests.json", "refs"} <= groups.keys()
    chance, found = random.Random(0), Counter()
    for count in range(FLIPS):
        group = list(groups)[count % len(groups)]
        path = chance.choice(groups[group])
        data = stored[path]
        if harmed(root, path, flipped(data, chance.randrange(8 * len(data))), truth):
            found[group] += 1
        (root / path).write_bytes(data)
    assert found.total() == FLIPS
    assert read_all(root) == truth
    assert Registry(root).verify().ok


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::moe_lab.registry.RetiredWarning")
def test_every_kind_of_file_cut_short_anywhere_or_grown(root, sound):
    stored, truth = sound
    chance = random.Random(1)
    for paths in by_kind(stored).values():
        for path in chance.sample(paths, min(6, len(paths))):
            data = stored[path]
            lengths = {0, 1, len(data) // 2, len(data) - 1, *(chance.randrange(len(data)) for _ in range(4))}
            for changed in [*(data[:length] for length in lengths), data + b"\0", data + b"\n", data + data]:
                assert harmed(root, path, changed, truth), (path, len(changed))
            (root / path).write_bytes(data)
    assert Registry(root).verify().ok


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::moe_lab.registry.RetiredWarning")
def test_content_that_changes_places_is_found_under_both_names(root, sound):
    stored, truth = sound
    for group in ("blobs", "manifests.json"):
        paths = by_kind(stored)[group]
        pairs = [
            (one, other)
            for one, other in itertools.combinations(paths, 2)
            if group != "blobs" or len(stored[one]) == len(stored[other])
        ]
        assert pairs
        for one, other in random.Random(2).sample(pairs, min(60, len(pairs))):
            (root / other).write_bytes(stored[one])
            assert harmed(root, one, stored[other], truth)
            assert any(Path(other).name in problem for problem in Registry(root).verify().problems)
            for path in (one, other):
                (root / path).write_bytes(stored[path])


def test_a_reference_under_another_name_is_a_reference(root, registry):
    """What hashes cannot show: who may name what. Unsigned, a moved reference is as good as a published one."""
    publish_two(registry)
    wide, cut = (root / f"refs/team/{name}/1" for name in ("wide", "cut"))
    before = {name: Registry(root).resolve(f"team/{name}@1").digest for name in ("wide", "cut")}
    one, other = wide.read_bytes(), cut.read_bytes()
    wide.write_bytes(other)
    cut.write_bytes(one)
    assert Registry(root).resolve("team/wide@1").digest == before["cut"]
    assert Registry(root).resolve("team/cut@1").digest == before["wide"]
    # A digest, as in a lockfile or a lineage, cannot be turned to other content.
    assert Registry(root).manifest(before["wide"]).digest == before["wide"]


@pytest.mark.parametrize("way", ["written in place", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_the_truth_or_an_error(root, registry, way):
    """Between verifying and reading, and between opening and reading, somebody swaps a chunk to and fro."""
    array = np.arange(500_000, dtype=np.float32)
    done = registry.publish("team", "part", "1", fields(), {"x": array})
    (chunk,) = registry.manifest(done.digest).record("x").chunks
    path, stop = root / "blobs" / chunk, threading.Event()
    true = path.read_bytes()
    false = true[:-4] + b"\0\0\0\0"

    def swap():
        for data in itertools.cycle([false, true]):
            if way == "replaced":
                path.with_name("other").write_bytes(data)
                path.with_name("other").replace(path)
            else:
                descriptor = os.open(path, os.O_WRONLY)
                os.pwrite(descriptor, data[-4:], len(data) - 4)
                os.close(descriptor)
            if stop.wait(0.001):
                break

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = Counter()
    try:
        for _ in range(150):
            try:
                assert registry.tensor(done.digest, "x").tobytes() == true
                outcomes["truth"] += 1
            except LabError as error:
                assert chunk in str(error)
                outcomes["error"] += 1
    finally:
        stop.set()
        swapper.join()
    assert outcomes["truth"]
    assert outcomes["error"]


def test_verified_and_then_swapped(root, registry):
    """A read never relies on an earlier verification."""
    done = registry.publish("team", "part", "1", fields(), tensors(), BLOCKS)
    assert registry.verify().ok
    manifest = registry.manifest("team/part")
    for digest in manifest.record("layers.0.gate").chunks:
        (root / "blobs/new").write_bytes(bytes(96))
        (root / "blobs/new").replace(root / "blobs" / digest)
        with pytest.raises(LabError, match=digest):
            registry.tensor(manifest, "layers.0.gate")
        with pytest.raises(LabError, match=digest):
            registry.tensors(done.digest)
        (root / "blobs" / digest).unlink()
        registry.publish("team", "part", "1", fields(), tensors(), BLOCKS)


PUBLISH_IN_FIVE_ORDERS = """if True:
    import random, sys
    import ml_dtypes, numpy as np
    from moe_lab.registry import Registry
    from moe_lab.registry.manifest import ITEM_BYTES
    from tests.registry.scenario import BLOCKS, fields, tensors
    nan = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)
    content = {**tensors(3), "nan": nan, "-0": np.array(-0.0)}
    for name in ITEM_BYTES:
        content[name] = np.zeros(3, getattr(ml_dtypes, name, None) or name)
    registry, chance = Registry(sys.argv[1]), random.Random(sys.argv[2])
    for _ in range(5):
        arrays = list(content.items())
        config = list({name: chance.__class__(name).random() for name in "abcdef"}.items())
        sections = list(fields(config={}, licence="CC0-1.0").items())
        for order in (arrays, config, sections):
            chance.shuffle(order)
        chosen = {**dict(sections), "config": dict(config)}
        print(registry.publish("team", "part", None, chosen, dict(arrays), BLOCKS).digest)
"""


@pytest.mark.slow
def test_fifty_publications_of_one_module_are_one_digest(root):
    """Ten processes with hash seeds of their own, five orders of every dict in each."""
    digests = []
    for seed in range(10):
        run = subprocess.run(
            [sys.executable, "-c", PUBLISH_IN_FIVE_ORDERS, str(root), str(seed)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            check=True,
        )
        digests += run.stdout.split()
    assert len(digests) == 50
    assert len(set(digests)) == 1
    assert [str(entry.ref) for entry in Registry(root).list()] == ["team/part@1"]
