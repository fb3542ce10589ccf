"""A model on a TPU topology before there is one: placement, the compiled step, the verdict, and what would make it fit.

Shape letters: E modules, P devices of the `expert` axis.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moe_lab.config import decode, load_config
from moe_lab.config.overrides import apply_overrides
from moe_lab.config.strict_yaml import load_yaml
from moe_lab.errors import LabError, NotFound
from moe_lab.jobs.evaluate import find_lock
from moe_lab.jobs.plan_advice import Change, changes
from moe_lab.jobs.plan_flops import forward_flops, step_flops
from moe_lab.jobs.plan_model import PlannedModel, model_of_lock, model_of_spec
from moe_lab.jobs.spec import PlanSettings, PlanSpec
from moe_lab.jobs.workspace import Workspace
from moe_lab.nn.expert_ffn import choose_backend
from moe_lab.parallel.abstract_layer import build_layer
from moe_lab.parallel.abstract_step import StepShape, build_step
from moe_lab.parallel.compiled import Compiled, Overflow, compile_program
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import make_mesh
from moe_lab.parallel.placement import Placement, balance
from moe_lab.parallel.spec import MeshSpec
from moe_lab.parallel.topologies import Topology, topology_devices
from moe_lab.training.durable import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """The compiler's FLOPs of one routed layer on one device, grouped matmuls counted as if their budget were full."""

    forward_flops: float
    gradient_flops: float
    forward_seconds: float
    gradient_seconds: float

    @property
    def ratio(self) -> float:
        """Forward and backward over three forwards: 1 is ideal."""
        return self.gradient_flops / (3 * self.forward_flops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known about a model on a topology. Bytes are those of one device."""

    model: PlannedModel
    topology: Topology
    mesh: MeshSpec
    rows: int
    placements: dict[int, Placement]
    expected_rows: int
    """Block rows that the load makes the fullest device expect, per layer."""
    budget: int
    backend: str
    own_bytes: dict[str, int]
    """Bytes of each argument of the step, counted from placement, shapes and shardings."""
    result: Compiled | Overflow
    layer: LayerCheck | None
    changes: tuple[Change, ...]
    seconds: float

    @property
    def fits(self) -> bool:
        return isinstance(self.result, Compiled)

    @property
    def agreement(self) -> float | None:
        """The compiler's bytes of all arguments over our own count of them."""
        if isinstance(self.result, Compiled):
            return self.result.argument_bytes / sum(self.own_bytes.values())
        return None

    @property
    def most_rows(self) -> int | None:
        """The largest batch that should fit: what is not arguments grows with it."""
        if not isinstance(self.result, Compiled):
            return None
        weights = self.result.argument_bytes
        room, used = self.topology.hbm_bytes - weights, max(self.result.peak_bytes - weights, 1)
        devices = self.topology.num_devices
        return max(self.rows, int(self.rows * room / used) // devices * devices)

    @property
    def verdict(self) -> str:
        if isinstance(self.result, Overflow):
            return f"does not fit, short by {self.result.short_bytes / 2**30:.2f} GiB per device"
        free = self.topology.hbm_bytes - self.result.peak_bytes
        return f"fits, with {free / 2**30:.2f} GiB per device to spare"


def find_model(workspace: Workspace, text: str, overrides: Sequence[str]) -> PlannedModel:
    """A `kind: plan` config, or a composition by config or lockfile, whose settings are all overrides."""
    path = Path(text) if Path(text).is_file() else None
    if path is None:
        names = [name for name in (f"plans/{text}", text) if _found(workspace, name)]
        path = workspace.lab.find_config(names[0] if names else text)
    if path.suffix != ".json" and load_yaml(path).get("kind") == "plan":
        spec = load_config(path, overrides, kind="plan")
        assert isinstance(spec, PlanSpec)
        return model_of_spec(spec)
    settings = decode(PlanSettings, apply_overrides({}, overrides), "settings of the plan")
    return model_of_lock(find_lock(workspace, str(path), path.parent), workspace.registry, settings)


def _found(workspace: Workspace, name: str) -> bool:
    try:
        workspace.lab.find_config(name)
    except NotFound:
        return False
    return True


def make_plan(model: PlannedModel, topology: Topology, say: Callable[[str], None], check_layer: bool = True) -> Plan:
    """Places, compiles and judges.

    Args:
        model: what is to run.
        topology: where.
        say: hears what is being done, for things take minutes.
        check_layer: also compile one routed layer by itself, to compare its gradient with its forward pass.
    """
    started = time.perf_counter()
    settings, devices = model.settings, topology.num_devices
    rows = settings.rows or devices
    if rows % devices:
        raise LabError(f"rows {rows} cannot be shared evenly by {devices} devices; make rows a multiple of {devices}")
    mesh_spec = model.choose_mesh(topology)
    say(f"placing {len(model.modules)} modules on {mesh_spec.expert} devices")
    placements = model.place(mesh_spec.expert, settings.replicate)
    expected = max(
        float(placement.load_P(model.block_load(layer)).max()) for layer, placement in placements.items()
    ) * (rows // mesh_spec.data * settings.seq_len * settings.top_k)
    budget = math.ceil(expected * settings.budget_slack)
    mesh = make_mesh(mesh_spec, topology_devices(topology))
    choice = choose_backend(d_model=model.trunk.d_model, block=model.trunk.block, platform="tpu")
    run = ShardedLayer(mesh=mesh, budget=budget, overflow="count", backend=choice.backend)
    shape = StepShape(
        trunk=model.trunk,
        placements=placements,
        rungs_ER=model.rungs_ER,
        top_k=settings.top_k,
        rows=rows,
        seq_len=settings.seq_len,
        train=settings.train,
        dtype=settings.dtype,
        trunk_sharding=settings.trunk_sharding,
    )
    step = build_step(shape, run)
    what = "training step" if settings.train else "forward step"
    say(f"compiling the {what} for {topology.name} (1 to 4 minutes)")
    # A compilation keeps one core busy.
    with ThreadPoolExecutor() as pool:
        checked = pool.submit(_check_layer, shape, run) if check_layer else None
        result = compile_program(step.lower())
        layer = checked.result() if checked else None
    plan = Plan(
        model=model,
        topology=topology,
        mesh=mesh_spec,
        rows=rows,
        placements=placements,
        expected_rows=math.ceil(expected),
        budget=budget,
        backend=str(choice),
        own_bytes=step.argument_bytes(),
        result=result,
        layer=layer,
        changes=(),
        seconds=time.perf_counter() - started,
    )
    if isinstance(result, Overflow):
        plan = dataclasses.replace(plan, changes=changes(model, topology, mesh_spec, rows, plan.own_bytes, result))
    return dataclasses.replace(plan, seconds=time.perf_counter() - started)


def _check_layer(shape: StepShape, run: ShardedLayer) -> LayerCheck | None:
    """None if the layer does not even fit by itself."""
    found = []
    for step in build_layer(shape, run, shape.trunk.routed_layers[0]):
        compiled = compile_program(step.lower())
        if isinstance(compiled, Overflow):
            return None
        found.append(compiled)
    forward, gradient = found
    return LayerCheck(
        forward_flops=forward.flops_loops_once,
        gradient_flops=gradient.flops_loops_once,
        forward_seconds=forward.seconds,
        gradient_seconds=gradient.seconds,
    )


def save_plan(plan: Plan, folder: Path, command: str) -> tuple[Path, Path]:
    """Writes plan.json and plan.svg."""
    from moe_lab.jobs.plan_picture import write_plan_picture

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", document(plan, command))
    return folder / "plan.json", write_plan_picture(plan, folder / "plan.svg")


def document(plan: Plan, command: str) -> dict[str, Any]:
    """The plan as plan.json."""
    model = plan.model
    layers = {}
    for layer, placement in plan.placements.items():
        load = model.block_load(layer)
        layers[str(layer)] = {
            "balance": balance(placement, load)._asdict(),
            "load_per_device": [round(float(x), 6) for x in placement.load_P(load)],
            "blocks_per_device": placement.used_P().tolist(),
            "pieces": [dataclasses.asdict(piece) for piece in placement.pieces],
        }
    return {
        "command": command,
        "name": model.name,
        "verdict": plan.verdict,
        "fits": plan.fits,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "devices": plan.topology.num_devices,
        "devices_per_chip": plan.topology.devices_per_chip,
        "hbm_bytes_per_device": plan.topology.hbm_bytes,
        "mesh": plan.mesh.model_dump(),
        "rows": plan.rows,
        "settings": model.settings.model_dump(mode="json", include=set(PlanSettings.model_fields)),
        "trunk": model.trunk.model_dump(mode="json"),
        "modules": [
            {"name": m.name, "width": m.width, "share": float(s)}
            for m, s in zip(model.modules, model.tokens_E, strict=True)
        ],
        "backend": plan.backend,
        "expected_block_rows": plan.expected_rows,
        "budget": plan.budget,
        "argument_bytes_counted": plan.own_bytes,
        "compiler": dataclasses.asdict(plan.result) | ({} if plan.fits else {"short_bytes": plan.result.short_bytes}),  # type: ignore[union-attr]
        "argument_bytes_compiler_over_counted": plan.agreement,
        "step_flops": step_flops(plan) if plan.fits else None,
        "forward_flops_counted": forward_flops(plan),
        "routed_layer": dataclasses.asdict(plan.layer) | {"gradient_over_three_forwards": plan.layer.ratio}
        if plan.layer
        else None,
        "most_rows_estimate": plan.most_rows,
        "what_would_make_it_fit": [dataclasses.asdict(change) for change in plan.changes],
        "seconds": round(plan.seconds, 1),
        "layers": layers,
    }
