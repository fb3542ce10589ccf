"""Writes the golden registry of format 1. `python tests/registry/golden/make.py` makes `format-1/` and `format-1.json`.

They are committed: every later version of moe-lab must read what this one wrote. Do not make them anew to get a test
to pass; a format that cannot read them is format 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[2]))

from moe_lab.registry import OwnerKey, Published, Registry  # noqa: E402

# TEST KEYS. Their private halves are public: never list them in a policy that protects anything.
FIRST_TEST_KEY = OwnerKey(Ed25519PrivateKey.from_private_bytes(b"moe-lab test key 1, not a secret"))
SECOND_TEST_KEY = OwnerKey(Ed25519PrivateKey.from_private_bytes(b"moe-lab test key 2, not a secret"))

TRUNK = {
    "embed": np.arange(-6, 6, dtype=np.float32).reshape(3, 4) / 8,
    "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    "half": np.arange(5).astype(ml_dtypes.bfloat16),
    "text": np.frombuffer(b"tokenizer", np.uint8),
    "scalar": np.float64(0.1),
    "empty": np.zeros((0, 3), np.int16),
}


def blocks(count: int, start: int) -> dict[str, Any]:
    """Tensors in blocks; fewer of them with the same start are a narrower cut of the same module."""
    gate = np.arange(4 * 6, dtype=np.float32).reshape(4, 3, 2) + start
    return {"layers.0.gate": gate[:count], "layers.0.down": -gate[:count], "scale": np.float32(start)}


def make(root: Path) -> None:
    """Publishes four artifacts, of which the last is retired, restored, and retired again."""
    unsigned, snakes = Registry(root), Registry(root, key=FIRST_TEST_KEY)
    trunk = unsigned.publish("lab", "trunk", "1", {"kind": "trunk", "licence": "Apache-2.0"}, TRUNK)
    wide = put(snakes, "python", "1", 4, 10, {"ladder": [2, 4]}, {"trunk": trunk})
    mini = put(snakes, "python-mini", "1.0", 2, 10, {"ladder": [2]}, {"teacher": wide, "trunk": trunk})
    Registry(root).sign(mini.ref, SECOND_TEST_KEY)
    put(snakes, "python", "2", 4, 500, {"ladder": [4], "summary": "mit Umlaut: \u00fc"}, {"trunk": trunk})
    unsigned.retire("snakes/python@2", "wrong data")
    unsigned.unretire("snakes/python@2", "it was right")
    unsigned.retire("snakes/python@2", "f\u00fcr immer")


def put(
    registry: Registry,
    name: str,
    version: str,
    count: int,
    start: int,
    more: dict[str, Any],
    above: dict[str, Published],
) -> Published:
    parents = [{"ref": str(made.ref), "digest": made.digest, "relation": what} for what, made in above.items()]
    fields = {"kind": "module", "claims": {"bits_per_byte": 1.25}, "lineage": {"parents": parents}, **more}
    tensors = blocks(count, start)
    return registry.publish("snakes", name, version, fields, tensors, set(tensors) - {"scale"})


def describe(root: Path) -> dict[str, Any]:
    """What a reader must find: digests, signers and every byte of every tensor."""
    registry, found = Registry(root, create=False), {}
    for entry in registry.list():
        found[str(entry.ref)] = {
            "digest": entry.digest,
            "kind": entry.kind,
            "signed by": [claim.key for claim, _ in registry.signatures(entry.ref)],
            "tensors": {
                name: [array.dtype.name, list(array.shape), array.tobytes().hex()]
                for name, array in registry.tensors(entry.digest).items()
            },
        }
    return found


def main() -> None:
    root = FOLDER / "format-1"
    if root.exists():
        raise SystemExit(f"{root} is there already and is never changed")
    make(root)
    (root / "tmp").rmdir()
    (FOLDER / "format-1.json").write_text(json.dumps(describe(root), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
