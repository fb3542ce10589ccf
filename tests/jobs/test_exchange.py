"""Modules that leave and come back: the same digest, or a clear reason why not, and nothing published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from moe_lab.artifacts.weights import to_tensors
from moe_lab.cli import main
from moe_lab.compose.parts import state_tensors
from moe_lab.config import canonical_json
from moe_lab.data.tokenizers import ByteTokenizer
from moe_lab.experts.interface import Interface, declared_cost
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.experts.weights import init_expert
from moe_lab.lab import init_lab
from moe_lab.nn.decoder import Trunk
from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry import Registry
from tests.registry.scenario import files

SPEC = TrunkSpec(d_model=16, num_layers=2, num_heads=2, ffn_width=24, routed_layers=(0, 1), block=8)
WIDTHS = {0: 24, 1: 16}
LADDER = [8, 16, 24]
Run = Callable[..., str]


def publish_trunk(registry: Registry) -> Interface:
    """A trunk that nobody trained: what is tested here does not depend on what it has learned."""
    tensors = state_tensors(nnx.state(Trunk(SPEC, rngs=nnx.Rngs(0))))
    tokenizer = ByteTokenizer().digest
    config = {"trunk": canonical_json(SPEC.model_dump(mode="json")), "tokenizer": '{"type":"byte"}'}
    fields = {"kind": "trunk", "interface": {"tokenizer": tokenizer}, "config": config, "licence": "Apache-2.0"}
    done = registry.publish("lab", "tiny", None, fields, tensors)
    return Interface.of_trunk(done.digest, tokenizer, SPEC)


def module_fields(interface: Interface) -> dict[str, Any]:
    blocks = {layer: -(-width // SPEC.block) for layer, width in WIDTHS.items()}
    claim = {"metric": "bits_per_byte", "domain": "verse", "data": "sha256-" + "1" * 64, "split": "test"}
    claim |= {"rows": 4, "seq_len": 64}
    return {
        "kind": "module",
        "summary": "Verse – <b>and</b> \x1b[31m`prose`|",
        "licence": "Apache-2.0",
        "interface": interface.to_json(),
        "ladder": LADDER,
        "cost": declared_cost(interface, blocks, LADDER),
        "lineage": {"parents": [{"ref": "lab/tiny@1", "digest": interface.trunk, "relation": "trunk"}], "run": "x"},
        "data": {"domains": [{"name": "verse", "share": 0.5}]},
        "claims": [{**claim, "width": width, "value": f"6.{width:06}"} for width in (0, *LADDER)],
        "config": {"ModuleSpec": "{}"},
    }


def publish_module(registry: Registry, version: str | None = None, seed: int = 1) -> str:
    interface = publish_trunk(registry)
    tensors = to_tensors(init_expert(jax.random.key(seed), interface, WIDTHS), KIND)
    fields = module_fields(interface)
    return registry.publish("north", "verse", version, fields, tensors, set(tensors)).digest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab with a trunk and a module, and the module as a folder."""
    lab = init_lab(tmp_path_factory.mktemp("exchange") / "lab")
    publish_module(Registry(lab / "registry"))
    assert main(["--lab", str(lab), "module", "export", "north/verse", str(lab / "out")]) == 0
    return lab


@pytest.fixture
def lab(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "lab"))


@pytest.fixture
def run(lab: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `moe-lab module ...` in the lab; returns what it prints."""

    def call(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["--lab", str(lab), "module", *arguments]) == code, capsys.readouterr().err
        output = capsys.readouterr()
        return output.err if code else output.out

    return call


def refused(lab: Path, run: Run, *arguments: str) -> str:
    """The one line of a refused import, which must not have changed anything around the lab either."""
    before, around = files(lab / "registry"), sorted(lab.parent.rglob("*"))
    line = run("import", *arguments, code=2)
    assert line.startswith("error: ")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert files(lab / "registry") == before
    assert sorted(lab.parent.rglob("*")) == around
    return line


def edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card["manifest"])
    (folder / "card.json").write_text(json.dumps(card))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_same_content_is_known_under_its_digest(lab: Path, run: Run) -> None:
    digest = Registry(lab / "registry").resolve("north/verse").digest
    assert run("import", str(lab / "out")) == f"already published north/verse@1\n  {digest}\n"
    publish_module(Registry(lab / "registry"), seed=2)
    assert "already published north/verse@1\n" in run("import", str(lab / "out"))
    assert run("export", digest, str(lab / "by-digest")).startswith(f"exported {digest} to ")


def test_another_registry_that_has_the_trunk_gives_the_same_digest(lab: Path, run: Run) -> None:
    digest = Registry(lab / "registry").resolve("north/verse").digest
    shutil.rmtree(lab / "registry")
    trunk = publish_trunk(Registry(lab / "registry")).trunk
    output = run("import", str(lab / "out"))
    assert f"published north/verse@1\n  {digest}\n" in output
    assert "claims are as the card states them" in output
    assert f"trunk, tokenizer, routed layers: made for lab/tiny@1 ({trunk[:19]})" in output
    assert run("verify").endswith("0 problems\n")
    run("export", "north/verse", str(lab / "again"))
    assert files(lab / "again") == files(lab / "out")


def test_a_registry_without_the_trunk_takes_no_module(lab: Path, run: Run) -> None:
    shutil.rmtree(lab / "registry")
    Registry(lab / "registry")
    assert "which this registry does not have; copy it here" in refused(lab, run, str(lab / "out"))


def test_another_name_keeps_the_bytes_and_says_where_they_come_from(lab: Path, run: Run) -> None:
    registry = Registry(lab / "registry")
    assert "published west/verse@1" in run("import", str(lab / "out"), "--as", "west/verse")
    assert "already published west/verse@1" in run("import", str(lab / "out"), "--as", "west/verse")
    mine, theirs = registry.manifest("west/verse"), registry.manifest("north/verse")
    assert mine["tensors"] == theirs["tensors"]
    assert {claim["stated_by"] for claim in mine["claims"]} == {"north/verse@1"}
    assert mine["lineage"]["parents"][1] == {
        "ref": "north/verse@1",
        "digest": theirs.digest,
        "relation": "import",
    }
    assert "import: north/verse@1" in run("lineage", "west/verse")


def test_edited_content_becomes_the_next_version_with_the_old_one_as_parent(lab: Path, run: Run) -> None:
    edit_tensors(lab / "out", lambda tensors: tensors["layers.0.up"].__setitem__((0, 0, 0), 0.125))
    assert "published north/verse@2" in run("import", str(lab / "out"))
    manifest = Registry(lab / "registry").manifest("north/verse@2")
    assert [parent["ref"] for parent in manifest["lineage"]["parents"]] == ["lab/tiny@1", "north/verse@1"]
    assert {claim["stated_by"] for claim in manifest["claims"]} == {"north/verse@1"}


def test_a_rung_is_the_prefix_that_its_width_says(lab: Path, run: Run) -> None:
    run("export", "north/verse@1:16", str(lab / "narrow"))
    registry = Registry(lab / "registry")
    whole = registry.tensors("north/verse")
    narrow = load_file(lab / "narrow" / "model.safetensors")
    assert {name: array.tobytes() for name, array in narrow.items()} == {
        name: array[:2].tobytes() for name, array in whole.items()
    }
    assert "--as owner/name" in refused(lab, run, str(lab / "narrow"))
    assert "published north/narrow@1" in run("import", str(lab / "narrow"), "--as", "north/narrow")
    manifest = registry.manifest("north/narrow")
    assert (manifest["ladder"], sorted(manifest["cost"])) == ([8, 16], ["16", "8"])
    assert [claim["width"] for claim in manifest["claims"]] == [0, 8, 16]
    assert manifest["lineage"]["parents"][1]["relation"] == "whole"
    # Blocks of equal content are stored once, so the rung took no space.
    blobs = set(os.listdir(lab / "registry" / "blobs"))  # noqa: PTH208
    assert blobs == {
        chunk
        for entry in registry.list()
        for record in registry.manifest(entry.digest).records.values()
        for chunk in record.chunks
    }
    assert "has no rung of width 9. Its ladder: 8, 16, 24" in run("export", "north/verse:9", str(lab / "no"), code=2)


def test_the_widest_rung_is_the_module(lab: Path, run: Run) -> None:
    run("export", "north/verse:24", str(lab / "widest"))
    assert (lab / "widest" / "model.safetensors").read_bytes() == (lab / "out" / "model.safetensors").read_bytes()


def test_the_readme_shows_strangers_text_as_text_only(lab: Path) -> None:
    text = (lab / "out" / "README.md").read_text()
    assert "Verse – \\u003cb\\u003eand\\u003c/b\\u003e \\x1b[31m'prose'\\u007c" in text
    assert not set("<>\x1b") & set(text)
    assert "| `16` |" in text
    assert "moe-lab module import FOLDER" in text


def test_a_trunk_is_exported_but_not_imported(lab: Path, run: Run) -> None:
    run("export", "lab/tiny", str(lab / "trunk"))
    stored = Registry(lab / "registry").tensors("lab/tiny")
    assert load_file(lab / "trunk" / "model.safetensors").keys() == stored.keys()
    assert "a trunk has no admission test" in refused(lab, run, str(lab / "trunk"))


def other_trunk(manifest: dict[str, Any]) -> None:
    manifest["lineage"]["parents"][0]["digest"] = "sha256-" + "2" * 64


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other tokenizer": (lambda m: m["interface"].update(tokenizer="sha256-0"), "its tokenizer is sha256-0"),
    "other d_model": (lambda m: m["interface"].update(d_model=32), "its d_model is 32"),
    "other trunk": (other_trunk, "which this registry does not have"),
    "no trunk": (lambda m: m["lineage"].update(parents=[]), "lineage names no trunk"),
    "cheaper than counted": (lambda m: m["cost"].update({"24": 1}), "declared cost: declared"),
    "cost of another rung": (lambda m: m["cost"].update({"9": 1}), "declared cost: declared"),
    "ladder falls": (lambda m: m.update(ladder=[24, 8]), "must be widths that rise"),
    "ladder too long": (lambda m: m.update(ladder=[8, 32]), "the ladder ends at 32"),
    "ladder of text": (lambda m: m.update(ladder=["8"]), "ladder.0"),
    "ladder of truth": (lambda m: m.update(ladder=[True, 24]), "ladder.0"),
    "no ladder": (lambda m: m.pop("ladder"), "ladder: this is required"),
    "ladder is empty": (lambda m: m.update(ladder=[]), "ladder"),
    "claims are text": (lambda m: m.update(claims="good"), "claims: "),
    "claim of infinity": (lambda m: m["claims"][0].update(value="inf"), "claims.0.value"),
    "claim of a float": (lambda m: m["claims"][0].update(value=1.5), "only integers are exact"),
    "layers are a number": (lambda m: m["interface"].update(routed_layers=5), "interface.routed_layers"),
    "other layers": (lambda m: m["interface"].update(routed_layers=[1]), "its routed_layers is (1,)"),
    "interface has more": (lambda m: m["interface"].update(code="x"), "interface.code: unknown key"),
    "a section more": (lambda m: m.update(code="x"), "code: unknown key"),
    "tensors as a section": (lambda m: m.update(tensors={}), "tensors: unknown key"),
    "another format": (lambda m: m.update(format=9), "format: unknown key"),
    "router": (lambda m: m.update(kind="router"), "a router has no admission test"),
    "no kind": (lambda m: m.pop("kind"), "kind: this is required"),
    "kind is a list": (lambda m: m.update(kind=[]), "kind: "),
    "escape in the summary": (lambda m: m.update(summary=["\x1b[2J"]), "summary: "),
    "lineage is text": (lambda m: m.update(lineage="x"), "lineage: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("label", CARDS)
def test_a_card_that_is_not_true_is_refused(lab: Path, run: Run, label: str) -> None:
    change, reason = CARDS[label]
    edit_card(lab / "out", change)
    assert reason in refused(lab, run, str(lab / "out"))


def scalar(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.gate"] = np.array(1, np.float32)


def half(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.gate"] = tensors["layers.0.gate"].astype(np.float16)


def turned(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.gate"] = tensors["layers.0.gate"].transpose(0, 2, 1).copy()


def shorter(tensors: dict[str, np.ndarray]) -> None:
    for name in ("gate", "up", "down"):
        tensors[f"layers.0.{name}"] = tensors[f"layers.0.{name}"][:2].copy()


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "NaN": (lambda t: t["layers.1.up"].__setitem__((0, 0, 0), np.nan), "layers.1.up has 1 values that are NaN"),
    "infinity": (lambda t: t["layers.1.up"].__setitem__((0, 0, 0), -np.inf), "layers.1.up has 1 values that are NaN"),
    "scalar": (scalar, "cannot be cut into blocks"),
    "float16": (half, "layers.0.gate is float16"),
    "turned": (turned, "layers.0.gate has shape [3, 8, 16]"),
    "fewer blocks": (shorter, "declared cost: "),
    "missing": (lambda t: t.pop("layers.0.gate"), "do not name the same tensors"),
    "more": (lambda t: t.update(x=np.zeros(1, np.float32)), "do not name the same tensors"),
}


@pytest.mark.parametrize("label", TENSORS)
def test_tensors_that_do_not_fit_are_refused(lab: Path, run: Run, label: str) -> None:
    change, reason = TENSORS[label]
    edit_tensors(lab / "out", change)
    assert reason in refused(lab, run, str(lab / "out"))


@pytest.mark.parametrize("name", ["../../x/y", "North/verse", "north/verse@3", "north/verse:8", "north", "a/b\n"])
def test_a_name_that_is_none_is_refused(lab: Path, run: Run, name: str) -> None:
    refused(lab, run, str(lab / "out"), "--as", name)


@pytest.mark.parametrize("ref", ["../../x/y", "north/../verse@1", "", "\x1b[2J", "north/verse@1\n"])
def test_a_card_with_a_hostile_name_is_refused(lab: Path, run: Run, ref: str) -> None:
    card = json.loads((lab / "out" / "card.json").read_text())
    (lab / "out" / "card.json").write_text(json.dumps({**card, "ref": ref}))
    refused(lab, run, str(lab / "out"))


def test_hostile_summaries_do_not_reach_the_terminal(lab: Path, run: Run) -> None:
    registry = Registry(lab / "registry")
    bad = "\x1b]0;pwned\x07\u202e\u2066\n\r\x9b31m"
    parents = [{"ref": bad, "digest": "sha256-" + "3" * 64, "relation": bad}]
    fields = {"kind": "module", "summary": bad, "ladder": [bad], "lineage": {"parents": parents}, "claims": bad}
    registry.publish("evil", "words", None, fields, {})
    registry.publish("evil", "number", None, {"kind": "module", "ladder": 5}, {})
    for arguments in (["list"], ["show", "evil/words"], ["lineage", "evil/words"]):
        output = run(*arguments)
        assert all(line.isprintable() for line in output.split("\n"))
        assert "\\x1b]0;pwned\\x07\\u202e" in output or "\\u001b]0;pwned\\u0007\\u202e" in output
    run("export", "evil/words", str(lab / "evil"))
    assert all(line.isprintable() for line in (lab / "evil" / "README.md").read_text().split("\n"))


@pytest.mark.slow
def test_claims_are_measured_again_on_the_text_of_a_config(tiny_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_lab / "out")
    assert main(["--lab", str(tiny_lab), "module", "export", "north/code", folder]) == 0
    importing = ["--lab", str(tiny_lab), "module", "import", folder, "--as", "west/code", "--config", "code"]
    assert main(importing) == 0
    output = capsys.readouterr().out
    assert "ok    claims: " in output
    assert "not measured here" not in output
    manifest = Registry(tiny_lab / "registry").manifest("west/code")
    assert all("stated_by" not in claim for claim in manifest["claims"])
    edit_card(tiny_lab / "out", lambda sections: sections["claims"][1].update(value="1.000000"))
    assert main(importing) == 2
    assert "width 8 claims 1.0000 bits per byte, measured" in capsys.readouterr().err
    edit_card(tiny_lab / "out", lambda sections: sections["claims"][1].update(value="0.0"))
    assert main(importing) == 2
    assert "width 8 claims 0.0000 bits per byte, measured" in capsys.readouterr().err
    assert main([*importing[:-1], "trunk"]) == 2
    assert "--config trunk is a trunk" in capsys.readouterr().err
