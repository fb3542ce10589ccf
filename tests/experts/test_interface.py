"""What fits on which trunk, what a width costs, and which ladders there can be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.experts.interface import (
    Interface,
    blocks_of,
    declared_cost,
    require_ladder,
    rung_cost,
)
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.nn.spec import TrunkSpec

SPEC = TrunkSpec(d_model=16, num_layers=4, num_heads=2, ffn_width=24, routed_layers=(1, 3), block=4, activation="gelu")
INTERFACE = Interface.of_trunk("sha256-trunk", "sha256-tokenizer", SPEC)

widths = st.integers(1, 60)
block_sizes = st.integers(1, 16)


def test_a_trunk_offers_what_its_spec_says_and_json_keeps_it() -> None:
    assert INTERFACE.to_json() == {
        "trunk": "sha256-trunk",
        "tokenizer": "sha256-tokenizer",
        "d_model": 16,
        "block": 4,
        "activation": "gelu",
        "routed_layers": [1, 3],
    }
    assert Interface.from_json(INTERFACE.to_json()) == INTERFACE


def test_an_interface_with_missing_or_unknown_fields_is_refused() -> None:
    section = INTERFACE.to_json()
    del section["block"]
    with pytest.raises(LabError, match="missing or unknown: block, colour"):
        Interface.from_json({**section, "colour": "red"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trunk", "sha256-other"),
        ("tokenizer", "sha256-other"),
        ("d_model", 32),
        ("block", 8),
        ("activation", "silu"),
        ("routed_layers", (1, 2)),
    ],
)
def test_a_module_made_for_something_else_is_refused_by_name_and_point(field: str, value: object) -> None:
    other = dataclasses.replace(INTERFACE, **{field: value})
    with pytest.raises(LabError) as caught:
        INTERFACE.require_fit(other, "north/code@3")
    assert f"north/code@3 does not fit this trunk: its {field} is {value}" in str(caught.value)
    assert f"the trunk's is {getattr(INTERFACE, field)}" in str(caught.value)


def test_every_field_must_agree() -> None:
    tested = {"trunk", "tokenizer", "d_model", "block", "activation", "routed_layers"}
    assert {field.name for field in dataclasses.fields(Interface)} - {"kind"} == tested
    INTERFACE.require_fit(Interface.of_trunk("sha256-trunk", "sha256-tokenizer", SPEC), "north/code@3")


@given(width=widths, block=block_sizes)
def test_blocks_hold_the_width_and_no_more(width: int, block: int) -> None:
    blocks = blocks_of(width, block)
    assert (blocks - 1) * block < width <= blocks * block


@given(width=widths, counts=st.dictionaries(st.sampled_from((1, 3)), st.integers(1, 20), min_size=1))
def test_cost_counts_every_matrix_entry_of_every_block_that_runs(width: int, counts: dict[int, int]) -> None:
    entries = 0
    for count in counts.values():
        for block in range(count):
            if block * INTERFACE.block < width:
                gate, up, down = (16, 4), (16, 4), (4, 16)
                entries += sum(int(np.prod(shape)) for shape in (gate, up, down))
    assert rung_cost(INTERFACE, counts, width) == entries
    assert declared_cost(INTERFACE, counts, [width]) == {str(width): entries}


def test_a_token_spends_one_multiply_add_per_entry_of_a_block() -> None:
    assert KIND.cost(16, 4).multiply_adds == 16 * 4 + 16 * 4 + 4 * 16


@pytest.mark.parametrize(("ladder", "widest"), [([4, 8, 13], 13), ([13], 13), ([3], 3), ([8, 12], 12)])
def test_a_ladder_rises_in_whole_blocks_to_the_full_width(ladder: list[int], widest: int) -> None:
    require_ladder(ladder, widest, 4, "north/code")


@pytest.mark.parametrize(
    ("ladder", "widest", "message"),
    [
        ([], 8, r"ladder \[\] must be widths that rise from at least 1"),
        ([0, 8], 8, r"ladder \[0, 8\] must be widths that rise"),
        ([8, 4], 4, r"ladder \[8, 4\] must be widths that rise"),
        ([4, 4, 8], 8, r"ladder \[4, 4, 8\] must be widths that rise"),
        ([4, 8], 12, r"ladder \[4, 8\] must end at the module's full width, 12"),
        ([4, 16], 12, r"must end at the module's full width, 12"),
        ([4, 6, 8], 8, r"ladder width 6 must be a multiple of the trunk's block, 4"),
    ],
)
def test_other_ladders_are_refused(ladder: list[int], widest: int, message: str) -> None:
    with pytest.raises(LabError, match=f"north/code: .*{message}"):
        require_ladder(ladder, widest, 4, "north/code")
