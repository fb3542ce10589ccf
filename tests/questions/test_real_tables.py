"""The shipped configs on tables of real models, which are not part of the repository.

They are found in the folder that MOE_LAB_OUTCOMES names, or in ../shared/data/outcomes beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from moe_lab.config import load_config
from moe_lab.jobs.spec import QuestionRouterRun
from moe_lab.metrics.areas import CostRange, aiq, policy_points
from moe_lab.metrics.deferral import apgr, deferral_curve
from moe_lab.questions.entry import FOLDER
from moe_lab.questions.evaluate import OutOfFold
from moe_lab.questions.read import read_table
from moe_lab.questions.table import ItemTable
from tests.questions.synthetic import scored_by

REPOSITORY = Path(__file__).resolve().parents[2]
OUTCOMES = Path(os.environ.get(FOLDER) or REPOSITORY.parent / "shared" / "data" / "outcomes")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OUTCOMES.is_dir(), reason=f"no real outcome tables in {OUTCOMES}; set {FOLDER}"),
]


@pytest.fixture(autouse=True)
def _where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(OUTCOMES))


def shipped(name: str) -> ItemTable:
    return read_table(REPOSITORY / "configs" / "outcomes" / f"{name}.yaml")[0]


def scored(name: str, table: ItemTable | None = None, folds: int = 2) -> OutOfFold:
    """By the shipped config of that name, on its own table or another one.

    Two folds take a quarter of the time of five, and are harder: each router has seen half of the items only.
    """
    path = REPOSITORY / "configs" / "questions" / f"{name}.yaml"
    spec = load_config(path, [f"folds={folds}"], kind="question_router")
    assert isinstance(spec, QuestionRouterRun)
    return scored_by(shipped(name) if table is None else table, spec)[0]


def gain_apgr(found: OutOfFold, predicted_NC: np.ndarray) -> float:
    return apgr(deferral_curve(predicted_NC[:, 1] - predicted_NC[:, 0], *found.table.quality_NC.T))


@pytest.mark.parametrize(
    ("name", "items", "means"),
    [
        ("routellm-mmlu", 14042, [0.6808, 0.8058]),
        ("mmlu-pro-llama-2", 12032, None),
        ("mmlu-pro-ladder", 12032, None),
    ],
)
def test_the_shipped_mappings_read_them(name: str, items: int, means: list[float] | None) -> None:
    table = shipped(name)
    assert len(table) == items
    if means:
        np.testing.assert_allclose(table.quality_NC.mean(axis=0), means, atol=1e-4)


def test_the_group_table_and_the_oracle_are_the_known_floors() -> None:
    found = scored("routellm-mmlu")
    assert gain_apgr(found, found.group_NC) == pytest.approx(0.679, abs=0.006)
    assert gain_apgr(found, found.table.quality_NC) == pytest.approx(1.285, abs=0.001)
    assert gain_apgr(found, found.routed_NC) > 0.70


def test_difficulty_alone_is_below_dice_on_llama_2() -> None:
    found = scored("mmlu-pro-llama-2", folds=5)
    assert gain_apgr(found, found.difficulty_NC) < 0.45
    assert gain_apgr(found, found.routed_NC) > 0.634


def test_five_sizes_are_routed_above_the_zero_router_and_the_group_table() -> None:
    # With half of the items a router's trials cannot tell it from the group table, so it would abstain.
    found = scored("mmlu-pro-ladder", folds=5)
    table, over = found.table, CostRange.of(found.table.cost_C)
    area = {
        role: aiq(policy_points(found.choices(role, 64)[1], table.quality_NC, table.cost_NC), over)
        for role in ("routed", "group_table", "zero_router", "oracle")
    }
    assert area["zero_router"] == pytest.approx(0.528, abs=0.002)
    assert area["oracle"] == pytest.approx(0.777, abs=0.002)
    assert area["zero_router"] < area["group_table"] < area["routed"]


def test_permuted_labels_fall_to_the_zero_router() -> None:
    table = shipped("mmlu-pro-llama-2")
    order = np.random.default_rng(0).permutation(len(table))
    permuted = ItemTable(**{**vars_of(table), "outcome_NC": table.outcome_NC[order]})
    found = scored("mmlu-pro-llama-2", permuted)
    assert gain_apgr(found, found.learned_NC) == pytest.approx(0.5, abs=0.03)


def vars_of(table: ItemTable) -> dict:
    """The fields of a table, without what was computed from them."""
    return {name: getattr(table, name) for name in ItemTable.__dataclass_fields__}
