"""Sparse gates: the best k modules at full width, trained through the language model's loss.

Auxiliary losses:
- load balance `E sum_e f_e p_e` (Fedus et al. 2021, arXiv 2101.03961, eq. 4), or its size-weighted form
  `E sum_e M_e p_e` with M the share of routed width (Wang et al. 2024, arXiv 2408.10681, "P-Penalty"), which keeps
  wide modules from drowning the small ones;
- the router z-loss `mean logsumexp^2` (Zoph et al. 2022, arXiv 2202.08906, eq. 5).

Shape letters: B batch, S sequence, K choices, E modules.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveFloat, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.router import Features, Metrics, Router, masked_mean, running_mean
from moe_lab.routing.space import CandidateSpace

Weight = Annotated[float, Field(ge=0)]


class TopKConfig(Spec):
    """Gates read the hidden state beside the fading mean of the document so far (`half_life` in tokens)."""

    top_k: PositiveInt = 2
    gate: Literal["softmax", "sigmoid"] = "softmax"
    half_life: PositiveFloat = 64.0
    balance: Literal["count", "size"] = "size"
    load_balancing_loss: Weight = 0.01
    router_z_loss: Weight = 0.001


class TopKRouter(Router):
    """`top_k` is cut to the number of modules; the chosen gates are renormalised to sum to one."""

    Config = TopKConfig
    trains_on = "language_model"

    def __init__(self, config: TopKConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.gates = nnx.Linear(2 * d_model, len(space.modules), rngs=rngs)

    def _logits(self, features: Features) -> jax.Array:
        evidence = running_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life)
        logits_BSE = self.gates(jnp.concatenate([features.hidden_BSD, evidence], axis=-1))
        return jnp.where(features.available_E, logits_BSE, -1e9)

    def _scores(self, logits_BSE: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits_BSE) if self.config.gate == "softmax" else jax.nn.sigmoid(logits_BSE)

    def route(self, features: Features) -> Routing:
        scores_BSE = self._scores(self._logits(features))
        score_BSK, expert_BSK = jax.lax.top_k(scores_BSE, min(self.config.top_k, len(self.space.modules)))
        usable_BSK = features.available_E[expert_BSK]
        score_BSK = jnp.where(usable_BSK, score_BSK, 0.0)
        # A single gate keeps its score, as in Switch: renormalised to one it would learn nothing.
        total_BS1 = score_BSK.sum(-1, keepdims=True) if score_BSK.shape[-1] > 1 else 1.0
        weight_BSK = score_BSK / jnp.maximum(total_BS1, 1e-9)
        blocks_E = jnp.asarray(self.space.blocks_C[self.space.widest_E])
        return Routing(expert_BSK, jnp.where(usable_BSK, blocks_E[expert_BSK], 0), weight_BSK)

    def auxiliary_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        logits_BSE = self._logits(features)
        routing = self.route(features)
        modules = len(self.space.modules)
        run_BSKE = jax.nn.one_hot(routing.expert, modules)
        if self.config.balance == "size":
            widest_E = self.space.blocks_C[self.space.widest_E]
            run_BSKE = run_BSKE * (widest_E / widest_E.mean())
        mask_BS1 = (features.segment_ids_BS > 0)[..., None]
        tokens = jnp.maximum(mask_BS1.sum(), 1)
        load_E = (run_BSKE.sum(2) * mask_BS1).sum((0, 1)) / tokens
        share_E = (jax.nn.softmax(logits_BSE) * mask_BS1).sum((0, 1)) / tokens
        balance = modules * (jax.lax.stop_gradient(load_E) * share_E).sum() / run_BSKE.shape[2]
        z_loss = masked_mean(jnp.square(jax.nn.logsumexp(logits_BSE, axis=-1)), features.segment_ids_BS)
        total = self.config.load_balancing_loss * balance + self.config.router_z_loss * z_loss
        return total, {"load_balancing_loss": balance, "router_z_loss": z_loss}
