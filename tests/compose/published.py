"""A registry with a tiny trunk, three modules of unequal widths and the learned routers, all of random numbers."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.artifacts.weights import to_tensors
from moe_lab.compose.build import build_model
from moe_lab.compose.lockfile import Lock, LockedPart, pin, resolve
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import candidate_space, find_module, make_router, state_tensors
from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import canonical_json
from moe_lab.data import ByteTokenizer, ByteTokenizerSpec
from moe_lab.experts.interface import Interface, declared_cost
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.lab import Lab, find_lab, init_lab
from moe_lab.nn.decoder import Trunk
from moe_lab.nn.pool import to_blocks
from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry import Registry
from tests.nn.oracle import randomised

TRUNK = TrunkSpec(
    vocab_size=257,
    d_model=16,
    num_layers=2,
    num_heads=2,
    ffn_width=8,
    routed_layers=(0, 1),
    block=4,
    tie_embeddings=False,
)
WIDTHS = {"north/code": {0: 8, 1: 8}, "south/prose": {0: 12, 1: 6}, "west/sums": {0: 5, 1: 5}}
LADDERS = {"north/code": (4, 8), "south/prose": (4, 8, 12), "west/sums": (4, 5)}
MODULES = tuple(WIDTHS)
ROUTERS: dict[str, dict[str, Any]] = {
    "gain": {"type": "gain", "hidden": 8, "buckets": 64},
    "domain": {"type": "domain", "half_life": 4.0},
    "topk": {"type": "topk", "half_life": 4.0},
    "cascade": {"type": "cascade", "hidden": 8, "buckets": 64},
    "budget": {"type": "budget", "hidden": 8, "buckets": 64, "budget": 0.5},
}
LEARNED = tuple(ROUTERS)
ADDED: dict[str, dict[str, float]] = {name: {} for name in ROUTERS} | {"domain": {"trunk_loss_E": 3.0}}
"""So that the domain router finds its modules worth running."""
FIXED = {"type": "fixed", "candidate": "south/prose:8"}


class Tokens(NamedTuple):
    """Two rows of two documents and padding."""

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray

    @staticmethod
    def draw(seed: int = 0, length: int = 24) -> Tokens:
        rng = np.random.default_rng(seed)
        place = np.arange(length)
        starts = np.array([[0, 9, 20], [0, 14, 22]])  # of the documents, and of the padding
        segment = (place >= starts[:, :, None]).sum(1).astype(np.int32)
        position = place - np.take_along_axis(starts, segment - 1, axis=1)
        text = rng.integers(0, TRUNK.vocab_size, (2, length + 1)).astype(np.int32)
        return Tokens(text[:, :-1], text[:, 1:], np.where(segment == 3, 0, segment), position.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Published:
    """A lab and what lies in its registry."""

    lab: Lab
    registry: Registry
    trunk: LockedPart

    @property
    def interface(self) -> Interface:
        return Interface.of_trunk(self.trunk.digest, ByteTokenizer.digest, TRUNK)

    def put(self, name: str, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> LockedPart:
        """Publishes an artifact under its next version."""
        common = {"licence": "Apache-2.0", "summary": "random numbers", "claims": [], "data": {"domains": []}}
        owner, _, own = name.partition("/")
        blocks = set(tensors) if fields["kind"] == "module" else set()
        made = self.registry.publish(owner, own, None, {**common, **fields}, tensors, blocks)
        return LockedPart(ref=str(made.ref), digest=made.digest)

    def put_module(
        self,
        name: str,
        widths: dict[int, int],
        ladder: tuple[int, ...],
        *,
        seed: int = 0,
        interface: Interface | None = None,
    ) -> LockedPart:
        """Publishes a module of random numbers, made for `interface`, which is by default the trunk's."""
        rng, interface = np.random.default_rng(seed), interface or self.interface
        weights = {
            layer: to_blocks(
                *(
                    jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)
                    for shape in ((interface.d_model, width), (interface.d_model, width), (width, interface.d_model))
                ),
                interface.block,
            )
            for layer, width in widths.items()
        }
        fields = {
            "kind": "module",
            "interface": interface.to_json(),
            "ladder": list(ladder),
            "cost": declared_cost(interface, {layer: blocks.num_blocks for layer, blocks in weights.items()}, ladder),
            "lineage": {"parents": [{**self.trunk.model_dump(), "relation": "trunk"}]},
            "config": {},
        }
        return self.put(name, fields, to_tensors(weights, KIND))

    def put_router(
        self,
        name: str,
        choice: dict[str, Any],
        modules: tuple[str, ...] = MODULES,
        *,
        trunk: str | None = None,
        learned: Sequence[LockedPart] = (),
        recorded: str = "module_digests",
        **added: float | Sequence[float],
    ) -> LockedPart:
        """Publishes a router of random numbers for some modules, with `added` added to parameters by their path.

        What it says it `learned` from is `recorded` as today's routers do, or among its parents as older ones.
        """
        rng = np.random.default_rng(0)
        space = candidate_space([find_module(self.registry, pin(self.registry, ref, "module")) for ref in modules])
        state = nnx.state(make_router(self.lab, choice, space, TRUNK.d_model))
        tensors = {
            path: (value + rng.normal(size=value.shape)).astype(value.dtype)
            for path, value in sorted(state_tensors(state).items())
        }
        for path, addition in added.items():
            tensors[path] = tensors[path] + np.asarray(addition, np.float32)
        interface = {"trunk": trunk or self.trunk.digest, "space": space.to_json()}
        parents = []
        if learned and recorded == "module_digests":
            interface["module_digests"] = {part.ref: part.digest for part in learned}
        elif learned:
            parents = [{**part.model_dump(), "relation": "module"} for part in learned]
        fields = {
            "kind": "router",
            "interface": interface,
            "lineage": {"parents": parents},
            "config": {"router": canonical_json(choice)},
        }
        return self.put(name, fields, tensors)

    def lock(self, router: str | dict[str, Any], modules: tuple[str, ...] = MODULES, **settings: Any) -> Lock:
        """Resolves a composition of these parts."""
        settings = {"name": "tiny", "trunk": "lab/trunk", "backend": "worklist", **settings}
        return resolve(CompositionSpec(kind="composition", modules=modules, router=router, **settings), self.registry)

    def model(self, lock: Lock) -> ComposedModel:
        return build_model(lock, self.registry, self.lab)


def put_trunk(registry: Registry, seed: int = 0) -> LockedPart:
    """Publishes the trunk, random numbers drawn anew for every seed."""
    _, state = randomised(lambda: Trunk(TRUNK, rngs=nnx.Rngs(0)), seed)
    fields = {
        "kind": "trunk",
        "interface": {"tokenizer": ByteTokenizer.digest},
        "config": {
            "trunk": canonical_json(TRUNK.model_dump(mode="json")),
            "tokenizer": canonical_json(ByteTokenizerSpec().model_dump(mode="json")),
        },
        "lineage": {"parents": []},
        "licence": "Apache-2.0",
    }
    made = registry.publish("lab", "trunk", None, fields, state_tensors(state))
    return LockedPart(ref=str(made.ref), digest=made.digest)


def publish_all(folder: Path) -> Published:
    """A lab with `lab/trunk`, the modules, and `lab/NAME` for each of `LEARNED`: a copy of the one of this process."""
    shutil.copytree(Path(_filled().name) / "lab", folder)
    return open_published(folder)


@functools.cache
def _filled() -> tempfile.TemporaryDirectory[str]:
    made = tempfile.TemporaryDirectory(prefix="moe-lab-published-")
    folder = Path(made.name) / "lab"
    init_lab(folder)
    put_trunk(Registry(folder / "registry"))
    published = open_published(folder)
    for seed, name in enumerate(MODULES):
        published.put_module(name, WIDTHS[name], LADDERS[name], seed=seed)
    for name in LEARNED:
        published.put_router(f"lab/{name}", ROUTERS[name], **ADDED[name])
    return made


def open_published(folder: Path) -> Published:
    """A lab that was filled before."""
    lab = find_lab(str(folder))
    registry = Registry(lab.registry_path)
    return Published(lab, registry, pin(registry, "lab/trunk", "trunk"))


def same_bits(a: jax.Array, b: jax.Array) -> None:
    """Bit for bit, so that -0.0 and 0.0 differ."""
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
