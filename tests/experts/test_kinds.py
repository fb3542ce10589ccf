"""One file makes a kind of expert: the one there is and one of the test's own keep the same contract."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import moe_lab.experts.kinds as kinds
from moe_lab.compose.build import routed_layers_on
from moe_lab.compose.lockfile import pin
from moe_lab.compose.parts import load_trunk
from moe_lab.config import decode
from moe_lab.data import ByteTokenizer, Document, build_corpus, eval_batches
from moe_lab.errors import Damaged, LabError, Refused
from moe_lab.experts.interface import Interface, rung_cost
from moe_lab.experts.kind_conformance import CHECKS, KindBench, check_kind
from moe_lab.experts.kinds import KINDS, find_kind
from moe_lab.experts.weights import init_expert
from moe_lab.jobs.measure import module_losses, trunk_losses
from moe_lab.jobs.spec import ModuleSpec
from moe_lab.nn.expert_ffn import OneDevice
from tests.compose.published import publish_all

UNGATED = """
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.experts.kind import Cost, ExpertKind
from moe_lab.nn.activations import ACTIVATIONS


class UpDown(NamedTuple):
    up: jax.Array  # [N, D, B]
    down: jax.Array  # [N, B, D]

    @property
    def num_blocks(self):
        return self.up.shape[0]


def whole(weights):
    n, d, b = weights.up.shape
    return weights.up.swapaxes(0, 1).reshape(d, n * b), weights.down.reshape(n * b, d)


def blocked(up_DF, down_FD, block):
    padding = -up_DF.shape[1] % block
    up = jnp.pad(up_DF, ((0, 0), (0, padding))).reshape(up_DF.shape[0], -1, block).swapaxes(0, 1)
    return UpDown(up, jnp.pad(down_FD, ((0, padding), (0, 0))).reshape(-1, block, down_FD.shape[1]))


class Ungated(ExpertKind):
    name = "ungated"
    parts = ("up", "down")

    def block_shapes(self, d_model, block):
        return (d_model, block), (block, d_model)

    def init(self, key, d_model, width, block):
        up = jax.nn.initializers.truncated_normal(d_model**-0.5)(key, (d_model, width))
        return blocked(up, jnp.zeros((width, d_model)), block)

    def from_parts(self, parts):
        return UpDown(*parts)

    def cut(self, weights, width):
        up, down = whole(weights)
        return blocked(up[:, :width], down[:width], weights.up.shape[2])

    def permute(self, weights, order_F):
        up, down = whole(weights)
        return blocked(up[:, order_F], down[order_F], weights.up.shape[2])

    def cost(self, d_model, block):
        return Cost(2 * d_model * block)

    def run(self, h_TD, pool, routing, *, activation):
        runs_TKN = jnp.arange(pool.blocks.num_blocks) - pool.start[routing.expert][..., None]
        asked_TKN = jnp.minimum(routing.width, pool.count[routing.expert])[..., None]
        weight_TN = (((runs_TKN >= 0) & (runs_TKN < asked_TKN)) * routing.weight[..., None]).sum(1)
        out = jnp.zeros_like(h_TD)
        for n in range(pool.blocks.num_blocks):  # one by one: a block more that nobody asks for adds zeros
            hidden_TB = ACTIVATIONS[activation](h_TD @ pool.blocks.up[n])
            out = out + weight_TN[:, n, None] * (hidden_TB @ pool.blocks.down[n])
        return out

    def activations(self, h_TD, weights, activation):
        return ACTIVATIONS[activation](h_TD @ whole(weights)[0])

    def output_norms(self, weights):
        return np.asarray(jnp.linalg.norm(whole(weights)[1], axis=-1))


KIND = Ungated()
"""


@pytest.fixture
def ungated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of kinds as if it held one file more."""
    (tmp_path / "ungated.py").write_text(UNGATED)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    monkeypatch.setattr(kinds, "KINDS", (*KINDS, "ungated"))
    yield find_kind("ungated")
    sys.modules.pop("moe_lab.experts.kinds.ungated")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_kind_keeps_the_contract(name: str, check: Callable[[KindBench], None]) -> None:
    check(KindBench(find_kind(name)))


@pytest.mark.slow
def test_a_kind_more_is_one_file(ungated: Any) -> None:
    check_kind(ungated)
    interface = Interface(
        trunk="t", tokenizer="t", d_model=6, block=4, activation="silu", routed_layers=(0, 1), kind="ungated"
    )
    assert Interface.from_json(interface.to_json()) == interface
    assert rung_cost(interface, {0: 2, 1: 1}, 8) == 3 * 2 * 6 * 4


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["init", "cut", "permute", "output_norms"])
def test_a_kind_that_breaks_a_rule_is_found(ungated: Any, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(type(ungated), broken)
    wrong: dict[str, Callable[..., Any]] = {
        "init": lambda self, key, d_model, width, block: ungated.from_parts(
            [w + 1 for w in real(self, key, d_model, width, block)]
        ),
        "cut": lambda self, weights, width: real(self, ungated.from_parts([w[::-1] for w in weights]), width),
        "permute": lambda self, weights, order: weights._replace(up=real(self, weights, order).up),
        "output_norms": lambda self, weights: real(self, weights) + 1,
    }
    monkeypatch.setattr(type(ungated), broken, wrong[broken])
    with pytest.raises(AssertionError):
        check_kind(ungated)


def test_the_usual_kind_stands_in_no_manifest_and_no_run() -> None:
    interface = Interface(trunk="t", tokenizer="t", d_model=6, block=4, activation="silu", routed_layers=(0,))
    assert "kind" not in interface.to_json()
    assert Interface.from_json(interface.to_json()).kind == "gated_ffn"
    fields: dict[str, Any] = {"kind": "module", "name": "a/b", "licence": "CC0-1.0", "trunk": "a/t", "width": 8}
    fields |= {"ladder": [8], "data": "d", "train": {"steps": 1, "batch_size": 1, "seq_len": 8, "learning_rate": 1e-3}}
    spec = decode(ModuleSpec, fields, "module.yaml")
    assert decode(ModuleSpec, {**fields, "expert_kind": "gated_ffn"}, "module.yaml") == spec
    assert "expert_kind" not in spec.model_dump(mode="json")
    with pytest.raises(LabError, match="expert_kind"):
        decode(ModuleSpec, {**fields, "expert_kind": "gated"}, "module.yaml")


def test_a_kind_that_this_version_does_not_know_is_refused() -> None:
    interface = Interface(trunk="t", tokenizer="t", d_model=6, block=4, activation="silu", routed_layers=(0,))
    with pytest.raises(LabError, match='unknown kind of expert "rank_8".*gated_ffn'):
        Interface.from_json({**interface.to_json(), "kind": "rank_8"})
    with pytest.raises(LabError, match='Did you mean "gated_ffn"'):
        Interface.from_json({**interface.to_json(), "kind": "gatd_ffn"})
    for odd in (3, None, ["gated_ffn"]):
        with pytest.raises(Damaged, match="names its kind as text"):
            Interface.from_json({**interface.to_json(), "kind": odd})


def test_another_kind_fits_the_same_socket() -> None:
    trunk = Interface(trunk="t", tokenizer="t", d_model=6, block=4, activation="silu", routed_layers=(0,))
    trunk.require_fit(dataclasses.replace(trunk, kind="another"), "a/b")
    assert np.isfinite(rung_cost(trunk, {0: 1}, 4))


@pytest.mark.slow
def test_a_model_runs_what_the_kind_computes(ungated: Any, tmp_path: Path) -> None:
    registry = publish_all(tmp_path / "lab").registry
    trunk = load_trunk(registry, pin(registry, "lab/trunk", "trunk"))
    widths = dict.fromkeys(trunk.spec.routed_layers, 2 * trunk.spec.block)
    fresh = init_expert(jax.random.key(0), trunk.interface.of_kind("ungated"), widths)
    learned = {layer: jax.tree.map(lambda w: w + 0.5, weights) for layer, weights in fresh.items()}
    [batch] = eval_batches(build_corpus("t", [Document("2+2 = 4", "t", split="test")], ByteTokenizer()), "test", 1, 16)
    bare = trunk_losses(trunk.graph, trunk.state)(batch)
    of_fresh, of_none = (module_losses(trunk, *run)(batch) for run in ((fresh, ungated, 2), (learned, ungated, 0)))
    assert np.array_equal(of_fresh, bare)
    assert np.array_equal(of_none, bare)
    one, both = (np.asarray(module_losses(trunk, learned, ungated, blocks)(batch)) for blocks in (1, 2))
    child = {layer: ungated.cut(weights, trunk.spec.block) for layer, weights in learned.items()}
    assert np.array_equal(one, module_losses(trunk, child, ungated, 1)(batch))
    assert not np.array_equal(one, bare)
    assert not np.array_equal(one, both)


def test_what_a_kind_does_not_run_on_is_refused(ungated: Any) -> None:
    with pytest.raises(Refused, match="kind ungated run on one device; leave the mesh out"):
        routed_layers_on(ungated, jax.make_mesh((1, 1), ("data", "expert")))
    with pytest.raises(Refused, match='backend "worklist" does not run experts of kind ungated; leave it at auto'):
        routed_layers_on(ungated, None, backend="worklist")
    assert routed_layers_on(find_kind("gated_ffn"), None, backend="worklist") == OneDevice(backend="worklist")
