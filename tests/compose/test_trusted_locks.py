"""A lockfile under a trust policy: its names are asked again, and a retired version still evaluates."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moe_lab.compose.lockfile import Lock, LockedPart, require_trusted
from moe_lab.errors import LabError
from moe_lab.registry import OwnerKey, Registry
from moe_lab.registry.trust import TrustPolicy
from tests.compose.published import MODULES, Published
from tests.registry.scenario import retire

KEY, OTHER = (OwnerKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2))


def trusting(own: Published, **settings: object) -> Published:
    owners = {entry.ref.owner: (KEY.public,) for entry in own.registry.list()}
    policy = TrustPolicy(**{"unsigned": "refuse", "owners": owners, **settings})  # type: ignore[arg-type]
    return dataclasses.replace(own, registry=Registry(own.lab.registry_path, trust=policy))


@pytest.fixture
def signed(own: Published) -> Published:
    for entry in own.registry.list():
        own.registry.sign(entry.ref, KEY)
    return own


def parts(lock: Lock) -> list[LockedPart]:
    assert isinstance(lock.router, LockedPart)
    return [lock.trunk, *lock.modules, lock.router]


def test_a_signed_composition_resolves_loads_and_is_the_same_lock(signed: Published) -> None:
    reader = trusting(signed)
    lock = reader.lock("lab/gain")
    assert lock == signed.lock("lab/gain")
    require_trusted(lock, reader.registry)
    for part in parts(lock):
        # As evaluation does in a new process: by digest alone, nothing resolved by name before.
        assert trusting(signed).registry.manifest(part.digest).digest == part.digest


def test_every_part_of_a_lock_counts(signed: Published) -> None:
    lock = signed.lock("lab/gain")
    for part in parts(lock):
        (claim,) = (claim for claim, _ in signed.registry.signatures(part.ref))
        path = signed.lab.root / "registry" / claim.path
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(LabError, match=f"{part.ref} is untrusted"):
            require_trusted(lock, trusting(signed).registry)
        with pytest.raises(LabError, match=f"{part.ref} is untrusted"):
            trusting(signed).lock("lab/gain")
        with pytest.raises(LabError, match=f"{part.digest} is untrusted"):
            trusting(signed).registry.manifest(part.digest)
        path.write_bytes(data)
    require_trusted(lock, trusting(signed).registry)
    require_trusted(lock, signed.registry)


def test_a_retired_version_stays_in_its_lock_without_a_word(signed: Published) -> None:
    lock = signed.lock("lab/gain")
    retire(signed.lab.root / "registry", lock.modules[0].ref, "superseded")
    require_trusted(lock, trusting(signed).registry)


def test_a_key_revoked_after_composing_refuses_the_lock(signed: Published) -> None:
    lock = trusting(signed).lock("lab/gain")
    revoking = trusting(signed, revoked=(KEY.public,)).registry
    with pytest.raises(LabError, match=f"{KEY.public} is revoked"):
        require_trusted(lock, revoking)
    with pytest.raises(LabError, match="is untrusted"):
        revoking.manifest(lock.trunk.digest)


def test_a_lock_whose_name_and_digest_disagree_is_refused(signed: Published) -> None:
    lock = signed.lock("lab/gain")
    first, second = lock.modules[:2]
    swapped = LockedPart(ref=first.ref, digest=second.digest)
    changed = lock.model_copy(update={"modules": (swapped, *lock.modules[1:])})
    with pytest.raises(LabError, match=rf"{first.ref} is pinned to {second.digest}, but here it is {first.digest}"):
        require_trusted(changed, trusting(signed).registry)


def test_a_fixed_router_has_no_signature_of_its_own(signed: Published) -> None:
    lock = trusting(signed).lock({"type": "fixed", "candidate": f"{MODULES[0]}:8"})
    require_trusted(lock, trusting(signed).registry)


def test_signed_by_another(own: Published) -> None:
    for entry in own.registry.list():
        own.registry.sign(entry.ref, OTHER)
    with pytest.raises(LabError, match=f"{OTHER.public} is not listed for north"):
        trusting(own).lock("lab/gain")
