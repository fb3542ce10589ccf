"""safetensors: the same bytes every time, readable by the library, and refused where anything is odd."""

import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load, save

from moe_lab.errors import LabError
from moe_lab.registry.chunks import describe
from moe_lab.registry.manifest import ITEM_BYTES
from moe_lab.registry.safetensors_file import DTYPES, read_safetensors, write_safetensors

REPOSITORY = str(Path(__file__).parents[2])


def written(tensors) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, describe(tensors, frozenset()), tensors.__getitem__)
    return file.getvalue()


def every_kind():
    """All dtypes that safetensors has, with the bits that get lost first: NaN payloads, -0.0, no axes, no numbers."""
    tensors = {
        "nan": np.array([0x7FC00001, 0xFFC12345, 0x7F800001], np.uint32).view(np.float32),
        "minus zero": np.array([-0.0, 0.0]),
        "scalar": np.array(7, np.int32),
        "empty": np.zeros((3, 0, 2), np.float16),
        "zeros": np.zeros((4, 4), np.float32),
    }
    for name in DTYPES.values():
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        raw = np.arange(6 * dtype.itemsize, dtype=np.uint8) % (2 if name == "bool" else 251)
        tensors[f"all.{name}"] = raw.view(dtype).reshape(2, 3)
    return tensors


def same_bits(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


def test_every_bit_of_every_kind_comes_back(tmp_path):
    (tmp_path / "x").write_bytes(written(every_kind()))
    same_bits(every_kind(), read_safetensors(tmp_path / "x"))


def test_the_library_reads_the_same(tmp_path):
    tensors = every_kind()
    found = dict(deserialize(written(tensors)))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert bytes(found[name]["data"]) == array.tobytes()
        assert (DTYPES[found[name]["dtype"]], tuple(found[name]["shape"])) == (array.dtype.name, array.shape)


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3, np.int64), "c": np.zeros(0, np.int8)}
    (tmp_path / "x").write_bytes(save(tensors, {"format": "np", "note": "other programs leave metadata"}))
    same_bits(tensors, read_safetensors(tmp_path / "x"))
    same_bits(tensors, load(written(tensors)))


def test_the_same_tensors_in_any_order_are_the_same_bytes():
    tensors = every_kind()
    assert written(dict(reversed(tensors.items()))) == written(tensors)


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES.keys() - DTYPES.values()))
def test_a_dtype_that_safetensors_lacks_is_named(dtype):
    array = np.zeros(2, np.dtype(getattr(ml_dtypes, dtype, None) or dtype))
    with pytest.raises(LabError, match=rf"tensor 'x' has dtype {dtype}, which safetensors cannot hold"):
        written({"x": array})


def raw(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


EIGHT = bytes(8)
HOSTILE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "no header": raw(b""),
    "header of 100 MB": raw(b" " * 10, length=100 << 20),
    "header past the end": raw(b"{}", length=1000),
    "header of 2^64 - 1": raw(b"{}", length=2**64 - 1),
    "trailing bytes": raw({"a": entry()}, EIGHT + b"x"),
    "offsets past the end": raw({"a": entry()}, EIGHT[1:]),
    "offsets of 2^62": raw({"a": entry((2**60,), (0, 2**62))}, EIGHT),
    "offsets of 2^63": raw({"a": entry((2**61,), (0, 2**63))}, EIGHT),
    "overlap": raw({"a": entry(), "b": entry()}, EIGHT),
    "partial overlap": raw({"a": entry(), "b": entry(offsets=(4, 12))}, EIGHT * 2),
    "gap": raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "begins late": raw({"a": entry(offsets=(8, 16))}, bytes(16)),
    "backwards": raw({"a": entry(offsets=(8, 0))}, EIGHT),
    "negative": raw({"a": entry(offsets=(-8, 0))}, EIGHT),
    "one offset": raw({"a": entry(offsets=(8,))}, EIGHT),
    "shape too small": raw({"a": entry((1,))}, EIGHT),
    "shape too large": raw({"a": entry((3,))}, EIGHT),
    "negative shape": raw({"a": entry((-2,))}, EIGHT),
    "two negative sizes": raw({"a": entry((-2, -1))}, EIGHT),
    "shape overflows to 8": raw({"a": entry((2**62 + 1, 2))}, EIGHT),
    "huge beside zero": raw({"a": entry((2**62, 2**62, 0), (0, 0))}),
    "33 axes": raw({"a": entry((1,) * 32 + (2,))}, EIGHT),
    "shape of truth": raw({"a": entry((True, 2))}, EIGHT),
    "NaN size": raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', EIGHT),
    "float size": raw(b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', EIGHT),
    "long integer": raw(b'{"a":{"dtype":"F32","shape":[' + b"1" * 9999 + b'],"data_offsets":[0,8]}}', EIGHT),
    "key twice": raw(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
    ),
    "unknown key": raw({"a": entry(code="import os")}, EIGHT),
    "missing key": raw({"a": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "record is a list": raw({"a": []}, EIGHT),
    "no object": raw(b"[]"),
    "not JSON": raw(b"{'a': 1}"),
    "not UTF-8": raw(b'{"\xff":1}'),
    "white space first": raw(b" {}"),
    "two values": raw(b"{}{}"),
    "deep": raw(b'{"a":' * 10_000),
    "deep lists": raw(b'{"a":' + b"[" * 100_000),
    "empty name": raw({"": entry()}, EIGHT),
    "long name": raw({"a" * 4096: entry()}, EIGHT),
    "NUL in a name": raw({"a\0": entry()}, EIGHT),
    "line end in a name": raw({"a\n": entry()}, EIGHT),
    "escape in a name": raw({"\x1b[31m": entry()}, EIGHT),
    "half a surrogate": raw(rb'{"\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "packed 4-bit numbers": raw({"a": entry((16,), dtype="F4")}, EIGHT),
    "packed 6-bit numbers": raw({"a": entry((8,), (0, 6), dtype="F6_E2M3")}, bytes(6)),
    "unknown dtype": raw({"a": entry(dtype="F31")}, EIGHT),
    "dtype of ours": raw({"a": entry(dtype="float32")}, EIGHT),
    "dtype is a list": raw({"a": entry(dtype=["F32"])}, EIGHT),
    "long dtype": raw({"a": entry(dtype="F32" * 1_000_000)}, EIGHT),
    "bool of 2": raw({"a": entry((8,), dtype="BOOL")}, b"\2" * 8),
    "metadata of numbers": raw({"__metadata__": {"a": 1}, "a": entry()}, EIGHT),
    "metadata is text": raw({"__metadata__": "a", "a": entry()}, EIGHT),
}


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, label):
    (tmp_path / "x").write_bytes(HOSTILE[label])
    with pytest.raises(LabError, match=r"no safetensors file that can be read: .+\. Export it again\.") as caught:
        read_safetensors(tmp_path / "x")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


class Boom:
    def __reduce__(self):
        return Path.write_text, (Path("pwned"), "")


def other_formats():
    archive, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Boom()))
    with tarfile.open(fileobj=tape, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("../../pwned"))
    array = io.BytesIO()
    np.save(array, np.array([Boom()], object), allow_pickle=True)
    return {
        "a pickle": pickle.dumps(Boom()),
        "a zip archive": archive.getvalue(),
        "a gzip archive": tape.getvalue(),
        "a NumPy file": array.getvalue(),
        "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "a GGUF file": b"GGUF" + bytes(4) + b"\xff" * 100,
    }


@pytest.mark.parametrize("what", other_formats())
def test_another_format_under_this_name_is_said_and_never_run(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    Path("x").write_bytes(other_formats()[what])
    with pytest.raises(LabError, match=f"x is {what}.*whatever its name says"):
        read_safetensors(Path("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_pickle_in_the_data_is_only_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Boom())
    Path("x").write_bytes(raw({"a": entry((len(data),), (0, len(data)), "U8")}, data))
    assert read_safetensors(Path("x"))["a"].tobytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "device", "absent"])
def test_only_plain_files_are_opened(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "link":
        (tmp_path / "target").write_bytes(written(every_kind()))
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(LabError, match="cannot be read: No such file" if kind == "absent" else "only plain files"):
        read_safetensors(path)


CONFINED = """if True:
    import resource, sys
    from pathlib import Path
    from moe_lab.errors import LabError
    from moe_lab.registry.safetensors_file import read_safetensors
    import numpy, ml_dtypes, safetensors
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    for path in sys.argv[1:]:
        try:
            read_safetensors(Path(path))
        except LabError as error:
            print(error)
"""


def bombs():
    """Files that are large, or ask for much, and what is said of each."""
    flood = b'{"a":[' + b"[]," * (5 << 20) + b"[]]}"
    many = json.dumps({f"t{index}": entry((0,), (0, 0)) for index in range(100_000)}).encode()
    sparse = raw({"a": entry((2**38,), (0, 2**40))})
    return {
        "sparse terabyte": (sparse, len(sparse) + (1 << 40), "too large for the memory"),
        "sparse terabyte without a header": (raw(b"{}"), 1 << 40, "its header describes 10 bytes"),
        "header of lists": (raw(flood), None, "more than 2,097,152 values"),
        "header of spaces": (raw(b"{}" + b" " * (100 << 20)), None, "at most 16,777,216 are read"),
        "one name too many": (raw(many[:-1] + b',"t0":0}'), None, "the key 't0' is there twice"),
    }


@pytest.mark.slow
def test_bombs_take_little_memory_and_time(tmp_path):
    paths = []
    for label, (data, size, _) in bombs().items():
        paths.append(tmp_path / label)
        paths[-1].write_bytes(data)
        if size:
            os.truncate(paths[-1], size)
    run = subprocess.run(
        [sys.executable, "-c", CONFINED, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": REPOSITORY, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-500:]
    lines = run.stdout.splitlines()
    for line, (label, (_, _, said)) in zip(lines, bombs().items(), strict=True):
        assert label in line
        assert said in line


def test_sizes_are_multiplied_exactly(tmp_path):
    """A product that wraps around to the right number of bytes in 64 bits is still wrong."""
    shape = (2**33, 2**31, 2)
    assert math.prod(shape) * 4 % 2**64 == 0
    (tmp_path / "x").write_bytes(raw({"a": entry(shape, (0, 0))}))
    with pytest.raises(LabError, match="more numbers than 64 bits"):
        read_safetensors(tmp_path / "x")
