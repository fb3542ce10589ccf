"""Placements stay near their lower bounds, keep what they promise, and move little.

Shape letters: E modules, P devices.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.parallel.placement import (
    Balance,
    Bound,
    Piece,
    Placement,
    balance,
    even_load,
    lower_bound,
    moved_blocks,
    place,
)
from tests.parallel.baselines import place_by_load, place_equal_count

CELLS = list(itertools.product((32, 64), (8, 16), (0.5, 0.8, 1.1)))  # modules, devices, exponent of Zipf's law
DRAWS = 17
FEW_DRAWS = 3  # of whole modules, which are only compared with
REPLICATE = 0.15
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Layer:
    """Modules of 1, 2, 4 or 8 blocks; a token runs the whole module."""

    blocks_E: list[int]
    block_load: list[np.ndarray]


def draw(rng: np.random.Generator, modules: int, exponent: float) -> Layer:
    blocks_E = rng.choice([1, 2, 4, 8], modules).tolist()
    tokens_E = np.arange(1, modules + 1) ** -exponent
    rng.shuffle(tokens_E)
    return Layer(blocks_E, even_load(blocks_E, tokens_E))


def own_bound(placement: Placement, layer: Layer, *, split: bool = True) -> Bound:
    """What nobody could undercut with these copies and this much memory on each device."""
    return lower_bound(
        layer.blocks_E,
        layer.block_load,
        placement.devices,
        split=split,
        copies_E=placement.copies_E().tolist(),
        slots=int(placement.used_P().max()),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One draw under each policy. Bounds are over the means, as the balances are."""

    mean_blocks: float
    split: Balance
    split_bound: Bound
    replicated: Balance
    replicated_most: int  # blocks of the fullest device
    replicated_stored: int
    over_bound: tuple[float, ...]  # load and blocks over the own bounds, split and replicated


def layers_of(modules: int, exponent: float, draws: int) -> list[Layer]:
    rng = np.random.default_rng(0)
    return [draw(rng, modules, exponent) for _ in range(draws)]


@functools.cache
def outcomes(modules: int, devices: int, exponent: float) -> list[Outcome]:
    return [outcome(layer, devices) for layer in layers_of(modules, exponent, DRAWS)]


@functools.cache
def others(modules: int, devices: int, exponent: float) -> dict[str, list[Balance]]:
    """What others do, and whole modules on the first of the draws only."""
    policies: list[tuple[str, int, Callable[..., Placement]]] = [
        ("equal count", DRAWS, place_equal_count),
        ("by load", DRAWS, place_by_load),
        ("whole", FEW_DRAWS, functools.partial(place, split=False)),
    ]
    return {
        name: [
            balance(policy(layer.blocks_E, layer.block_load, devices), layer.block_load)
            for layer in layers_of(modules, exponent, draws)
        ]
        for name, draws, policy in policies
    }


def outcome(layer: Layer, devices: int) -> Outcome:
    args = layer.blocks_E, layer.block_load, devices
    split, replicated = place(*args), place(*args, replicate=REPLICATE)
    mean_load = sum(load.sum() for load in layer.block_load) / devices
    over = []
    for placement in (split, replicated):
        bound = own_bound(placement, layer)
        over += [placement.load_P(layer.block_load).max() / bound.load, placement.used_P().max() / bound.blocks]
    bound = own_bound(split, layer)
    return Outcome(
        mean_blocks=sum(layer.blocks_E) / devices,
        split=balance(split, layer.block_load),
        split_bound=Bound(bound.load / mean_load, bound.blocks),
        replicated=balance(replicated, layer.block_load),
        replicated_most=int(replicated.used_P().max()),
        replicated_stored=int(replicated.used_P().sum()),
        over_bound=tuple(over),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("modules", "devices", "exponent"), CELLS)
class TestSuite:
    def test_split_modules_lie_as_evenly_as_is_possible(self, modules: int, devices: int, exponent: float) -> None:
        for drawn in outcomes(modules, devices, exponent):
            # 1.05 where the bound allows it, but for one draw in a hundred, which are counted below.
            assert drawn.split.load <= 1.06 * drawn.split_bound.load
            assert drawn.split.blocks <= max(1.05, math.ceil(drawn.mean_blocks) / drawn.mean_blocks) + ROUNDING

    def test_copies_bring_load_within_ten_and_blocks_within_fifteen_percent(
        self, modules: int, devices: int, exponent: float
    ) -> None:
        drawn = outcomes(modules, devices, exponent)
        for one in drawn:
            assert one.replicated.load <= 1.10
            assert one.replicated.blocks <= 1.15
            # Against the memory of modules stored once: within 15 percent, rounded up to a block.
            assert one.replicated_most <= math.ceil((1 + REPLICATE) * one.mean_blocks)
            assert one.replicated_stored <= (1 + REPLICATE) * one.mean_blocks * devices
        assert np.mean([one.replicated.blocks_once for one in drawn]) <= 1.15

    def test_nothing_is_far_from_its_lower_bound(self, modules: int, devices: int, exponent: float) -> None:
        assert max(max(drawn.over_bound) for drawn in outcomes(modules, devices, exponent)) <= 1.10

    def test_load_and_size_together_beat_load_or_number_alone(
        self, modules: int, devices: int, exponent: float
    ) -> None:
        def worse(balances: Sequence[Balance]) -> float:
            return float(np.mean([max(one.load, one.blocks) for one in balances[:FEW_DRAWS]]))

        ours, other = outcomes(modules, devices, exponent), others(modules, devices, exponent)
        split, replicated = worse([one.split for one in ours]), worse([one.replicated for one in ours])
        assert replicated <= split + 0.02
        assert split < worse(other["whole"]) <= min(worse(other["equal count"]), worse(other["by load"])) + ROUNDING


@pytest.mark.slow
def test_impossible_draws_are_few_and_the_table_shows_them() -> None:
    """`pytest -s` prints the table."""
    drawn = [one for cell in CELLS for one in outcomes(*cell)]
    hot = sum(one.split_bound.load > 1.05 for one in drawn)
    coarse = sum(math.ceil(one.mean_blocks) > 1.05 * one.mean_blocks for one in drawn)
    missed = sum(one.split.load > 1.05 + ROUNDING and one.split_bound.load <= 1.05 for one in drawn)
    over = sum(one.replicated.blocks_once > 1.15 for one in drawn)
    print("\nmax/mean load | blocks [| blocks over modules stored once]: mean over draws (worst)")
    print("\n".join(table_line(*cell) for cell in CELLS))
    print(
        f"{len(drawn)} draws. Without copies, {hot} cannot reach 1.05 in load within the limit on blocks, {coarse} "
        f"cannot in blocks, {missed} might and do not. With copies, {over} are above 1.15 of modules stored once."
    )
    assert len(drawn) >= 200
    assert missed <= 0.01 * len(drawn)
    assert over <= 0.03 * len(drawn)


def table_line(modules: int, devices: int, exponent: float) -> str:
    def columns(balances: Sequence[Balance], fields: int = 2) -> str:
        columns = list(zip(*balances, strict=True))[:fields]
        return " | ".join(f"{np.mean(column):.3f} ({max(column):.3f})" for column in columns)

    ours = outcomes(modules, devices, exponent)
    cells = [f"split {columns([one.split for one in ours])}"]
    cells += [f"replicated {columns([one.replicated for one in ours], 3)}"]
    cells += [f"{name} {columns(balances)}" for name, balances in others(modules, devices, exponent).items()]
    return f"E{modules} P{devices} zipf {exponent}: " + "; ".join(cells)


def whole_optimum(layer: Layer, devices: int) -> float:
    """The lowest max(load share, block share) over all assignments of whole modules."""
    load_E = np.array([load.sum() for load in layer.block_load])
    load_E, blocks_E = load_E / load_E.sum(), np.array(layer.blocks_E) / sum(layer.blocks_E)
    return min(
        max(np.bincount(device_E, load_E, devices).max(), np.bincount(device_E, blocks_E, devices).max())
        for device_E in itertools.product(range(devices), repeat=len(blocks_E))
    )


def split_optimum(layer: Layer, devices: int) -> float:
    """The lowest max(load share, block share) over all assignments of blocks where each device has one run at most."""
    loads = np.concatenate(layer.block_load)
    module = np.repeat(np.arange(len(layer.blocks_E)), layer.blocks_E)
    best = np.inf
    for device in map(np.array, itertools.product(range(devices), repeat=len(loads))):
        runs = 1 + np.count_nonzero((np.diff(module) != 0) | (np.diff(device) != 0))
        if runs == len(set(zip(module.tolist(), device.tolist(), strict=True))):
            load, used = np.bincount(device, loads, devices).max(), np.bincount(device, minlength=devices).max()
            best = min(best, max(load / loads.sum(), used / len(loads)))
    return float(best)


def tiny_layers(seed: int, number: int, most_blocks: int) -> Iterator[Layer]:
    rng = np.random.default_rng(seed)
    while number:
        blocks_E = rng.integers(1, 5, int(rng.integers(2, 7))).tolist()
        if sum(blocks_E) <= most_blocks:
            yield Layer(blocks_E, [rng.exponential(size=blocks) * rng.choice([1, 4]) for blocks in blocks_E])
            number -= 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_whole_modules_lie_as_an_exhaustive_search_would_put_them(devices: int) -> None:
    over = []
    for layer in tiny_layers(devices, 40, most_blocks=99):
        placement = place(layer.blocks_E, layer.block_load, devices, split=False)
        found = balance(placement, layer.block_load)
        over.append(max(found.load, found.blocks) / devices / whole_optimum(layer, devices))
    assert min(over) >= 1 - ROUNDING
    assert max(over) <= 1.1
    assert np.mean(np.array(over) <= 1 + ROUNDING) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "most_blocks"), [(2, 10), (3, 7)])
def test_the_bounds_hold_for_the_best_placement_there_is(devices: int, most_blocks: int) -> None:
    for layer in tiny_layers(devices, 12, most_blocks):
        bound = lower_bound(layer.blocks_E, layer.block_load, devices)
        whole = lower_bound(layer.blocks_E, layer.block_load, devices, split=False)
        total = sum(load.sum() for load in layer.block_load), sum(layer.blocks_E)
        best = split_optimum(layer, devices)
        assert max(bound.load / total[0], bound.blocks / total[1]) <= best + ROUNDING
        assert max(whole.load / total[0], whole.blocks / total[1]) <= whole_optimum(layer, devices) + ROUNDING
        found = balance(place(layer.blocks_E, layer.block_load, devices), layer.block_load)
        # 1.05 is where the search stops; the rest is what whole blocks cost.
        assert max(found.load, found.blocks) <= 1.2 * best * devices + ROUNDING


def test_the_bound_on_load_rises_with_the_limit_on_memory() -> None:
    layer = Layer([1, 8], [np.array([8.0]), np.ones(8)])
    bounds = [lower_bound(layer.blocks_E, layer.block_load, 2, slots=slots).load for slots in (9, 8, 7, 6, 5)]
    assert bounds == [8, 8, 9, 10, 11]
    assert lower_bound(layer.blocks_E, layer.block_load, 2, copies_E=[2, 1]) == Bound(8, 5)
    assert lower_bound([1, 1, 1], even_load([1, 1, 1], [5, 4, 3]), 2) == Bound(7, 2)
    assert lower_bound([0], [np.zeros(0)], 2) == Bound(0, 0)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    blocks_E = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.0, 1.0, 30.0], len(blocks_E))
    falls = draw(st.booleans())
    loads = [scale[e] * rng.exponential(size=blocks) for e, blocks in enumerate(blocks_E)]
    return Layer(blocks_E, [np.sort(load)[::-1] if falls else load for load in loads])


FREEDOM = st.fixed_dictionaries({"split": st.booleans(), "replicate": st.sampled_from([0.0, 0.15, 1.0])})


def check(placement: Placement, layer: Layer, *, split: bool, replicate: float, slots: int | None = None) -> None:
    """Every copy is complete, and a device has one piece of a module at most."""
    held = [(piece.module, piece.device) for piece in placement.pieces]
    assert len(held) == len(set(held))
    assert all(piece.count > 0 and 0 <= piece.device < placement.devices for piece in placement.pieces)
    for module, blocks in enumerate(layer.blocks_E):
        assert placement.copies(module) == placement.copies_E()[module] >= (blocks > 0)
        for copy in range(placement.copies(module)):
            pieces = sorted(p for p in placement.pieces if (p.module, p.copy) == (module, copy))
            assert [block for p in pieces for block in range(p.first, p.first + p.count)] == list(range(blocks))
            assert split or len(pieces) == 1
    total = sum(layer.blocks_E)
    assert placement.used_P().sum() <= total * (1 + replicate) + ROUNDING
    assert slots is None or placement.used_P().max() <= slots
    np.testing.assert_allclose(placement.load_P(layer.block_load).sum(), sum(x.sum() for x in layer.block_load))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(layer=layers(), devices=st.integers(1, 9), freedom=FREEDOM)
def test_a_placement_is_complete_and_the_same_every_time(layer: Layer, devices: int, freedom: dict) -> None:
    placement = place(layer.blocks_E, layer.block_load, devices, **freedom)
    check(placement, layer, **freedom)
    assert placement == place(layer.blocks_E, layer.block_load, devices, **freedom)
    bound = own_bound(placement, layer, split=freedom["split"])
    assert placement.load_P(layer.block_load).max() >= bound.load * (1 - ROUNDING)
    assert placement.used_P().max() >= bound.blocks


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(layer=layers(), devices=st.integers(1, 9), replicate=st.sampled_from([0.0, 1.0]), more=st.integers(-1, 3))
def test_slots_are_kept_wherever_the_blocks_fit(layer: Layer, devices: int, replicate: float, more: int) -> None:
    slots = -(-sum(layer.blocks_E) // devices) + more
    if slots * devices < sum(layer.blocks_E):
        with pytest.raises(LabError, match="do not fit"):
            place(layer.blocks_E, layer.block_load, devices, slots=slots)
        return
    placement = place(layer.blocks_E, layer.block_load, devices, replicate=replicate, slots=slots)
    check(placement, layer, split=True, replicate=replicate, slots=slots)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(layer=layers(), devices=st.integers(1, 9), freedom=FREEDOM, other=layers(), others=st.integers(1, 9))
def test_any_placement_can_be_continued_from_any_other(
    layer: Layer, devices: int, freedom: dict, other: Layer, others: int
) -> None:
    previous = place(other.blocks_E, other.block_load, others, replicate=1.0)
    placement = place(layer.blocks_E, layer.block_load, devices, previous=previous, **freedom)
    check(placement, layer, **freedom)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(layer=layers(), devices=st.integers(1, 9), freedom=FREEDOM)
def test_nothing_moves_when_nothing_changes(layer: Layer, devices: int, freedom: dict) -> None:
    placement = place(layer.blocks_E, layer.block_load, devices, **freedom)
    assert place(layer.blocks_E, layer.block_load, devices, previous=placement, **freedom) == placement


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 16])
def test_little_moves_when_little_changes(devices: int) -> None:
    rng = np.random.default_rng(1)
    moved: dict[str, list[float]] = {"module added": [], "loads drifted": [], "device lost": [], "drifted, afresh": []}
    for _ in range(6):
        layer = draw(rng, 64, 0.8)
        total, args = sum(layer.blocks_E), (layer.blocks_E, layer.block_load)
        old = place(*args, devices, replicate=REPLICATE)

        more = [*layer.blocks_E, 4], [*layer.block_load, np.full(4, np.median(np.concatenate(layer.block_load)))]
        grown = place(*more, devices, replicate=REPLICATE, previous=old)
        moved["module added"].append((moved_blocks(old, grown) - 4) / total)

        drifted = layer.blocks_E, [load * rng.uniform(0.9, 1.1) for load in layer.block_load]
        new = place(*drifted, devices, replicate=REPLICATE, previous=old)
        afresh = place(*drifted, devices, replicate=REPLICATE)
        assert balance(new, drifted[1]).load <= 1.10
        moved["loads drifted"].append(moved_blocks(old, new) / total)
        moved["drifted, afresh"].append(moved_blocks(old, afresh) / total)

        fewer = place(*args, devices - 1, replicate=REPLICATE, previous=old)
        assert balance(fewer, layer.block_load).load <= 1.10
        moved["device lost"].append(moved_blocks(old, fewer) / total)
    mean = {what: float(np.mean(shares)) for what, shares in moved.items()}
    assert mean["module added"] <= 0.1
    assert mean["loads drifted"] <= 0.1
    assert mean["device lost"] <= 0.35
    assert mean["drifted, afresh"] >= 0.4


def test_devices_are_renamed_rather_than_blocks_moved() -> None:
    """With the load turned round, everything lies differently, but one of the devices can keep its blocks."""
    blocks_E = [4, 4, 4, 4]
    old = place(blocks_E, even_load(blocks_E, [1, 1, 1, 1]), 4)
    swapped = dataclasses.replace(
        old, pieces=tuple(sorted(dataclasses.replace(p, device=3 - p.device) for p in old.pieces))
    )
    assert moved_blocks(old, swapped) == 16
    hot = even_load(blocks_E, [9, 1, 1, 1])
    new = place(blocks_E, hot, 4, previous=swapped)
    assert balance(new, hot).load == pytest.approx(balance(place(blocks_E, hot, 4), hot).load, rel=0.02)
    assert moved_blocks(swapped, new) <= 12


def test_moved_blocks_counts_what_a_device_did_not_hold() -> None:
    old = Placement(2, (4, 2), (Piece(0, 0, 0, 4, 0), Piece(1, 0, 0, 2, 1)))
    new = Placement(
        3, (4, 2, 1), (Piece(0, 0, 0, 3, 0), Piece(0, 0, 3, 1, 1), Piece(1, 0, 0, 2, 2), Piece(2, 0, 0, 1, 0))
    )
    assert moved_blocks(old, old) == 0
    assert moved_blocks(old, new) == 1 + 2 + 1
    assert moved_blocks(new, old) == 1 + 2


def test_hot_modules_are_cut_and_others_stay_whole() -> None:
    blocks_E = [4] * 8
    placement = place(blocks_E, even_load(blocks_E, [8, 1, 1, 1, 1, 1, 1, 1]), 4)
    pieces = [sum(piece.module == module for piece in placement.pieces) for module in range(8)]
    assert pieces[0] == 4
    assert sum(pieces[1:]) == 10  # three modules fill up what four whole ones leave
    assert place(blocks_E, even_load(blocks_E, [1] * 8), 4).pieces == tuple(
        Piece(module, 0, 0, 4, module % 4) for module in range(8)
    )


def test_a_block_hotter_than_the_mean_is_stored_more_often_and_memory_is_not_used_for_nothing() -> None:
    blocks_E = [1] * 16
    hot = even_load(blocks_E, [12, *[1] * 15])
    once, twice = place(blocks_E, hot, 4), place(blocks_E, hot, 4, replicate=0.15)
    assert balance(once, hot).load == pytest.approx((12 + 3) / 6.75)  # every device has to hold four blocks
    assert twice.copies(0) > 1
    assert balance(twice, hot).load == pytest.approx((4 + 4) / 6.75)
    even = even_load(blocks_E, [1] * 16)
    assert place(blocks_E, even, 4, replicate=0.5).copies_E().max() == 1


def test_modules_without_blocks_or_load_are_legal() -> None:
    placement = place([0, 3, 0], [np.zeros(0), np.zeros(3), np.zeros(0)], 2)
    assert [placement.copies(module) for module in range(3)] == [0, 1, 0]
    assert placement.used_P().max() == 2
    assert balance(placement, [np.zeros(0), np.zeros(3), np.zeros(0)]).load == 1
    assert place([], [], 2) == Placement(2, (), ())


def test_what_cannot_work_is_said_in_one_line() -> None:
    load = even_load([4, 4], [1, 1])
    with pytest.raises(LabError, match=r"^8 blocks do not fit: 2 devices hold 3 each, which is 6\. Use 3 devices, 4 "):
        place([4, 4], load, 2, slots=3)
    with pytest.raises(LabError, match="up to 4 blocks do not fit whole into 3 devices of 3 blocks: let them be split"):
        place([4, 4], load, 3, slots=3, split=False)
    with pytest.raises(LabError, match="module 1 has 4 blocks, its load has shape"):
        place([4, 4], [np.ones(4), np.ones(3)], 2)
    with pytest.raises(LabError, match="2 modules, 1 loads"):
        place([4, 4], load[:1], 2)
    with pytest.raises(LabError, match="module 0: a load is negative"):
        place([4, 4], [-np.ones(4), np.ones(4)], 2)
    with pytest.raises(LabError, match="devices=0"):
        place([4, 4], load, 0)
    with pytest.raises(LabError, match="no room for so many"):
        place_equal_count([4, 4], load, 2, redundant=3)


def test_tightly_fitting_whole_modules_are_found() -> None:
    """Spread by size, 5 and 5 go apart, and 4 has nowhere to go; packed tightly, everything fits."""
    blocks_E = [5, 5, 4, 3, 3]
    placement = place(blocks_E, even_load(blocks_E, [1] * 5), 2, split=False, slots=10)
    assert placement.used_P().tolist() == [10, 10]


def test_baselines_balance_number_and_load() -> None:
    blocks_E, tokens_E = [8, 1, 1, 1, 1, 4], [1, 9, 2, 2, 2, 1]
    load = even_load(blocks_E, tokens_E)
    counted = place_equal_count(blocks_E, load, 3)
    assert np.bincount([piece.device for piece in counted.pieces]).tolist() == [2, 2, 2]
    assert place_equal_count(blocks_E, load, 3, redundant=2).copies_E().tolist() == [2, 2, 1, 1, 1, 1]
    by_load = place_by_load(blocks_E, load, 3)
    assert by_load.load_P(load).tolist() == [9, 10, 8]
    for placement in (counted, by_load):
        check(placement, Layer(blocks_E, load), split=False, replicate=0)


@pytest.mark.parametrize("devices", [64, 256])
def test_more_devices_than_modules_can_use_whole(devices: int) -> None:
    layer = draw(np.random.default_rng(0), 64, 0.5)
    placement = place(layer.blocks_E, layer.block_load, devices, replicate=REPLICATE)
    check(placement, layer, split=True, replicate=REPLICATE)
    bound = own_bound(placement, layer)
    assert placement.load_P(layer.block_load).max() <= 1.1 * bound.load
    assert placement.used_P().max() <= 1.1 * bound.blocks
