"""Candidates and their index arrays agree with each other, whatever the ladders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.routing.space import TRUNK_CANDIDATE, CandidateSpace

rising = st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def spaces(draw: st.DrawFn) -> CandidateSpace:
    """Up to four modules with ladders of one to four rungs."""
    ladders = draw(st.lists(rising, min_size=1, max_size=4))
    per_block = draw(st.integers(1, 1000))
    return CandidateSpace(
        modules=tuple(f"team{index}/module" for index in range(len(ladders))),
        widths=tuple(tuple(8 * blocks - 3 for blocks in ladder) for ladder in ladders),
        blocks=tuple(map(tuple, ladders)),
        costs=tuple(tuple(per_block * blocks for blocks in ladder) for ladder in ladders),
    )


@given(space=spaces())
def test_every_rung_is_one_candidate_after_the_trunk(space: CandidateSpace) -> None:
    listed = [(e, r) for e in range(len(space.modules)) for r in range(len(space.widths[e]))]
    assert list(space.pairs) == listed
    assert len(space) == len(space.names) == len(space.cost_C) == len(space.module_C) == len(space.blocks_C)
    assert len(space) == 1 + len(listed)
    assert len(set(space.names)) == len(space)
    for candidate, (e, r) in enumerate(listed, start=1):
        assert space.names[candidate] == f"{space.modules[e]}:{space.widths[e][r]}"
        assert space.cost_C[candidate] == space.costs[e][r]
        assert space.module_C[candidate] == e
        assert space.blocks_C[candidate] == space.blocks[e][r]
        assert space.candidate_ER[e, r] == candidate
        assert space.valid_ER[e, r]


@given(space=spaces())
def test_the_trunk_is_candidate_0_and_costs_nothing(space: CandidateSpace) -> None:
    assert TRUNK_CANDIDATE == 0
    assert space.names[0] == "trunk"
    assert space.cost_C[0] == space.blocks_C[0] == space.relative_cost_C[0] == 0
    assert 0 not in space.candidate_ER


@given(space=spaces())
def test_short_ladders_repeat_their_widest_rung(space: CandidateSpace) -> None:
    rungs = max(len(ladder) for ladder in space.widths)
    assert space.candidate_ER.shape == space.valid_ER.shape == (len(space.modules), rungs)
    assert space.valid_ER.sum() == len(space) - 1
    for e, ladder in enumerate(space.widths):
        widest = space.names.index(f"{space.modules[e]}:{ladder[-1]}")
        assert space.widest_E[e] == widest
        assert (space.candidate_ER[e, len(ladder) :] == widest).all()
        assert not space.valid_ER[e, len(ladder) :].any()


@pytest.mark.slow
@given(space=spaces())
def test_costs_rise_along_a_ladder_up_to_one_for_the_dearest(space: CandidateSpace) -> None:
    relative = space.relative_cost_C
    assert relative.max() == 1
    assert (np.diff(relative[space.candidate_ER], axis=1) >= 0).all()
    np.testing.assert_allclose(relative * space.cost_C.max(), space.cost_C, rtol=1e-6)


@given(space=spaces())
def test_json_keeps_it_and_equal_spaces_hash_alike(space: CandidateSpace) -> None:
    again = CandidateSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert hash(again) == hash(space)
    assert again.names == space.names


def test_costs_beyond_32_bits_are_kept() -> None:
    space = CandidateSpace(modules=("a/b",), widths=((8, 16),), blocks=((1, 2),), costs=((3_000_000_000, 2**40),))
    assert space.cost_C.tolist() == [0, 3_000_000_000, 2**40]


@pytest.mark.slow
@given(space=spaces(), data=st.data())
def test_leaving_modules_out_is_never_having_had_them(space: CandidateSpace, data: st.DataObject) -> None:
    out = data.draw(st.sets(st.sampled_from(space.modules), max_size=len(space.modules) - 1))
    smaller, kept = space.without(out), space.kept(out)
    assert smaller.modules == tuple(name for name in space.modules if name not in out)
    assert smaller.names == tuple(space.names[c] for c in kept)
    assert kept[0] == TRUNK_CANDIDATE
    np.testing.assert_array_equal(smaller.cost_C, space.cost_C[kept])
    np.testing.assert_array_equal(smaller.blocks_C, space.blocks_C[kept])
    assert space.without(()) == space
