"""The contract of a router, and the pieces that most routers share.

Shape letters: B batch, S sequence, K choices per token, D model width, E modules, C candidates.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.config.spec import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.space import CandidateSpace

Metrics = dict[str, jax.Array]


class Features(NamedTuple):
    """What a router may look at. `outcomes` is only there for routers that declare they need it."""

    hidden_BSD: jax.Array  # float32, the trunk's state at the first routed layer, normalised
    tokens_BS: jax.Array  # int32 ids
    segment_ids_BS: jax.Array  # int32, 0 = padding
    available_BE: jax.Array  # bool, False = opted out of this row
    price_B: jax.Array  # float32, nats per token for running the dearest candidate
    outcomes_BSC: jax.Array | None = None  # float32 nats
    hint_BE: jax.Array | None = None  # float32 log prior of whose own text a row is; zeros or None: nobody knows

    def for_all_rows(self, *, price: Any = None, available_E: Any = None) -> Features:
        """With one price, or one list of what is available, in every row."""
        price_B, available_BE = self.price_B, self.available_BE
        if price is not None:
            price_B = jnp.broadcast_to(jnp.asarray(price, jnp.float32), price_B.shape)
        if available_E is not None:
            available_BE = jnp.broadcast_to(jnp.asarray(available_E, bool), (len(price_B), len(available_E)))
        return self._replace(price_B=price_B, available_BE=available_BE)


class Counted(nnx.Variable):
    """An array that `Router.prepare` sets and no gradient step touches. It is published like every other."""


class RouterPart(nnx.Module):
    """A piece of a router that holds arrays and knows what it does with them."""

    @property
    def multiply_adds(self) -> int:
        """Its cost per token."""
        raise NotImplementedError


class Router(nnx.Module):
    """Says which module each token runs, and how much of it.

    A subclass sets `Config` and the class flags, and defines `init_state` and `step`, from which `route` follows; or
    `route` alone, and then it routes whole rows only and no text can be written with it.

    One that learns from outcome tables defines `outcome_loss`; one that learns through the language model defines
    `auxiliary_loss` and lets gradients flow through the weights of its routing. One that modules may join once it is
    trained says so by `joins` and defines `join`. Routers keep their own list of modules (`space`): composed with
    fewer, the missing ones are not available, so opting out needs no retraining and changes no other number.
    """

    Config: ClassVar[type[Spec]]
    trains_on: ClassVar[Literal["outcomes", "language_model"] | None] = None
    causal: ClassVar[bool] = True
    needs_outcomes: ClassVar[bool] = False
    takes_hints: ClassVar[bool] = False

    def __init__(self, config: Any, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        self.space = space

    @property
    def needs_training(self) -> bool:
        """Whether a composition takes it published only. One that starts sensibly without any data may say no."""
        return self.trains_on is not None

    @property
    def learns_from_text(self) -> bool:
        """Whether it learns from `text_loss` too."""
        return False

    @property
    def joins(self) -> bool:
        """Whether modules may join it once it is trained, by `join`."""
        return False

    def joined_config(self, added: int) -> Any:
        """The config of the router that so many modules have joined."""
        return self.config

    @property
    def multiply_adds(self) -> int:
        """Its own cost per token: what its parts state, and one multiply-add per entry of every other matrix.

        A matrix is an array of two or more axes. Routers that use theirs otherwise (look rows up, use one twice) hold
        them in a part, or state their own figure.
        """
        parts = {name: part for name, part in vars(self).items() if isinstance(part, RouterPart)}
        arrays = [leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(self)) if path[0] not in parts]
        entries = sum(a.size for a in arrays if a.ndim > 1 and jnp.issubdtype(a.dtype, jnp.floating))
        return entries + sum(part.multiply_adds for part in parts.values())

    @property
    def budget(self) -> float | None:
        """The mean cost per token that no batch ever exceeds, as a share of the dearest candidate's; None: no limit."""
        return None

    def route(self, features: Features) -> Routing:
        """Routing of whole rows, arrays [B, S, K]. Pure and jittable; token t may see no later one if `causal`."""
        return self.step(None, features)[0]

    @property
    def steps(self) -> bool:
        """Whether it can route a text while it is written."""
        return self.causal and type(self).step is not Router.step

    def init_state(self, rows: int) -> Any:
        """What `step` takes in front of the rows' first tokens: a pytree of arrays [B, ...] of a fixed size."""
        raise NotImplementedError

    def step(self, state: Any, features: Features) -> tuple[Routing, Any]:
        """Routes the next chunk of every row, one token or many: the routing, and the state behind the chunk.

        Steps of any lengths give what `route` gives for the whole, up to rounding, and the same bits as one another.
        Padding, segment 0, stands at the end of a chunk and changes no state.

        Args:
            state: from `init_state` or the step before. None: rows are whole, and no state is wanted.
            features: of the chunk.
        """
        raise NotImplementedError

    def prepare(self, features: Features) -> None:
        """Sets what follows from all measured outcomes by counting; called once, before the first step."""

    def join(self, known: Self, features: Features) -> None:
        """In place of `prepare` where `known` is trained for the first of its modules.

        What that says of them, `Counted` arrays included, stays the same bits. What is counted of the others is set
        from the outcomes of all. Then only the part of the added modules is trained: of every `nnx.Param` what lies
        behind the trained router's, along the one axis in which they differ in size.
        """
        raise NotImplementedError

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        """Training loss on measured outcomes, averaged over tokens that are not padding."""
        raise NotImplementedError

    def text_loss(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, own_BS: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Added to `outcome_loss` if `learns_from_text`: text that nothing was measured on, and whose own it is."""
        raise NotImplementedError

    def auxiliary_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        """What is added to the language model's loss when training through it: balance, size, z losses."""
        return jnp.float32(0), {}


def route_candidates(space: CandidateSpace, candidate_BS: jax.Array) -> Routing:
    """One candidate per token, with weight one."""
    choice = candidate_BS[..., None]
    return Routing(
        jnp.asarray(space.module_C)[choice],
        jnp.asarray(space.blocks_C)[choice],
        jnp.ones(choice.shape, jnp.float32),
    )


def available_candidates(space: CandidateSpace, available_BE: jax.Array) -> jax.Array:
    """bool[B, C]: the trunk always, a module's rungs while it is available."""
    return available_BE[:, space.module_C].at[:, 0].set(True)


def masked_mean(values_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """The mean over tokens that are not padding."""
    mask_BS = (segment_ids_BS > 0).astype(values_BS.dtype)
    return (values_BS * mask_BS).sum() / jnp.maximum(mask_BS.sum(), 1)


def normalised(x_BSD: jax.Array) -> jax.Array:
    """Root-mean-square normalisation without parameters, in float32."""
    x_BSD = x_BSD.astype(jnp.float32)
    return x_BSD * jax.lax.rsqrt(jnp.mean(jnp.square(x_BSD), axis=-1, keepdims=True) + 1e-6)
