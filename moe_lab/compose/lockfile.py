"""The lockfile: every part of a composition by its digest, so that the same bytes can be composed again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from moe_lab.artifacts.router import RouterArtifact, read_router
from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import decode
from moe_lab.config.spec import Spec
from moe_lab.errors import Damaged, LabError, Refused, classify
from moe_lab.nn.spec import PrecisionName
from moe_lab.registry import ArtifactRef, Registry
from moe_lab.registry.manifest import Parent


class LockedPart(Spec):
    """A published artifact, pinned."""

    ref: str
    digest: str

    def as_parent(self, relation: str) -> Parent:
        """An entry for the lineage of what is made from it or beside it."""
        return Parent(self.ref, self.digest, relation)


class Lock(Spec):
    """A composition with nothing left to decide.

    Attributes:
        replaced: by `owner/name`, what the router learned from, where another artifact of that name is composed and
            whoever composed it accepted that. Left out of the file where there is none.
    """

    format: Literal[1] = 1
    name: str
    trunk: LockedPart
    modules: tuple[LockedPart, ...]
    router: LockedPart | dict[str, Any]
    price: float
    backend: str
    dtype: PrecisionName = "float32"
    replaced: dict[str, LockedPart] = Field(default={}, exclude_if=lambda replaced: not replaced)


def artifact_name(ref: str) -> str:
    """`owner/name` of `owner/name@version`."""
    return ref.partition("@")[0]


def resolve(spec: CompositionSpec, registry: Registry, accept_replaced: bool = False) -> Lock:
    """Pins every part to what its name means in this registry now.

    Args:
        spec: what people wrote.
        registry: where the names are looked up.
        accept_replaced: note what the router learned from where another artifact is composed in its place, so that
            `require_learned` lets it pass.
    """
    modules = tuple(pin(registry, ref, "module") for ref in spec.modules)
    names = [artifact_name(part.ref) for part in modules]
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"composition {spec.name}: module {name} is listed twice; list each module once")
    router = pin(registry, spec.router, "router") if isinstance(spec.router, str) else spec.router
    replaced: dict[str, LockedPart] = {}
    if accept_replaced and isinstance(router, LockedPart):
        replaced = replaced_modules(registry, router, modules)
    return Lock(
        name=spec.name,
        trunk=pin(registry, spec.trunk, "trunk"),
        modules=modules,
        router=router,
        price=float(spec.price),
        backend=spec.backend,
        dtype=spec.precision,
        replaced=replaced,
    )


def replaced_modules(registry: Registry, router: LockedPart, modules: Sequence[LockedPart]) -> dict[str, LockedPart]:
    """By `owner/name`, what a router learned from where `modules` has another artifact of that name."""
    learned = {artifact_name(part.ref): part for part in _learned_from(registry, router)}
    composed = {artifact_name(part.ref): part for part in modules}
    return {name: part for name, part in learned.items() if name in composed and composed[name].digest != part.digest}


def _learned_from(registry: Registry, router: LockedPart) -> list[LockedPart]:
    """The modules whose losses a router has seen."""
    artifact = read_router(registry.manifest(router.digest), router.ref)
    return [pin_parent(module) for module in artifact.learned_from] if isinstance(artifact, RouterArtifact) else []


def require_learned(
    registry: Registry,
    router: LockedPart,
    modules: Sequence[LockedPart],
    accepted: Mapping[str, LockedPart],
    way_on: str = "say moe-lab compose CONFIG --accept-replaced and go on from its lockfile",
) -> None:
    """Refuses a module that took the place of the one a router learned from, unless just that was accepted.

    Args:
        registry: where the router is.
        router: what was trained.
        modules: what is composed.
        accepted: as `Lock.replaced`.
        way_on: what the error advises besides training again and naming the old version.
    """
    composed = {artifact_name(part.ref): part for part in modules}
    for name, learned in replaced_modules(registry, router, modules).items():
        if name in accepted and accepted[name].digest == learned.digest:
            continue
        now = composed[name]
        raise Refused(
            f"router {router.ref} learned from {learned.ref} ({learned.digest[:19]}), but {now.ref} "
            f"({now.digest[:19]}) is composed, and what the router knows may not hold for it: train the router "
            f"again, or name {learned.ref} in the composition, or {way_on}"
        )


def pin(registry: Registry, ref: str, kind: str) -> LockedPart:
    """Resolves a name and checks that it names an artifact of the right kind."""
    resolved = registry.resolve(ref)
    if not ref.startswith("sha256-") and ArtifactRef.parse(ref).width is not None:
        raise LabError(f"{ref} names one width; name the whole module, the router chooses its widths")
    kind_there = registry.manifest(resolved.digest).kind
    if kind_there != kind:
        raise LabError(f"{ref} is a {kind_there}, but a {kind} is needed here; see moe-lab module list --all")
    return LockedPart(ref=str(resolved.ref or ref), digest=resolved.digest)


def pin_parent(parent: Parent) -> LockedPart:
    """What a lineage names, by the digest that it names."""
    return LockedPart(ref=parent.ref, digest=parent.digest)


def load_lock(path: Path) -> Lock:
    """Reads a lockfile."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        kind = classify(error) if isinstance(error, OSError) else Damaged
        raise kind(f"{path}: cannot be read as a lockfile: {error}; compose it again") from error
    return decode(Lock, data, str(path))


def require_trusted(lock: Lock, registry: Registry) -> None:
    """Asks the trust policy again, under the names that were pinned: a key may have been revoked since then."""
    routers = [lock.router] if isinstance(lock.router, LockedPart) else []
    for part in (lock.trunk, *lock.modules, *routers):
        registry.require_pinned(part.ref, part.digest)
