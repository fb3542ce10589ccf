"""The shared trunk, with room for expert modules in its routed layers.

A forward pass has three parts, so that the router can look before the experts run and so that many candidates can
share the work in front of them: `enter` (embedding and the layers before the first routed one), `routed` (the rest,
with the experts), `head` (logits).

Shape letters: B batch, S sequence, T = B * S tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.nn.expert_ffn import LayerOutput, OneDevice
from moe_lab.nn.layers import Attention, GatedFFN, Linear, RMSNorm
from moe_lab.nn.pool import Routing
from moe_lab.nn.spec import TrunkSpec


class RunLayer(Protocol):
    """How a routed layer is run: `OneDevice`, or over a mesh (`moe_lab.parallel`)."""

    def __call__(self, h_TD: jax.Array, pool: Any, routing: Routing, *, activation: str) -> LayerOutput: ...


class Experts(NamedTuple):
    """What runs in the routed layers: one pool per routed layer and one routing for all of them."""

    pools: Mapping[int, Any]  # of the kind that `run` takes
    routing: Routing
    run: RunLayer = OneDevice()
    taps: dict[int, jax.Array] | None = None  # filled with the normalised inputs [T, D] of the routed layers
    left_out: dict[int, jax.Array] | None = None  # filled with what each layer had no room for


class Layer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, spec: TrunkSpec, index: int, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(spec.d_model, spec.rms_norm_eps)
        self.attention = Attention(spec, rngs=rngs)
        self.ffn_norm = RMSNorm(spec.d_model, spec.rms_norm_eps)
        has_ffn = spec.shared_ffn or index not in spec.routed_layers
        self.ffn = GatedFFN(spec, rngs=rngs) if has_ffn else None
        self.activation = spec.activation

    def __call__(
        self,
        x_BSD: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None,
        index: int,
    ) -> jax.Array:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), segment_ids_BS, positions_BS)
        h_BSD = self.ffn_norm(x_BSD)
        y_BSD = x_BSD if self.ffn is None else x_BSD + self.ffn(h_BSD)
        if experts is None or index not in experts.pools:
            return y_BSD
        h_TD = h_BSD.reshape(-1, h_BSD.shape[-1])
        if experts.taps is not None:
            experts.taps[index] = h_TD
        output = experts.run(h_TD, experts.pools[index], experts.routing.flat(), activation=self.activation)
        if experts.left_out is not None:
            experts.left_out[index] = output.left_out
        return y_BSD + output.y_TD.reshape(y_BSD.shape)


class Trunk(nnx.Module):
    """A decoder-only transformer that carries expert modules."""

    def __init__(self, spec: TrunkSpec, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(spec.d_model**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.d_model), jnp.float32))
        self.layers = nnx.List(Layer(spec, index, rngs=rngs) for index in range(spec.num_layers))
        self.norm = RMSNorm(spec.d_model, spec.rms_norm_eps)
        self.unembedding = None if spec.tie_embeddings else Linear(spec.d_model, spec.vocab_size, bias=False, rngs=rngs)
        self.spec = spec

    def _run(
        self,
        layers: Sequence[Layer],
        first: int,
        x_BSD: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None = None,
    ) -> jax.Array:
        for index, layer in enumerate(layers, start=first):
            x_BSD = layer(x_BSD, segment_ids_BS, positions_BS, experts, index)
        return x_BSD

    def enter(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
        """The hidden state that the router reads: [B, S, D] at the input of the first routed layer."""
        x_BSD = self.embedding[...][tokens_BS]
        return self._run(self.layers[: self.spec.routing_layer], 0, x_BSD, segment_ids_BS, positions_BS)

    def routed(
        self, x_BSD: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array, experts: Experts | None
    ) -> jax.Array:
        """The layers from the first routed one on; `experts=None` is the bare trunk."""
        first = self.spec.routing_layer
        return self._run(self.layers[first:], first, x_BSD, segment_ids_BS, positions_BS, experts)

    def head(self, x_BSD: jax.Array) -> jax.Array:
        """Logits, float32[B, S, V]."""
        x_BSD = self.norm(x_BSD)
        if self.unembedding is None:
            logits = x_BSD.reshape(-1, x_BSD.shape[-1]) @ self.embedding[...].T.astype(x_BSD.dtype)
            return logits.reshape(*x_BSD.shape[:-1], -1).astype(jnp.float32)
        return self.unembedding(x_BSD).astype(jnp.float32)

    def __call__(
        self,
        tokens_BS: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None = None,
    ) -> jax.Array:
        """All three parts in one: logits, float32[B, S, V]."""
        x_BSD = self.enter(tokens_BS, segment_ids_BS, positions_BS)
        return self.head(self.routed(x_BSD, segment_ids_BS, positions_BS, experts))


def token_losses(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Cross-entropy in nats of every position, float32[B, S]."""
    target_logit = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BSV, axis=-1) - target_logit


def greedy_hits(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Whether greedy decoding would have produced the target, bool[B, S]."""
    return jnp.argmax(logits_BSV, axis=-1) == targets_BS
