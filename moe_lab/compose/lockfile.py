"""The lockfile: every part of a composition by its digest, so that the same bytes can be composed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import decode
from moe_lab.config.spec import Spec
from moe_lab.errors import LabError
from moe_lab.registry import ArtifactRef, Registry


class LockedPart(Spec):
    """A published artifact, pinned."""

    ref: str
    digest: str


class Lock(Spec):
    """A composition with nothing left to decide."""

    format: Literal[1] = 1
    name: str
    trunk: LockedPart
    modules: tuple[LockedPart, ...]
    router: LockedPart | dict[str, Any]
    price: float
    backend: str
    dtype: Literal["float32"] = "float32"


def artifact_name(ref: str) -> str:
    """`owner/name` of `owner/name@version`."""
    return ref.partition("@")[0]


def resolve(spec: CompositionSpec, registry: Registry) -> Lock:
    """Pins every part to what its name means in this registry now."""
    modules = tuple(pin(registry, ref, "module") for ref in spec.modules)
    names = [artifact_name(part.ref) for part in modules]
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"composition {spec.name}: module {name} is listed twice; list each module once")
    return Lock(
        name=spec.name,
        trunk=pin(registry, spec.trunk, "trunk"),
        modules=modules,
        router=pin(registry, spec.router, "router") if isinstance(spec.router, str) else spec.router,
        price=float(spec.price),
        backend=spec.backend,
    )


def pin(registry: Registry, ref: str, kind: str) -> LockedPart:
    """Resolves a name and checks that it names an artifact of the right kind."""
    resolved = registry.resolve(ref)
    if not ref.startswith("sha256-") and ArtifactRef.parse(ref).width is not None:
        raise LabError(f"{ref} names one width; name the whole module, the router chooses its widths")
    found = registry.manifest(resolved.digest)["kind"]
    if found != kind:
        raise LabError(f"{ref} is a {found}, but a {kind} is needed here; see moe-lab module list --all")
    return LockedPart(ref=str(resolved.ref or ref), digest=resolved.digest)


def load_lock(path: Path) -> Lock:
    """Reads a lockfile."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: cannot be read as a lockfile: {error}; compose it again") from error
    return decode(Lock, data, str(path))


def require_trusted(lock: Lock, registry: Registry) -> None:
    """Asks the trust policy again, under the names that were pinned: a key may have been revoked since then."""
    routers = [lock.router] if isinstance(lock.router, LockedPart) else []
    for part in (lock.trunk, *lock.modules, *routers):
        registry.require_pinned(part.ref, part.digest)
