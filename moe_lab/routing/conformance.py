"""The conformance suite of routers: what every router keeps to, whoever wrote it. A contribution's test calls it:

    from moe_lab.lab import find_lab
    from moe_lab.routing.conformance import check_router

    def test_it_keeps_the_contract() -> None:
        check_router((lab := find_lab()).load(lab.get("routers", "mine")), half_life=8)

It is plain assertions, so any test runner will do; each says what was found and what the rule is. The numbers of the
router are shaken before anything is asked of it, because freshly initialised heads answer the same to everything.

Shape letters: B rows, S positions, K choices per token, D feature width, E modules, C candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.config import Spec, decode
from moe_lab.nn.pool import Routing
from moe_lab.routing.example import D_MODEL, SPACE, Example, draw_example, example_loss, make_example_router
from moe_lab.routing.joining import Seam, joined_router
from moe_lab.routing.router import Features, Router
from moe_lab.routing.space import CandidateSpace
from moe_lab.routing.traced_cost import traced_multiply_adds

PRICES = (0.0, 0.003, 0.03, 0.3, 3.0, 30.0)


def check_router(cls: type[Router], /, **settings: Any) -> None:
    """Runs the whole suite on a router class.

    Args:
        cls: the router.
        settings: its config, where the defaults will not do.

    Raises:
        AssertionError: what the router does, and the rule that it breaks.
    """
    bench = RouterBench(cls, settings)
    for check in CHECKS:
        check(bench)


class RouterBench:
    """A router with shaken numbers, run as composed models run it: compiled, with its structure as a constant."""

    def __init__(self, cls: type[Router], settings: dict[str, Any]):
        self.cls, self.settings, self.traces = cls, settings, 0
        self.graph, self.state = self.make(0)

        def route(graph: nnx.GraphDef, state: nnx.State, features: Features) -> Routing:
            self.traces += 1
            return nnx.merge(graph, state).route(features)

        self._route = jax.jit(route, static_argnums=0)

    @cached_property
    def features(self) -> Features:
        return self.visible(draw_example(0).features)

    def make(self, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
        """Structure and shaken numbers; the same seed gives the same."""
        graph, state = nnx.split(make_example_router(self.cls, seed, **self.settings))
        return graph, _shaken(state, seed)

    def visible(self, features: Features) -> Features:
        """What this router is shown when it routes."""
        return features if self.cls.needs_outcomes else features._replace(outcomes_BSC=None)

    def route(self, features: Features) -> Routing:
        return self._routed(self.graph, self.state, features)

    def route_afresh(self, seed: int) -> Routing:
        """The routing of another instance."""
        return self._routed(*self.make(seed), self.features)

    def _routed(self, graph: nnx.GraphDef, state: nnx.State, features: Features) -> Routing:
        try:
            return _routing(map(np.asarray, self._route(graph, state, features)))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise AssertionError(
                f"{self.cls.__name__}.route must be jittable, but it reads a value: {error}"
            ) from error

    def blocks(self, routing: Routing, features: Features) -> np.ndarray:
        """Blocks run by each token that counts; in the example space cost is in proportion."""
        own_E = SPACE.blocks_C[SPACE.widest_E]
        run_BS = np.minimum(routing.width, own_E[routing.expert]).sum(-1)
        return run_BS[np.asarray(features.segment_ids_BS) > 0]


def _shaken(state: nnx.State, seed: int) -> nnx.State:
    """Other numbers: what is freshly made answers the same to everything."""
    rng = np.random.default_rng(seed)

    def shake(leaf: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.5, leaf.dtype) if floating else leaf

    return jax.tree.map(shake, state)


def _differs(a: Routing, b: Routing) -> np.ndarray:
    """bool[B, S]: where two routings are not the same bit for bit."""
    return np.any([(x.view(np.uint32) != y.view(np.uint32)).any(-1) for x, y in zip(a, b, strict=True)], axis=0)


def _elsewhere(features: Features, where_BS: np.ndarray) -> Features:
    """Other tokens, hidden states and outcomes at some places."""
    other, where_BS1 = draw_example(1).features, where_BS[..., None]
    hidden_BSD = jnp.where(where_BS1, other.hidden_BSD, features.hidden_BSD)
    tokens_BS = jnp.where(where_BS, other.tokens_BS, features.tokens_BS)
    features = features._replace(tokens_BS=tokens_BS)
    if features.outcomes_BSC is None:
        return features._replace(hidden_BSD=hidden_BSD)
    assert other.outcomes_BSC is not None
    outcomes_BSC = jnp.where(where_BS1, other.outcomes_BSC, features.outcomes_BSC)
    return features._replace(hidden_BSD=hidden_BSD, outcomes_BSC=outcomes_BSC)


def config_survives_json(bench: RouterBench) -> None:
    """The config is a Spec that reads back what it writes; published routers are rebuilt from it."""
    cls = bench.cls
    assert issubclass(cls.Config, Spec), f"{cls.__name__}.Config is {cls.Config}, must be a moe_lab.config.Spec"
    config = cls.Config(**bench.settings)
    again = decode(cls.Config, json.loads(config.model_dump_json()), cls.__name__)
    assert again == config, f"{cls.__name__}: {config} comes back from JSON as {again}"


def routing_is_well_formed(bench: RouterBench) -> None:
    """int32, int32, float32, all [B, S, K]; modules that exist, widths from 0 up, finite weights."""
    routing, name = bench.route(bench.features), bench.cls.__name__
    shape = (*bench.features.segment_ids_BS.shape, routing.expert.shape[-1])
    for field, dtype in (("expert", np.int32), ("width", np.int32), ("weight", np.float32)):
        array = getattr(routing, field)
        assert array.dtype == dtype, f"{name}: routing.{field} is {array.dtype}, must be {np.dtype(dtype)}"
        assert array.shape == shape, f"{name}: routing.{field} is {array.shape}, must be [B, S, K], here {shape}"
    modules = len(SPACE.modules)
    low, high = routing.expert.min(), routing.expert.max()
    assert 0 <= low <= high < modules, f"{name}: experts {low}..{high} were routed to, there are 0..{modules - 1}"
    assert routing.width.min() >= 0, f"{name}: a width is {routing.width.min()}, must be from 0 up"
    assert np.isfinite(routing.weight).all(), f"{name}: a routing weight is not finite"


def routing_repeats(bench: RouterBench) -> None:
    """The same numbers and features give the same bits, in another instance too."""
    first, name = bench.route(bench.features), bench.cls.__name__
    assert not _differs(first, bench.route(bench.features)).any(), f"{name}: two calls on one input differ"
    assert not _differs(first, bench.route_afresh(0)).any(), f"{name}: two instances of one seed differ"


def routing_is_causal(bench: RouterBench) -> None:
    """Tokens in front of a place are routed the same whatever comes from there on, unless the class says otherwise."""
    if not bench.cls.causal:
        return
    before, length = bench.route(bench.features), bench.features.segment_ids_BS.shape[1]
    for place in range(1, length, 3):
        later_BS = np.broadcast_to(np.arange(length) >= place, before.width.shape[:2])
        changed = _elsewhere(bench.features, later_BS)
        for segment_ids_BS in (changed.segment_ids_BS, jnp.where(later_BS, 9, changed.segment_ids_BS)):
            after = bench.route(changed._replace(segment_ids_BS=segment_ids_BS))
            moved = np.argwhere(_differs(before, after) & ~later_BS)
            assert not len(moved), (
                f"{bench.cls.__name__}: what comes from position {place} on changes the routing of (row, position) "
                f"{tuple(moved[0].tolist())}; make it causal, or declare `causal = False`"
            )


def documents_are_apart(bench: RouterBench) -> None:
    """A document is routed the same whatever stands in other documents and rows, unless the class is not causal."""
    if not bench.cls.causal:
        return
    before, segment_BS = bench.route(bench.features), np.asarray(bench.features.segment_ids_BS)
    for row, segment in itertools.product(range(len(segment_BS)), (1, 2)):
        own_BS = (segment_BS == segment) & (np.arange(len(segment_BS)) == row)[:, None]
        after = bench.route(_elsewhere(bench.features, ~own_BS))
        moved = (_differs(before, after) & own_BS).sum()
        assert not moved, (
            f"{bench.cls.__name__}: other documents change the routing of {moved} tokens of document {segment} in row "
            f"{row}; start anew where segment_ids change, and keep rows apart"
        )


def stepping_equals_the_whole(bench: RouterBench) -> None:
    """Chunk by chunk a router that steps routes as it does in one go, whatever the chunks, and keeps rows apart."""
    router, name = nnx.merge(bench.graph, bench.state), bench.cls.__name__
    if not router.steps:
        return
    features = bench.visible(_one_document_a_row(draw_example(0).features))
    length, counted_BS = features.segment_ids_BS.shape[1], np.asarray(features.segment_ids_BS) > 0
    step = jax.jit(lambda state, features: nnx.merge(bench.graph, bench.state).step(state, features))

    def stepped(ends: list[int], padded: int) -> Routing:
        state, chunks = router.init_state(len(counted_BS)), []
        for begin, end in itertools.pairwise([0, *ends]):
            routing, state = step(state, _chunk(features, begin, end, padded))
            chunks.append([np.asarray(x)[:, : end - begin] for x in routing])
        return _routing(np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))

    def assert_same(what: str, got: Routing, expected: Routing, counted_BS: np.ndarray) -> None:
        flips_BS = ((got.expert != expected.expert) | (got.width != expected.width)).any(-1) & counted_BS
        share = flips_BS.sum() / counted_BS.sum()
        assert share <= MOST_FLIPS, (
            f"{name}: {what} routes {share:.1%} of the tokens otherwise; `step` must carry in its state whatever "
            "`route` knows of earlier tokens, keep rows apart, and let padding change nothing"
        )
        off_BS = (np.abs(got.weight - expected.weight) > 1e-4).any(-1) & counted_BS & ~flips_BS
        assert not off_BS.any(), f"{name}: {what} gives {off_BS.sum()} tokens other weights"

    one_by_one = stepped(list(range(1, length + 1)), 1)
    assert_same("stepping token by token instead of routing in one go", one_by_one, bench.route(features), counted_BS)
    for ends in ([5, 6, 13, length], [length]):
        assert_same(f"stepping in chunks that end at {ends}", stepped(ends, length), one_by_one, counted_BS)
    rows = np.roll(np.arange(len(counted_BS)), 1)
    rolled, _ = step(router.init_state(len(rows)), jax.tree.map(lambda x: x[rows], features))
    moved = _routing(x[rows] for x in one_by_one)
    assert_same("a change of places between rows", _routing(map(np.asarray, rolled)), moved, counted_BS[rows])


MOST_FLIPS = 0.02
"""Share of the tokens, near ties, whose choice may differ between two orders of summing."""


def _routing(arrays: Iterable[Any]) -> Routing:
    """On the host."""
    return Routing(*arrays)


def _one_document_a_row(features: Features) -> Features:
    """As texts are while they are written: one document in each row, of different lengths."""
    segment_ids_BS = np.zeros(features.segment_ids_BS.shape, np.int32)
    for row in range(len(segment_ids_BS)):
        segment_ids_BS[row, : segment_ids_BS.shape[1] - 3 * row] = 1
    return features._replace(segment_ids_BS=jnp.asarray(segment_ids_BS))


def _chunk(features: Features, begin: int, end: int, length: int) -> Features:
    """Places `begin` to `end` of every row, padded to a length."""

    def cut(values: jax.Array) -> jax.Array:
        padded = [(0, 0), (0, length - (end - begin))] + [(0, 0)] * (values.ndim - 2)
        return jnp.pad(values[:, begin:end], padded)

    by_token = {"hidden_BSD", "tokens_BS", "segment_ids_BS"}
    return features._replace(**{name: cut(getattr(features, name)) for name in by_token})


def opted_out_modules_do_not_run(bench: RouterBench) -> None:
    """No token runs a module that is not available; with none available the bare trunk is left."""
    for available in itertools.product((False, True), repeat=len(SPACE.modules)):
        available_E = np.array(available)
        routing = bench.route(bench.features.for_all_rows(available_E=available_E))
        assert np.isfinite(routing.weight).all(), f"{bench.cls.__name__}: with {available} a weight is not finite"
        assert 0 <= routing.expert.min() <= routing.expert.max() < len(available), "experts out of range"
        ran = np.flatnonzero(~available_E[routing.expert] & (routing.width > 0))
        assert not len(ran), (
            f"{bench.cls.__name__}: with available {available}, {len(ran)} choices run a module that is opted out"
        )


def rows_have_their_own_terms(bench: RouterBench) -> None:
    """Each row is routed by its own price and its own list of modules, unless the class is not causal."""
    if not bench.cls.causal:
        return
    features, name = bench.features, bench.cls.__name__
    price_B = np.resize([0.0, 0.3, 3.0], len(features.price_B)).astype(np.float32)
    available_BE = np.resize([[True, True, True], [True, False, True]], features.available_BE.shape)
    mixed = bench.route(features._replace(price_B=jnp.asarray(price_B), available_BE=jnp.asarray(available_BE)))
    for row, (price, available_E) in enumerate(zip(price_B, available_BE, strict=True)):
        alone = bench.route(features.for_all_rows(price=price, available_E=available_E))
        moved = _differs(mixed, alone)[row].sum()
        assert not moved, (
            f"{name}: with other prices and opt-outs in other rows {moved} tokens of row {row} are routed otherwise; "
            "read `price_B` and `available_BE` row by row"
        )


def a_higher_price_never_costs_more(bench: RouterBench) -> None:
    """The mean cost falls, or stays, as the price rises."""
    priced = [bench.features.for_all_rows(price=price) for price in PRICES]
    blocks = [float(bench.blocks(bench.route(features), features).mean()) for features in priced]
    for (low, high), (cheap, dear) in zip(itertools.pairwise(PRICES), itertools.pairwise(blocks), strict=True):
        assert dear <= cheap, (
            f"{bench.cls.__name__}: runs {cheap:.3f} blocks a token at price {low}, but {dear:.3f} at {high}"
        )


def its_budget_is_kept(bench: RouterBench) -> None:
    """A batch costs no more than the router's budget, exactly, whatever the text, the price and the opt-outs."""
    if (budget := nnx.merge(bench.graph, bench.state).budget) is None:
        return
    choices = itertools.product(range(3), (0.0, 0.3), ((True, True, True), (True, False, False)))
    for seed, price, available in choices:
        drawn = bench.visible(draw_example(seed).features)
        features = drawn.for_all_rows(price=price, available_E=available)
        blocks = bench.blocks(bench.route(features), features)
        limit = Fraction(budget) * len(blocks) * int(SPACE.blocks_C.max())
        assert blocks.sum() <= limit, (
            f"{bench.cls.__name__}: runs {blocks.sum()} blocks for {len(blocks)} tokens at price {price}; its budget "
            f"of {budget} of the dearest candidate allows {float(limit):.3f}"
        )


def its_own_cost_is_counted(bench: RouterBench) -> None:
    """The router states at least the matrix products that one of its calls is traced to do, per token."""
    router, tokens = nnx.merge(bench.graph, bench.state), bench.features.segment_ids_BS.size

    def route(state: nnx.State, features: Features) -> Routing:
        return nnx.merge(bench.graph, state).route(features)

    traced = traced_multiply_adds(route, bench.state, bench.features)
    assert traced <= router.multiply_adds * tokens, (
        f"{bench.cls.__name__}: route does {traced / tokens:.1f} multiply-adds a token in matrix products, its "
        f"multiply_adds says {router.multiply_adds}; state what it costs"
    )


def other_numbers_compile_nothing(bench: RouterBench) -> None:
    """Other features, prices, opt-outs and other instances of the class run what was compiled once."""
    bench.route(bench.visible(draw_example(2).features))
    bench.route_afresh(1)
    assert bench.traces == 1, (
        f"{bench.cls.__name__}: route was compiled {bench.traces} times for one shape; keep arrays in nnx.Param or "
        "nnx.Variable, and everything else that is set in __init__ comparable (no lambdas, no arrays)"
    )


def it_learns(bench: RouterBench) -> None:
    """The training loss gives every parameter a finite gradient that is not zero, and padding teaches nothing."""
    if bench.cls.trains_on is None:
        return
    name, example = bench.cls.__name__, draw_example(0)
    compiled = jax.jit(jax.value_and_grad(partial(_training_loss, bench), has_aux=True))
    parameters, rest = _parameters(bench)
    (loss, metrics), gradient = compiled(parameters, rest, example)
    for label, value in [("its training loss", loss), *metrics.items()]:
        assert value.shape == (), f"{name}: {label} has shape {value.shape}, must be one number"
        assert np.isfinite(value), f"{name}: {label} is {value}"
    for path, leaf in nnx.to_flat_state(gradient):
        where = ".".join(map(str, path))
        assert np.isfinite(leaf[...]).all(), f"{name}: the gradient of {where} is not finite"
        assert np.any(leaf[...] != 0), f"{name}: the training loss gives {where} no gradient; it would never learn"
    padding_BS = np.asarray(example.features.segment_ids_BS) == 0
    padding = example._replace(features=_elsewhere(example.features, padding_BS))
    (again, _), _ = compiled(parameters, rest, padding)
    assert loss == again, f"{name}: padding (segment 0) changes the training loss from {loss} to {again}"


def _parameters(bench: RouterBench) -> tuple[nnx.State, nnx.State]:
    split: Any = nnx.split(nnx.merge(bench.graph, bench.state), nnx.Param, ...)
    _, parameters, rest = split
    assert jax.tree.leaves(parameters), f"{bench.cls.__name__} says it trains, but has no nnx.Param"
    return parameters, rest


def _training_loss(
    bench: RouterBench, parameters: nnx.State, rest: nnx.State, example: Example
) -> tuple[jax.Array, dict[str, jax.Array]]:
    router = nnx.merge(bench.graph, parameters, rest)
    if bench.cls.trains_on == "outcomes":
        return example_loss(router, example, example.features.price_B[0])
    shown = bench.visible(example.features)
    auxiliary, metrics = router.auxiliary_loss(shown)
    # Stands for the language model: something that depends on the weight of every choice.
    weight_BSK = router.route(shown).weight
    worth_BSK = jax.random.normal(jax.random.key(0), weight_BSK.shape) * (shown.segment_ids_BS > 0)[..., None]
    return auxiliary + (weight_BSK * worth_BSK).mean(), metrics


def an_added_module_leaves_the_others_alone(bench: RouterBench) -> None:
    """On text known not to be the added module's, and with it opted out, the router it joined routes as before."""
    if not nnx.merge(bench.graph, bench.state).joins:
        return
    space, features = _with_the_added_module_last(bench.features, draw_example(0).features.outcomes_BSC)
    before = space.without(space.modules[-1:])
    known = bench.cls(bench.cls.Config(**bench.settings), before, D_MODEL, rngs=nnx.Rngs(0))
    nnx.update(known, _shaken(nnx.state(known), 0))
    joined = joined_router(known, space, D_MODEL, rngs=nnx.Rngs(0))
    joined.join(known, features)
    theirs, whole = nnx.state(known, nnx.Param), nnx.state(joined, nnx.Param)
    seam = Seam(whole, theirs)
    own = seam.behind(whole, theirs)
    added = seam.beside(jax.tree.map(jnp.zeros_like, theirs), jax.tree.map(jnp.subtract, _shaken(own, 1), own))
    nnx.update(joined, jax.tree.map(jnp.add, whole, added))
    others_E, rows = jnp.array([True, True, False]), len(features.tokens_BS)
    nobody_BE = jnp.broadcast_to(jnp.where(others_E, 0.0, -jnp.inf), (rows, 3))
    shown = bench.visible(features)
    fewer = shown.for_all_rows(available_E=others_E[:2])._replace(hint_BE=nobody_BE[:, :2])
    more = shown.for_all_rows(available_E=others_E)._replace(hint_BE=nobody_BE)
    route_before, route_after = jax.jit(known.route), jax.jit(joined.route)
    for price in jnp.array([0.0, 0.1, 0.5]):
        was, now = route_before(fewer.for_all_rows(price=price)), route_after(more.for_all_rows(price=price))
        moved = _differs(*(jax.tree.map(np.asarray, routing) for routing in (was, now))).sum()
        assert not moved, (
            f"{bench.cls.__name__}: a module that joined changes the routing of {moved} tokens that are not its own, "
            "though it is opted out; `join` must take over what the trained router says of its modules"
        )


def _with_the_added_module_last(features: Features, outcomes_BSC: jax.Array | None) -> tuple[CandidateSpace, Features]:
    """The example with a module of middle width behind the others: so no price and no budget means another amount."""
    order_E = [0, 2, 1]
    fields = {field.name: getattr(SPACE, field.name) for field in dataclasses.fields(SPACE)}
    space = CandidateSpace(**{name: tuple(values[e] for e in order_E) for name, values in fields.items()})
    assert outcomes_BSC is not None
    order_C = np.array([SPACE.names.index(name) for name in space.names])
    return space, features._replace(outcomes_BSC=outcomes_BSC[..., order_C])


CHECKS: tuple[Callable[[RouterBench], None], ...] = (
    config_survives_json,
    routing_is_well_formed,
    routing_repeats,
    routing_is_causal,
    documents_are_apart,
    stepping_equals_the_whole,
    rows_have_their_own_terms,
    opted_out_modules_do_not_run,
    a_higher_price_never_costs_more,
    its_budget_is_kept,
    its_own_cost_is_counted,
    other_numbers_compile_nothing,
    it_learns,
    an_added_module_leaves_the_others_alone,
)
"""The suite, one rule a function."""
