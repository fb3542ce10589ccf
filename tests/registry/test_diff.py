"""What differs is named with its place, and counted as a reader who counts bytes would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.registry import Registry
from moe_lab.registry.diff import ABSENT, diff
from moe_lab.registry.manifest import build
from tests.registry.scenario import BLOCKS, fields, tensors


def publish(registry, content, **sections):
    return str(registry.publish("team", "part", None, fields(**sections), content, BLOCKS & content.keys()).ref)


def test_sections_are_told_by_path_with_old_and_new(registry):
    first = publish(registry, {}, claims={"bits": 1.25, "heldout": [1, 2]}, config={"a": None, "b": [True]})
    second = publish(
        registry, {}, claims={"bits": 1.5, "heldout": [1, 3, 4]}, config={"b": [1], "c": {}}, summary="new"
    )
    found = registry.diff(first, second)
    assert [(change.path, change.old, change.new) for change in found.sections] == [
        ("claims.bits", "1.25", "1.5"),
        ("claims.heldout[1]", 2, 3),
        ("claims.heldout[2]", ABSENT, 4),
        ("config.a", None, ABSENT),
        ("config.b[0]", True, 1),
        ("config.c", ABSENT, {}),
        ("summary", "for tests", "new"),
    ]
    assert found.tensors == ()


def test_tensors_are_told_with_the_chunks_and_bytes_that_differ(registry):
    old = tensors(1, blocks=4)
    new = {name: array.copy() for name, array in old.items()}
    new["layers.0.gate"][2] += 1
    new["layers.0.down"] = tensors(1, blocks=6)["layers.0.down"]
    new["ids"] = new["ids"].astype(np.int64)
    del new["scale"]
    new["bias"] = np.zeros(3, np.float16)
    found = registry.diff(publish(registry, old), publish(registry, new))
    assert [
        (tensor.name, tensor.change, tensor.chunks, tensor.of_chunks, tensor.bytes) for tensor in found.tensors
    ] == [
        ("bias", "added", 1, 1, 6),
        ("ids", "reshaped", 1, 1, 40),
        ("layers.0.down", "reshaped", 2, 6, 2 * 96),
        ("layers.0.gate", "changed", 1, 4, 96),
        ("scale", "removed", 1, 1, 4),
    ]
    assert found.sections == ()
    assert found.shared_bytes == (4 + 3) * 96


def test_an_artifact_and_itself(registry):
    ref = publish(registry, tensors(1))
    found = registry.diff(ref, registry.resolve(ref).digest)
    assert found.same
    assert found.equal_tensors == 4
    assert found.shared_bytes == found.old_bytes == found.new_bytes == 2 * 4 * 96 + 4 + 20


def test_a_miss_says_what_there_is(registry):
    publish(registry, {})
    with pytest.raises(LabError, match=r"no version 2\. Published: 1\."):
        registry.diff("team/part@1", "team/part@2")


def test_no_tensor_is_read(registry, root):
    first, second = publish(registry, tensors(1)), publish(registry, tensors(2))
    for path in (root / "blobs").iterdir():
        path.unlink()
    assert len(Registry(root).diff(first, second).tensors) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(json_values, json_values)
def test_the_changes_turn_one_into_the_other_and_equal_values_have_none(old, new):
    manifests = [build({"kind": "module", "config": value}, {})[0] for value in (old, new)]
    found = diff(*manifests)
    assert found.same == (manifests[0].digest == manifests[1].digest)
    if manifests[0].digest == manifests[1].digest:
        return
    value = {"config": manifests[0]["config"]}
    # From the back, so that items of a list keep their places.
    for change in sorted(found.sections, key=lambda change: -found.sections.index(change)):
        apply(value, change)
    patched = build({"kind": "module", "config": value["config"]}, {})[0]
    assert patched.digest == manifests[1].digest


def apply(value, change):
    """Walks the path as a person would who reads it; keys here have neither dots nor brackets."""
    steps = change.path.replace("[", ".[").split(".")
    for step in steps[:-1]:
        value = value[int(step[1:-1])] if step.startswith("[") else value[step]
    last = int(steps[-1][1:-1]) if steps[-1].startswith("[") else steps[-1]
    if change.new is ABSENT:
        del value[last]
    elif isinstance(value, list) and last >= len(value):
        value[len(value) :] = [None] * (last - len(value)) + [change.new]
    else:
        value[last] = change.new
