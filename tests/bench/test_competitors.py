"""Every competitor computes the same layer on equal work."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest

from moe_lab.bench.cases import Case
from moe_lab.bench.competitors import COMPETITORS, draw_blocks, draw_routing, draw_tokens
from moe_lab.nn.expert_ffn import expert_ffn
from moe_lab.nn.pool import Pool

pytestmark = pytest.mark.slow

torch_missing = any(importlib.util.find_spec(name) is None for name in ("torch", "transformers"))


def case(counts: tuple[int, ...] = (4, 4, 2, 1), routing: str = "prefix", tokens: int = 64) -> Case:
    return Case(name="x", tokens=tokens, d_model=16, block=8, counts=counts, top_k=2, routing=routing)


def definition(case: Case) -> np.ndarray:
    count = np.array(case.counts, np.int32)
    pool = Pool(draw_blocks(case), (np.cumsum(count) - count).astype(np.int32), count)
    return np.asarray(expert_ffn(draw_tokens(case), pool, draw_routing(case), backend="reference"))


@pytest.mark.parametrize("name", [name for name in COMPETITORS if not name.startswith("capacity")])
@pytest.mark.parametrize("routing", ["uniform", "prefix", "one-hot", "nothing"])
def test_it_computes_the_layer(name: str, routing: str) -> None:
    made = case(routing=routing)
    layer = COMPETITORS[name](made, draw_blocks(made))
    got = jax.jit(layer.run)(draw_tokens(made), layer.weights, draw_routing(made))
    np.testing.assert_allclose(got, definition(made), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["capacity", "capacity einsum"])
def test_capacity_is_the_layer_where_everything_fits(name: str) -> None:
    made = case(counts=(4, 4), routing="uniform")  # two modules, two choices: each module has every token
    layer = COMPETITORS[name](made, draw_blocks(made))
    got = jax.jit(layer.run)(draw_tokens(made), layer.weights, draw_routing(made))
    np.testing.assert_allclose(got, definition(made), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch_missing, reason="torch and transformers are not installed: pip install 'moe-lab[peers]'")
@pytest.mark.parametrize("routing", ["uniform", "nothing"])
@pytest.mark.parametrize("counts", [(4, 4, 4), (4, 2, 1)])
def test_torch_peers_compute_the_layer(counts: tuple[int, ...], routing: str) -> None:
    from moe_lab.bench.peers import PEERS

    made = case(counts=counts, routing=routing)
    for name, prepare in PEERS.items():
        ready = prepare(made)
        got = ready.run(ready.h, ready.weight).detach().numpy()
        np.testing.assert_allclose(got, definition(made), rtol=1e-4, atol=1e-5, err_msg=name)
        ready.both()
