"""Ed25519 keys of owners: a private key is one PEM file of its user's, a public key is `ed25519:<64 hex>`."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_lab.errors import Damaged, LabError, NotFound, Refused, classify, did_you_mean
from moe_lab.registry.stores.local import sync_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX = "ed25519:"
_PUBLIC = re.compile(r"ed25519:[0-9a-f]{64}")
_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,63}(?<!\.)")
# Text before the first dashes is ignored by all who read PEM (RFC 7468, section 2). It is how an encrypted key can
# be listed without its passphrase; whoever loads the key compares it with the key itself.
_HEADER = re.compile(rb"^public key: (ed25519:[0-9a-f]{64})$", re.M)
_MAX_BYTES = 16 << 10
_FIELD = 2**255 - 19
_CURVE = -121665 * pow(121666, -1, _FIELD) % _FIELD


def is_public(text: object) -> bool:
    """Whether this is how a public key is written; not whether it can be one."""
    return isinstance(text, str) and _PUBLIC.fullmatch(text) is not None


def parse_public(text: str) -> str:
    """Checks a public key that a person wrote down, and returns it."""
    if not is_public(text):
        raise LabError(
            f"{ascii(text)[:90]} is not a public key: it must be ed25519: and 64 lowercase hex digits, as "
            "`moe-lab key show` prints it."
        )
    if _is_nobodys(text):
        raise LabError(f"{text} is nobody's key: everyone can sign for it, or no one can. Ask the owner for theirs.")
    return text


def _is_nobodys(public: str) -> bool:
    """Whether this is one of the eight points of an order up to 8, for which anybody can sign, or misspells a point.

    All zeros is one of them. Their y are 0, 1, -1 and the roots of d y^4 + 2 y^2 = 1, whose doubles have y = 0.
    """
    y = int.from_bytes(bytes.fromhex(public.removeprefix(PREFIX)), "little") % 2**255
    return y >= _FIELD or y in (0, 1, _FIELD - 1) or (_CURVE * y**4 + 2 * y**2 - 1) % _FIELD == 0


def is_valid(public: str, message: bytes, signature: bytes) -> bool:
    """Whether the holder of a key signed these bytes. A key that is nobody's has no holder."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    assert is_public(public)
    if _is_nobodys(public):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.removeprefix(PREFIX))).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class OwnerKey:
    """A private key in memory.

    Attributes:
        public: `ed25519:<64 hex>`.
    """

    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        return f"{PREFIX}{self.private.public_key().public_bytes_raw().hex()}"

    def sign(self, message: bytes) -> bytes:
        """64 bytes, always the same ones for the same message (RFC 8032)."""
        return self.private.sign(message)


def keys_folder() -> Path:
    """`$XDG_CONFIG_HOME/moe-lab/keys`; by that standard a relative path counts as none."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".config") / "moe-lab" / "keys"


def new_key(name: str, passphrase: str | None = None) -> OwnerKey:
    """Makes a key and writes it to `<name>.pem`, encrypted if there is a passphrase. Never overwrites."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = _path(name)
    key = OwnerKey(Ed25519PrivateKey.generate())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, _pem(key, passphrase))
    except FileExistsError:
        raise Refused(f"there is a key {name} already: {path}. Choose another name; no key is overwritten.") from None
    except OSError as error:
        raise classify(error)(f"{path}: {error.strerror}. Nothing was written; check that folder.") from None
    return key


def load_key(name: str, ask: Callable[[], str] | None = None) -> OwnerKey:
    """Reads a key of this user's. `ask` is called for the passphrase of an encrypted one."""
    path = find_key(name)
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(data, _passphrase(name, data, ask))
    except LabError:
        raise
    except Exception:  # cryptography and OpenSSL have many errors for files that are no key, and for passphrases
        kind, reason = (Refused, "with this passphrase") if b"ENCRYPTED" in data else (Damaged, "as a PEM file")
        raise kind(f"key {name}: {path} cannot be read {reason}; try again, or restore it from a copy.") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise LabError(f"key {name}: {path} is not an Ed25519 key; make one with: moe-lab key new NAME")
    key, header = OwnerKey(private), _HEADER.search(data)
    if header and header[1].decode() != key.public:
        raise Damaged(f"key {name}: {path} says {header[1].decode()}, but its key is {key.public}. Mend that line.")
    return key


def find_key(name: str) -> Path:
    """The file of a key, which exists and which nobody else can read."""
    path = _path(name)
    try:
        mode = path.stat().st_mode
    except OSError:
        raise NotFound(f'no key "{name}" in {path.parent}.{did_you_mean(name, key_names())}') from None
    if not stat.S_ISREG(mode):
        raise Refused(f"key {name}: {path} is not a plain file.")
    if mode & 0o077:
        raise Refused(f"key {name}: others may read or change {path}. If nobody did: chmod 600 {path}")
    return path


def key_names() -> list[str]:
    """The names of this user's keys."""
    with suppress(OSError):
        return sorted(path.stem for path in keys_folder().glob("*.pem") if _NAME.fullmatch(path.stem))
    return []


def public_of(name: str) -> str:
    """The public key, without asking for a passphrase."""
    header = _HEADER.search(_read(find_key(name)))
    return header[1].decode() if header else load_key(name).public


def _path(name: str) -> Path:
    if _NAME.fullmatch(name) is None:
        raise LabError(
            f"{ascii(name)[:80]} cannot name a key: it must be 1 to 64 lowercase letters, digits, '-', '_' or '.', "
            "beginning with a letter or digit."
        )
    return keys_folder() / f"{name}.pem"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise classify(error)(f"{path}: {error.strerror}; check its permissions.") from None


def _passphrase(name: str, data: bytes, ask: Callable[[], str] | None) -> bytes | None:
    if b"ENCRYPTED" not in data:
        return None
    known = os.environ.get("MOE_LAB_KEY_PASSPHRASE") or (ask() if ask else "")
    if not known:
        raise LabError(f"key {name} is encrypted; put its passphrase into MOE_LAB_KEY_PASSPHRASE.")
    return known.encode()


def _pem(key: OwnerKey, passphrase: str | None) -> bytes:
    from cryptography.hazmat.primitives import serialization

    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    return f"public key: {key.public}\n".encode() + pem


def _write_new(path: Path, data: bytes) -> None:
    """Whole or not at all, and never for other eyes: the mode is set before there is anything to read."""
    temporary = path.parent / f".{secrets.token_hex(16)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink()
