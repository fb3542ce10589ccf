from pathlib import Path

import pytest

from moe_lab.errors import LabError
from moe_lab.lab import FOLDERS, Lab, find_lab, init_lab, is_lab


def test_the_lab_around_the_current_folder_is_found(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = lab_folder / "modules" / "deep" / "inside"
    inside.mkdir(parents=True)
    for folder in (lab_folder, inside):
        monkeypatch.chdir(folder)
        assert find_lab().root == lab_folder


def test_the_nearest_lab_wins(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = init_lab(lab_folder / "modules" / "inner")
    monkeypatch.chdir(inner / "configs")
    assert find_lab().root == inner


def test_the_option_beats_the_environment_and_that_the_folder(
    tmp_path: Path, lab_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, named = init_lab(tmp_path / "home"), init_lab(tmp_path / "named")
    monkeypatch.chdir(lab_folder)
    monkeypatch.setenv("MOE_LAB_HOME", str(home))
    assert find_lab().root == home
    assert find_lab(str(named)).root == named
    monkeypatch.setenv("MOE_LAB_HOME", "")
    assert find_lab().root == lab_folder


def test_outside_of_a_lab_outputs_go_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab = find_lab()
    assert lab.root == tmp_path
    assert lab.runs == tmp_path / "runs"
    assert lab.registry_path == tmp_path / "registry"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_option", [True, False])
def test_a_folder_that_is_named_and_is_no_lab_is_refused(
    tmp_path: Path, by_option: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    monkeypatch.setenv("MOE_LAB_HOME", "" if by_option else str(tmp_path))
    with pytest.raises(LabError) as error:
        find_lab(str(tmp_path) if by_option else None)
    source = "--lab" if by_option else "MOE_LAB_HOME"
    assert str(error.value) == (
        f"{source} {tmp_path}: not a lab, it has no folder routers, distill, configs. "
        f"Make one with: moe-lab init {tmp_path}"
    )


def test_the_built_in_lab_of_a_checkout_is_the_repository(repository: Path) -> None:
    assert find_lab().builtin == repository
    assert is_lab(repository)


def test_the_registry_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, tmp_path)
    for place in ("/shared/registry", "gs://bucket/registry"):
        monkeypatch.setenv("MOE_LAB_REGISTRY", place)
        assert str(lab.registry_path) == place


def test_a_fresh_lab_explains_its_folders(tmp_path: Path, repository: Path) -> None:
    lab = init_lab(tmp_path / "new" / "lab")
    assert is_lab(lab)
    for folder in FOLDERS:
        page = (lab / folder / "README.md").read_text()
        assert page == (repository / folder / "README.md").read_text()
        assert len(page.splitlines()) > 5


def test_a_fresh_lab_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(LabError, match="the folder is not empty"):
        init_lab(tmp_path)
    with pytest.raises(LabError, match="there is a file of that name"):
        init_lab(tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    assert is_lab(init_lab(tmp_path / "empty"))
