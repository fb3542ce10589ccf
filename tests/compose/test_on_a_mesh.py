"""A composition over devices: what it computes, what it reads, and how its modules come and go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose import model as model_module
from moe_lab.compose.build import build_model, exchange_modules
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import find_module, load_trunk
from moe_lab.compose.pools import place_modules
from moe_lab.errors import LabError
from moe_lab.jobs.measure import trunk_losses
from moe_lab.parallel.mesh import longest_axis, to_host
from moe_lab.parallel.placement import moved_blocks
from tests.compose.published import LADDERS, MODULES, TRUNK, WIDTHS, Published, Tokens
from tests.parallel.meshes import mesh_of

WIDE = "south/wide"


@pytest.fixture(scope="module")
def batch() -> Tokens:
    drawn = [Tokens.draw(seed) for seed in range(4)]
    return Tokens(*map(np.concatenate, zip(*drawn, strict=True)))


def losses(model: ComposedModel, batch: Tokens, **options: Any) -> np.ndarray:
    arrays = model.arrays()
    options = {"price": 0.3, "available_E": model.available(), **options}
    return to_host(model.run(arrays, batch, model.enter(arrays, batch), **options).loss_BS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [((1, 2), {}), ((2, 4), {"shard_trunk": True}), ((1, 8), {"transport": "all-to-all"})],
    ids=str,
)
def test_it_computes_what_one_device_computes(
    published: Published, batch: Tokens, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    lock = published.lock("lab/gain")
    alone = published.model(lock)
    spread = build_model(lock, published.registry, published.lab, mesh_of(*shape), **options)
    once, again = (losses(spread, batch) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(once, losses(alone, batch), rtol=1e-5, atol=1e-5)


class Reads:
    """Counts the bytes of every blob that is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, published: Published) -> None:
        self.bytes = 0
        get = published.registry.store.get

        def counted(key: str, *limit: Any) -> bytes:
            data = get(key, *limit)
            self.bytes += len(data) if key.startswith("blobs/") else 0
            return data

        monkeypatch.setattr(published.registry.store, "get", counted)


@pytest.fixture
def wide(own: Published) -> Published:
    """A module of 64 blocks per layer, more than any device should read."""
    own.put_module(WIDE, {0: 256, 1: 256}, (256,))
    return own


@pytest.mark.slow
def test_each_shard_reads_its_own_blocks_only(wide: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, wide)
    module = find_module(wide.registry, wide.lock(FIXED_WIDE, (WIDE,)).modules[0])
    pools = place_modules([module], TRUNK.routed_layers, mesh_of(1, 8))
    whole = 2 * 64 * 3 * TRUNK.d_model * TRUNK.block * 4
    assert reads.bytes == pools.bytes_read == whole
    per_device = []
    for device in range(8):
        before = reads.bytes
        for layer, layout in pools.layouts.items():
            for piece in layout.owner(device):
                module.read(layer, piece.first, piece.count)
        per_device.append(reads.bytes - before)
    assert max(per_device) <= whole / 8 * 1.05


FIXED_WIDE = {"type": "fixed", "candidate": f"{WIDE}:256"}


def test_a_flipped_byte_in_one_shard_names_module_and_tensor(wide: Published) -> None:
    part = wide.lock(FIXED_WIDE, (WIDE,)).modules[0]
    module = find_module(wide.registry, part)
    record = module.manifest.record("layers.1.down")
    blob = Path(wide.registry.store.where(f"blobs/{record.chunks[40]}"))
    data = bytearray(blob.read_bytes())
    data[17] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(LabError, match=rf"{part.ref}.*layers\.1\.down.*chunk 40.*damaged"):
        place_modules([module], TRUNK.routed_layers, mesh_of(1, 8))
    layout = place_layout(module)
    shard = next(p.device for p in layout.placement.pieces if p.first <= 40 < p.first + p.count)
    assert shard == 5
    for piece in layout.placement.pieces:
        if piece.device != shard:
            module.read(1, piece.first, piece.count)


def place_layout(module: Any) -> Any:
    from moe_lab.parallel.placement import even_load, place
    from moe_lab.parallel.pool import lay_out

    blocks = [module.layer_blocks[1]]
    return lay_out(place(blocks, even_load(blocks, [1.0]), 8))


@pytest.mark.slow
def test_modules_come_and_go_without_a_new_program(published: Published, batch: Tokens) -> None:
    mesh = mesh_of(1, 4)
    few = published.lock("lab/gain", MODULES[:2])
    resident = build_model(few, published.registry, published.lab, mesh, spare_blocks=2)
    before = losses(resident, batch)
    programs = model_module._composed._cache_size()

    whole = published.lock("lab/gain")
    grown = exchange_modules(resident, whole, published.registry, published.lab)
    new = find_module(published.registry, whole.modules[2])
    blocks = sum(new.layer_blocks.values())
    block_bytes = 3 * TRUNK.d_model * TRUNK.block * 4
    moved = sum(
        moved_blocks(resident.pools.layouts[layer].placement, grown.pools.layouts[layer].placement)
        for layer in TRUNK.routed_layers
    )
    assert grown.pools.bytes_read == moved * block_bytes
    assert moved <= blocks + 2
    built = build_model(whole, published.registry, published.lab, mesh)
    np.testing.assert_allclose(losses(grown, batch), losses(built, batch), rtol=1e-5, atol=1e-5)

    shrunk = exchange_modules(grown, few, published.registry, published.lab)
    np.testing.assert_allclose(losses(shrunk, batch), before, rtol=1e-5, atol=1e-5)
    assert model_module._composed._cache_size() <= programs + 1  # one for `built`, whose room is another


@pytest.mark.slow
def test_a_module_is_replaced_by_its_next_version(own: Published, batch: Tokens) -> None:
    mesh = mesh_of(1, 2)
    lock = own.lock("lab/gain")
    resident = build_model(lock, own.registry, own.lab, mesh)
    losses(resident, batch)
    programs = model_module._composed._cache_size()
    name = MODULES[1]
    own.put_module(name, WIDTHS[name], LADDERS[name], seed=77)
    newer = own.lock("lab/gain")
    assert newer.modules[1].ref.endswith("@2")
    replaced = exchange_modules(resident, newer, own.registry, own.lab)
    after = losses(replaced, batch)
    assert model_module._composed._cache_size() == programs
    module = find_module(own.registry, newer.modules[1])
    assert replaced.pools.bytes_read == sum(module.layer_blocks.values()) * 3 * TRUNK.d_model * TRUNK.block * 4
    np.testing.assert_allclose(after, losses(own.model(newer), batch), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_cannot_be_exchanged_is_refused(own: Published) -> None:
    lock = own.lock("lab/gain")
    with pytest.raises(LabError, match="in a model on a mesh"):
        exchange_modules(own.model(lock), lock, own.registry, own.lab)
    resident = build_model(lock, own.registry, own.lab, mesh_of(1, 2))
    own.put_module(WIDE, {0: 256, 1: 256}, (256,))
    with pytest.raises(LabError, match="room|slots"):
        exchange_modules(resident, own.lock(FIXED_WIDE, (WIDE,)), own.registry, own.lab)


@pytest.mark.slow
def test_blocks_move_to_where_the_load_is_even(published: Published, batch: Tokens) -> None:
    lock = published.lock("lab/gain")
    model = build_model(lock, published.registry, published.lab, mesh_of(1, 2), spare_blocks=2)
    arrays = model.arrays()
    decision = model.run(arrays, batch, model.enter(arrays, batch), available_E=model.available(), price=0.3)
    expert, width = to_host((decision.expert_BSK, decision.width_BSK))
    load = model.load(expert, width)
    for layer in TRUNK.routed_layers:
        total = sum(blocks.sum() for blocks in load[layer].values())
        counts = np.array([module.layer_blocks[layer] for module in model.modules])
        index = [[module.name for module in model.modules].index(name) for name in model.space.modules]
        assert total == np.minimum(width, counts[np.array(index)[expert]]).sum()
    moved = exchange_modules(model, lock, published.registry, published.lab, load)
    np.testing.assert_allclose(losses(moved, batch), to_host(decision.loss_BS), rtol=1e-5, atol=1e-5)


def test_shardings_are_the_ones_written_down(published: Published) -> None:
    """A changed sharding is a changed line of the golden file; rewrite it with GOLDENS=write."""
    model = build_model(published.lock("lab/gain"), published.registry, published.lab, mesh_of(2, 4), shard_trunk=True)
    leaves = jax.tree_util.tree_leaves_with_path(model.arrays())
    lines = [
        f"{jax.tree_util.keystr(path).removesuffix('.value')}: {list(leaf.shape)} over {tuple(leaf.sharding.spec)}"
        for path, leaf in leaves
    ]
    for layer, layout in model.pools.layouts.items():
        for piece, slot in sorted(layout.start.items()):
            end = piece.first + piece.count
            lines.append(
                f"layer {layer} device {piece.device} slot {slot}: {model.pools.names[piece.module]} "
                f"blocks {piece.first}:{end} copy {piece.copy}"
            )
    golden = Path(__file__).with_name("shardings.golden")
    if os.environ.get("GOLDENS") == "write":
        golden.write_text("\n".join(lines) + "\n")
    assert lines == golden.read_text().splitlines()


@pytest.mark.slow
def test_a_sharded_trunk_is_loaded_in_parts(published: Published) -> None:
    """No device is given more than its part of what can be cut; what is computed of it differs by rounding alone."""
    mesh = mesh_of(2, 2)
    whole = load_trunk(published.registry, published.trunk)
    trunk = load_trunk(published.registry, published.trunk, sharded=True, mesh=mesh)
    cut = 0
    for name, leaf in nnx.to_flat_state(trunk.state):
        spec = longest_axis(leaf.shape, 4)
        parts = {shard.data.size for shard in leaf[...].addressable_shards}
        assert parts == {leaf.size // (4 if any(spec) else 1)}, name
        cut += any(spec)
    assert cut > 3
    for ours, again in zip(jax.tree.leaves(trunk.state), jax.tree.leaves(trunk.on(mesh)), strict=True):
        assert ours is again
    tokens = Tokens.draw(0)
    found = [np.asarray(trunk_losses(one.graph, one.state)(tokens)) for one in (whole, trunk)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
