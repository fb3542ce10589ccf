"""Sparse gates: the best k modules at full width, trained through the language model's loss.

Auxiliary losses:
- load balance `E sum_e f_e p_e` (Fedus et al. 2021, arXiv 2101.03961, eq. 4), or its size-weighted form
  `E sum_e M_e p_e` with M the share of routed width (Wang et al. 2024, arXiv 2408.10681, "P-Penalty"), which keeps
  wide modules from drowning the small ones;
- the router z-loss `mean logsumexp^2` (Zoph et al. 2022, arXiv 2202.08906, eq. 5);
- what the gates expect to spend, `price * mean sum_e p_e cost_e`, cost as a share of the dearest candidate's.

Or balance without a loss: a bias per module that counts in the selection only and moves by the sign of the load's
error (Wang et al. 2024, arXiv 2408.15664; DeepSeek-AI 2024, arXiv 2412.19437). Modules of unequal width need not be
loaded equally, so the error is taken to a target for each module.

Shape letters: B batch, S sequence, K choices, E modules.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from moe_lab import (
    CandidateSpace,
    Faded,
    Features,
    LabError,
    Metrics,
    Router,
    Routing,
    Spec,
    fading_mean,
    masked_mean,
    nothing_faded,
)

Weight = Annotated[float, Field(ge=0)]


NUDGE = 1e-3
"""Size of the bias's gradient. Adam divides it out, and clipping by the global norm hardly sees it."""


class TopKConfig(Spec):
    """Gates read the hidden state beside the fading mean of the document so far.

    Attributes:
        top_k: modules per token, cut to the number of modules.
        gate: what the logits go through.
        half_life: tokens after which evidence counts half.
        balance: what the balance loss counts, tokens or the width that they run.
        load_balancing_loss: its weight.
        router_z_loss: weight of the z-loss.
        bias_speed: learning rates per step that the selection's bias moves; 0 has no bias.
        target_load: share of all choices that each module is to get, for the bias: the same for all, in proportion
            to width, or numbers in proportion to which they share, in the order of the modules.
        price: nats per token for the dearest candidate, as charged in training.
    """

    top_k: PositiveInt = 2
    gate: Literal["softmax", "sigmoid"] = "softmax"
    half_life: PositiveFloat = 64.0
    balance: Literal["count", "size"] = "size"
    load_balancing_loss: Weight = 0.01
    router_z_loss: Weight = 0.001
    bias_speed: Weight = 0.0
    target_load: Literal["even", "width"] | tuple[PositiveFloat, ...] = "even"
    price: Weight = 0.0

    @model_validator(mode="after")
    def _targets_have_an_effect(self) -> TopKConfig:
        if self.target_load != "even" and self.bias_speed == 0:
            raise ValueError("target_load has no effect while bias_speed is 0; set bias_speed, to 1 for a start")
        return self


class TopKRouter(Router):
    """`top_k` is cut to the number of modules; the chosen gates are renormalised to sum to one."""

    Config = TopKConfig
    trains_on = "language_model"

    def __init__(self, config: TopKConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.gates = nnx.Linear(2 * d_model, len(space.modules), rngs=rngs)
        if config.bias_speed:
            target_load(config, space)  # refuses what cannot be reached before anything is trained
            self.selection_bias = nnx.Param(jnp.zeros(len(space.modules)))

    def init_state(self, rows: int) -> Faded:
        return nothing_faded(rows, self.gates.in_features // 2 + 1)

    def _logits(self, before: Faded | None, features: Features) -> tuple[jax.Array, Faded | None]:
        half_life = self.config.half_life
        evidence, after = fading_mean(features.hidden_BSD, features.segment_ids_BS, half_life, before)
        logits_BSE = self.gates(jnp.concatenate([features.hidden_BSD, evidence], axis=-1))
        return jnp.where(features.available_BE[:, None], logits_BSE, -1e9), after

    def _scores(self, logits_BSE: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits_BSE) if self.config.gate == "softmax" else jax.nn.sigmoid(logits_BSE)

    def step(self, state: Faded | None, features: Features) -> tuple[Routing, Faded | None]:
        logits_BSE, state = self._logits(state, features)
        score_BSK, expert_BSK = self._select(self._scores(logits_BSE), features.available_BE)
        usable_BSK = jnp.take_along_axis(features.available_BE[:, None], expert_BSK, axis=-1)
        score_BSK = jnp.where(usable_BSK, score_BSK, 0.0)
        # A single gate keeps its score, as in Switch: renormalised to one it would learn nothing.
        total_BS1 = score_BSK.sum(-1, keepdims=True) if score_BSK.shape[-1] > 1 else 1.0
        weight_BSK = score_BSK / jnp.maximum(total_BS1, 1e-9)
        blocks_E = jnp.asarray(self.space.blocks_C[self.space.widest_E])
        return Routing(expert_BSK, jnp.where(usable_BSK, blocks_E[expert_BSK], 0), weight_BSK), state

    def _select(self, scores_BSE: jax.Array, available_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores and modules of the best k; the bias decides who is among them, and nothing else."""
        top_k = min(self.config.top_k, len(self.space.modules))
        if not self.config.bias_speed:
            return jax.lax.top_k(scores_BSE, top_k)
        biased_BSE = scores_BSE + self.config.bias_speed * self.selection_bias[...]
        _, expert_BSK = jax.lax.top_k(jnp.where(available_BE[:, None], biased_BSE, -jnp.inf), top_k)
        return jnp.take_along_axis(scores_BSE, expert_BSK, axis=-1), expert_BSK

    def auxiliary_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        config, (logits_BSE, _) = self.config, self._logits(None, features)
        mask_BS1 = (features.segment_ids_BS > 0)[..., None]
        tokens = jnp.maximum(mask_BS1.sum(), 1)
        run_BSKE = jax.nn.one_hot(self.route(features).expert, len(self.space.modules))
        choices_E = (run_BSKE.sum(2) * mask_BS1).sum((0, 1)) / (tokens * run_BSKE.shape[2])
        share_E = (jax.nn.softmax(logits_BSE) * mask_BS1).sum((0, 1)) / tokens
        balance = self._balance(choices_E, share_E)
        z_loss = masked_mean(jnp.square(jax.nn.logsumexp(logits_BSE, axis=-1)), features.segment_ids_BS)
        cost = (share_E * self.space.relative_cost_C[self.space.widest_E]).sum()
        total = config.load_balancing_loss * balance + config.router_z_loss * z_loss + config.price * cost
        metrics = {"load_balancing_loss": balance, "router_z_loss": z_loss, "expected_cost": cost}
        if not config.bias_speed:
            return total, metrics
        error_E = choices_E - target_load(config, self.space)
        return total + self._steered(error_E), {**metrics, "load_error": jnp.abs(error_E).sum() / 2}

    def _balance(self, choices_E: jax.Array, share_E: jax.Array) -> jax.Array:
        """`E sum_e f_e p_e`; in the size form each module's choices count its width, as a multiple of the mean."""
        widest_E = self.space.blocks_C[self.space.widest_E]
        size_E = widest_E / widest_E.mean() if self.config.balance == "size" else np.ones(len(widest_E))
        return len(widest_E) * (jax.lax.stop_gradient(choices_E * size_E) * share_E).sum()

    def _steered(self, error_E: jax.Array) -> jax.Array:
        """Zero, with a gradient that makes the optimizer lower the bias of what runs too much, and raise the others'.

        So the bias is a parameter like all others: checkpointed, resumed, sharded and published with them.
        """
        push = NUDGE * (jax.lax.stop_gradient(jnp.sign(error_E)) * self.selection_bias[...]).sum()
        return push - jax.lax.stop_gradient(push)


def target_load(config: TopKConfig, space: CandidateSpace) -> np.ndarray:
    """The share of all choices [E] that each module is to get; sums to 1."""
    if isinstance(config.target_load, tuple) and len(config.target_load) != len(space.modules):
        raise LabError(
            f"router topk: target_load has {len(config.target_load)} numbers, but there are {len(space.modules)} "
            f"modules; give one for each of {', '.join(space.modules)}"
        )
    named = {"even": np.ones(len(space.modules)), "width": space.blocks_C[space.widest_E]}
    asked_E = named[config.target_load] if isinstance(config.target_load, str) else np.array(config.target_load)
    target_E = asked_E / asked_E.sum()
    most, top_k = int(target_E.argmax()), min(config.top_k, len(space.modules))
    if target_E[most] * top_k > 1 + 1e-6:
        raise LabError(
            f"router topk: target_load asks for {target_E[most]:.2f} of all choices for {space.modules[most]}, but "
            f"with {top_k} modules per token one of them gets {1 / top_k:.2f} at most; lower its target or top_k"
        )
    return target_E.astype(np.float32)
