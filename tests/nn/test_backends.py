"""One file makes a backend: the table, a composition's choices, `auto` and the listing follow from it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.config import json_schema, load_config
from moe_lab.errors import LabError
from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.backend import Backend
from moe_lab.nn.backends import BACKENDS, COMPOSABLE
from tests.conftest import REPOSITORY
from tests.nn.drawing import random_pool, random_routing, random_tokens

TWICE = """
from dataclasses import replace
from moe_lab.nn.backend import Auto

BACKEND = replace(BACKEND, run=lambda *layer: 2 * run(*layer), auto=Auto(2, "it is asked first"))
"""
COMPOSITION = "kind: composition\nname: c\ntrunk: a/t\nmodules: [a/m]\nrouter: a/r\nbackend: {}\n"


def import_anew(name: str, monkeypatch: pytest.MonkeyPatch, *folders: Path) -> ModuleType:
    """Runs a module once more, as what its name means until the test ends; a package has `folders` as well."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if folders:
        module.__path__ = [*module.__path__, *map(str, folders)]
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`moe_lab.nn.expert_ffn` as if the folder held one file more, that of docs/architecture.md, doubled and ranked."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n# moe_lab/nn/backends/dense.py\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "dense.py").write_text(f"{shown}\n{TWICE}")
    import_anew("moe_lab.nn.backends", monkeypatch, tmp_path)
    import_anew("moe_lab.compose.spec", monkeypatch)
    yield import_anew("moe_lab.nn.expert_ffn", monkeypatch)
    del sys.modules["moe_lab.nn.backends.dense"]


def test_a_file_in_the_folder_is_in_the_table_and_in_a_composition_s_choices(layer: ModuleType, tmp_path: Path) -> None:
    assert set(layer.BACKENDS) == {*BACKENDS, "dense"}
    assert set(json_schema("composition")["properties"]["backend"]["enum"]) == {*COMPOSABLE, "dense"}
    config = tmp_path / "c.yaml"
    config.write_text(COMPOSITION.format("dense"))
    assert load_config(config).backend == "dense"  # type: ignore[attr-defined]
    config.write_text(COMPOSITION.format("dence"))
    with pytest.raises(LabError, match='Did you mean "dense"'):
        load_config(config)


def test_a_file_in_the_folder_is_run_and_auto_takes_what_it_ranks_highest(layer: ModuleType) -> None:
    rng = np.random.default_rng(0)
    pool, h, routing = random_pool(rng, [2, 1]), random_tokens(rng, 5), random_routing(rng, 5, 1, [2, 1])
    expected = 2 * layer.expert_ffn(h, pool, routing, backend="reference")
    np.testing.assert_array_equal(layer.expert_ffn(h, pool, routing, backend="dense"), expected)
    np.testing.assert_array_equal(layer.expert_ffn(h, pool, routing), expected)
    assert str(layer.choose_backend(d_model=12, block=4)) == "backend dense: it is asked first"


def test_a_file_in_the_folder_is_listed_and_a_competitor(
    layer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert next(iter(import_anew("moe_lab.bench.competitors", monkeypatch).COMPETITORS)) == "dense"
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal gets the rows as paragraphs
    assert main(["bench", "--list"]) == 0
    assert re.search(r"^ *dense +anywhere +every block on every token +nothing *$", capsys.readouterr().out, re.M)


def test_a_composition_may_name_what_drops_nothing_unasked() -> None:
    assert COMPOSABLE == ("auto", "megablox", "mosaic-gpu", "native", "reference", "worklist")


def test_a_backend_that_drops_says_how_much() -> None:
    with pytest.raises(AssertionError, match="what drops is counted"):
        Backend(name="b", where="", how="", run=BACKENDS["reference"].run, drops=BACKENDS["capacity"].drops)


def test_the_page_says_of_a_backend_what_it_says_of_itself() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| backend \| where .*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    said = {f"| `{b.name}` | {b.where} | {b.how} | {b.drops.value} |" for b in BACKENDS.values()}
    assert set(table.splitlines()) <= said


def test_the_compiled_kernel_numbers_activations_by_their_place() -> None:
    header = REPOSITORY / "moe_lab" / "nn" / "backends" / "native" / "activations.h"
    (enum,) = re.findall(r"enum Activation : int32_t \{ (.*?) \}", header.read_text(encoding="utf-8"))
    assert enum == ", ".join(f"k{name.capitalize()} = {place}" for place, name in enumerate(ACTIVATIONS))
