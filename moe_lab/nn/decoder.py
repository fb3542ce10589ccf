"""The one decoder: trained, measured, generated from and planned by the same forward pass.

`Trunk.forward` has three parts, so that the router can look before the experts run and so that many candidates can
share the work in front of them: `enter` (embedding and the layers before the first routed one), `routed` (the rest,
with the experts), `head` (logits). What a pass leaves besides goes out as values.

Shape letters: B batch, S sequence, T = B * S tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.nn.activations import KERNEL_NAMES
from moe_lab.nn.attention import Attention
from moe_lab.nn.cache import Cache, Chunk, LayerCache, close_chunk, make_cache, open_chunk
from moe_lab.nn.expert_ffn import LayerOutput, OneDevice
from moe_lab.nn.ffn import GatedFFN, Linear
from moe_lab.nn.layout import ONE_DEVICE, Layout
from moe_lab.nn.losses import Unembedding, choose_tokens_at_once
from moe_lab.nn.norms import RMSNorm
from moe_lab.nn.pool import Routing
from moe_lab.nn.precision import FLOAT32, Precision
from moe_lab.nn.spec import TrunkSpec
from moe_lab.nn.stack import Stack, stack_modules, stack_trees, unroll_layers


class RunLayer(Protocol):
    """How a routed layer is run: `OneDevice`, or over a mesh (`moe_lab.parallel`)."""

    def __call__(self, h_TD: jax.Array, pool: Any, routing: Routing, *, activation: str) -> LayerOutput: ...


class Experts(NamedTuple):
    """What runs in the routed layers: one pool per routed layer and one routing for all of them.

    A stacked trunk takes stacked pools, by the first of their layers: see `stack_pools`.
    """

    pools: Mapping[int, Any]  # of the kind that `run` takes
    routing: Routing
    run: RunLayer = OneDevice()
    keep_inputs: bool = False  # whether what the experts read comes out as a side output


class SideOutputs(NamedTuple):
    """What a pass says besides its result."""

    dropped: jax.Array  # int32, what limits of the layers had no room for, summed over them
    inputs: Mapping[int, jax.Array]  # as `pools` what each layer's experts read, [T, D]; empty unless asked for


class Output(NamedTuple):
    """What comes out of the layers."""

    hidden_BSD: jax.Array
    cache: Cache | None  # where one went in: with these tokens in it
    side: SideOutputs


class Rows(NamedTuple):
    """Where the tokens of a pass stand."""

    segment_ids_BS: jax.Array  # int32, number of the document in its row, 0 = padding
    positions_BS: jax.Array  # int32, in the document
    chunk: Chunk | None  # behind what a cache holds


class LayerPass(NamedTuple):
    """What comes out of one layer; `inputs_TD` is there where experts ran."""

    hidden_BSD: jax.Array
    cache: LayerCache | None
    dropped: jax.Array
    inputs_TD: jax.Array | None


class Layer(nnx.Module):
    """One transformer layer: attention, then the trunk's FFN with the experts beside it."""

    def __init__(self, spec: TrunkSpec, index: int, *, rngs: nnx.Rngs, layout: Layout = ONE_DEVICE):
        def norm(*placements: str) -> RMSNorm | None:
            return RMSNorm(spec.d_model, spec) if spec.norm_placement in placements else None

        self.attention_norm = norm("pre", "both")
        self.attention = Attention(spec, index, rngs=rngs, layout=layout)
        self.attention_post_norm = norm("post", "both")
        self.ffn_norm = norm("pre", "both")
        self.ffn = GatedFFN(spec, rngs=rngs) if spec.has_ffn(index) else None
        self.ffn_post_norm = norm("post", "both")
        self.activation = spec.activation
        self.residual_multiplier = spec.residual_multiplier
        self.layout = layout

    def _add(self, x_BSD: jax.Array, branch_BSD: jax.Array) -> jax.Array:
        return x_BSD + (branch_BSD if self.residual_multiplier == 1 else branch_BSD * self.residual_multiplier)

    def __call__(
        self,
        x_BSD: jax.Array,
        rows: Rows,
        experts: Experts | None = None,
        pool: Any = None,
        cache: LayerCache | None = None,
    ) -> LayerPass:
        """The layer, with `experts` of this `pool` if both are given, behind what this `cache` holds."""
        by_token = rows.chunk is not None and not self.layout.spreads
        h_BSD = x_BSD if self.attention_norm is None else self.attention_norm(x_BSD, by_token=by_token)
        y_BSD, cache = self.attention(h_BSD, rows.segment_ids_BS, rows.positions_BS, cache, rows.chunk)
        if self.attention_post_norm is not None:
            y_BSD = self.attention_post_norm(y_BSD, by_token=by_token)
        x_BSD = self._add(x_BSD, y_BSD)
        h_BSD = x_BSD if self.ffn_norm is None else self.ffn_norm(x_BSD, by_token=by_token)
        branches = [] if self.ffn is None else [self.ffn(h_BSD, by_token=by_token)]
        h_TD, dropped = None, jnp.zeros((), jnp.int32)
        if experts is not None and pool is not None:
            h_TD = h_BSD.reshape(-1, h_BSD.shape[-1])
            name = KERNEL_NAMES[self.activation]
            output = experts.run(h_TD, pool, experts.routing.flat(), activation=name)
            branches.append(output.y_TD.reshape(x_BSD.shape))
            dropped = output.dropped
        if self.ffn_post_norm is not None and branches:
            # The norm is of what the layer adds in all, so that a module is as wide an FFN as it says.
            branches = [self.ffn_post_norm(sum(branches[1:], branches[0]), by_token=by_token)]
        for branch_BSD in branches:
            x_BSD = self._add(x_BSD, branch_BSD)
        return LayerPass(x_BSD, cache, dropped, h_TD)


class StackPass(NamedTuple):
    """What the layers of a stack leave, by place of its pattern."""

    caches: list[LayerCache | None]
    dropped: jax.Array
    inputs: list[jax.Array | None]  # what experts read, where it is to be kept


def run_stack(
    stack: Stack,
    layers: Sequence[Layer],
    x_BSD: jax.Array,
    rows: Rows,
    experts: Experts | None,
    pools: Sequence[Any],
    caches: Sequence[LayerCache | None],
    layout: Layout,
) -> tuple[jax.Array, StackPass]:
    """All turns of a pattern of layers, in a loop if there is more than one."""
    split = [nnx.split(layer) for layer in layers]

    def turn(x_BSD: jax.Array, stacked: Any) -> tuple[jax.Array, StackPass]:
        made = StackPass([], jnp.zeros((), jnp.int32), [])
        for (graph, _), state, pool, cache in zip(split, *stacked, strict=True):
            passed = nnx.merge(graph, layout.gather(state))(x_BSD, rows, experts, pool, cache)
            x_BSD = layout.spread(passed.hidden_BSD)
            made.caches.append(passed.cache)
            made.inputs.append(passed.inputs_TD if experts is not None and experts.keep_inputs else None)
            made = made._replace(dropped=made.dropped + passed.dropped)
        return x_BSD, made

    stacked = ([state for _, state in split], list(pools), list(caches))
    step = jax.checkpoint(turn) if layout.recompute else turn
    if stack.repeats == 1:
        return step(x_BSD, stacked)
    with jax.named_scope(stack.name):
        x_BSD, made = jax.lax.scan(step, x_BSD, stacked, length=stack.repeats)
    return x_BSD, made._replace(dropped=made.dropped.sum(dtype=jnp.int32))


class Trunk(nnx.Module):
    """A decoder-only transformer that carries expert modules.

    Args:
        spec: its shapes and switches.
        rngs: for fresh weights, float32.
        precision: in which dtype it computes.
        stacks: which layers are stacked (`stack_trunk`); none if left out.
        layout: where its arrays lie.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        *,
        rngs: nnx.Rngs,
        precision: Precision = FLOAT32,
        stacks: Sequence[Stack] | None = None,
        layout: Layout = ONE_DEVICE,
    ):
        init = jax.nn.initializers.normal(spec.d_model**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.d_model), jnp.float32))
        self.stacks = unroll_layers(spec.num_layers) if stacks is None else tuple(stacks)
        layers = [Layer(spec, index, rngs=rngs, layout=layout) for index in range(spec.num_layers)]
        self.layers = nnx.List(stack_modules(layers, self.stacks))
        self.norm = RMSNorm(spec.d_model, spec)
        self.unembedding = None if spec.tie_embeddings else Linear(spec.d_model, spec.vocab_size, bias=False, rngs=rngs)
        self.spec, self.precision, self.layout = spec, precision, layout

    def make_cache(self, rows: int, capacity: int, *, takes_back: int = 0) -> Cache:
        """An empty cache for so many rows of at most so many tokens. See `moe_lab.nn.cache.make_cache`."""
        cache = make_cache(self.spec, rows, capacity, self.precision.compute, takes_back=takes_back)
        places = (
            [cache.layers[index] for index in stack.layers(j)] for stack in self.stacks for j in range(stack.unit)
        )
        return cache._replace(layers=tuple(map(stack_trees, places)))

    def enter(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array, cache: Cache | None = None
    ) -> Output:
        """The hidden state that the router reads: at the input of the first routed layer.

        With a cache, tokens stand behind what it holds; rows grow by this chunk once `routed` has read it too.
        """
        x_BSD = self.layout.gather(self.embedding[...])[tokens_BS].astype(self.precision.compute)
        if self.spec.embedding_multiplier != 1:
            x_BSD = x_BSD * jnp.asarray(self.spec.embedding_multiplier, x_BSD.dtype)
        x_BSD = self.layout.spread(x_BSD)
        return self._run(0, self.spec.routing_layer, x_BSD, segment_ids_BS, positions_BS, None, cache)

    def routed(
        self,
        x_BSD: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None,
        cache: Cache | None = None,
    ) -> Output:
        """The layers from the first routed one on; `experts=None` is the bare trunk. `cache` is from `enter`."""
        first = self.spec.routing_layer
        output = self._run(first, self.spec.num_layers, x_BSD, segment_ids_BS, positions_BS, experts, cache)
        if output.cache is None:
            return output
        chunk = open_chunk(output.cache, segment_ids_BS)
        return output._replace(cache=close_chunk(output.cache, chunk))

    def _run(
        self,
        first: int,
        end: int,
        x_BSD: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None,
        cache: Cache | None,
    ) -> Output:
        """Layers `first` to `end`."""
        rows = Rows(segment_ids_BS, positions_BS, None if cache is None else open_chunk(cache, segment_ids_BS))
        caches: list[Any] = [None] * len(self.layers) if cache is None else list(cache.layers)
        dropped = jnp.zeros((), jnp.int32)
        inputs: dict[int, jax.Array] = {}
        places = slice(0, 0)
        for stack in self.stacks:
            places = slice(places.stop, places.stop + stack.unit)
            if not first <= stack.first < end:
                continue
            pools = [None if experts is None else experts.pools.get(stack.first + j) for j in range(stack.unit)]
            x_BSD, made = run_stack(
                stack, self.layers[places], x_BSD, rows, experts, pools, caches[places], self.layout
            )
            caches[places] = made.caches
            dropped = dropped + made.dropped
            inputs |= {stack.first + j: h_TD for j, h_TD in enumerate(made.inputs) if h_TD is not None}
        cache = None if cache is None else cache._replace(layers=tuple(caches))
        return Output(x_BSD, cache, SideOutputs(dropped, inputs))

    def forward(
        self,
        tokens_BS: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """All layers: the hidden state in front of `head`, the cache with these tokens in it, side outputs.

        Args:
            tokens_BS: int32 ids: whole rows, or with a cache the next chunk of every row.
            segment_ids_BS: int32, the document of each token in its row; 0 is padding, at the end of a chunk.
            positions_BS: int32, of each token in its document.
            experts: what runs in the routed layers; none is the bare trunk.
            cache: from `make_cache` or an earlier pass.
        """
        entered = self.enter(tokens_BS, segment_ids_BS, positions_BS, cache)
        return self.routed(entered.hidden_BSD, segment_ids_BS, positions_BS, experts, entered.cache)

    def _unembed(self) -> Unembedding:
        own = self.unembedding
        weight = self.layout.gather(self.embedding[...] if own is None else own.weight[...])
        return Unembedding(weight, self.spec.logit_multiplier, self.spec.logit_softcap, tied=own is None)

    @property
    def _tokens_at_once(self) -> int:
        return choose_tokens_at_once(self.spec.vocab_size, self.layout.devices)

    def head(self, x_BSD: jax.Array, *, by_token: bool = False) -> jax.Array:
        """Logits, float32[B, S, V], of the hidden states that come out of the layers.

        With `by_token` each token's bits are its own, as those of the layers are behind a cache; there is no gradient.
        """
        by_token = by_token and not self.layout.spreads
        return self._unembed().logits(self.norm(x_BSD, by_token=by_token), by_token=by_token)

    def losses(self, x_BSD: jax.Array, targets_BS: jax.Array) -> jax.Array:
        """Cross-entropy in nats, float32[B, S]; of a large vocabulary all logits are never there at once."""
        return self._unembed().losses(self.norm(x_BSD), targets_BS, self._tokens_at_once)

    def scores(self, x_BSD: jax.Array, targets_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `losses`, with whether greedy decoding gives the target: for measuring."""
        return self._unembed().scores(self.norm(x_BSD), targets_BS, self._tokens_at_once)

    def __call__(
        self,
        tokens_BS: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        experts: Experts | None = None,
    ) -> jax.Array:
        """Logits of whole rows, float32[B, S, V]."""
        return self.head(self.forward(tokens_BS, segment_ids_BS, positions_BS, experts).hidden_BSD)


def abstract_trunk(
    spec: TrunkSpec, precision: Precision = FLOAT32, layout: Layout = ONE_DEVICE
) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure and the shapes of a trunk, without its numbers."""
    return _abstract_trunk(spec, precision, layout)


@functools.cache
def _abstract_trunk(spec: TrunkSpec, precision: Precision, layout: Layout) -> tuple[nnx.GraphDef, nnx.State]:
    """Kept, because a process asks several times and tracing thirty layers takes a second."""
    return nnx.split(nnx.eval_shape(lambda: Trunk(spec, rngs=nnx.Rngs(0), precision=precision, layout=layout)))
