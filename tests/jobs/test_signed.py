"""Publishing, composing and evaluating in a lab that demands signatures."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.config import to_yaml
from moe_lab.registry import Registry
from moe_lab.registry.keys import load_key, new_key
from moe_lab.registry.trust import TrustPolicy
from tests.registry.scenario import retire

pytestmark = pytest.mark.slow

OWNERS = ("lab", "north", "south")


@pytest.fixture
def lab(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The finished study, nothing of it signed; one key per owner; and a policy that wants their signatures."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    owners = {owner: (new_key(owner).public,) for owner in OWNERS}
    (tiny_lab / "configs/trust.yaml").write_text(to_yaml(TrustPolicy(unsigned="refuse", owners=owners)))
    monkeypatch.setenv("MOE_LAB_HOME", str(tiny_lab))
    return tiny_lab


def sign_all(lab: Path) -> None:
    registry = Registry(lab / "registry")
    for entry in registry.list():
        registry.sign(entry.ref, load_key(entry.ref.owner))


def test_a_lock_is_evaluated_once_everything_in_it_is_signed(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = lab / "runs" / "compositions" / "tiny.lock.json"
    command = ["eval", "evaluation", f"composition={lock}", "name=again", "routers=[]", "rows=2", "decision_rows=2"]
    assert main(command) == 2
    assert "lab/tiny@1 is untrusted: " in capsys.readouterr().err
    sign_all(lab)
    retire(lab / "registry", "north/code@1", "superseded")
    assert main(command) == 0


def test_publishing_signs_what_is_new_and_what_is_there(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trusting = Registry(lab / "registry", trust=lab / "configs/trust.yaml")
    registry = Registry(lab / "registry")
    registry.sign("lab/tiny", load_key("lab"))
    # The very same content again: the version stays, and is signed now.
    assert main(["module", "publish", "prose", "--key", "south"]) == 0
    assert capsys.readouterr().out.startswith("already published south/prose@1")
    assert trusting.resolve("south/prose")
    assert main(["train", "prose", "train.steps=9"]) == 0
    capsys.readouterr()
    for key in ([], ["--key", "north"]):
        assert main(["module", "publish", "prose", "train.steps=9", *key]) == 2
        assert "cannot publish for south: " in capsys.readouterr().err
    assert main(["module", "publish", "prose", "train.steps=9", "--key", "south"]) == 0
    assert str(trusting.resolve("south/prose").ref) == "south/prose@2"


def test_a_key_that_is_not_there_is_said_before_the_work(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sorted((lab / "runs").iterdir())
    monkeypatch.setenv("MOE_LAB_KEY", "nroth")
    assert main(["train", "code", "train.steps=9", "--publish"]) == 2
    assert 'no key "nroth"' in capsys.readouterr().err
    assert sorted((lab / "runs").iterdir()) == runs
    monkeypatch.setenv("MOE_LAB_KEY", "north")
    Registry(lab / "registry").sign("lab/tiny", load_key("lab"))
    Registry(lab / "registry").sign("north/code", load_key("north"))
    assert main(["train", "code", "train.steps=9", "--publish"]) == 0
    assert Registry(lab / "registry", trust=lab / "configs/trust.yaml").resolve("north/code@2")
