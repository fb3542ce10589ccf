"""Shapes and switches of a trunk, as people write them in YAML and as importers of checkpoints fill them in."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from moe_lab.config.spec import Spec

Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_erf"]
PrecisionName = Literal["auto", "float32", "bfloat16", "bfloat16_weights"]
"""See `moe_lab.nn.precision`."""

ROUTED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")

PositiveFloat = Annotated[float, Field(gt=0)]
Base = Annotated[float, Field(gt=1)]
Layers = tuple[int, ...]


class LinearScaling(Spec):
    """Every frequency divided by `factor`: positions interpolated (arXiv 2306.15595)."""

    type: Literal["linear"] = "linear"
    factor: PositiveFloat


class Llama3Scaling(Spec):
    """Llama 3.1's: wavelengths beyond `original_length / low_frequency_factor` tokens are stretched by `factor`,
    those below `original_length / high_frequency_factor` stay, and between them it blends."""

    type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: PositiveInt

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor {self.high_frequency_factor} must be above "
                f"low_frequency_factor {self.low_frequency_factor}"
            )
        return self


class YarnScaling(Spec):
    """YaRN (arXiv 2309.00071): pairs that turn fewer than `beta_slow` times in `original_length` tokens are stretched,
    those above `beta_fast` stay.

    Attributes:
        attention_factor: what sine and cosine are multiplied by; `0.1 ln(factor) + 1` if left out.
        truncate: round the borders of the blend to whole pairs.
    """

    type: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_length: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None
    truncate: bool = True


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="type")]


class RopeSpec(Spec):
    """Rotary positions of one kind of layer."""

    base: Base = 10_000.0
    scaling: RopeScaling | None = None


def _switch(default: Any) -> Any:
    """A field that is written only where it says something: trunks from before it keep their digests."""
    return Field(default=default, exclude_if=lambda value: value == default)


class TrunkSpec(Spec):
    """A decoder-only transformer. Set what the checkpoint's own config says; what is left out is a plain Llama.

    Layers are numbered from 0, and every list of layers rises.

    Attributes:
        vocab_size: rows of the embedding, padding included.
        vocab_padding: rows at its end that stand for no token. Their logits are the checkpoint's own, and count in its
            softmax; whoever picks a token leaves them out.
        head_dim: width of an attention head; `d_model / num_heads` if left out.
        activation: `silu`; `gelu_tanh`, which checkpoints call `gelu_pytorch_tanh` or `gelu_new`; `gelu_erf`, the exact
            one, which they call `gelu`. Our own `gelu` is the older name of `gelu_tanh`. Modules in routed layers take
            the trunk's, and their kernels carry no `gelu_erf`.
        rope_base: base of the rotary frequencies.
        rope_scaling: how they are stretched to longer texts.
        sliding_rope: base and scaling of sliding layers; those of all layers if left out.
        rotary_fraction: share of a head that is turned, its first part.
        layers_without_rope: layers that know no positions. (SmolLM3's `no_rope_layers` is the reverse: 1 has them.)
        sliding_layers: layers in which a token sees `sliding_window` tokens, itself included.
        norm_placement: `pre`: norm in front of attention and FFN; `post`: on what they add instead; `both`.
        norm_offset: 1 where norms multiply by `1 + scale`.
        norm_cast: whether a norm in a narrow dtype multiplies by its scale in float32 (`last`) or after casting back.
        qk_norm: norms on queries and keys, in front of the rotation.
        qk_norm_over: over each `head`, or over the whole `projection` of all heads.
        attention_bias: on queries, keys and values.
        attention_out_bias: on the projection behind attention; as `attention_bias` if left out.
        attention_scale: what scores are multiplied by; `head_dim ** -0.5` if left out.
        attention_softcap: scores become `cap * tanh(score / cap)`.
        embedding_multiplier: on embeddings as they enter, rounded to the compute dtype.
        residual_multiplier: on what attention, FFN and modules add to the residual stream.
        logit_multiplier: on the logits, in front of `logit_softcap`.
        shared_ffn: whether routed layers keep the trunk's own FFN.
        routed_layers: layers in which expert modules work; the router reads the hidden state that enters the first.
        block: hidden units that are stored, placed and computed together.
    """

    vocab_size: PositiveInt = 320
    d_model: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    ffn_width: NonNegativeInt = 384
    activation: Activation = "silu"
    rope_base: Base = 10_000.0
    rms_norm_eps: PositiveFloat = 1e-5
    qk_norm: bool = False
    attention_bias: bool = False
    ffn_bias: bool = False
    tie_embeddings: bool = True
    shared_ffn: bool = True
    routed_layers: Layers = ()
    block: PositiveInt = 64

    vocab_padding: NonNegativeInt = _switch(0)
    rope_scaling: RopeScaling | None = _switch(None)
    sliding_rope: RopeSpec | None = _switch(None)
    rotary_fraction: Annotated[float, Field(gt=0, le=1)] = _switch(1.0)
    layers_without_rope: Layers = _switch(())
    sliding_layers: Layers = _switch(())
    sliding_window: PositiveInt | None = _switch(None)
    norm_placement: Literal["pre", "post", "both"] = _switch("pre")
    norm_offset: Literal[0, 1] = _switch(0)
    norm_cast: Literal["last", "before_scale"] = _switch("last")
    qk_norm_over: Literal["head", "projection"] = _switch("head")
    attention_out_bias: bool | None = _switch(None)
    attention_scale: PositiveFloat | None = _switch(None)
    attention_softcap: PositiveFloat | None = _switch(None)
    logit_softcap: PositiveFloat | None = _switch(None)
    embedding_multiplier: PositiveFloat = _switch(1.0)
    residual_multiplier: PositiveFloat = _switch(1.0)
    logit_multiplier: PositiveFloat = _switch(1.0)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def attention_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """How much of a head is turned."""
        return int(self.attention_dim * self.rotary_fraction)

    @property
    def out_bias(self) -> bool:
        """Whether the projection behind attention has a bias."""
        return self.attention_bias if self.attention_out_bias is None else self.attention_out_bias

    @property
    def routing_layer(self) -> int:
        """The layer whose input the router reads: the first routed layer."""
        return self.routed_layers[0] if self.routed_layers else self.num_layers

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None: all of its document."""
        return self.sliding_window if layer in self.sliding_layers else None

    def rope_of(self, layer: int) -> RopeSpec | None:
        """The layer's rotary positions; None: it has none."""
        if layer in self.layers_without_rope:
            return None
        if layer in self.sliding_layers and self.sliding_rope is not None:
            return self.sliding_rope
        return RopeSpec(base=self.rope_base, scaling=self.rope_scaling)

    def has_ffn(self, layer: int) -> bool:
        """Whether the trunk itself has an FFN in this layer."""
        return self.shared_ffn or layer not in self.routed_layers

    def multiply_adds(self, layer: int, length: int) -> float:
        """Of one token of a document of `length` in the matrices of a layer and in its attention, modules not counted.

        A token meets half of its document on average, and no more than the layer's window.
        """
        heads, shared = self.num_heads * self.attention_dim, self.kv_heads * self.attention_dim
        window = min(self.window_of(layer) or length, length)
        met = window * (length - window / 2) / length
        ffn = 3 * self.d_model * self.ffn_width if self.has_ffn(layer) else 0
        return 2 * self.d_model * (heads + shared) + 2 * met * heads + ffn

    @property
    def head_multiply_adds(self) -> int:
        """Of one token's logits."""
        return self.d_model * self.vocab_size

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
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} of head_dim {self.attention_dim} gives {self.rotary_dim}; "
                "it must be even and not 0: rotary embedding turns pairs"
            )
        for name in ("routed_layers", "sliding_layers", "layers_without_rope"):
            self._require_layers(name, getattr(self, name))
        if self.shared_ffn and not self.ffn_width:
            raise ValueError("ffn_width 0 needs shared_ffn: false")
        if self.vocab_padding >= self.vocab_size:
            raise ValueError(f"vocab_padding {self.vocab_padding} must be less than vocab_size {self.vocab_size}")
        if self.routed_layers and self.activation not in ROUTED_ACTIVATIONS:
            raise ValueError(
                f'activation "{self.activation}" cannot be run by modules; with routed_layers it is one of '
                f"{', '.join(ROUTED_ACTIVATIONS)}"
            )
        return self

    def _require_layers(self, name: str, layers: Layers) -> None:
        if tuple(sorted(set(layers))) != layers:
            raise ValueError(f"{name} {list(layers)} must rise without repeats")
        if layers and not 0 <= layers[0] <= layers[-1] < self.num_layers:
            raise ValueError(f"{name} {list(layers)} must lie in 0..{self.num_layers - 1}")

    @model_validator(mode="after")
    def _every_switch_has_an_effect(self) -> Self:
        if bool(self.sliding_layers) != (self.sliding_window is not None):
            raise ValueError(
                f"sliding_layers {list(self.sliding_layers)} and sliding_window {self.sliding_window} need each other"
            )
        if self.sliding_rope is not None and not self.sliding_layers:
            raise ValueError("sliding_rope needs sliding_layers")
        if self.qk_norm_over == "projection" and not self.qk_norm:
            raise ValueError('qk_norm_over "projection" needs qk_norm: true')
        return self
