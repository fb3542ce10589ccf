"""Puts a composed model together: from a lockfile, from parts at hand, or from a resident model with other parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moe_lab.compose.kept_states import KeptStates
from moe_lab.compose.lockfile import Lock, LockedPart, require_learned
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import (
    LoadedTrunk,
    PublishedModule,
    candidate_space,
    find_module,
    load_router,
    load_trunk,
    make_router,
    router_homes,
)
from moe_lab.compose.pools import exchange_in_place, gather_modules, place_modules
from moe_lab.errors import LabError, Refused
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.lab import Lab
from moe_lab.nn.decoder import RunLayer
from moe_lab.nn.expert_ffn import require_backend
from moe_lab.nn.precision import choose_precision
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.spec import Transport
from moe_lab.registry import Registry
from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace


def assemble(
    trunk: LoadedTrunk,
    modules: Sequence[PublishedModule],
    router: Router,
    *,
    price: float = 0.0,
    homes: Mapping[str, str] | None = None,
    run_layer: RunLayer | None = None,
    spare_blocks: int = 0,
) -> ComposedModel:
    """Reads the modules' blocks to where they will run, and puts the model together. See `build_model`."""
    run_layer = run_layer or shared_kind(modules).on_one_device()
    layers, dtype = trunk.spec.routed_layers, trunk.precision.compute
    if isinstance(run_layer, ShardedLayer):
        pools = place_modules(modules, layers, run_layer.mesh, spare_blocks=spare_blocks, dtype=dtype)
    else:
        pools = gather_modules(modules, layers, dtype)
    return ComposedModel(
        trunk=trunk,
        modules=tuple(modules),
        router=router,
        pools=pools,
        price=price,
        homes=homes or {},
        run_layer=run_layer,
    )


def shared_kind(modules: Sequence[PublishedModule]) -> ExpertKind:
    """The kind of modules that share a pool."""
    kinds = sorted({module.interface.kind for module in modules})
    if len(kinds) > 1:
        raise Refused(f"modules of kinds {', '.join(kinds)} cannot share a pool yet; compose modules of one kind")
    return find_kind(*kinds or [DEFAULT])


def routed_layers_on(
    kind: ExpertKind, mesh: Mesh | None, transport: Transport = "ring", backend: str = "auto"
) -> RunLayer:
    """How the routed layers of a model whose modules are of that kind run on these devices."""
    if mesh is None:
        return kind.on_one_device(backend)
    if not kind.runs_on_mesh:
        raise Refused(f"experts of kind {kind.name} run on one device; leave the mesh out")
    return ShardedLayer(mesh=mesh, transport=transport, backend=backend)


def build_model(
    lock: Lock,
    registry: Registry,
    lab: Lab,
    mesh: Mesh | None = None,
    *,
    shard_trunk: bool = False,
    transport: Transport = "ring",
    spare_blocks: int = 0,
    states: KeptStates | None = None,
) -> ComposedModel:
    """Loads what a lockfile names, and refuses parts that do not fit together by name and reason.

    Args:
        lock: the parts.
        registry: where they are.
        lab: where the router's code is.
        mesh: devices to spread the modules over; the default device holds everything if left out.
        shard_trunk: cut the trunk up over the devices as well, instead of a copy on each.
        transport: see `ShardedLayer`.
        spare_blocks: free room on each device of a mesh, for modules that `exchange_modules` brings later.
        states: where what lies under the first routed layer is kept.
    """
    require_backend(lock.backend)
    trunk = load_trunk(registry, lock.trunk, shard_trunk, choose_precision(lock.dtype), states, mesh)
    modules, router = _parts(lock, registry, lab, trunk)
    run_layer = routed_layers_on(shared_kind(modules), mesh, transport, lock.backend)
    homes = _homes(lock.router, registry)
    return assemble(
        trunk, modules, router, price=lock.price, homes=homes, run_layer=run_layer, spare_blocks=spare_blocks
    )


def _parts(lock: Lock, registry: Registry, lab: Lab, trunk: LoadedTrunk) -> tuple[tuple[PublishedModule, ...], Router]:
    """The modules and the router of a lockfile, which fit the trunk and each other."""
    modules = tuple(find_module(registry, part) for part in lock.modules)
    for module in modules:
        trunk.interface.require_fit(module.interface, module.part.ref)
    if not modules:
        raise LabError(f"composition {lock.name} has no modules left; keep at least one")
    if isinstance(lock.router, LockedPart):
        router = _published_router(lock.router, registry, lab, trunk, modules)
        require_learned(registry, lock.router, lock.modules, lock.replaced)
    else:
        router = make_router(lab, lock.router, candidate_space(modules), trunk.spec.d_model)
        if router.needs_training:
            raise LabError(
                f"router {lock.router['type']} has to be trained: train it with a config of kind router, publish it, "
                "and name it here as owner/name"
            )
    return modules, router


def _homes(router: LockedPart | dict[str, Any], registry: Registry) -> dict[str, str]:
    return router_homes(registry, router) if isinstance(router, LockedPart) else {}


def _published_router(
    part: LockedPart, registry: Registry, lab: Lab, trunk: LoadedTrunk, modules: Sequence[PublishedModule]
) -> Router:
    router = load_router(registry, lab, part, trunk)
    _require_same_ladders(router.space, modules, part.ref)
    return router


def with_router(
    model: ComposedModel,
    part: LockedPart,
    registry: Registry,
    lab: Lab,
    replaced: Mapping[str, LockedPart] | None = None,
) -> ComposedModel:
    """The same trunk and modules under another published router, as if composed so: no weights are read again.

    `replaced` is the lockfile's: what its composer accepted holds for this router where it learned from the same.
    """
    router = _published_router(part, registry, lab, model.trunk, model.modules)
    modules = [module.part for module in model.modules]
    require_learned(registry, part, modules, replaced or {}, "leave this router out of `routers`")
    return dataclasses.replace(model, router=router, homes=router_homes(registry, part))


def exchange_modules(
    model: ComposedModel,
    lock: Lock,
    registry: Registry,
    lab: Lab,
    load: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> ComposedModel:
    """The resident model with other modules, or balanced for another load: nothing compiles again.

    Only what changed is read and moved. The trunk must be the same. A module that is new takes the place of one that
    is gone; if the modules do not fit into the room that the pool was made with, that is an error that says so, and
    the model stays as it was.

    Args:
        model: on a mesh.
        lock: the modules and the router to come.
        registry: where they are.
        lab: where the router's code is.
        load: what placement should balance, from `ComposedModel.load`; even if left out.
    """
    if model.mesh is None:
        raise Refused("modules are exchanged in a model on a mesh; on one device build the model anew")
    if lock.trunk.digest != model.trunk.part.digest:
        raise Refused(f"{lock.trunk.ref} is another trunk than {model.trunk.part.ref}; build the model anew")
    modules, router = _parts(lock, registry, lab, model.trunk)
    if (kind := shared_kind(modules)) is not (resident := shared_kind(model.modules)):
        raise Refused(f"modules of kind {kind.name} do not fit into a pool of {resident.name}; build the model anew")
    pools = exchange_in_place(model.pools, model.modules, modules, model.mesh, load)
    homes = _homes(lock.router, registry)
    return dataclasses.replace(model, modules=modules, router=router, pools=pools, price=lock.price, homes=homes)


def _require_same_ladders(space: CandidateSpace, modules: Sequence[PublishedModule], label: str) -> None:
    known: Mapping[str, tuple[int, ...]] = dict(zip(space.modules, space.widths, strict=True))
    costs: Mapping[str, tuple[int, ...]] = dict(zip(space.modules, space.costs, strict=True))
    composed = candidate_space(modules)
    for module, cost in zip(modules, composed.costs, strict=True):
        if module.name not in known:
            raise Refused(
                f"router {label} does not know module {module.name} (it knows {', '.join(known)}); "
                "train the router again with it"
            )
        if known[module.name] != module.ladder or costs[module.name] != cost:
            raise Refused(
                f"router {label} learned {module.name} with ladder {list(known[module.name])} at costs "
                f"{list(costs[module.name])}, but {module.part.ref} has {list(module.ladder)} at {list(cost)}; "
                "train the router again"
            )
