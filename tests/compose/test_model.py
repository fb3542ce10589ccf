"""The composed model end to end: the guarantees of modules put together, what it reports, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose import model as model_module
from moe_lab.compose.build import with_router
from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.compose.model import ComposedModel, Decision
from moe_lab.compose.parts import load_trunk
from moe_lab.errors import LabError
from moe_lab.nn.losses import token_losses
from tests.compose.published import (
    ADDED,
    FIXED,
    LADDERS,
    LEARNED,
    MODULES,
    ROUTERS,
    TRUNK,
    WIDTHS,
    Published,
    Tokens,
    put_trunk,
    same_bits,
)

pytestmark = pytest.mark.slow

PRICE = 0.3
OUT = "west/sums"
OTHERS = tuple(name for name in MODULES if name != OUT)
COUNTS = {name: {layer: -(-width // TRUNK.block) for layer, width in widths.items()} for name, widths in WIDTHS.items()}
ROUTERS_BY_NAME: dict[str, Any] = {name: f"lab/{name}" for name in LEARNED} | {"fixed": FIXED}
all_routers = pytest.mark.parametrize("router", ROUTERS_BY_NAME.values(), ids=ROUTERS_BY_NAME.keys())


@pytest.fixture(scope="module")
def batch() -> Tokens:
    return Tokens.draw()


def decide(model: ComposedModel, batch: Tokens, *, without: tuple[str, ...] = (), **options: Any) -> Decision:
    arrays, options = model.arrays(), {"price": PRICE, "available_E": model.available(without), **options}
    made = model.run(arrays, batch, model.enter(arrays, batch), **options)
    return Decision(*map(np.asarray, made))


def runs(model: ComposedModel, decision: Decision, name: str) -> np.ndarray:
    """bool[B, S, K]: where a module runs."""
    return (decision.expert_BSK == model.space.modules.index(name)) & (decision.width_BSK > 0)


def same_decision(model: ComposedModel, one: Decision, other_model: ComposedModel, other: Decision) -> None:
    """The same losses bit for bit, from the same modules at the same widths."""
    same_bits(one.loss_BS, other.loss_BS)
    np.testing.assert_array_equal(one.hit_BS, other.hit_BS)
    np.testing.assert_array_equal(one.blocks_BS, other.blocks_BS)
    np.testing.assert_array_equal(one.width_BSK, other.width_BSK)
    names, other_names = np.array(model.space.modules), np.array(other_model.space.modules)
    used = one.width_BSK > 0
    np.testing.assert_array_equal(names[one.expert_BSK][used], other_names[other.expert_BSK][used])


@pytest.fixture(scope="module")
def bare_BS(published: Published, batch: Tokens) -> np.ndarray:
    """Losses of the trunk, which has never heard of experts."""
    trunk = load_trunk(published.registry, published.trunk)

    @jax.jit
    def run(state: nnx.State) -> jax.Array:
        logits = nnx.merge(trunk.graph, state)(batch.tokens, batch.segment_ids, batch.positions)
        return token_losses(logits, batch.targets)

    return np.asarray(run(trunk.state))


# The layer's own tests hold every backend to these guarantees. Here each router goes through the one that compiles
# soonest, and those that run one and two modules for a token through the default one as well.
QUICK = "reference"
WITH_BACKENDS = [
    pytest.param(router, backend, id=f"{name}-{backend}")
    for name, router in ROUTERS_BY_NAME.items()
    for backend in ((QUICK, "worklist") if name in ("fixed", "topk") else (QUICK,))
]


def test_a_backend_for_another_machine_is_refused(published: Published) -> None:
    with pytest.raises(LabError, match='backend "megablox" needs a tpu, and this is a cpu; use backend: auto'):
        published.model(published.lock("lab/gain", backend="megablox"))


def test_a_composition_in_bfloat16_keeps_trunk_and_modules_narrow_and_is_near_the_wide_one(
    published: Published, batch: Tokens, bare_BS: np.ndarray
) -> None:
    lock = published.lock(FIXED, backend=QUICK).model_copy(update={"dtype": "bfloat16"})
    model = published.model(lock)
    arrays = model.arrays()
    blocks = [pool.blocks for pool in arrays.pools.values()]
    assert {leaf.dtype for leaf in jax.tree.leaves((arrays.trunk, blocks))} == {jnp.dtype(jnp.bfloat16)}
    assert model.enter(arrays, batch).dtype == jnp.bfloat16
    made = model.run(arrays, batch, model.enter(arrays, batch), available_E=model.available(MODULES))
    assert made.loss_BS.dtype == jnp.float32
    np.testing.assert_allclose(made.loss_BS, bare_BS, rtol=0.05)
    assert 0 < np.abs(made.loss_BS - bare_BS).mean() < 0.03


@pytest.mark.parametrize(("router", "backend"), WITH_BACKENDS)
def test_opting_out_at_run_time_is_composing_without(published: Published, batch: Tokens, router, backend: str) -> None:
    whole, smaller = (
        published.model(published.lock(router, modules, backend=backend)) for modules in (MODULES, OTHERS)
    )
    everything, masked = decide(whole, batch), decide(whole, batch, without=(OUT,))
    if router != FIXED:
        assert runs(whole, everything, OUT).any(), "the module that is opted out was in use"
        assert (everything.loss_BS != masked.loss_BS).any()
    assert runs(whole, masked, "south/prose").any()
    assert not runs(whole, masked, OUT).any()
    same_decision(whole, masked, smaller, decide(smaller, batch))


@pytest.mark.parametrize("place", [0, 2])
def test_adding_a_module_that_nothing_is_routed_to_changes_no_bit(
    published: Published, batch: Tokens, place: int
) -> None:
    modules = ["north/code", "south/prose"]
    before = published.model(published.lock(FIXED, tuple(modules)))
    modules.insert(place, OUT)
    after = published.model(published.lock(FIXED, tuple(modules)))
    same_decision(before, decide(before, batch), after, decide(after, batch))


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_router_that_shuns_a_module_is_the_same_with_it_and_without(
    own: Published, batch: Tokens, name: str
) -> None:
    path = {"domain": "head.bias", "topk": "gates.bias"}.get(name, "level_EM")
    shunned: list = [-1e9 if module == OUT else 0.0 for module in MODULES]
    if path == "level_EM":  # what every module loses on the text of each, and not how likely it is
        shunned = [[-value for value in shunned]] * len(MODULES)
    own.put_router("lab/shy", ROUTERS[name], **ADDED[name], **{path: shunned})
    whole, smaller = (own.model(own.lock("lab/shy", modules, backend=QUICK)) for modules in (MODULES, OTHERS))
    decision = decide(whole, batch)
    assert not runs(whole, decision, OUT).any()
    assert decision.blocks_BS.any()
    same_decision(whole, decision, smaller, decide(smaller, batch))


def test_with_every_module_opted_out_the_bare_trunk_is_left(published: Published, batch: Tokens, bare_BS) -> None:
    model = published.model(published.lock("lab/gain"))
    decision = decide(model, batch, without=MODULES)
    assert not decision.blocks_BS.any()
    np.testing.assert_allclose(decision.loss_BS, bare_BS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gain", "topk"])
def test_the_order_of_modules_changes_nothing_but_rounding(published: Published, batch: Tokens, name: str) -> None:
    lock = published.lock(f"lab/{name}")
    one, other = published.model(lock), published.model(published.lock(f"lab/{name}", MODULES[::-1]))
    first, second = decide(one, batch), decide(other, batch)
    np.testing.assert_array_equal(first.expert_BSK, second.expert_BSK)
    np.testing.assert_array_equal(first.blocks_BS, second.blocks_BS)
    np.testing.assert_allclose(first.loss_BS, second.loss_BS, rtol=1e-5, atol=1e-5)


@all_routers
def test_the_blocks_reported_are_those_of_the_routing(published: Published, batch: Tokens, router) -> None:
    model = published.model(published.lock(router, backend=QUICK))
    for options in ({}, {"without": ("north/code",)}, {"price": 0.0}):
        decision = decide(model, batch, **options)
        for row, place in np.ndindex(decision.blocks_BS.shape):
            counted = 0
            for expert, width in zip(decision.expert_BSK[row, place], decision.width_BSK[row, place], strict=True):
                name = model.space.modules[expert]
                assert width == 0 or name not in options.get("without", ())
                counted += sum(min(int(width), count) for count in COUNTS[name].values())
            assert decision.blocks_BS[row, place] == counted


def test_candidates_alone_are_the_fixed_router_s_passes(published: Published, batch: Tokens, bare_BS) -> None:
    model = published.model(published.lock(FIXED))
    arrays = model.arrays()
    losses, hits = model.run_candidates(arrays, batch, model.enter(arrays, batch))
    names = model.candidates.names
    expected = ["trunk", *(f"{module}:{width}" for module in MODULES for width in LADDERS[module])]
    assert list(names) == expected
    assert losses.shape == hits.shape == (*batch.tokens.shape, len(names))
    np.testing.assert_allclose(losses[..., 0], bare_BS, rtol=1e-5, atol=1e-5)
    for candidate in (FIXED["candidate"], "west/sums:5"):
        fixed = published.model(published.lock({"type": "fixed", "candidate": candidate}))
        decision, index = decide(fixed, batch), names.index(candidate)
        np.testing.assert_allclose(losses[..., index], decision.loss_BS, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(hits[..., index], decision.hit_BS)
    assert len({losses[..., index].tobytes() for index in range(len(names))}) == len(names)


def test_a_width_cap_runs_every_routed_token_at_that_width(published: Published, batch: Tokens) -> None:
    model = published.model(published.lock("lab/gain"))
    free, capped = decide(model, batch, price=2.0), decide(model, batch, price=2.0, width_cap=2)
    np.testing.assert_array_equal(capped.width_BSK, np.where(free.width_BSK > 0, 2, 0))
    np.testing.assert_array_equal(capped.expert_BSK, free.expert_BSK)
    assert (free.width_BSK != capped.width_BSK).any()
    assert (capped.width_BSK == 0).any()


def test_the_price_of_the_composition_holds_unless_another_is_given(published: Published, batch: Tokens) -> None:
    model = published.model(published.lock("lab/gain", price=2.0))
    own = decide(model, batch, price=None)
    np.testing.assert_array_equal(own.width_BSK, decide(model, batch, price=2.0).width_BSK)
    blocks = [int(decide(model, batch, price=price).blocks_BS.sum()) for price in (0.0, 2.0, 100.0)]
    assert blocks == sorted(blocks, reverse=True)
    assert blocks[0] > blocks[1] > blocks[2]


@pytest.mark.parametrize("router", [router for name, router in ROUTERS_BY_NAME.items() if name != "budget"], ids=str)
def test_what_comes_later_changes_no_bit_of_a_loss(published: Published, batch: Tokens, router) -> None:
    model = published.model(published.lock(router, backend=QUICK))
    before, place = decide(model, batch), 15
    tokens = batch.tokens.copy()
    tokens[:, place:] = (tokens[:, place:] + 1) % TRUNK.vocab_size
    after = decide(model, batch._replace(tokens=tokens))
    same_bits(before.loss_BS[:, :place], after.loss_BS[:, :place])
    np.testing.assert_array_equal(before.width_BSK[:, :place], after.width_BSK[:, :place])
    assert (before.loss_BS[:, place:] != after.loss_BS[:, place:]).any()


def test_swapping_a_module_for_another_of_its_size_compiles_nothing(own: Published, batch: Tokens) -> None:
    before = decide(own.model(own.lock("lab/gain")), batch)
    compiled = model_module._composed._cache_size()
    own.put_module("north/code", WIDTHS["north/code"], LADDERS["north/code"], seed=17)
    after = decide(own.model(own.lock("lab/gain")), batch, price=0.1)
    assert model_module._composed._cache_size() == compiled
    assert (before.loss_BS != after.loss_BS).any()


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        # Features are 16 wide; there are 3 modules, 3 rungs at most, 8 hidden units. Of the n-grams of 4 lengths the
        # scores of the modules are added up, and fade; the excess losses of the rungs are added up too, and for
        # `gain` those of two rivals of each module, which are weighed and given to the modules.
        ("gain", [(3, 3), (4 + 1, 3), (3, 3), (4, 3 * 3), (4 + 2, 3 * 2)]),
        ("domain", [(16, 3)]),
        ("topk", [(32, 3)]),
        ("cascade", [(32, 8), (8, 9), (3, 3), (4 + 1, 3)]),
        ("budget", [(3, 3), (4 + 1, 3), (3, 3), (4, 3 * 3)]),
    ],
)
def test_a_router_s_own_cost_is_an_entry_of_its_matrices_each(
    published: Published, name: str, matrices: list[tuple[int, int]]
) -> None:
    model = published.model(published.lock(f"lab/{name}"))
    assert model.router.multiply_adds == sum(rows * columns for rows, columns in matrices)
    assert published.model(published.lock(FIXED)).router.multiply_adds == 0
    assert model.multiply_adds_per_block == 3 * 16 * 4


def test_opting_out_what_is_not_composed_is_an_error(published: Published) -> None:
    model = published.model(published.lock("lab/gain", OTHERS))
    np.testing.assert_array_equal(model.available(("north/code",)), [False, True, True])
    with pytest.raises(LabError, match=r'cannot leave out "north/cod": .* Did you mean "north/code"'):
        model.available(("north/cod",))
    with pytest.raises(LabError, match=rf'cannot leave out "{OUT}": it is not in the composition'):
        model.available((OUT,))


@pytest.mark.parametrize(
    ("field", "value"),
    [("trunk", "sha256-" + "0" * 64), ("tokenizer", "sha256-other"), ("activation", "gelu"), ("routed_layers", (1,))],
)
def test_a_module_made_for_something_else_is_refused(own: Published, field: str, value: Any) -> None:
    interface = dataclasses.replace(own.interface, **{field: value})
    widths = dict.fromkeys(interface.routed_layers, 8)
    misfit = own.put_module("far/away", widths, (8,), interface=interface)
    lock = own.lock(FIXED, ("south/prose", misfit.ref))
    with pytest.raises(LabError, match=f"{misfit.ref} does not fit this trunk: its {field} is"):
        own.model(lock)


def test_a_composition_on_another_trunk_of_the_same_shape_is_refused(own: Published) -> None:
    assert put_trunk(own.registry, seed=1).ref == "lab/trunk@2"
    with pytest.raises(LabError, match="north/code@1 does not fit this trunk: its trunk is"):
        own.model(own.lock(FIXED))
    assert own.model(own.lock(FIXED, trunk="lab/trunk@1")).trunk.part == own.trunk


def test_a_router_and_modules_that_it_did_not_learn_are_refused(own: Published) -> None:
    own.put_router("lab/knows-two", {"type": "gain"}, MODULES[:2])
    with pytest.raises(LabError, match=r"router lab/knows-two@1 does not know module west/sums \(it knows north/code,"):
        own.model(own.lock("lab/knows-two"))
    own.model(own.lock("lab/knows-two", MODULES[:2]))
    for widths, ladder in (({0: 12, 1: 12}, (4, 12)), ({0: 5, 1: 4}, (4, 5))):  # another ladder, another cost
        other = own.put_module("west/sums", widths, ladder)
        with pytest.raises(
            LabError, match=rf"lab/gain@1 learned west/sums with ladder \[4, 5\] .* but {other.ref} has"
        ):
            own.model(own.lock("lab/gain", (*MODULES[:2], other.ref)))


def test_a_router_trained_for_another_trunk_is_refused(own: Published) -> None:
    own.put_router("lab/stranger", {"type": "domain"}, trunk="sha256-" + "0" * 64)
    with pytest.raises(LabError, match="lab/stranger@1 was trained for another trunk than lab/trunk@1"):
        own.model(own.lock("lab/stranger"))


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (
            {"candidate": "trunk"},
            "router: needs type: one of budget, cascade, domain, fixed, gain, oracle, random, topk",
        ),
        ({"type": "gian"}, 'unknown router "gian". Did you mean "gain"'),
        ({"type": "gain", "half_live": 3.0}, "half_live"),
        ({"type": "domain"}, "router domain has to be trained"),
        ({"type": "fixed", "candidate": "south/prose:9"}, '"south/prose:9" is not in the composition'),
    ],
)
def test_a_router_that_cannot_be_made_is_refused(published: Published, router: dict, message: str) -> None:
    with pytest.raises(LabError, match=message):
        published.model(published.lock(router))


def test_another_router_over_the_same_weights_is_the_composition_with_it(own: Published) -> None:
    """Equal in all that a pass is computed from, also where the other router knows a module more."""
    own.put_router("lab/fewer", ROUTERS["topk"], OTHERS, **ADDED["topk"])
    model = own.model(own.lock("lab/fewer", OTHERS))
    anew = own.lock("lab/gain", OTHERS)
    assert isinstance(anew.router, LockedPart)
    other = with_router(model, anew.router, own.registry, own.lab)
    assert other.pools is model.pools
    built = own.model(anew)
    assert nnx.graphdef(other.router) == nnx.graphdef(built.router) != nnx.graphdef(model.router)
    jax.tree.map(np.testing.assert_array_equal, other.arrays(), built.arrays())
    assert (other.price, other.run_layer, other.space) == (built.price, built.run_layer, built.space)
    whole = own.model(own.lock("lab/gain"))
    with pytest.raises(LabError, match=rf"router lab/fewer@1 does not know module {OUT}"):
        with_router(whole, pin(own.registry, "lab/fewer", "router"), own.registry, own.lab)


def test_a_router_that_starts_without_data_is_composed_untrained(published: Published, batch: Tokens) -> None:
    model = published.model(published.lock({"type": "domain", "prior_gain": 1.0}))
    cheapest = min(MODULES, key=lambda name: sum(COUNTS[name].values()))
    decision = decide(model, batch)
    assert runs(model, decision, cheapest).all()
    np.testing.assert_array_equal(decision.blocks_BS, sum(COUNTS[cheapest].values()))


def test_a_composition_keeps_a_module(published: Published) -> None:
    with pytest.raises(LabError, match="composition tiny has no modules left"):
        published.model(published.lock("lab/gain").model_copy(update={"modules": ()}))


def test_a_router_that_looks_outcomes_up_must_be_given_them(published: Published, batch: Tokens) -> None:
    model = published.model(published.lock({"type": "oracle"}))
    with pytest.raises(AssertionError, match="needs outcomes"):
        decide(model, batch)
