"""A tensor in the registry's own files: the same values as read, shared, and damage is still named."""

import gc
import mmap
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_lab.errors import Damaged
from moe_lab.registry import Registry
from moe_lab.registry.mapped import SMALLEST
from moe_lab.registry.references import blob_key
from tests.registry.scenario import fields

LARGE = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(np.float32)  # three chunks


@pytest.fixture
def published(registry):
    tensors = {
        "large": LARGE,
        "ragged": LARGE.reshape(-1)[:2_500_001],  # its last chunk ends inside a page
        "small": LARGE[0, :100],
        "pages": LARGE.reshape(12, -1)[:, : 40 * mmap.PAGESIZE],
        "odd": LARGE.reshape(12, -1)[:, :250_001],
    }
    registry.publish("team", "part", None, fields(), tensors, frozenset({"pages", "odd"}))
    return registry, tensors


def mappings(root: Path) -> int:
    """Files of the registry that are mapped into this process."""
    return Path("/proc/self/maps").read_text().count(str(root / "blobs"))


def where(registry, name, chunk):
    return Path(registry.store.where(blob_key(registry.manifest("team/part").record(name).chunks[chunk])))


def test_what_is_mapped_is_what_is_read(published, root):
    registry, tensors = published
    for name, wanted in tensors.items():
        got = registry.mapped_tensor("team/part", name)
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
        del got
    gc.collect()
    assert mappings(root) == 0


@pytest.mark.parametrize(("name", "mapped"), [("large", 3), ("ragged", 3), ("small", 0), ("pages", 12), ("odd", 0)])
def test_whole_pages_are_mapped_and_given_back(published, root, name, mapped):
    registry, tensors = published
    assert tensors["pages"].nbytes > SMALLEST < tensors["odd"].nbytes
    array = registry.mapped_tensor("team/part", name)
    assert mappings(root) == mapped
    rows = array[1:]
    del array
    assert mappings(root) == mapped
    del rows
    gc.collect()
    assert mappings(root) == 0


def test_an_array_on_the_cpu_lies_in_the_files(published, root):
    registry, _ = published
    array = jax.device_put(registry.mapped_tensor("team/part", "large"), may_alias=True)
    assert mappings(root) == 3
    np.testing.assert_array_equal(jax.jit(lambda x: x + 0)(array), LARGE)


def test_writing_into_it_changes_no_file(published):
    registry, _ = published
    registry.mapped_tensor("team/part", "large")[...] = 0
    np.testing.assert_array_equal(registry.tensor("team/part", "large"), LARGE)


@pytest.mark.parametrize("damage", ["a bit", "its end", "gone", "longer"])
def test_damage_is_named_as_when_it_is_read(published, damage):
    registry, _ = published
    path = where(registry, "large", 1)
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"a bit": b"\0" + data[1:], "its end": data[:-1], "longer": data + b"\0"}[damage])
    with pytest.raises(Damaged, match="tensor 'large'") as mapped:
        registry.mapped_tensor("team/part", "large")
    with pytest.raises(Damaged) as read:
        registry.tensor("team/part", "large")
    assert str(mapped.value) == str(read.value)


def test_a_cache_is_mapped_once_it_has_the_content(published, root, quick, monkeypatch):
    monkeypatch.setenv("MOE_LAB_CACHE", str(quick / "cache"))
    far = Registry(root)
    for expected in (0, 3):
        array = far.mapped_tensor("team/part", "large")
        np.testing.assert_array_equal(array, LARGE)
        assert Path("/proc/self/maps").read_text().count(f"{quick}/cache") == expected
    assert mappings(root) == 0


def test_it_can_be_switched_off(published, root, monkeypatch):
    monkeypatch.setenv("MOE_LAB_MAP", "off")
    registry, _ = published
    array = registry.mapped_tensor("team/part", "large")
    assert mappings(root) == 0
    np.testing.assert_array_equal(array, LARGE)
