"""Any bytes at all: a parser accepts them, and then gives them back, or refuses them in its own words.

`MOE_LAB_FUZZ=N` raises the number of examples per test to N; tests/registry/fuzz_manifest.py looks for new paths
through the code instead, with atheris.
"""

import json
import os
import string
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.files import digest_of
from moe_lab.registry import ArtifactRef, LocalStore
from moe_lab.registry.exact_json import ManifestProblem, canonical
from moe_lab.registry.interchange import CARD, TENSORS, read_folder
from moe_lab.registry.manifest import ITEM_BYTES, parse
from moe_lab.registry.references import is_digest
from moe_lab.registry.refs import read_ref, ref_key, split_key
from moe_lab.registry.safetensors_file import DTYPES, read_safetensors

BUDGET = int(os.environ.get("MOE_LAB_FUZZ", 100))
fuzzed = settings(max_examples=BUDGET)

CHUNK = "sha256-" + "0" * 64
integers = st.integers(-3, 9) | st.sampled_from([2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30])
scalars = st.none() | st.booleans() | integers | st.floats() | st.text(max_size=6) | st.just(CHUNK)
values = st.recursive(scalars, lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below))
records = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(ITEM_BYTES)) | values,
        "shape": st.lists(integers, max_size=4) | values,
        "chunk_bytes": integers | values,
        "chunks": st.lists(st.just(CHUNK) | scalars, max_size=4) | values,
        "blocks": st.booleans() | values,
        "more": values,
    },
)
manifests = st.fixed_dictionaries(
    {},
    optional={
        "format": st.just(1) | values,
        "kind": st.sampled_from(["module", "trunk", "router"]) | values,
        "interface": st.dictionaries(st.text(max_size=3), values) | values,
        "tensors": st.dictionaries(st.text(max_size=3), records, max_size=3) | values,
        "lineage": values | st.fixed_dictionaries({"parents": st.lists(values, max_size=2) | values}),
        "ladder": values,
    },
)
spelled = st.sampled_from([{}, {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}])


@st.composite
def texts(draw, source):
    """JSON of such values, with a few bytes changed now and then."""
    data = json.dumps(draw(source), **draw(spelled)).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        position = draw(st.integers(0, len(data)))
        data = data[:position] + draw(st.binary(max_size=3)) + data[position + draw(st.integers(0, 3)) :]
    return data


def sound(**record):
    shape = {"blocks": False, "chunk_bytes": 4, "chunks": [CHUNK], "dtype": "float32", "shape": [1], **record}
    return {"format": 1, "interface": {}, "kind": "module", "tensors": {"x": shape}}


@pytest.mark.slow
@fuzzed
@given(st.binary(max_size=300) | texts(manifests) | texts(st.builds(sound, shape=values)) | texts(st.just(sound())))
def test_manifests(data):
    try:
        manifest = parse(data, digest_of(data))
    except ManifestProblem as problem:
        assert len(str(problem)) < 2000
        return
    assert canonical(manifest) == data
    for record in manifest.records.values():
        assert sum(record.size(index) for index in range(len(record.chunks))) == record.total_bytes


@fuzzed
@given(st.text(max_size=90) | st.from_regex(r"[a-zA-Z0-9./_-]{0,5}/[a-zA-Z0-9._-]{0,5}(@[0-9.]*)?(:[0-9]*)?"))
def test_references(text):
    try:
        ref = ArtifactRef.parse(text)
    except LabError as error:
        assert str(error).isprintable()
        return
    assert str(ref) == text


near_digests = st.binary(max_size=140) | st.from_regex(rb"sha256-[0-9a-fA-F]{63,65}\s?", fullmatch=True)


@pytest.mark.slow
@fuzzed
@given(near_digests)
def test_reference_files(data):
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        store, ref = LocalStore(Path(folder)), ArtifactRef("team", "part", "1")
        path = Path(folder, ref_key(ref))
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        try:
            digest = read_ref(store, ref)
        except LabError as error:
            assert str(error).isprintable()
            return
    assert is_digest(digest)
    assert f"{digest}\n".encode() == data


@fuzzed
@given(
    st.text(max_size=60)
    | st.builds("/".join, st.lists(st.text(string.ascii_letters + string.digits + ".-", max_size=9), max_size=4))
)
def test_names_of_files_in_refs(key):
    found = split_key(f"refs/{key}")
    if found is not None:
        assert f"refs/{key}".startswith(ref_key(found[0]))


tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPES, "F4", "F6_E2M3", "float32"]) | values,
        "shape": st.lists(integers, max_size=4) | values,
        "data_offsets": st.lists(integers, min_size=2, max_size=2) | st.just([0, 8]) | values,
    },
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), tensors | values, max_size=3)


def a_header(names, dtype, sizes):
    """A sound one, of tensors one behind the other."""
    header, start = {}, 0
    for name, size in zip(names, sizes, strict=False):
        end = start + size * ITEM_BYTES[DTYPES[dtype]]
        header[name] = {"dtype": dtype, "shape": [size, 1], "data_offsets": [start, end]}
        start = end
    return header


sound_headers = st.builds(
    a_header, st.sets(st.text(max_size=3)), st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), min_size=3)
)


@st.composite
def safetensors_files(draw):
    header = draw(texts(headers) | texts(sound_headers))
    length = draw(
        st.just(len(header)) | st.integers(0, 2**64 - 1) | st.integers(-2, 2).map(lambda by: len(header) + by)
    )
    return struct.pack("<Q", max(0, length) % 2**64) + header + bytes(draw(st.integers(0, 40) | st.just(0)))


@fuzzed
@given(st.binary(max_size=200) | safetensors_files())
def test_safetensors_files(data):
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        path = Path(folder, TENSORS)
        path.write_bytes(data)
        try:
            found = read_safetensors(path)
        except LabError as error:
            assert str(error).isprintable()
            return
    length = int.from_bytes(data[:8], "little")
    assert sum(array.nbytes for array in found.values()) == len(data) - 8 - length


@settings(max_examples=max(1, BUDGET // 3))
@given(
    texts(
        st.builds(
            lambda **card: card,
            format=st.just(1),
            ref=values,
            digest=st.just(CHUNK),
            manifest=manifests,
            tensors=st.dictionaries(st.text(max_size=3), values, max_size=2),
        )
    )
    | texts(values)
)
def test_cards(data):
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        Path(folder, CARD).write_bytes(data)
        Path(folder, TENSORS).write_bytes(struct.pack("<Q", 2) + b"{}")
        try:
            card, arrays = read_folder(Path(folder))
        except LabError as error:
            assert str(error).isprintable()
            return
    assert not arrays
    assert not card.tensors


def memory():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.mark.parametrize("data", [canonical(sound()), canonical(sound(chunks=[], shape=[0]))])
def test_the_example_that_is_changed_is_sound(data):
    """Else the fuzzers would only ever see what is refused at once."""
    assert parse(data, digest_of(data)).records
