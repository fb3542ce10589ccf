"""What each kind of training minimises. All run in the one loop of `moe_lab.training`.

Shape letters: B batch, S sequence, T = B * S tokens, D model width, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from moe_lab.compose.build import routed_layers_on
from moe_lab.compose.model import UNCAPPED, ComposedModel, ModelArrays, compose_pass
from moe_lab.compose.parts import LoadedTrunk, trunk_graph
from moe_lab.data import Batch, TrainBatches
from moe_lab.experts.interface import blocks_of
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.weights import ExpertWeights
from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.pool import Routing, make_pool
from moe_lab.nn.precision import FLOAT32, Precision
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.mesh import TOKENS, replicate, to_host, to_mesh, trunk_to_mesh
from moe_lab.parallel.pool import block_spec, cut_evenly
from moe_lab.routing.joining import Seam
from moe_lab.routing.outcomes import OutcomeTable
from moe_lab.routing.router import Features, Router, normalised
from moe_lab.training import Objective

Metrics = dict[str, jax.Array]


def mean_loss(loss_BS: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """Mean over the tokens that count."""
    return (loss_BS * mask_BS).sum() / jnp.maximum(mask_BS.sum(), 1.0)


def params_to_host(params: Any, mesh: Mesh | None) -> Any:
    """What was trained on a mesh, back on the default device of every process."""
    return params if mesh is None else jax.tree.map(jnp.asarray, to_host(params))


class LanguageObjective(Objective):
    """Anything that learns from batches of text. On a mesh every device works on its share of the rows."""

    def __init__(self, batches: TrainBatches, units_per_step: int, mesh: Mesh | None = None):
        self._batches = batches
        self._mesh = mesh
        self.units_per_step = units_per_step

    def batch(self, step: int) -> Batch:
        batch = self._batches.batch(step)
        return batch if self._mesh is None else to_mesh(batch, self._mesh, TOKENS)


class TrunkObjective(LanguageObjective):
    """The trunk alone, on a mixture of domains."""

    def __init__(
        self,
        spec: TrunkSpec,
        batches: TrainBatches,
        units_per_step: int,
        mesh: Mesh | None = None,
        sharded: bool = False,
        precision: Precision = FLOAT32,
    ):
        super().__init__(batches, units_per_step, mesh)
        self._spec, self._sharded = spec, sharded
        self.graph = trunk_graph(spec, precision, mesh)

    def init(self, key: jax.Array) -> nnx.State:
        return trunk_to_mesh(nnx.state(Trunk(self._spec, rngs=nnx.Rngs(params=key))), self._mesh, self._sharded)

    def loss(self, params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        trunk = nnx.merge(self.graph, params)
        output = trunk.forward(batch.tokens, batch.segment_ids, batch.positions)
        return mean_loss(trunk.losses(output.hidden_BSD, batch.targets), batch.loss_mask), {}


def nested_widths(key: jax.Array, rows: int, ladder: Sequence[int], block: int, widest_share: float) -> jax.Array:
    """Blocks per row: a share of the rows runs the full width, the rest spread evenly over the narrower rungs.

    All rungs are trained in one pass whose cost is that of what it runs.
    """
    widths = np.array([blocks_of(width, block) for width in ladder], np.int32)
    narrower = len(ladder) - 1
    chance = [*[(1 - widest_share) / narrower] * narrower, widest_share] if narrower else [1.0]
    return jax.random.choice(key, jnp.asarray(widths), (rows,), p=jnp.asarray(chance))


def single_module_experts(
    weights: ExpertWeights, kind: ExpertKind, width_B: jax.Array, sequence: int, mesh: Mesh | None = None
) -> Experts:
    """A module as the only expert, at one width per row; on a mesh every device holds an even run of its blocks."""
    width_BS1 = jnp.broadcast_to(width_B[:, None, None], (*width_B.shape, sequence, 1))
    routing = Routing(jnp.zeros_like(width_BS1), width_BS1, jnp.ones(width_BS1.shape, jnp.float32))
    run_layer = routed_layers_on(kind, mesh)
    if mesh is None:
        return Experts({layer: make_pool([blocks]) for layer, blocks in weights.items()}, routing, run_layer)
    return Experts({layer: cut_evenly(blocks, mesh) for layer, blocks in weights.items()}, routing, run_layer)


class Entered(NamedTuple):
    """A batch whose states in front of the first routed layer are known."""

    batch: Any
    hidden_BSD: jax.Array


@partial(jax.jit, static_argnums=0)
def _enter(graph: nnx.GraphDef, state: nnx.State, batch: Any) -> jax.Array:
    return nnx.merge(graph, state).enter(batch.tokens, batch.segment_ids, batch.positions).hidden_BSD


class ModuleObjective(LanguageObjective):
    """A module beside its frozen trunk, all widths of its ladder at once (nested, after arXiv 2310.07707)."""

    def __init__(
        self,
        trunk: LoadedTrunk,
        kind: ExpertKind,
        start: Callable[[jax.Array], ExpertWeights],
        ladder: Sequence[int],
        widest_share: float,
        batches: TrainBatches,
        units_per_step: int,
        mesh: Mesh | None = None,
    ):
        super().__init__(batches, units_per_step, mesh)
        self._trunk, self._kind, self._start = trunk, kind, start
        self._ladder, self._widest_share = tuple(ladder), widest_share
        self.frozen = {"trunk": trunk.on(mesh)}

    def init(self, key: jax.Array) -> ExpertWeights:
        return self._spread(self._start(key))

    def batch(self, step: int) -> Any:
        batch = super().batch(step)
        if self._trunk.states is None or self._mesh is not None:
            return batch
        compute = partial(_enter, self._trunk.graph, self._trunk.state, batch)
        return Entered(batch, self._trunk.enter(batch, self._mesh, compute))

    def _spread(self, weights: ExpertWeights) -> ExpertWeights:
        """Blocks over the devices of a mesh where they divide, everywhere where they do not."""
        if self._mesh is None:
            return weights
        return {layer: to_mesh(blocks, self._mesh, block_spec(blocks, self._mesh)) for layer, blocks in weights.items()}

    def enter(self, trunk: Trunk, batch: Any) -> Entered:
        """The batch with its states, computed here unless they came with it."""
        if isinstance(batch, Entered):
            return batch
        return Entered(batch, trunk.enter(batch.tokens, batch.segment_ids, batch.positions).hidden_BSD)

    def hidden(self, trunk: Trunk, params: ExpertWeights, entered: Entered, key: jax.Array) -> jax.Array:
        """The hidden states of the trunk with the module at a drawn width per row."""
        batch = entered.batch
        width_B = nested_widths(key, len(batch.tokens), self._ladder, self._trunk.spec.block, self._widest_share)
        experts = single_module_experts(params, self._kind, width_B, batch.tokens.shape[1], self._mesh)
        return trunk.routed(entered.hidden_BSD, batch.segment_ids, batch.positions, experts).hidden_BSD

    def loss(self, params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        trunk = nnx.merge(self._trunk.graph_on(self._mesh), frozen["trunk"])
        entered = self.enter(trunk, batch)
        batch = entered.batch
        hidden_BSD = self.hidden(trunk, params, entered, key)
        return mean_loss(trunk.losses(hidden_BSD, batch.targets), batch.loss_mask), {}


DistilLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Metrics]]
"""(student logits, teacher logits, targets, mask) -> loss and metrics."""


class DistilObjective(ModuleObjective):
    """A small module learns from the large one it was cut from; the trunk and the teacher stay as they are."""

    def __init__(self, teacher: ExpertWeights, distil_loss: DistilLoss, **module: Any):
        super().__init__(**module)
        self._distil_loss = distil_loss
        self.frozen = {**self.frozen, "teacher": self._spread(teacher)}

    def loss(self, params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        trunk = nnx.merge(self._trunk.graph_on(self._mesh), frozen["trunk"])
        entered = self.enter(trunk, batch)
        batch = entered.batch
        student = trunk.head(self.hidden(trunk, params, entered, key))
        rows, sequence = batch.tokens.shape
        full_B = jnp.full((rows,), max(blocks.num_blocks for blocks in frozen["teacher"].values()), jnp.int32)
        experts = single_module_experts(frozen["teacher"], self._kind, full_B, sequence, self._mesh)
        teacher_BSD = trunk.routed(entered.hidden_BSD, batch.segment_ids, batch.positions, experts).hidden_BSD
        teacher = trunk.head(teacher_BSD)
        return self._distil_loss(student, teacher, batch.targets, batch.loss_mask)


class OutcomeObjective(Objective):
    """A router on an outcome table: seconds, because the language model has already run.

    A router that learns from text gets, in every step, as many rows of the same domains that nothing was measured on.
    Too small to share out: on a mesh every device does all of it.
    """

    unit = "tokens"

    def __init__(
        self,
        router: Router,
        table: OutcomeTable,
        rows: int,
        seed: int,
        mesh: Mesh | None = None,
        text: TrainBatches | None = None,
    ):
        assert (text is not None) >= router.learns_from_text, "this router learns from text too"
        self._mesh, self._text = mesh, text if router.learns_from_text else None
        self._table, self._rows, self._seed = table, min(rows, len(table.group_N)), seed
        self._modules = len(router.space.modules)
        self._count(router, self._features(self._of_table(np.arange(len(table.group_N))), jnp.float32(0)))
        split: Any = nnx.split(router, nnx.Param, ...)
        self._graph, self._state, counted = split
        self.frozen = replicate(counted, mesh)
        self.units_per_step = self._rows * table.segment_ids_NS.shape[1]

    def _count(self, router: Router, features: Features) -> None:
        """What is set before the first step, from all measured outcomes."""
        router.prepare(features)

    @property
    def own_G(self) -> np.ndarray:
        """For each domain the index of the module whose own text it is."""
        return self._table.own_G

    @property
    def homes(self) -> dict[str, str]:
        """Each domain with the module whose own text it is."""
        own = (self._table.space.modules[index] for index in self.own_G)
        return dict(zip(self._table.groups, own, strict=True))

    def init(self, key: jax.Array) -> nnx.State:
        return replicate(self._state, self._mesh)

    def batch(self, step: int) -> dict[str, Any]:
        per_epoch = len(self._table.group_N) // self._rows
        epoch, place = divmod(step, per_epoch)
        rng = np.random.default_rng((self._seed, epoch))
        rows = rng.permutation(len(self._table.group_N))[place * self._rows :][: self._rows]
        batch = self._of_table(rows)
        if self._text is not None:
            text = self._text.batch(step)
            own_BS = np.broadcast_to(self.own_G[text.domain][:, None], text.tokens.shape)
            batch["text"] = (text.tokens, text.segment_ids, own_BS)
        return replicate(batch, self._mesh)

    def _of_table(self, rows: np.ndarray) -> dict[str, Any]:
        return {
            "hidden": self._table.hidden_NSD[rows],
            "segment_ids": self._table.segment_ids_NS[rows],
            "tokens": self._table.tokens_NS[rows],
            "own": self.own_G[self._table.group_N[rows]],
            "loss": self._table.loss_NSC[rows],
        }

    def _features(self, batch: dict[str, Any], draw: jax.Array) -> Features:
        rows = len(batch["tokens"])
        return Features(
            hidden_BSD=batch["hidden"],
            tokens_BS=batch["tokens"],
            segment_ids_BS=batch["segment_ids"],
            available_BE=jnp.ones((rows, self._modules), bool),
            price_B=jnp.broadcast_to(draw, rows),
            outcomes_BSC=batch["loss"],
            hint_BE=jnp.log(jax.nn.one_hot(batch["own"], self._modules)),
        )

    def loss(self, params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        router = nnx.merge(self._graph, params, frozen)
        loss, metrics = router.outcome_loss(self._features(batch, jax.random.uniform(key)))
        if self._text is None:
            return loss, metrics
        text_loss, more = router.text_loss(*batch["text"])
        return loss + text_loss, {**metrics, **more}


class JoinObjective(OutcomeObjective):
    """The newcomers' part of a router that modules join; what was trained before stays as it is.

    Args:
        router: fresh, wider than the trained one.
        known: the trained one.
        met: domains that the trained one learned from; the text of such a one stays that of a module it knows.
    """

    def __init__(self, router: Router, known: Router, met: Collection[str], table: OutcomeTable, *arguments: Any):
        self._known, self._met = known, met
        super().__init__(router, table, *arguments)
        whole, theirs = self._state, nnx.state(known, nnx.Param)
        self._seam = Seam(whole, theirs)
        self._state = self._seam.behind(whole, theirs)
        self.frozen = {"counted": self.frozen, "known": replicate(theirs, self._mesh)}

    def _count(self, router: Router, features: Features) -> None:
        router.join(self._known, features)

    @cached_property
    def own_G(self) -> np.ndarray:
        newcomers = self._table.space.modules[len(self._known.space.modules) :]
        met_G = np.isin(self._table.groups, list(self._met))
        return np.where(met_G, self._table.without(newcomers).own_G, self._table.own_G)

    def whole(self, newcomers: nnx.State, known: nnx.State) -> nnx.State:
        """All parameters of the joined router."""
        return self._seam.beside(known, newcomers)

    def loss(self, params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return super().loss(self.whole(params, frozen["known"]), frozen["counted"], batch, key)


class RouterLanguageObjective(LanguageObjective):
    """A router through the composed language model's loss; trunk and modules stay as they are."""

    def __init__(self, model: ComposedModel, batches: TrainBatches, units_per_step: int):
        super().__init__(batches, units_per_step, model.mesh)
        self._model = model
        self._graph, self._state = nnx.split(model.router)
        arrays = model.arrays()
        self.frozen = arrays._replace(router=nnx.State({}))

    def init(self, key: jax.Array) -> nnx.State:
        return replicate(self._state, self._model.mesh)

    def loss(self, params: Any, frozen: ModelArrays, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        trunk = nnx.merge(self._model.trunk_graph, frozen.trunk)
        router = nnx.merge(self._graph, params)
        hidden_BSD = trunk.enter(batch.tokens, batch.segment_ids, batch.positions).hidden_BSD
        features = Features(
            hidden_BSD=normalised(hidden_BSD),
            tokens_BS=batch.tokens,
            segment_ids_BS=batch.segment_ids,
            available_BE=jnp.broadcast_to(frozen.present_E, (len(batch.tokens), len(frozen.present_E))),
            price_B=jnp.zeros(len(batch.tokens)),
        )
        parts = (batch.tokens, batch.targets, batch.segment_ids, batch.positions)
        made = compose_pass(
            trunk, router, frozen, parts, features, hidden_BSD, jnp.int32(UNCAPPED), self._model.run_layer
        )
        auxiliary, metrics = router.auxiliary_loss(features)
        language = mean_loss(trunk.losses(made.hidden_BSD, batch.targets), batch.loss_mask)
        return language + auxiliary, {"language_loss": language, "dropped": made.dropped, **metrics}
