"""The numbers of one training: how long, how fast, how often to log and to save."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moe_lab.config import Spec

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSpec(Spec):
    """AdamW under a learning rate schedule; see `docs/training.md` for the schedules' formulas."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Rows per step; read by the objective that makes the batches, as is `seq_len`."""
    seq_len: int = Field(ge=1)

    learning_rate: Positive
    """The peak, reached at the end of the warmup."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The share of `steps`, at their end, over which `wsd` decays."""
    final_fraction: Fraction = 0.1
    """The learning rate after the last step, as a share of the peak."""

    weight_decay: NotNegative = 0.1
    """Applied to matrices (two or more axes) only: gains, biases and other vectors are not decayed."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    grad_clip: Positive | None = 1.0
    """The largest global norm of the gradient; null clips nothing."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    """In steps. A killed run repeats at most this many."""
    checkpoint_seconds: Positive = Field(default=60.0, exclude=True)
    """Saves by time too, several processes at the next log point. No bit depends on it, so it is no part of a run's
    identity."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""

    @property
    def decay_steps(self) -> int:
        """The length of the decay of `wsd` in steps, at least one."""
        return max(1, round(self.decay_fraction * self.steps))

    @model_validator(mode="after")
    def _phases_fit_into_steps(self) -> TrainSpec:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but must be at most steps ({self.steps})")
        if self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) and the decay ({self.decay_steps} steps, decay_fraction "
                f"{self.decay_fraction}) must fit into steps ({self.steps})"
            )
        return self

    def without_effect(self) -> list[str]:
        """Returns a sentence for each setting that was changed but that the chosen schedule does not read."""
        unread = {"cosine": ["decay_fraction"], "wsd": [], "constant": ["decay_fraction", "final_fraction"]}
        return [
            f"{name} has no effect with schedule: {self.schedule}"
            for name in unread[self.schedule]
            if getattr(self, name) != type(self).model_fields[name].default
        ]
