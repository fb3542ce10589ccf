"""Coverage-guided fuzzing of the manifest parser and the safetensors reader, by hand; `pip install atheris` first.

    python tests/registry/fuzz_manifest.py -max_total_time=600
    python tests/registry/fuzz_manifest.py safetensors -max_total_time=600

Further arguments are libFuzzer's. It stops at the first input that does anything but being read or refused.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["moe_lab", "json"]):
    from moe_lab.errors import LabError
    from moe_lab.files import digest_of
    from moe_lab.registry.exact_json import ManifestProblem, canonical
    from moe_lab.registry.manifest import parse
    from moe_lab.registry.safetensors_file import read_safetensors

CHUNK = "sha256-" + "0" * 64
RECORD = {"blocks": False, "chunk_bytes": 4, "chunks": [CHUNK], "dtype": "float32", "shape": [1]}
MANIFEST = canonical(
    {"format": 1, "interface": {}, "kind": "module", "lineage": {"parents": []}, "tensors": {"x": RECORD}}
)
HEADER = canonical({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
SEEDS = {"manifest": MANIFEST, "safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(4)}


def manifest(data: bytes) -> None:
    with contextlib.suppress(ManifestProblem):
        assert canonical(parse(data, digest_of(data))) == data


def safetensors(data: bytes) -> None:
    path = Path(scratch, "x")
    path.write_bytes(data)
    with contextlib.suppress(LabError):
        read_safetensors(path)


def corpus(name: str) -> str:
    """A folder with one sound input, for chance alone would take long to find one."""
    folder = Path(scratch, name)
    folder.mkdir()
    (folder / "sound").write_bytes(SEEDS[name])
    return str(folder)


TARGETS: dict[str, Callable[[bytes], None]] = {"manifest": manifest, "safetensors": safetensors}

if __name__ == "__main__":
    arguments = sys.argv[1:]
    target = arguments.pop(0) if arguments and arguments[0] in TARGETS else "manifest"
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        scratch = Path(folder)
        atheris.Setup([sys.argv[0], *arguments, corpus(target)], TARGETS[target])
        atheris.Fuzz()
