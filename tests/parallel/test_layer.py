"""The sharded layer against one device: values and every gradient, whatever lies where."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.nn.expert_ffn import expert_ffn
from moe_lab.nn.pool import Blocks, Routing, make_pool
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import TOKENS, to_mesh
from moe_lab.parallel.placement import Placement
from moe_lab.parallel.pool import Layout, PlacedPool, Room, gather, lay_out, place_pool, reader, room_for
from tests.nn.drawing import random_blocks, random_routing
from tests.parallel.meshes import by_hand, cut_evenly, mesh_of, round_robin

T, K = 64, 2
COUNTS = (5, 1, 3, 2, 7)  # 18 blocks: divisible by none of 4, 8
# The oracle's backend compiles fast; the worklist runs in two of the shapes here and in all other tests.
CASES = [
    pytest.param((1, 1), cut_evenly, "reference", marks=pytest.mark.slow),
    pytest.param((1, 2), round_robin, "reference", marks=pytest.mark.slow),
    ((1, 4), cut_evenly, "worklist"),
    pytest.param((1, 8), round_robin, "worklist", marks=pytest.mark.slow),
    pytest.param((1, 8), cut_evenly, "reference", marks=pytest.mark.slow),
    pytest.param((2, 4), cut_evenly, "reference", marks=pytest.mark.slow),
    pytest.param((8, 1), round_robin, "reference", marks=pytest.mark.slow),
]
# Two copies of module 0, one of them cut; device 3 is empty; module 4 lies on two devices.
COPIES = by_hand(
    4, COUNTS, (0, 0, 0, 5, 0), (0, 1, 0, 2, 1), (0, 1, 2, 3, 2), (1, 0, 0, 1, 1), (2, 0, 0, 3, 2), (3, 0, 0, 2, 1),
    (4, 0, 0, 4, 0), (4, 0, 4, 3, 1),
)  # fmt: skip


def drawn(seed: int = 0) -> tuple[jax.Array, list[Blocks], Routing, jax.Array]:
    """Tokens, modules, routing, and what the output is weighted by before it is summed to a loss."""
    rng = np.random.default_rng(seed)
    h, goal = (jnp.asarray(rng.normal(size=(T, 12)), jnp.float32) for _ in range(2))
    return h, [random_blocks(rng, count) for count in COUNTS], random_routing(rng, T, K, COUNTS), goal


def on_one_device(h: jax.Array, modules: list[Blocks], routing: Routing, goal: jax.Array) -> tuple:
    """Output, and gradients in tokens, weights and modules."""

    def loss(h: jax.Array, modules: list[Blocks], weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = expert_ffn(h, make_pool(modules), routing._replace(weight=weight), backend="reference")
        return (y * goal).sum(), y

    (_, y), (dh, dmodules, dweight) = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        h, modules, routing.weight
    )
    return y, dh, dweight, dmodules


def on_mesh(layer: ShardedLayer, pool: PlacedPool, h: Any, routing: Routing, goal: Any) -> tuple:
    def loss(h: jax.Array, blocks: Blocks, weight: jax.Array) -> tuple[jax.Array, Any]:
        placed = dataclasses.replace(pool, blocks=blocks)
        found = layer(h, placed, routing._replace(weight=weight), activation="silu")
        return (found.y_TD * goal).sum(), found

    h, routing, goal = to_mesh((h, routing, goal), layer.mesh, TOKENS)
    (_, found), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(h, pool.blocks, routing.weight)
    return found, gradients


def close(found: Any, wanted: Any) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def laid_out(placement: Placement, slots: int | None = None) -> Layout:
    room = room_for(placement)
    return lay_out(placement, dataclasses.replace(room, slots=slots or room.slots))


@functools.cache
def wanted() -> tuple:
    """What every mesh has to compute of what is drawn."""
    return on_one_device(*drawn())


def compare(layer: ShardedLayer, placement: Placement, slots: int | None = None) -> int:
    """Asserts equality with one device; returns what was left out."""
    h, modules, routing, goal = drawn()
    y, dh, dweight, dmodules = wanted()
    layout = laid_out(placement, slots)
    pool = place_pool(reader(modules), layout, layer.mesh)
    found, (dh_found, dblocks, dweight_found) = on_mesh(layer, pool, h, routing, goal)
    close(found.y_TD, y)
    close(dh_found, dh)
    close(dweight_found, dweight)
    for one, other in zip(gather(dblocks, layout), dmodules, strict=True):
        jax.tree.map(close, one, other)
    return int(found.dropped)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "place", "backend"), CASES)
def test_values_and_gradients_are_those_of_one_device(shape: tuple[int, int], place: Any, backend: str) -> None:
    assert compare(ShardedLayer(mesh=mesh_of(*shape), backend=backend), place(shape[1], COUNTS)) == 0


@pytest.mark.slow
def test_copies_empty_devices_and_spare_slots() -> None:
    assert compare(ShardedLayer(mesh=mesh_of(2, 4)), COPIES, slots=12) == 0


@pytest.mark.slow
@pytest.mark.parametrize("placement", [COPIES, cut_evenly(4, COUNTS)], ids=["copies", "cut"])
def test_all_to_all_with_room_enough(placement: Placement) -> None:
    mesh = mesh_of(2, 4)
    assert compare(ShardedLayer(mesh=mesh, transport="all-to-all", places=16), placement) == 0


@pytest.mark.slow
def test_all_to_all_finds_out_how_many_places_it_needs() -> None:
    """Twice the even share: what the hot module's device has no place for makes the step run whole."""
    compare(ShardedLayer(mesh=mesh_of(1, 4), transport="all-to-all"), COPIES)


@pytest.mark.slow
def test_overflow_is_counted_and_the_step_runs_whole() -> None:
    mesh = mesh_of(1, 4)
    assert compare(ShardedLayer(mesh=mesh, transport="all-to-all", places=3), COPIES) > 0


@pytest.mark.slow
def test_overflow_that_is_only_counted_equals_a_reference_without_what_was_left_out() -> None:
    layer = ShardedLayer(mesh=mesh_of(1, 2), transport="all-to-all", places=8, overflow="count")
    h, modules, routing, goal = drawn()
    placement = round_robin(2, COUNTS)
    found, _ = on_mesh(layer, place_pool(reader(modules), lay_out(placement), layer.mesh), h, routing, goal)
    # The first 8 choices from each device's 32 tokens to each device find a place.
    width = np.minimum(np.asarray(routing.width), np.array(COUNTS)[np.asarray(routing.expert)])
    kept = np.zeros(width.shape, bool)
    for sender in range(2):
        for receiver in range(2):
            asked = np.zeros(width.shape, bool)
            rows = slice(sender * 32, sender * 32 + 32)
            asked[rows] = (width[rows] > 0) & (np.asarray(routing.expert)[rows] % 2 == receiver)
            places = np.flatnonzero(asked.reshape(-1))[:8]
            kept.reshape(-1)[places] = True
    assert int(found.dropped) == int((width > 0).sum() - kept.sum()) > 0
    trimmed = routing._replace(width=jnp.asarray(np.where(kept, width, 0)))
    close(found.y_TD, expert_ffn(h, make_pool(modules), trimmed, backend="reference"))


@pytest.mark.slow
def test_a_step_over_its_budget_runs_whole() -> None:
    layer = ShardedLayer(mesh=mesh_of(1, 2), backend="megablox-interpreted", budget=512)
    rng = np.random.default_rng(3)
    modules = [random_blocks(rng, count, d_model=128, block=128) for count in (3, 5)]
    expert = jnp.asarray(rng.integers(0, 2, (256, 1)), jnp.int32)
    routing = Routing(expert, jnp.full((256, 1), 5, jnp.int32), jnp.ones((256, 1), jnp.float32))
    h = jnp.asarray(rng.normal(size=(256, 128)), jnp.float32)
    pool = place_pool(reader(modules), lay_out(round_robin(2, (3, 5))), layer.mesh)
    run = jax.jit(lambda h, pool, routing: layer(h, pool, routing, activation="silu"))
    found = run(*to_mesh((h,), layer.mesh, TOKENS), pool, to_mesh(routing, layer.mesh, TOKENS))
    close(found.y_TD, expert_ffn(h, make_pool(modules), routing, backend="reference"))
    rows = np.where(np.asarray(expert) == 0, 3, 5)
    assert int(found.dropped) == sum(max(0, rows[expert == e].sum() - 512) for e in range(2)) > 0


@pytest.mark.slow
def test_the_same_bits_every_time_and_no_second_compilation_when_modules_move() -> None:
    layer = ShardedLayer(mesh=mesh_of(2, 4))
    h, modules, routing, goal = drawn()
    h, routing, goal = to_mesh((h, routing, goal), layer.mesh, TOKENS)
    run = jax.jit(lambda h, pool, routing: layer(h, pool, routing, activation="silu").y_TD)
    first, moved = (
        place_pool(reader(modules), lay_out(placement, Room(12, 6, 8)), layer.mesh)
        for placement in (COPIES, cut_evenly(4, COUNTS))
    )
    once, again, elsewhere = (np.asarray(run(h, pool, routing)) for pool in (first, first, moved))
    assert np.array_equal(once, again)
    close(elsewhere, once)
    assert run._cache_size() == 1


@pytest.mark.slow
def test_neutral_insertion_on_a_mesh() -> None:
    """A module that no token is routed to changes no bit, when the others stay where they are."""
    layer = ShardedLayer(mesh=mesh_of(1, 2))
    h, modules, routing, _ = drawn()
    few = modules[:3]
    routing = routing._replace(expert=routing.expert % 3)
    h, routing = to_mesh((h, routing), layer.mesh, TOKENS)
    run = jax.jit(lambda h, pool, routing: layer(h, pool, routing, activation="silu").y_TD)
    before = run(h, place_pool(reader(few), lay_out(round_robin(2, COUNTS[:3])), layer.mesh), routing)
    after = run(h, place_pool(reader(modules), lay_out(round_robin(2, COUNTS)), layer.mesh), routing)
    assert np.array_equal(before, after)


def test_a_batch_that_the_devices_cannot_share_is_refused() -> None:
    layer = ShardedLayer(mesh=mesh_of(1, 8))
    h, modules, routing, _ = drawn()
    pool = place_pool(reader(modules), lay_out(round_robin(8, COUNTS)), layer.mesh)
    with pytest.raises(LabError, match="60 tokens cannot be shared evenly by 8 devices"):
        layer(h[:60], pool, Routing(*(field[:60] for field in routing)), activation="silu")


def test_local_pools_hold_what_the_placement_says() -> None:
    modules = drawn()[1]
    layout = laid_out(COPIES, 9)
    pool = place_pool(reader(modules), layout, mesh_of(1, 4))
    for one, other in zip(gather(pool.blocks, layout), modules, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, jax.tree.map(np.asarray, other))
