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
    available_E: jax.Array  # bool, False = opted out
    price: jax.Array  # float32 scalar, nats per token for running the dearest candidate
    outcomes_BSC: jax.Array | None = None  # float32 nats
    hint_BE: jax.Array | None = None  # float32 log prior of whose own text a row is; zeros or None: nobody knows


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

    A subclass sets `Config` and the class flags, and defines `route`. One that learns from outcome tables defines
    `outcome_loss`; one that learns through the language model defines `auxiliary_loss` and lets gradients flow
    through the weights of its routing. One that modules may join once it is trained says so by `joins` and defines
    `join`. Routers keep their own list of modules (`space`): composed with fewer, the missing ones are not
    `available`, so opting out needs no retraining and changes no other number.
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
        """Routing with arrays [B, S, K]. Pure and jittable; token t may only see tokens up to t if `causal`."""
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


def available_candidates(space: CandidateSpace, available_E: jax.Array) -> jax.Array:
    """bool[C]: the trunk always, a module's rungs while it is available."""
    return available_E[space.module_C].at[0].set(True)


def masked_mean(values_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """The mean over tokens that are not padding."""
    mask_BS = (segment_ids_BS > 0).astype(values_BS.dtype)
    return (values_BS * mask_BS).sum() / jnp.maximum(mask_BS.sum(), 1)


def document_starts(segment_ids_BS: jax.Array) -> jax.Array:
    """bool[B, S]: the first token of each document, and of each row."""
    return jnp.pad(segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def surrounding_mean(values_BSD: jax.Array, segment_ids_BS: jax.Array, half_life: float) -> jax.Array:
    """The fading mean of a token's document in both directions. It sees what comes after: for labels only."""
    before = running_mean(values_BSD, segment_ids_BS, half_life)
    after = running_mean(values_BSD[:, ::-1], segment_ids_BS[:, ::-1], half_life)[:, ::-1]
    return (before + after) / 2


def normalised(x_BSD: jax.Array) -> jax.Array:
    """Root-mean-square normalisation without parameters, in float32."""
    x_BSD = x_BSD.astype(jnp.float32)
    return x_BSD * jax.lax.rsqrt(jnp.mean(jnp.square(x_BSD), axis=-1, keepdims=True) + 1e-6)


def running_mean(values_BSD: jax.Array, segment_ids_BS: jax.Array, half_life: float) -> jax.Array:
    """Evidence that builds up over a document: the exponentially fading mean of what was seen so far.

    A token's own value is included, other documents are not. `half_life` counts tokens.
    """
    counted = jnp.concatenate([values_BSD, jnp.ones_like(values_BSD[..., :1])], axis=-1)
    total = running_total(counted, segment_ids_BS, half_life)
    return total[..., :-1] / total[..., -1:]


def running_total(values_BSD: jax.Array, segment_ids_BS: jax.Array, half_life: float) -> jax.Array:
    """As `running_mean`, but the sum: it grows with the document until as much fades as comes in."""
    decay = 0.5 ** (1.0 / half_life)
    keep_BS1 = jnp.where(document_starts(segment_ids_BS), 0.0, decay).astype(jnp.float32)[..., None]

    def join(before: tuple, after: tuple) -> tuple:
        return before[0] * after[0], before[1] * after[0] + after[1]

    return jax.lax.associative_scan(join, (keep_BS1, values_BSD), axis=1)[1]
