"""Whom a reader believes: a policy of owners and their keys, asked before anything is read under a name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moe_lab.config import Spec, load_config
from moe_lab.errors import Damaged, LabError, Refused, Unavailable, did_you_mean
from moe_lab.registry.keys import parse_public
from moe_lab.registry.references import ArtifactRef
from moe_lab.registry.refs import Resolved, published, read_ref, versions
from moe_lab.registry.signatures import Signature, problem_with, signatures, signatures_of_digest
from moe_lab.registry.stores import Store

UNTRUSTED = "untrusted: "
"""Opens the problem of an artifact that is whole, but that the policy refuses."""


def _public(text: str) -> str:
    try:
        return parse_public(text)
    except LabError as error:
        raise ValueError(str(error)) from None


def _owner(text: str) -> str:
    try:
        return ArtifactRef(text, "x").owner
    except LabError as error:
        raise ValueError(str(error)) from None


PublicKey = Annotated[str, AfterValidator(_public), Field(description="ed25519: and 64 lowercase hex digits")]
Owner = Annotated[str, AfterValidator(_owner)]


class TrustPolicy(Spec):
    """`configs/trust.yaml`: whose artifacts are read, and by which signatures."""

    kind: Literal["trust"] = "trust"
    unsigned: Annotated[
        Literal["allow", "refuse"], Field(description="what happens to the artifacts of owners not listed below")
    ]
    owners: Annotated[
        dict[Owner, tuple[PublicKey, ...]],
        Field(description="owner to keys; each artifact of theirs needs a signature by one of these"),
    ] = {}
    first_key_binds: Annotated[
        bool, Field(description="later versions of a name need a signature by a key that signed its first one")
    ] = False
    revoked: Annotated[tuple[PublicKey, ...], Field(description="keys that count for nobody, listed or not")] = ()

    def keys_of(self, owner: str) -> list[str]:
        """The keys that count for an owner now."""
        return [key for key in self.owners.get(owner, ()) if key not in self.revoked]

    def asks(self, owner: str) -> bool:
        """Whether an artifact of this owner must be signed."""
        return owner in self.owners or self.unsigned == "refuse"


def load_policy(path: str | os.PathLike[str]) -> TrustPolicy:
    """Reads a policy file. A file that is there and cannot be understood stops everything: it may mean to refuse."""
    try:
        policy = load_config(os.fspath(path), kind="trust")
    except LabError as error:
        raise type(error)(f"{error} This is the trust policy: nothing is read until it is mended.") from None
    assert isinstance(policy, TrustPolicy)
    return policy


class Trust:
    """A policy applied to one registry.

    Attributes:
        where: how messages call the policy, usually its file.
    """

    def __init__(self, store: Store, policy: TrustPolicy, where: str) -> None:
        self.store = store
        self.policy = policy
        self.where = where
        # A signature and a reference never change, so what was believed once need not be asked again.
        self._believed: set[str] = set()

    def require(self, resolved: Resolved, newest: bool = False) -> None:
        """Refuses what the policy does not believe; with `newest` the error says that no older one is taken."""
        reason = self.problem(resolved)
        if reason is None:
            return
        advice = "Ask its owner to sign it."
        if newest and resolved.ref is not None:
            advice = (
                "It is the newest version, and no older one is taken in its place unasked: name one, or ask "
                f"{resolved.ref.owner} to sign it."
            )
        raise Refused(f"{resolved.ref or resolved.digest} is {UNTRUSTED}{reason}. {advice}")

    def problem(self, resolved: Resolved) -> str | None:
        """Why an artifact is refused, or None."""
        if resolved.ref is None:
            reason = None if resolved.digest in self._believed else self._of_digest(resolved.digest)
        else:
            reason = self._of_reference(resolved.ref, resolved.digest)
        if reason is None:
            self._believed.add(resolved.digest)
        return reason

    def problems(self, one: Resolved | None) -> list[str]:
        """What the policy refuses, in one line each: of one artifact or of all. Damage is for others to report."""
        asked = [one] if one is not None else [Resolved(ref, digest) for ref, digest in self._references()]
        reasons = [(item.ref or item.digest, self.problem(item)) for item in asked]
        return [f"{UNTRUSTED}{name}: {reason}" for name, reason in reasons if reason is not None]

    def unknown_owners(self) -> list[str]:
        """Listed owners who published nothing here, in one line each: misspelt, they protect nobody."""
        here = {ref.owner for ref, _ in published(self.store)}
        return [
            f"{self.where} lists owner {owner!a}, who has published nothing here.{did_you_mean(owner, here)}"
            for owner in self.policy.owners
            if here and owner not in here
        ]

    def require_signer(self, ref: ArtifactRef, key: str | None) -> None:
        """Refuses to publish what this very policy would then refuse to read."""
        owner, signer = ref.owner, f"and {key} is none" if key else "and no key is given"
        if not self.policy.asks(owner):
            first, keys = self._first_keys(ref)
            if first is None or not keys or first.version == ref.version or key in self._counting(keys):
                return
            raise Refused(
                f"cannot publish {ref.title}: {self.where} wants a signature by a key that signed {first}, {signer}. "
                "Nothing was published. Name that key with --key or MOE_LAB_KEY, or list the keys of "
                f"{owner} in that file."
            )
        if key in self.policy.keys_of(owner):
            return
        raise Refused(
            f"cannot publish for {owner}: {self.where} wants a signature by a key of {owner}, {signer}. Nothing was "
            "published. Name a key with --key or MOE_LAB_KEY, or list it in that file."
        )

    def _of_reference(self, ref: ArtifactRef, digest: str) -> str | None:
        assert ref.version is not None
        ref = ArtifactRef(ref.owner, ref.name, ref.version)
        if not self.policy.asks(ref.owner):
            return self._of_later_version(ref, digest)
        wanted = [Signature(ref, digest, key) for key in self.policy.keys_of(ref.owner)]
        if any(problem_with(self.store, claim) is None for claim in wanted):
            return None
        if ref.owner not in self.policy.owners:
            return f"{self.where} lists no key of {ref.owner} and refuses what no listed key signed"
        shortcomings = [self._shortcoming(claim) for claim in signatures(self.store, ref, digest)]
        return f"{self.where} wants a signature by a key of {ref.owner}; {'; '.join(shortcomings) or 'there is none'}"

    def _of_later_version(self, ref: ArtifactRef, digest: str) -> str | None:
        """What the keys of a name's first version say of another one, where the policy lets them bind."""
        try:
            first, keys = self._first_keys(ref)
        except (FileNotFoundError, Damaged, Unavailable) as error:
            return f"the first version of {ref.title} cannot be read, so nobody knows whose key binds: {error}"
        if first is None or not keys or first.version == ref.version:
            return None
        counting = self._counting(keys)
        if any(problem_with(self.store, Signature(ref, digest, key)) is None for key in counting):
            return None
        if not counting:
            return f"every key that signed {first} is revoked; list the keys of {ref.owner} in {self.where}"
        return f"{self.where} wants a signature by a key that signed {first}, {' or '.join(counting)}"

    def _first_keys(self, ref: ArtifactRef) -> tuple[ArtifactRef | None, list[str]]:
        """The lowest version of a name, retired or not, and whose valid signatures it bears."""
        there = versions(self.store, ref).published if self.policy.first_key_binds else []
        if not there:
            return None, []
        first = ArtifactRef(ref.owner, ref.name, there[0])
        claims = signatures(self.store, first, read_ref(self.store, first))
        return first, [claim.key for claim in claims if problem_with(self.store, claim) is None]

    def _counting(self, keys: list[str]) -> list[str]:
        return [key for key in keys if key not in self.policy.revoked]

    def _shortcoming(self, claim: Signature) -> str:
        if claim.key in self.policy.revoked:
            return f"{claim.key} is revoked"
        if claim.key not in self.policy.keys_of(claim.ref.owner):
            return f"{claim.key} is not listed for {claim.ref.owner}"
        return (problem_with(self.store, claim) or "").rstrip(".")

    def _of_digest(self, digest: str) -> str | None:
        """A digest has no owner. It is believed by a name it is published under, which is then this name's owner's."""
        for claim in signatures_of_digest(self.store, digest):
            if self._holds(claim) and self._of_reference(claim.ref, digest) is None:
                return None
        if self.policy.unsigned == "refuse":
            return f"{self.where} refuses what no listed key signed, and no reference to it is signed by one"
        named = [ref for ref, found in self._references() if found == digest]
        if not named or any(self._of_reference(ref, digest) is None for ref in named):
            return None
        return self._of_reference(named[0], digest)

    def _holds(self, claim: Signature) -> bool:
        try:
            return read_ref(self.store, claim.ref) == claim.digest
        except (FileNotFoundError, Damaged, Unavailable):
            return False

    def _references(self) -> Iterator[tuple[ArtifactRef, str]]:
        for ref, _ in published(self.store):
            with suppress(FileNotFoundError, Damaged, Unavailable):
                yield ref, read_ref(self.store, ref)
