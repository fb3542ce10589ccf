"""One of several processes: runs a sharded layer and a composed model, and writes what it saw of both.

python tests/parallel/in_processes.py HOST:PORT NUMBER PROCESSES LAB OUT
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_lab.compose.build import build_model
from moe_lab.nn.pool import Blocks
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import TOKENS, make_mesh, to_host, to_mesh
from moe_lab.parallel.pool import PlacedPool, gather, place_pool, reader
from moe_lab.parallel.spec import MeshSpec
from moe_lab.training.processes import join, leave
from tests.compose.published import Published, Tokens, open_published
from tests.parallel.test_layer import COPIES, drawn, laid_out


def layer(mesh: Any) -> dict[str, np.ndarray]:
    """Output and every gradient, whole, as arrays by name."""
    h, modules, routing, goal = drawn()
    layout = laid_out(COPIES)
    pool = place_pool(reader(modules), layout, mesh)
    run = ShardedLayer(mesh=mesh)

    def loss(
        h: jax.Array, blocks: Blocks, weight: jax.Array, pool: PlacedPool, routing: Any, goal: Any
    ) -> tuple[jax.Array, jax.Array]:
        placed = dataclasses.replace(pool, blocks=blocks)
        y = run(h, placed, routing._replace(weight=weight), activation="silu").y_TD
        return (y * goal).sum(), y

    h, routing, goal = to_mesh((h, routing, goal), mesh, TOKENS)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (total, y), (dh, dblocks, dweight) = gradient(h, pool.blocks, routing.weight, pool, routing, goal)
    found = to_host({"loss": total, "y": y, "dh": dh, "dweight": dweight})
    for number, module in enumerate(gather(dblocks, layout)):
        found |= {f"module {number} {name}": value for name, value in module._asdict().items()}
    return found


def composed(mesh: Any, published: Published) -> tuple[np.ndarray, int]:
    """Losses of a composed model, and the bytes of modules that this process read for it."""
    model = build_model(published.lock("lab/gain"), published.registry, published.lab, mesh)
    batch = Tokens(*map(np.concatenate, zip(*map(Tokens.draw, range(4)), strict=True)))
    arrays = model.arrays()
    decision = model.run(arrays, batch, model.enter(arrays, batch), available_E=model.available(), price=0.3)
    return to_host(decision.loss_BS), model.pools.bytes_read


if __name__ == "__main__":
    coordinator, number, processes, lab, out = sys.argv[1:]
    join(coordinator, int(number), int(processes))
    mesh = make_mesh(MeshSpec(data=1, expert=4))
    found = layer(mesh)
    losses, bytes_read = composed(mesh, open_published(Path(lab)))
    np.savez(Path(out) / f"{number}.npz", losses=losses, **found)
    (Path(out) / f"{number}.json").write_text(json.dumps({"bytes_read": bytes_read}))
    leave(0)
