"""Plans a model for a TPU topology before there is one: places it, compiles its step, judges it, and writes it down.

Shape letters: E modules, P devices of the `expert` axis.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moe_lab.errors import LabError
from moe_lab.nn.expert_ffn import choose_backend
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import make_mesh
from moe_lab.parallel.placement import balance
from moe_lab.planning.abstract_layer import build_layer
from moe_lab.planning.abstract_step import StepShape, build_step
from moe_lab.planning.advice import changes
from moe_lab.planning.compiled import Overflow, compile_program
from moe_lab.planning.flops import forward_flops, step_flops
from moe_lab.planning.model import PlannedModel
from moe_lab.planning.plan import LayerCheck, Plan
from moe_lab.planning.spec import PlanSettings
from moe_lab.planning.topologies import Topology, topology_devices


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
    programs = []
    for step in build_layer(shape, run, shape.trunk.routed_layers[0]):
        compiled = compile_program(step.lower())
        if isinstance(compiled, Overflow):
            return None
        programs.append(compiled)
    forward, gradient = programs
    return LayerCheck(
        forward_flops=forward.flops_loops_once,
        gradient_flops=gradient.flops_loops_once,
        forward_seconds=forward.seconds,
        gradient_seconds=gradient.seconds,
    )


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
