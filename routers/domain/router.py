"""Picks the module from evidence that builds up over the document.

One linear head reads the fading mean of the trunk's hidden states and scores the modules. It learns by minimising the
exact expected loss of its own soft choice, since the outcome of every choice is known. The width comes from a small
table, learned beside it: what each module's rungs lose on the tokens that choose that module.

With a margin a document keeps its module until the evidence for another leads by that much. With a prior the router
can be composed before there is any data: it believes every module to gain the same and starts with the cheapest.

Shape letters: B batch, S sequence, D model width, E modules, R rungs, C candidates.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import NonNegativeFloat, PositiveFloat

from moe_lab import (
    CandidateSpace,
    Faded,
    Features,
    Metrics,
    Router,
    Routing,
    Spec,
    document_starts,
    fading_mean,
    masked_mean,
    newest,
    nothing_faded,
    route_candidates,
    take_over,
)


class DomainConfig(Spec):
    """Settings of the domain router.

    Attributes:
        half_life: tokens after which evidence counts half.
        margin: lead in score that another module needs before a document changes its module; read when it routes.
        prior_gain: nats per token that any module at full width is believed to gain before anything is learned, in
            proportion to width. Left out: such a belief is not held, and the router must be trained.
    """

    half_life: PositiveFloat = 64.0
    margin: NonNegativeFloat = 0.0
    prior_gain: NonNegativeFloat | None = None


class DomainState(NamedTuple):
    """What later tokens need of earlier ones."""

    evidence: Faded
    module_B: jax.Array  # int32, that of the last token


class DomainRouter(Router):
    """Module from the document so far, width from the module's average gains."""

    Config = DomainConfig
    trains_on = "outcomes"

    def __init__(self, config: DomainConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.head = nnx.Linear(d_model, len(space.modules), kernel_init=nnx.initializers.zeros, rngs=rngs)
        # Tables of one axis: weight decay, which would pull losses towards zero, is for matrices.
        self.rung_loss_C = nnx.Param(jnp.zeros(len(space)))
        self.trunk_loss_E = nnx.Param(jnp.zeros(len(space.modules)))
        if config.prior_gain is not None:
            self._believe(config.prior_gain)

    def _believe(self, gain: float) -> None:
        """Nothing is known of the text, and of the modules only what they cost: the cheapest is tried first."""
        widest_C = self.space.cost_C[self.space.widest_E][self.space.module_C]
        self.rung_loss_C[...] = jnp.asarray(-gain * self.space.cost_C / widest_C, jnp.float32)
        assert self.head.bias is not None, "a linear head has a bias unless told otherwise"
        self.head.bias[...] = -jnp.asarray(self.space.relative_cost_C[self.space.widest_E])

    @property
    def needs_training(self) -> bool:
        return self.config.prior_gain is None

    @property
    def joins(self) -> bool:
        return True

    def join(self, known: Self, features: Features) -> None:
        take_over(self, known)

    def _scores(self, before: Faded | None, features: Features) -> tuple[jax.Array, Faded | None]:
        half_life = self.config.half_life
        evidence_BSD, after = fading_mean(features.hidden_BSD, features.segment_ids_BS, half_life, before)
        return jnp.where(features.available_BE[:, None], self.head(evidence_BSD), -jnp.inf), after

    def init_state(self, rows: int) -> DomainState:
        return DomainState(nothing_faded(rows, self.head.in_features + 1), jnp.zeros(rows, jnp.int32))

    def step(self, state: DomainState | None, features: Features) -> tuple[Routing, DomainState | None]:
        evidence, module_B = (None, None) if state is None else state
        segment_B = None if evidence is None else evidence.segment_B
        scores_BSE, evidence = self._scores(evidence, features)
        module_BS = settled(scores_BSE, features.segment_ids_BS, self.config.margin, segment_B, module_B)
        if evidence is not None and module_B is not None:
            state = DomainState(evidence, newest(module_BS, features.segment_ids_BS, module_B))
        return self._choose(features, module_BS), state

    def _choose(self, features: Features, module_BS: jax.Array) -> Routing:
        cost_ER = self.space.relative_cost_C[self.space.candidate_ER]
        bill_BER = self.rung_loss_C[...][self.space.candidate_ER] + features.price_B[:, None, None] * cost_ER
        bill_BER = jnp.where(self.space.valid_ER, bill_BER, jnp.inf)
        best_BE = jnp.asarray(self.space.candidate_ER)[jnp.arange(len(cost_ER)), jnp.argmin(bill_BER, axis=-1)]
        worth_BE = (bill_BER.min(axis=-1) < self.trunk_loss_E[...]) & features.available_BE
        candidate_BE = jnp.where(worth_BE, best_BE, 0)
        return route_candidates(self.space, jnp.take_along_axis(candidate_BE, module_BS, axis=-1))

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        outcomes_BSC = features.outcomes_BSC
        assert outcomes_BSC is not None
        choice_BSE = jax.nn.softmax(self._scores(None, features)[0], axis=-1)
        widest_BSE = outcomes_BSC[..., self.space.widest_E]
        expected = masked_mean((choice_BSE * widest_BSE).sum(-1), features.segment_ids_BS)
        chosen_BSE = jax.lax.stop_gradient(choice_BSE) * (features.segment_ids_BS > 0)[..., None]
        return expected + self._table_loss(outcomes_BSC, chosen_BSE), {"expected_loss": expected}

    def _table_loss(self, outcomes_BSC: jax.Array, chosen_BSE: jax.Array) -> jax.Array:
        """Squared error whose minimum is the mean loss of each rung on the tokens of its module."""
        share_E = chosen_BSE.sum((0, 1)) + 1e-6
        rungs_BSER = outcomes_BSC[..., self.space.candidate_ER]
        mean_ER = jnp.einsum("bse,bser->er", chosen_BSE, rungs_BSER) / share_E[:, None]
        trunk_E = jnp.einsum("bse,bs->e", chosen_BSE, outcomes_BSC[..., 0]) / share_E
        error = jnp.square(self.rung_loss_C[...][self.space.candidate_ER] - mean_ER).mean()
        return error + jnp.square(self.trunk_loss_E[...] - trunk_E).mean()


def settled(
    scores_BSE: jax.Array,
    segment_ids_BS: jax.Array,
    margin: float,
    segment_B: jax.Array | None = None,
    module_B: jax.Array | None = None,
) -> jax.Array:
    """The module [B, S] that leads at the start of a document, kept until another leads it by more than `margin`.

    Each token is a map from the module before it to its own. Maps are joined in a parallel scan; the first token of a
    document maps all modules to one, so what came before it does not matter. Rows that go on do so with the document
    `segment_B` and the module `module_B`.
    """
    leader_BS1 = jnp.argmax(scores_BSE, axis=-1, keepdims=True)
    if margin == 0:
        return leader_BS1[..., 0]
    behind_BSE = scores_BSE.max(-1, keepdims=True) - scores_BSE
    stays_BSE = (behind_BSE <= margin) & ~document_starts(segment_ids_BS, segment_B)[..., None]
    next_BSE = jnp.where(stays_BSE, jnp.arange(scores_BSE.shape[-1]), leader_BS1)

    def join(before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.take_along_axis(after, before, axis=-1)

    joined_BSE = jax.lax.associative_scan(join, next_BSE, axis=1)
    if module_B is None:
        return joined_BSE[..., 0]
    return jnp.take_along_axis(joined_BSE, module_B[:, None, None], axis=-1)[..., 0]
