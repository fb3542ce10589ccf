"""Signatures: files `signatures/<owner>/<name>/<version>/<manifest>.<key>` by which an owner vouches for a version.

`docs/registry-format.md` has the bytes. A signature is bound to owner, name, version and manifest, and a manifest to
every byte of its tensors; so it says nothing about any other place that somebody copies it to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from moe_lab.errors import Damaged
from moe_lab.registry.keys import PREFIX, OwnerKey, is_valid
from moe_lab.registry.references import ArtifactRef, is_digest, is_name, is_version
from moe_lab.registry.stores import Store

FOLDER = "signatures"
BYTES = 129
_CONTEXT = "moe-lab registry signature 1\n"
_FILE = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{64})")
_HEX = re.compile(rb"([0-9a-f]{128})\n")


@dataclass(frozen=True)
class Signature:
    """What the path of a signature file claims.

    Attributes:
        ref: with its version.
        digest: of the manifest.
        key: the public key, `ed25519:<64 hex>`.
    """

    ref: ArtifactRef
    digest: str
    key: str

    def __post_init__(self) -> None:
        assert self.ref.version is not None
        assert is_digest(self.digest)

    @property
    def message(self) -> bytes:
        """The bytes that are signed. No part can hold a line end, so no two claims share them."""
        ref = self.ref
        return f"{_CONTEXT}{ref.owner}\n{ref.name}\n{ref.version}\n{self.digest}\n".encode("ascii")

    @property
    def path(self) -> str:
        """Its key in the store."""
        name = f"{self.digest.removeprefix('sha256-')}.{self.key.removeprefix(PREFIX)}"
        return f"{FOLDER}/{self.ref.title}/{self.ref.version}/{name}"


def split_path(path: str) -> Signature | None:
    """What a file below `signatures/` claims; None for a file that is no signature."""
    parts = path.split("/")
    if len(parts) != 5 or parts[0] != FOLDER or not is_version(parts[3]):
        return None
    match = _FILE.fullmatch(parts[4])
    if match is None or not (is_name(parts[1]) and is_name(parts[2])):
        return None
    return Signature(ArtifactRef(parts[1], parts[2], parts[3]), f"sha256-{match[1]}", f"{PREFIX}{match[2]}")


def sign(store: Store, ref: ArtifactRef, digest: str, key: OwnerKey) -> bool:
    """Signs a version. False where this very signature was there already."""
    claim = Signature(ref, digest, key.public)
    data = f"{key.sign(claim.message).hex()}\n".encode("ascii")
    if store.put_if_absent(claim.path, data):
        return True
    check(store, claim)
    return False


def check(store: Store, claim: Signature) -> int:
    """Reads one signature and returns its bytes; `Damaged` unless it is well formed and holds."""
    where = store.where(claim.path)
    data = store.get(claim.path, BYTES)
    text = _HEX.fullmatch(data)
    if text is None:
        raise Damaged(
            f"{claim.ref}: signature {where} is damaged: it does not hold 128 lowercase hex digits and a line end. "
            "Delete it and sign again."
        )
    if not is_valid(claim.key, claim.message, bytes.fromhex(text[1].decode("ascii"))):
        raise Damaged(
            f"{claim.ref}: signature {where} is not valid: {claim.key} did not sign this manifest under this name "
            "and version. Delete it; if the artifact is sound, its owner can sign again."
        )
    return len(data)


def check_file(store: Store, path: str) -> int:
    """As `check`, for any file below `signatures/`."""
    claim = split_path(path)
    if claim is None:
        raise Damaged(f"{store.where(path)!a} is not the signature of anything; remove it.")
    return check(store, claim)


def problem_with(store: Store, claim: Signature) -> str | None:
    """Why a signature does not count, or None if it does."""
    try:
        check(store, claim)
    except FileNotFoundError:
        return f"{claim.ref}: there is no signature by {claim.key}"
    except Damaged as error:
        return str(error)
    except OSError as error:
        # Not the reader's end: whoever may write could otherwise stop everyone with a file that nobody may read.
        return f"{claim.ref}: signature {store.where(claim.path)} cannot be read: {error.strerror or error}"
    return None


def signatures(store: Store, ref: ArtifactRef, digest: str) -> list[Signature]:
    """The claims made for a version with this manifest, by key; what is not one is left to `verify`."""
    split = map(split_path, store.list(f"{FOLDER}/{ref.title}/{ref.version}"))
    return [claim for claim in split if claim and claim.digest == digest]


def signatures_of_digest(store: Store, digest: str) -> list[Signature]:
    """The claims made for a manifest under any name."""
    return [claim for path in store.list(FOLDER) if (claim := split_path(path)) and claim.digest == digest]
