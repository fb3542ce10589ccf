"""Whoever writes a router or a strategy asks the command line whether it keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.cli import main

MANIFEST = """
name: {name}
summary: {summary}
implementation: code.py:Mine
owner: newcomer
licence: Apache-2.0
"""
STRATEGY = """
import jax.numpy as jnp
from moe_lab.config.spec import Spec
from moe_lab.experts.shrink import ShrinkStrategy

class Config(Spec):
    share: float = 1.0

class Mine(ShrinkStrategy):
    Config = Config

    def importance(self, statistics, weights):
        return {layer: -stats.mean_abs_F for layer, stats in statistics.items()}

    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        return {}["no such key"]
"""
ROUTER = """
import jax.numpy as jnp
from moe_lab.config.spec import Spec
from moe_lab.routing.router import Router, route_candidates

class Config(Spec):
    pass

class Mine(Router):
    Config = Config

    def route(self, features):
        return route_candidates(self.space, jnp.ones(features.segment_ids_BS.shape, int))
"""


def contribute(lab: Path, category: str, manifest: str, code: str) -> None:
    folder = lab / category / "mine"
    folder.mkdir()
    (folder / manifest).write_text(MANIFEST.format(name="mine", summary="Mine.").lstrip())
    (folder / "code.py").write_text(code)


def check(lab: Path, group: str, *settings: str) -> int:
    return main(["--lab", str(lab), group, "check", "mine", *settings])


@pytest.mark.slow
def test_a_strategy_hears_of_every_rule_that_it_breaks(lab_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contribute(lab_folder, "distill", "strategy.yaml", STRATEGY)
    assert check(lab_folder, "distill", "share=0.5") == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "      Mine: " not in lines[0]
    assert lines[0].startswith("ok    The config is a Spec")
    assert any("a unit of padding scores" in line for line in lines)
    assert "      KeyError: 'no such key'" in lines
    assert err.startswith("error: mine breaks ")
    assert err.endswith(" rules; mend them, then: moe-lab distill check mine share=0.5\n")


def test_the_traceback_of_contributed_code_is_to_be_had(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contribute(lab_folder, "distill", "strategy.yaml", STRATEGY)
    monkeypatch.setenv("MOE_LAB_TRACEBACK", "1")
    with pytest.raises(AssertionError, match="unit of padding"):
        check(lab_folder, "distill")


@pytest.mark.slow
def test_a_router_that_ignores_opt_outs_is_told_so(lab_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contribute(lab_folder, "routers", "router.yaml", ROUTER)
    assert check(lab_folder, "router") == 2
    out, err = capsys.readouterr()
    assert "run a module that is opted out" in out
    assert "mine breaks 1 of " in err


@pytest.mark.slow
def test_built_in_strategies_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "check", "nested_prune"]) == 0
    assert "nested_prune keeps all " in capsys.readouterr().out


def test_contributions_are_listed_with_where_they_are_from(
    lab_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contribute(lab_folder, "routers", "router.yaml", ROUTER)
    assert main(["--lab", str(lab_folder), "router", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mine", "lab", "Mine."] in rows
    assert any(row[:2] == ["gain", "built-in"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["router", "check", "gian"], 'unknown router "gian". Did you mean "gain"?'),
        (["distill", "check", "nested_prune", "temprature=2"], 'temprature: unknown key. Did you mean "temperature"?'),
    ],
)
def test_a_miss_says_what_there_is(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
