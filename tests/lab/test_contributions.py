import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_lab.config import decode, parse_yaml
from moe_lab.errors import LabError
from moe_lab.lab import CATEGORIES, FOLDERS, Lab, init_lab
from moe_lab.lab.manifest import MANIFESTS
from tests.lab.conftest import manifest

AddRouter = Callable[..., Path]


@pytest.fixture
def lab(tmp_path: Path, lab_folder: Path) -> Lab:
    """A working lab and a built-in one, both without contributions."""
    return Lab(lab_folder, init_lab(tmp_path / "builtin"))


def test_contributions_come_from_the_working_and_the_built_in_lab(lab: Lab, add_router: AddRouter) -> None:
    mine, theirs = add_router(lab.root, "mine"), add_router(lab.builtin, "theirs")
    found = lab.contributions("routers")
    assert [(c.name, c.origin, c.path) for c in found.values()] == [
        ("mine", "lab", mine),
        ("theirs", "built-in", theirs),
    ]
    assert found["mine"].manifest == parse_yaml(manifest("mine"), "")
    assert lab.contributions("distill") == {}


def test_a_module_is_listed_with_its_manifest_as_it_stands(lab: Lab) -> None:
    folder = lab.root / "modules" / "python"
    folder.mkdir()
    (folder / "module.yaml").write_text("kind: module\nanything: [1e-4]\n")
    contribution = lab.get("modules", "python")
    assert contribution.manifest == {"kind": "module", "anything": [1e-4]}


def test_what_has_no_manifest_is_no_contribution(lab: Lab) -> None:
    for name in ("__pycache__", ".hidden", "Draft Folder", "draft"):
        (lab.root / "routers" / name).mkdir()
    assert lab.contributions("routers") == {}


def test_listing_imports_no_contributed_code(lab: Lab, add_router: AddRouter) -> None:
    add_router(lab.root, "mine", code="raise SystemExit('imported')")
    before = set(sys.modules)
    assert list(lab.contributions("routers")) == ["mine"]
    assert lab.get("routers", "mine").name == "mine"
    assert set(sys.modules) == before


def test_the_same_name_in_two_places_shows_both(lab: Lab, add_router: AddRouter) -> None:
    mine, theirs = add_router(lab.root, "topk"), add_router(lab.builtin, "topk")
    for ask in (lambda: lab.contributions("routers"), lambda: lab.get("routers", "topk")):
        with pytest.raises(LabError) as error:
            ask()
        assert str(error.value) == (
            f'router "topk" is in two places: {mine} (lab) and {theirs} (built-in). Rename or remove one.'
        )


def test_the_built_in_lab_as_working_lab_is_one_place(tmp_path: Path, lab: Lab, add_router: AddRouter) -> None:
    add_router(lab.builtin, "topk")
    (tmp_path / "link").symlink_to(lab.builtin)
    for root in (lab.builtin, tmp_path / "link"):
        assert list(Lab(root, lab.builtin).contributions("routers")) == ["topk"]


def test_outside_of_a_lab_a_folder_called_modules_is_not_looked_into(
    tmp_path: Path, lab: Lab, add_router: AddRouter
) -> None:
    shutil.rmtree(lab.root / "configs")
    add_router(lab.root, "unrelated")
    assert lab.contributions("routers") == {}


def test_a_miss_guesses_and_lists(lab: Lab, add_router: AddRouter) -> None:
    add_router(lab.root, "gain")
    add_router(lab.builtin, "topk")
    with pytest.raises(LabError) as error:
        lab.get("routers", "topq")
    assert str(error.value) == 'unknown router "topq". Did you mean "topk"? Available: gain, topk.'


def test_a_folder_without_its_manifest_is_named(lab: Lab) -> None:
    (lab.root / "routers" / "draft").mkdir()
    with pytest.raises(LabError, match="there is no router.yaml in it"):
        lab.get("routers", "draft")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (manifest("other"), 'name: expected "mine" as the folder says, got "other"'),
        (manifest("mine", "router.py"), "implementation: must match pattern"),
        (manifest("mine", "../router.py:X"), "implementation: must match pattern"),
        (manifest("mine").replace("owner:", "ownr:"), 'ownr: unknown key. Did you mean "owner"?'),
        ("", "the file is empty"),
    ],
)
def test_a_broken_manifest_is_named_and_stops_no_other_router(
    lab: Lab, add_router: AddRouter, text: str, reason: str
) -> None:
    path = add_router(lab.root, "mine") / "router.yaml"
    add_router(lab.root, "sound")
    path.write_text(text)
    for ask in (lambda: lab.contributions("routers"), lambda: lab.get("routers", "mine")):
        with pytest.raises(LabError) as error:
            ask()
        assert str(error.value).startswith(f"{path}: ")
        assert reason in str(error.value)
    assert lab.get("routers", "sound").name == "sound"


@pytest.mark.parametrize("name", ["Top", "1st", "top-k", "_top", "tôp"])
def test_a_folder_name_that_is_no_identifier_is_refused(lab: Lab, add_router: AddRouter, name: str) -> None:
    add_router(lab.root, name)
    with pytest.raises(LabError, match="Rename the folder"):
        lab.contributions("routers")


def test_configs_are_found_by_path_and_by_name(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.root / "configs" / "mine.yaml").touch()
    (lab.builtin / "configs" / "quickstart.yaml").touch()
    (lab.builtin / "configs" / "mine.yaml").touch()
    (lab.root / "modules" / "python").mkdir()
    (lab.root / "modules" / "python" / "module.yaml").touch()
    monkeypatch.chdir(lab.root / "modules")
    assert lab.find_config("python/module.yaml") == Path("python/module.yaml")
    assert lab.find_config("configs/mine.yaml") == lab.root / "configs" / "mine.yaml"
    assert lab.find_config("mine") == lab.root / "configs" / "mine.yaml"
    assert lab.find_config("quickstart") == lab.builtin / "configs" / "quickstart.yaml"
    assert lab.find_config("python") == lab.root / "modules" / "python" / "module.yaml"
    assert lab.find_config(str(lab.builtin / "configs" / "mine.yaml")) == lab.builtin / "configs" / "mine.yaml"
    with pytest.raises(LabError) as error:
        lab.find_config("quikstart")
    assert str(error.value) == (
        'no config "quikstart". Did you mean "quickstart"? Available: mine, python, quickstart.'
    )


def test_every_category_is_a_folder_of_the_lab() -> None:
    assert {*CATEGORIES, "configs"} == set(FOLDERS)


@pytest.mark.parametrize("category", sorted(MANIFESTS))
def test_the_manifest_shown_in_the_folders_page_is_valid(repository: Path, category: str) -> None:
    page = (repository / category / "README.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    assert decode(MANIFESTS[category], parse_yaml(example, category), category)
