"""The conformance suite finds what it is there to find: each router below breaks one rule and is told so."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.config import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.conformance import check_router
from moe_lab.routing.example import SPACE, draw_example
from moe_lab.routing.joining import take_over
from moe_lab.routing.memory import fading_mean, nothing_faded
from moe_lab.routing.router import Features, Router, available_candidates, masked_mean, route_candidates


class Config(Spec):
    """Nothing to set."""


class Sound(Router):
    """A linear score per candidate of the token itself; keeps every rule. The others break one each."""

    Config = Config
    trains_on = "outcomes"

    def __init__(self, config: Any, space: Any, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.head = nnx.Linear(d_model, len(space), rngs=rngs)

    def losses(self, features: Features) -> jax.Array:
        return self.head(features.hidden_BSD)

    def allowed(self, features: Features) -> jax.Array:
        return available_candidates(self.space, features.available_BE)[:, None]

    def route(self, features: Features) -> Routing:
        bill = self.losses(features) + features.price_B[:, None, None] * self.space.relative_cost_C
        return route_candidates(self.space, jnp.argmin(jnp.where(self.allowed(features), bill, jnp.inf), axis=-1))

    def outcome_loss(self, features: Features) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert features.outcomes_BSC is not None
        error = jnp.square(self.losses(features) - features.outcomes_BSC).mean(-1)
        return masked_mean(error, features.segment_ids_BS), {}


class MayBeJoined(Sound):
    @property
    def joins(self) -> bool:
        return True

    def join(self, known: Any, features: Features) -> None:
        take_over(self, known)


class ForgetsTheOthers(MayBeJoined):
    def join(self, known: Any, features: Features) -> None:
        """Whoever is new is believed, and so is a fresh head of the others."""


class NotASpec(Sound):
    Config = dict  # type: ignore[assignment]


class Listens(Spec):
    secret: int = 3

    def model_dump_json(self, **options: Any) -> str:
        return "{}"


class ForgetsItsConfig(Sound):
    Config = Listens


class FloatWidths(Sound):
    def route(self, features: Features) -> Routing:
        routing = super().route(features)
        return routing._replace(width=routing.width.astype(jnp.float32))


class NoChoiceAxis(Sound):
    def route(self, features: Features) -> Routing:
        routing = super().route(features)
        return routing._replace(weight=routing.weight[..., 0])


class NoSuchModule(Sound):
    def route(self, features: Features) -> Routing:
        routing = super().route(features)
        return routing._replace(expert=routing.expert + 1)


class NegativeWidth(Sound):
    def route(self, features: Features) -> Routing:
        routing = super().route(features)
        return routing._replace(width=routing.width - 1)


class InfiniteWeight(Sound):
    def route(self, features: Features) -> Routing:
        routing = super().route(features)
        return routing._replace(weight=routing.weight / 0)


class ReadsAValue(Sound):
    def route(self, features: Features) -> Routing:
        assert features.price_B[0] >= 0
        return super().route(features)


class DrawsAnew(Sound):
    instances = itertools.count()

    def __init__(self, *arguments: Any, rngs: nnx.Rngs):
        super().__init__(*arguments, rngs=rngs)
        self.favourite = nnx.Variable(jax.nn.one_hot(next(self.instances), len(SPACE)))

    def losses(self, features: Features) -> jax.Array:
        return super().losses(features) - 9 * self.favourite[...]


class SeesTheNextToken(Sound):
    def losses(self, features: Features) -> jax.Array:
        return self.head(jnp.roll(features.hidden_BSD, -1, axis=1))


class SeesThatADocumentEnds(Sound):
    def losses(self, features: Features) -> jax.Array:
        ends = features.segment_ids_BS != jnp.roll(features.segment_ids_BS, -1, axis=1)
        return super().losses(features) * jnp.where(ends, -1, 1)[..., None]


class MixesDocuments(Sound):
    def losses(self, features: Features) -> jax.Array:
        return self.head(jnp.cumsum(features.hidden_BSD, axis=1))


class MixesRows(Sound):
    def losses(self, features: Features) -> jax.Array:
        return self.head(jnp.cumsum(features.hidden_BSD, axis=0))


class TakesTheFirstRowsPrice(Sound):
    def route(self, features: Features) -> Routing:
        return super().route(features.for_all_rows(price=features.price_B[0]))


class Steps(Sound):
    """By the mean of the document so far."""

    def init_state(self, rows: int) -> Any:
        return nothing_faded(rows, 9)

    def step(self, state: Any, features: Features) -> tuple[Routing, Any]:
        mean_BSD, state = fading_mean(features.hidden_BSD, features.segment_ids_BS, 4.0, state)
        return super().route(features._replace(hidden_BSD=mean_BSD)), state

    def route(self, features: Features) -> Routing:
        return self.step(None, features)[0]


class ForgetsWhatItRead(Steps):
    def step(self, state: Any, features: Features) -> tuple[Routing, Any]:
        return super().step(None, features)[0], state


class RemembersPadding(Steps):
    def step(self, state: Any, features: Features) -> tuple[Routing, Any]:
        if state is not None:
            features = features._replace(segment_ids_BS=jnp.ones_like(features.segment_ids_BS))
        return super().step(state, features)


class IgnoresOptOut(Sound):
    def allowed(self, features: Features) -> jax.Array:
        return jnp.ones((1, 1, len(self.space)), bool)


class NoNumberWithoutModules(Sound):
    def route(self, features: Features) -> Routing:
        routing, left = super().route(features), features.available_BE.sum()
        return routing._replace(weight=routing.weight * left / left)


class LikesItDear(Sound):
    def route(self, features: Features) -> Routing:
        return super().route(features._replace(price_B=-features.price_B))


class Overspends(Sound):
    budget = 0.25

    def losses(self, features: Features) -> jax.Array:
        return -jnp.asarray(self.space.relative_cost_C) - 30.0 + 0 * super().losses(features)


class HidesItsCost(Sound):
    def __init__(self, *arguments: Any, rngs: nnx.Rngs):
        super().__init__(*arguments, rngs=rngs)
        self.squares = nnx.Param(jnp.eye(8).reshape(64))

    def losses(self, features: Features) -> jax.Array:
        return self.head(features.hidden_BSD @ self.squares[...].reshape(8, 8))


class HoldsALambda(Sound):
    def __init__(self, *arguments: Any, rngs: nnx.Rngs):
        super().__init__(*arguments, rngs=rngs)
        self.activation = lambda x: x


class DeadParameter(Sound):
    def __init__(self, *arguments: Any, rngs: nnx.Rngs):
        super().__init__(*arguments, rngs=rngs)
        self.unused = nnx.Param(jnp.ones(3))


class NothingToTrain(Sound):
    def __init__(self, config: Any, space: Any, d_model: int, *, rngs: nnx.Rngs):
        Router.__init__(self, config, space, d_model, rngs=rngs)

    def losses(self, features: Features) -> jax.Array:
        return features.hidden_BSD[..., : len(self.space)]


class InfiniteLoss(Sound):
    def outcome_loss(self, features: Features) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, _ = super().outcome_loss(features)
        return loss, {"odds": loss / 0}


class LossPerRow(Sound):
    def outcome_loss(self, features: Features) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, _ = super().outcome_loss(features)
        return loss, {"rows": jnp.ones(4)}


class InfiniteGradient(Sound):
    def outcome_loss(self, features: Features) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, metrics = super().outcome_loss(features)
        return loss + jnp.sqrt(0 * self.head.bias[...]).sum(), metrics


class LearnsFromPadding(Sound):
    def outcome_loss(self, features: Features) -> tuple[jax.Array, dict[str, jax.Array]]:
        return super().outcome_loss(features._replace(segment_ids_BS=jnp.ones_like(features.segment_ids_BS)))


@pytest.mark.slow
def test_a_sound_router_passes() -> None:
    check_router(Sound)
    check_router(MayBeJoined)
    check_router(Steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "message"),
    [
        (NotASpec, "must be a moe_lab.config.Spec"),
        (ForgetsItsConfig, "secret=7 comes back from JSON as secret=3"),
        (FloatWidths, "routing.width is float32, must be int32"),
        (NoChoiceAxis, r"routing.weight is \(4, 24\), must be \[B, S, K\]"),
        (NoSuchModule, r"experts 1..3 were routed to, there are 0..2"),
        (NegativeWidth, "a width is -1"),
        (InfiniteWeight, "weight is not finite"),
        (ReadsAValue, "must be jittable, but it reads a value"),
        (DrawsAnew, "two instances of one seed differ"),
        (SeesTheNextToken, "declare `causal = False`"),
        (SeesThatADocumentEnds, "declare `causal = False`"),
        (MixesDocuments, "start anew where segment_ids change"),
        (MixesRows, "keep rows apart"),
        (TakesTheFirstRowsPrice, "read `price_B` and `available_BE` row by row"),
        (ForgetsWhatItRead, "must carry in its state whatever `route` knows of earlier tokens"),
        (RemembersPadding, "let padding change nothing"),
        (IgnoresOptOut, "run a module that is opted out"),
        (NoNumberWithoutModules, r"with \(False, False, False\) a weight is not finite"),
        (LikesItDear, r"runs 2\.\d+ blocks a token at price 0.003, but 2\.\d+ at 0.03"),
        (Overspends, r"runs \d+ blocks for \d+ tokens at price 0.0; its budget of 0.25 of the dearest"),
        (HidesItsCost, "does 120.0 multiply-adds a token in matrix products, its multiply_adds says 56"),
        (HoldsALambda, "no lambdas"),
        (DeadParameter, "gives unused no gradient"),
        (NothingToTrain, "has no nnx.Param"),
        (InfiniteLoss, "odds is inf"),
        (LossPerRow, r"rows has shape \(4,\)"),
        (InfiniteGradient, "gradient of head.bias is not finite"),
        (ForgetsTheOthers, r"a module that joined changes the routing of \d+ tokens that are not its own"),
        (LearnsFromPadding, "padding .* changes the training loss"),
    ],
)
def test_a_broken_rule_is_named(router: type[Router], message: str) -> None:
    settings = {"secret": 7} if router is ForgetsItsConfig else {}
    with pytest.raises(AssertionError, match=message):
        check_router(router, **settings)


@pytest.mark.slow
def test_a_router_that_says_it_is_not_causal_may_look_ahead() -> None:
    class SaysSo(SeesTheNextToken):
        causal = False
        trains_on = None

    check_router(SaysSo)


def test_the_example_s_right_routing_is_the_cheapest() -> None:
    example = draw_example(3)
    outcomes = np.asarray(example.features.outcomes_BSC) + 1.0 * SPACE.relative_cost_C
    counted = np.asarray(example.features.segment_ids_BS) > 0
    wanted = np.where(example.marked_BS, SPACE.widest_E[example.module_BS], 0)
    np.testing.assert_array_equal(outcomes.argmin(-1)[counted], wanted[counted])
    assert len(np.unique(example.module_BS[counted])) == len(SPACE.modules)
    assert 0 < counted.mean() < 1
