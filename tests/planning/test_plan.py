"""`moe-lab plan`: what is planned, where it goes, what would help, and, where the compiler is there, the real thing."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from moe_lab.config import decode, load_config
from moe_lab.errors import LabError
from moe_lab.parallel.spec import MeshSpec
from moe_lab.planning.advice import changes
from moe_lab.planning.compiled import Overflow
from moe_lab.planning.model import PlannedModel, model_of_lock, model_of_spec
from moe_lab.planning.spec import PlanSettings, PlanSpec
from moe_lab.planning.topologies import GIB, parse_topology
from tests.compose.published import LADDERS, MODULES, WIDTHS, publish_all

COMPILER = os.environ.get("TPU_COMPILER", "")
FOUND = importlib.util.find_spec("libtpu") is not None or (Path(COMPILER) / "libtpu" / "libtpu.so").exists()
needs_compiler = pytest.mark.skipif(
    not FOUND, reason="libtpu is not installed: run make test, or pip install 'moe-lab[tpu-plan]'"
)

TINY = """kind: plan
name: tiny
trunk: {vocab_size: 2048, d_model: 512, num_layers: 2, num_heads: 4, ffn_width: 1024, routed_layers: [0, 1], block: 128}
modules:
  - {name: small, count: 6, width: 256}
  - {name: large, count: 2, width: 1024, ladder_use: {256: 0.5, 1024: 0.5}}
seq_len: 256
"""
MoeLab = Callable[..., CompletedProcess[str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def tiny(path: Path, *overrides: str) -> PlannedModel:
    spec = load_config(path, overrides, kind="plan")
    assert isinstance(spec, PlanSpec)
    return model_of_spec(spec)


def test_a_config_becomes_modules_with_blocks_and_ladders(config: Path) -> None:
    model = tiny(config)
    assert [module.name for module in model.modules[5:]] == ["small-6", "large-1", "large-2"]
    assert model.blocks_E(0) == (2,) * 6 + (8,) * 2
    assert model.rungs_ER == ((2, 2),) * 6 + ((2, 8),) * 2


def test_load_is_the_share_of_choices_that_run_a_block(config: Path) -> None:
    model = tiny(config, "load=[1, 1, 1, 1, 1, 1, 2, 2]")
    load = model.block_load(0)
    np.testing.assert_allclose(load[0], [0.1, 0.1])
    np.testing.assert_allclose(load[7], [0.2] * 2 + [0.1] * 6)
    zipf = tiny(config, "load={zipf: 1, seed: 3}").tokens_E
    assert zipf.sum() == pytest.approx(1)
    assert sorted(zipf)[-1] == pytest.approx(2 * sorted(zipf)[-2])


def test_bytes_count_what_training_adds(config: Path) -> None:
    blocks = 2 * (6 * 2 + 2 * 8)
    assert tiny(config).pool_bytes == blocks * 3 * 512 * 128 * 2
    assert tiny(config, "dtype=float32").pool_bytes == blocks * 3 * 512 * 128 * 4
    assert tiny(config, "train=true").pool_bytes == blocks * 3 * 512 * 128 * 16


def test_the_trunks_bytes_are_those_of_all_its_parameters(config: Path) -> None:
    attention, ffn, norms, embedding = 4 * 512 * 512, 3 * 512 * 1024, 2 * 512, 2048 * 512
    parameters = 2 * (attention + ffn + norms) + embedding + 512
    assert tiny(config).trunk_bytes == 2 * parameters
    assert tiny(config, "dtype=float32").trunk_bytes == 4 * parameters
    shared = 2 * 512 * 384  # keys and values of one head instead of four
    assert tiny(config, "trunk.num_kv_heads=1").trunk_bytes == 2 * (parameters - 2 * shared)


@pytest.mark.slow
def test_the_mesh_takes_the_usual_expert_axis_if_that_is_enough(config: Path, repository: Path) -> None:
    assert tiny(config).choose_mesh(parse_topology("v6e:16x16")) == MeshSpec(data=16, expert=16)
    assert tiny(config).choose_mesh(parse_topology("v5e:2x2")) == MeshSpec(data=1, expert=4)
    training = tiny(repository / "configs" / "plans" / "modules-64-train.yaml")
    assert training.choose_mesh(parse_topology("v5e:8x8")) == MeshSpec(data=2, expert=32)
    assert training.choose_mesh(parse_topology("v5p:4x4x4")) == MeshSpec(data=4, expert=16)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["mesh={data: 2, expert: 4}"], "has 8 devices and v5e:2x2 has 4"),
        (["trunk.d_model=32768", "modules.1.count=60", "modules.1.width=65536"], "in all, so no placement fits"),
    ],
)
def test_what_cannot_be_is_refused(config: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        tiny(config, *overrides).choose_mesh(parse_topology("v5e:2x2"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["modules.1.ladder_use={256: 0.5}"], "must sum to 1"),
        (["modules.1.ladder_use={2048: 1.0}"], "must name widths from 1 to 1024"),
        (["trunk.routed_layers=[]"], "nothing to place"),
        (["top_k=9"], "more than the 8 modules"),
        (["modules.0.widht=3"], 'Did you mean "width"'),
    ],
)
def test_a_config_that_says_nothing_sensible_is_refused(config: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        tiny(config, *overrides)


def test_load_must_name_every_module(config: Path) -> None:
    with pytest.raises(LabError, match="2 shares for 8 modules"):
        tiny(config, "load=[1, 2]").block_load(0)


def test_layers_with_the_same_blocks_share_a_placement(config: Path) -> None:
    placements = tiny(config).place(4, 0.1)
    assert placements[0] is placements[1]
    assert sum(placements[0].used_P()) >= 28


def test_changes_that_are_enough_come_first(config: Path) -> None:
    model = tiny(config, "train=true", "seq_len=2048")
    own = {"pools": 4 * GIB, "adam": 8 * GIB, "trunk": 2 * GIB}
    result = Overflow(seconds=1.0, needed_bytes=21 * GIB, available_bytes=16 * GIB)
    found = changes(model, parse_topology("v5e:4x4"), MeshSpec(data=2, expert=8), 16, own, result)
    assert found[0].enough
    assert [change.enough for change in found] == sorted((change.enough for change in found), reverse=True)
    saved = {change.change: change.saved_bytes / GIB for change in found}
    assert saved["seq_len=1024 instead of 2048"] == pytest.approx(1.5)
    assert saved["trunk_sharding=sharded"] == pytest.approx(2 * 15 / 16)
    assert saved["--topology v5e:4x8 --mesh data=2,expert=16"] == pytest.approx(8)
    assert saved["the 2 widest modules cut from 1024 to 256"] == pytest.approx(16 * 12 / 28)


@pytest.mark.slow
def test_a_composition_is_planned_from_its_manifests(tmp_path: Path) -> None:
    published = publish_all(tmp_path / "lab")
    lock = published.lock("lab/gain")
    model = model_of_lock(lock, published.registry, decode(PlanSettings, {"seq_len": 64}, "test"))
    assert [module.name for module in model.modules] == list(MODULES)
    assert [module.width for module in model.modules] == [LADDERS[name][-1] for name in MODULES]
    block = model.trunk.block
    assert model.blocks_E(1) == tuple(-(-WIDTHS[name][1] // block) for name in MODULES)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--topology", "v9:4x4"], 'unknown topology "v9:4x4"'),
        (["--topology", "v5p:4x4"], "v5p has shapes NxMxK"),
    ],
)
def test_the_command_refuses_in_one_line(moe_lab: MoeLab, config: Path, arguments: list[str], reason: str) -> None:
    done = moe_lab("plan", str(config), *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert reason in done.stderr


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mesh", "data=3,expert=2"], "choose data and expert so that data * expert = 4"),
        (["--mesh", "expert=4"], "write both axes"),
        (["--rows", "6"], "make rows a multiple of 4"),
    ],
)
def test_the_command_checks_before_it_compiles(
    moe_lab: MoeLab, config: Path, arguments: list[str], reason: str
) -> None:
    done = moe_lab("plan", str(config), "--topology", "v5e:2x2", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]


def compiled(done: CompletedProcess[str], folder: Path, code: int) -> dict[str, Any]:
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert (folder / "plan.svg").read_text().count("<path") > 10
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.slow
@needs_compiler
def test_a_plan_that_fits(moe_lab: MoeLab, config: Path, tmp_path: Path) -> None:
    done = moe_lab("plan", str(config), "--topology", "v5e:2x2", "--out", str(tmp_path / "out"))
    found = compiled(done, tmp_path / "out", code=0)
    assert found["fits"]
    assert done.stdout.splitlines()[-1] == found["verdict"]
    assert found["argument_bytes_compiler_over_counted"] == pytest.approx(1, abs=0.01)
    assert found["routed_layer"]["gradient_over_three_forwards"] <= 1.1
    assert found["step_flops"] == pytest.approx(found["forward_flops_counted"], rel=0.2)
    kinds = {each["kind"]: each for each in found["compiler"]["collectives"]}
    hidden = 4 * 256 * 512 * 2  # all tokens of the row in bfloat16
    assert kinds["all-gather"]["bytes"] >= 2 * hidden, "once for each routed layer"
    assert kinds["all-gather"]["bytes"] < 2 * 2 * hidden
    assert "small-1" in done.stdout


@pytest.mark.slow
@needs_compiler
def test_a_plan_that_does_not_fit(moe_lab: MoeLab, config: Path, tmp_path: Path) -> None:
    """Weights, moments and gradients take 14.5 of 15.75 GiB, and the step works on more than the rest."""
    wide = ["trunk.d_model=4096", "trunk.block=512", "modules.0.width=24576", "modules.1.width=81920"]
    wide += ["modules.1.ladder_use={81920: 1.0}", "train=true", "replicate=0"]
    done = moe_lab(
        "plan", str(config), "--topology", "v5e:2x4", "--out", str(tmp_path / "out"), "--no-layer-check", *wide
    )
    found = compiled(done, tmp_path / "out", code=1)
    short = found["compiler"]["short_bytes"]
    assert short == found["compiler"]["needed_bytes"] - found["hbm_bytes_per_device"] > 0
    assert done.stdout.splitlines()[-1] == f"does not fit, short by {short / GIB:.2f} GiB per device"
    assert found["what_would_make_it_fit"][0]["enough"]
    assert "what would make it fit" in done.stdout
