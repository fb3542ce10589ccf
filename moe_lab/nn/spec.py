"""Shapes of a trunk, as people write them in YAML."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moe_lab.config.spec import Spec

Activation = Literal["silu", "gelu"]


class TrunkSpec(Spec):
    """A decoder-only transformer. Covers Llama-like checkpoints: set what the checkpoint's own config says.

    `routed_layers` are the layers in which expert modules work; the router reads the hidden state that enters the
    first of them. `block` is the number of hidden units that are stored, placed and computed together.
    """

    vocab_size: PositiveInt = 320
    d_model: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    ffn_width: Annotated[int, Field(ge=0)] = 384
    activation: Activation = "silu"
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    qk_norm: bool = False
    attention_bias: bool = False
    ffn_bias: bool = False
    tie_embeddings: bool = True
    shared_ffn: bool = True
    routed_layers: tuple[int, ...] = ()
    block: PositiveInt = 64

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def attention_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def routing_layer(self) -> int:
        """The layer whose input the router reads: the first routed layer."""
        return self.routed_layers[0] if self.routed_layers else self.num_layers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head_dim is None and self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of num_heads {self.num_heads}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}")
        if self.attention_dim % 2:
            raise ValueError(f"head_dim {self.attention_dim} must be even: rotary embedding turns pairs")
        if tuple(sorted(set(self.routed_layers))) != self.routed_layers:
            raise ValueError(f"routed_layers {list(self.routed_layers)} must rise without repeats")
        if self.routed_layers and not 0 <= self.routed_layers[0] <= self.routed_layers[-1] < self.num_layers:
            raise ValueError(f"routed_layers {list(self.routed_layers)} must lie in 0..{self.num_layers - 1}")
        if self.shared_ffn and not self.ffn_width:
            raise ValueError("ffn_width 0 needs shared_ffn: false")
        return self
