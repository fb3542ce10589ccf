from __future__ import annotations

from typing import Any

import pytest

from moe_lab.config import decode, parse_yaml, to_yaml
from moe_lab.errors import LabError
from moe_lab.training import TrainSpec

MINIMAL = {"steps": 100, "batch_size": 8, "seq_len": 64, "learning_rate": 1e-3}


def test_a_resolved_spec_reads_back_equal() -> None:
    spec = decode(TrainSpec, MINIMAL | {"grad_clip": None, "betas": [0.8, 0.9]}, "test")
    assert decode(TrainSpec, parse_yaml(to_yaml(spec), "test"), "test") == spec


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"schedule": "linear"}, "schedule"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"grad_clip": 0.0}, "grad_clip"),
        ({"decay_fraction": 0.0}, "decay_fraction"),
        ({"final_fraction": 1.5}, "final_fraction"),
        ({"keep": 0}, "keep"),
        ({"seed": -1}, "seed"),
        ({"warmup_steps": 101}, "warmup_steps is 101"),
        ({"schedule": "wsd", "warmup_steps": 90, "decay_fraction": 0.2}, "must fit into steps"),
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_it(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LabError, match=complaint) as caught:
        decode(TrainSpec, MINIMAL | change, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ({}, []),
        ({"schedule": "wsd", "decay_fraction": 0.5, "final_fraction": 0.0}, []),
        ({"decay_fraction": 0.5}, ["decay_fraction has no effect with schedule: cosine"]),
        (
            {"schedule": "constant", "final_fraction": 0.0},
            ["final_fraction has no effect with schedule: constant"],
        ),
    ],
)
def test_settings_that_the_schedule_does_not_read_are_named(change: dict[str, Any], notes: list[str]) -> None:
    assert TrainSpec(**MINIMAL | change).without_effect() == notes
