"""Layers that are alike, stacked: one compiled body for all of them, so that a program does not grow with depth.

A trunk is cut into stacks, each a short pattern of layers that repeats. Parameters, pools and caches of a stack have
one more axis in front, its turns. A stack of one turn has none: its layers are plain, and that is the default.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.nn.spec import TrunkSpec

LONGEST_UNIT = 8  # layers after which a pattern of layers may repeat

T = TypeVar("T")
M = TypeVar("M", bound=nnx.Module)


class Stack(NamedTuple):
    """`repeats` turns of a pattern of `unit` layers, from layer `first` on."""

    first: int
    unit: int
    repeats: int

    @property
    def name(self) -> str:
        """Of its loop in a program, so that what a turn does can be counted for each time it runs."""
        return f"layers{self.first}x{self.repeats}"

    @property
    def end(self) -> int:
        """The layer behind it."""
        return self.first + self.unit * self.repeats

    def layers(self, place: int) -> range:
        """The layers of one place of the pattern, turn by turn."""
        return range(self.first + place, self.end, self.unit)


def unroll_layers(num_layers: int) -> tuple[Stack, ...]:
    """Every layer by itself: what computes fastest on CPUs, where a loop copies each turn's weights."""
    return tuple(Stack(index, 1, 1) for index in range(num_layers))


def find_stacks(kinds: Sequence[Hashable], first: int = 0) -> tuple[Stack, ...]:
    """Cuts layers, numbered from `first`, into repeats of short patterns of equal kinds."""
    stacks, at = [], 0
    while at < len(kinds):
        best = (1, 1)
        for unit in range(1, min(LONGEST_UNIT, len(kinds) - at) + 1):
            repeats = 1
            while kinds[at : at + unit] == kinds[at + repeats * unit : at + (repeats + 1) * unit]:
                repeats += 1
            # A longer pattern must cover more layers to be worth compiling.
            if repeats > 1 and unit * repeats > best[0] * best[1]:
                best = (unit, repeats)
        stacks.append(Stack(first + at, *best))
        at += best[0] * best[1]
    return tuple(stacks)


def stack_trunk(spec: TrunkSpec, pools: Mapping[int, Hashable] | None = None) -> tuple[Stack, ...]:
    """The stacks of a trunk. None reaches over the layer in front of which the router looks.

    Args:
        spec: says in what its layers differ.
        pools: by routed layer something that is equal where pools have equal shapes; all are if left out.
    """
    kinds = [
        (spec.window_of(index), spec.rope_of(index), spec.has_ffn(index), index in spec.routed_layers)
        + ((pools.get(index),) if pools is not None else ())
        for index in range(spec.num_layers)
    ]
    cut = spec.routing_layer
    return find_stacks(kinds[:cut]) + find_stacks(kinds[cut:], cut)


def stack_modules(layers: Sequence[M], stacks: Sequence[Stack]) -> list[M]:
    """Layers as the places of all stacks' patterns, one behind the other."""
    return [_stack_place([layers[index] for index in stack.layers(j)]) for stack in stacks for j in range(stack.unit)]


def _stack_place(layers: Sequence[M]) -> M:
    if len(layers) == 1:
        return layers[0]
    graphs, states = zip(*map(nnx.split, layers), strict=True)
    assert all(graph == graphs[0] for graph in graphs), "layers of a stack are alike"
    return nnx.merge(graphs[0], stack_trees(states))


def stack_trees(trees: Sequence[T]) -> T:
    """Equal trees of arrays as one, with an axis more in front; a single one stays as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_state(state: nnx.State, stacks: Sequence[Stack]) -> nnx.State:
    """The parameters of an unrolled trunk as those of a stacked one."""
    flat = dict(nnx.to_flat_state(state))
    kept = {path: leaf for path, leaf in flat.items() if path[0] != "layers"}
    places = [(stack, j) for stack in stacks for j in range(stack.unit)]
    for place, (stack, j) in enumerate(places):
        first, *others = stack.layers(j)
        for path in [path for path in flat if path[:2] == ("layers", first)]:
            leaves = [flat[path], *(flat["layers", index, *path[2:]] for index in others)]
            kept["layers", place, *path[2:]] = stack_trees(leaves)
    return nnx.from_flat_state(kept)


def stack_pools(pools: Mapping[int, Any], stacks: Sequence[Stack]) -> dict[int, Any]:
    """Pools by routed layer as those that a stacked trunk takes: by the first layer of each place of a pattern."""
    return {
        stack.first + j: stack_trees([pools[index] for index in stack.layers(j)])
        for stack in stacks
        for j in range(stack.unit)
        if stack.first + j in pools
    }
