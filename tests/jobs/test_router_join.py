"""A module joins a router of tokens: little is measured, the others stay, and it comes near to a full training."""

from __future__ import annotations

import contextlib
import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.compose.lockfile import pin
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import load_router
from moe_lab.evaluation.outcomes import measure_outcomes
from moe_lab.evaluation.results import load_results
from moe_lab.jobs.objectives import JoinObjective
from moe_lab.jobs.outcome_table import find_outcomes, measuring_batches
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab, init_lab
from moe_lab.registry import Registry
from moe_lab.routing.router import Features
from tests.compose.published import same_bits
from tests.jobs.tiny import COMPOSITION, EVALUATION, ROUTER

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]
OLD, NEW = ("north/code", "north/code-mini"), "south/prose"
JOIN = """
kind: router
name: lab/joined
licence: Apache-2.0
extends: lab/pair
add: [south/prose]
domains: [prose]
"""


def router_config(name: str, modules: str, domains: str, kind: str = "gain") -> str:
    config = ROUTER.format(name=kind).replace(f"lab/{kind}", f"lab/{name}").replace("[code, prose]", domains)
    return config.replace("[north/code, south/prose, north/code-mini]", modules)


@pytest.fixture(scope="module")
def lab(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny lab with a router of two modules and one text, and configs to join the third and to train all three."""
    folder = Path(shutil.copytree(finished_study, tmp_path_factory.mktemp("join") / "lab", symlinks=True))
    pair, every = "[north/code, north/code-mini]", "[north/code, north/code-mini, south/prose]"
    files = {
        "pair": router_config("pair", pair, "[code]"),
        "full": router_config("full", every, "[code, prose]"),
        "joined": JOIN,
        "all": COMPOSITION.format(name="all", modules=every, router="lab/joined"),
        "compare": EVALUATION.replace("name: tiny", "name: compare")
        .replace("composition.yaml", "all.yaml")
        .replace("[lab/domain]", "[lab/full]"),
    }
    for name, text in files.items():
        (folder / "configs" / f"{name}.yaml").write_text(text)
    assert main(["--lab", str(folder), "train", "pair", "--publish"]) == 0
    return folder


@pytest.fixture(scope="module")
def joined(lab: Path) -> tuple[str, list[tuple[str, ...]]]:
    """What `moe-lab train` says as the module joins, and the candidates that it runs on each batch."""
    ran, run, told = [], ComposedModel.run_candidates, io.StringIO()

    def counted(self: ComposedModel, arrays: Any, batch: Any, hidden: Any, only: Any = None) -> Any:
        names = self.candidates.names
        ran.append(names if only is None else tuple(names[index] for index in only))
        return run(self, arrays, batch, hidden, only)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setattr(ComposedModel, "run_candidates", counted)
        assert main(["--lab", str(lab), "train", "joined", "--publish"]) == 0
    return told.getvalue(), ran


def routers(lab: Path) -> tuple[Any, Any]:
    """The router that was extended, and the one that it became."""
    workspace = Workspace(find_lab(str(lab)))
    trunk = workspace.trunk(workspace.pin_trunk("lab/tiny"))
    parts = [pin(workspace.registry, name, "router") for name in ("lab/pair", "lab/joined")]
    before, after = [load_router(workspace.registry, workspace.lab, part, trunk) for part in parts]
    return before, after


def test_only_the_newcomer_is_measured_on_the_old_rows(lab: Path, joined: tuple[str, list[tuple[str, ...]]]) -> None:
    told, ran = joined
    newcomer = ("south/prose:8", "south/prose:13")
    every = ("trunk", "north/code:8", "north/code:24", "north/code-mini:8", *newcomer)
    assert ran == [newcomer, every]  # one batch of four rows of each domain
    assert "south/prose joined in " in told
    assert f"with {4 * 2 + 4 * 6} of the {8 * 6} outcomes" in told


def test_the_table_is_the_one_that_a_full_training_measures(lab: Path, joined: object) -> None:
    workspace = Workspace(find_lab(str(lab)))
    model = workspace.load_model(workspace.find_lock("all.yaml", lab / "configs"))
    corpora = workspace.corpora(["code", "prose"], lab / "configs", model.trunk.tokenizer)
    table = find_outcomes(workspace, model.trunk, model.modules, corpora, 4, 64)
    assert table is not None
    anew = measure_outcomes(model, corpora, measuring_batches(corpora, 4, 64))[0].counted()
    for name in ("tokens_NS", "segment_ids_NS", "hidden_NSD", "group_N", "bytes_NS"):
        np.testing.assert_array_equal(getattr(table, name), getattr(anew, name))
    np.testing.assert_array_equal(table.loss_NSC[table.mask_NS], anew.loss_NSC[table.mask_NS])


def test_what_the_router_says_of_the_others_stays_the_same_bits(lab: Path, joined: object) -> None:
    before, after = routers(lab)
    assert after.space.modules == (*OLD, NEW)
    rng = np.random.default_rng(0)
    tokens_BS = jnp.asarray(rng.integers(0, 256, (4, 64)), jnp.int32)
    segments_BS = jnp.asarray(np.sort(rng.integers(1, 4, (4, 64)), axis=1), jnp.int32)
    hidden_BSD = jnp.asarray(rng.normal(size=(4, 64, 16)), jnp.float32)

    def said(router: Any) -> tuple[jax.Array, ...]:
        modules = len(router.space.modules)
        available_BE = jnp.ones((4, modules), bool)
        features = Features(hidden_BSD, tokens_BS, segments_BS, available_BE, jnp.zeros(4))
        seen, own_BSE = router.seen(features), jax.nn.one_hot(jnp.broadcast_to(0, (4, 64)), modules)
        excess_BSEQ, rival_BSM = router.excess_losses(seen), router.rival_losses(seen, own_BSE)
        of_trunk, of_rungs = router.predicted_losses(own_BSE, excess_BSEQ, rival_BSM)
        scores_BSE = router.home_evidence.text_scores(tokens_BS, segments_BS)
        return scores_BSE[..., :2], excess_BSEQ[:, :, :2], rival_BSM[..., :2], of_trunk, of_rungs[..., :2, :]

    for was, now in zip(jax.jit(partial(said, before))(), jax.jit(partial(said, after))(), strict=True):
        same_bits(was, now)
    assert np.asarray(after.home_evidence.ngram_scores[...])[:, 2].any(), "the newcomer's own scores were learned"


def test_its_manifest_names_what_it_extends_and_pins_every_module(lab: Path, joined: object) -> None:
    registry = Registry(lab / "registry", create=False)
    manifest = registry.manifest("lab/joined")
    parents = [(each["relation"], each["ref"]) for each in manifest["lineage"]["parents"]]
    assert parents == [
        ("trunk", "lab/tiny@1"),
        *(("module", f"{name}@1") for name in (*OLD, NEW)),
        ("extended", "lab/pair@1"),
    ]
    assert {each["digest"] for each in manifest["lineage"]["parents"]} <= {entry.digest for entry in registry.list()}
    assert [domain["name"] for domain in manifest["data"]["domains"]] == ["code", "prose"]
    assert manifest["interface"]["homes"]["code"] == registry.manifest("lab/pair")["interface"]["homes"]["code"]
    assert manifest["config"]["training"] == registry.manifest("lab/pair")["config"]["training"]


def test_it_is_composed_and_comes_near_to_a_full_training(lab: Path, joined: object, capsys: Capture) -> None:
    assert main(["--lab", str(lab), "train", "full", "--publish"]) == 0
    assert main(["--lab", str(lab), "eval", "compare"]) == 0
    folder = max((lab / "runs").glob("evaluation-compare-*"), key=lambda path: path.stat().st_mtime_ns)
    curves = {curve.label: curve for curve in load_results(folder / "results.json").curves if curve.role == "learned"}
    assert {"lab/joined", "lab/full"} <= set(curves)
    for near, whole in zip(curves["lab/joined"].points, curves["lab/full"].points, strict=True):
        assert abs(near.bits_per_byte.mean - whole.bits_per_byte.mean) < 0.05


@pytest.fixture
def elsewhere(lab: Path, tmp_path: Path) -> Path:
    """Another lab with the same registry, without the text that the router learned from and without its runs."""
    folder = init_lab(tmp_path / "elsewhere")
    shutil.copytree(lab / "registry", folder / "registry", symlinks=True, dirs_exist_ok=True)
    shutil.copytree(lab / "configs" / "data", folder / "configs" / "data", dirs_exist_ok=True)
    (folder / "configs" / "data" / "code.yaml").unlink()
    (folder / "configs" / "joined.yaml").write_text(JOIN)
    return folder


def own_text_of(module: int, patch: pytest.MonkeyPatch) -> None:
    """The given text is that module's; what a module of eight steps reads best is chance."""
    patch.setattr(JoinObjective, "own_G", np.array([module]))


def test_without_the_old_text_all_are_measured_on_the_new_text_alone(
    elsewhere: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_text_of(0, monkeypatch)
    assert main(["--lab", str(elsewhere), "train", "joined"]) == 0
    told = capsys.readouterr().err
    assert "code, which lab/pair learned from, is not here" in told
    assert "south/prose loses least on none of this text" in told
    assert "with 24 of the 24 outcomes" in told


def test_without_any_text_of_the_others_no_module_joins(
    elsewhere: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_text_of(2, monkeypatch)
    assert main(["--lab", str(elsewhere), "train", "joined"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "domains: no text here is best read by north/code or north/code-mini" in told


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["modules=[north/code]"], "modules: the router that is extended says this; leave it out"),
        (["trunk=lab/tiny", "router={type: gain}"], "router: the router that is extended says this; leave it out"),
        (["add=[north/code]"], "lab/pair knows north/code already; a new version of it needs a router trained anew"),
        (["add=[south/prose, south/prose]"], "add: south/prose is listed twice; list each module once"),
        (
            ["extends=lab/topk", "add=[south/prose]"],
            "lab/topk: no module joins a topk router so set; train one with modules: [north/code@1, ",
        ),
        (["domain=[prose]"], 'domain: unknown key. Did you mean "domains"?'),
    ],
)
def test_what_cannot_join_is_said_in_one_line(lab: Path, capsys: Capture, changes: list[str], problem: str) -> None:
    assert main(["--lab", str(lab), "train", "joined", *changes]) == 2
    error = capsys.readouterr().err.strip()
    assert problem in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("command", [["train"], ["module", "check"]])
@pytest.mark.parametrize("choice", ["{type: cascade}", "{type: gain, ngrams: 0}", "{type: budget, ngrams: 0}"])
def test_a_router_that_no_module_joins_is_refused_before_weights_and_text_are_read(
    lab: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, choice: str, command: list[str]
) -> None:
    kind = choice.removeprefix("{type: ").partition(",")[0].rstrip("}")
    name = f"lab/alone-{kind}"
    assert main(["--lab", str(lab), "train", "pair", f"name={name}", f"router={choice}", "--publish"]) == 0

    def nothing_is_read(*_: object) -> None:
        raise AssertionError("the router's manifest says enough")

    monkeypatch.setattr(Workspace, "trunk", nothing_is_read)
    monkeypatch.setattr(Workspace, "corpora", nothing_is_read)
    capsys.readouterr()
    assert main(["--lab", str(lab), *command, "joined", f"extends={name}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"{name}: no module joins a {kind} router so set; train one with modules: [north/code@1, " in error
