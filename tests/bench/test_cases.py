"""Cases ask for what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.bench.cases import CASES, QUICK, Case


def test_the_quick_cases_exist_and_names_are_keys() -> None:
    assert set(QUICK) <= set(CASES)
    assert all(case.name == name for name, case in CASES.items())


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-mixed")])
def test_mixed_widths_are_eight_to_one_and_have_the_mean_of_uniform_ones(name: str) -> None:
    mixed, uniform = CASES[name], CASES[name.replace("mixed", "uniform")]
    assert sum(mixed.counts) == sum(uniform.counts)
    assert mixed.widest == 8 * min(mixed.counts)


def small(routing: str) -> Case:
    return Case(name="s", tokens=64, d_model=16, block=4, counts=(8, 4, 4, 1), top_k=2, routing=routing, seed=3)


@pytest.mark.parametrize("routing", ["uniform", "zipf", "one-hot", "prefix", "half", "nothing"])
def test_a_token_s_modules_are_distinct_and_its_weights_sum_to_one(routing: str) -> None:
    expert, width, weight = small(routing).route()
    assert (expert[:, 0] != expert[:, 1]).all()
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
    assert (width <= np.array(small(routing).counts)[expert]).all()


def test_routings_ask_for_their_share_of_the_blocks() -> None:
    own = np.array(small("uniform").counts)[small("uniform").route()[0]]
    assert small("uniform").routed_blocks() == own.sum()
    assert small("half").routed_blocks() == (-(-own // 2)).sum()
    assert small("prefix").routed_blocks() == (-(-own[::2] // 4)).sum() + own[1::2].sum()
    assert small("nothing").routed_blocks() == 0
    assert set(small("one-hot").route()[0].reshape(-1)) == {0, 1}
    assert small("uniform").forward_flops() == 6 * 16 * 4 * own.sum()


def test_zipf_prefers_the_first_modules() -> None:
    shape = {"tokens": 4000, "d_model": 8, "block": 8, "counts": (1,) * 8, "top_k": 1}
    share = np.bincount(Case(name="z", routing="zipf", **shape).route()[0].reshape(-1)) / 4000
    expected = np.arange(1, 9) ** -0.8
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.03)
