import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.lab import Lab, init_lab

AddRouter = Callable[..., Path]


@pytest.fixture
def lab(tmp_path: Path, lab_folder: Path) -> Lab:
    return Lab(lab_folder, init_lab(tmp_path / "builtin"))


def load(lab: Lab, name: str) -> Any:
    return lab.load(lab.get("routers", name))


def test_a_class_is_loaded_under_a_private_package_name(lab: Lab, add_router: AddRouter) -> None:
    folder = add_router(lab.root, "topk", "class Router:\n    answer = 42\n")
    before = set(sys.modules)
    loaded = load(lab, "topk")
    assert loaded.answer == 42
    assert loaded.__module__ == "moe_lab_contributions.routers.topk.router"
    assert sys.modules[loaded.__module__].__file__ == str(folder / "router.py")
    assert not {"routers", "router"} & (set(sys.modules) - before)


def test_relative_imports_and_pickles_work(lab: Lab, add_router: AddRouter) -> None:
    code = "from .gates import GATE\nfrom . import gates\nclass Router:\n    gate = GATE + gates.GATE\n"
    folder = add_router(lab.root, "topk", code)
    (folder / "gates.py").write_text("GATE = 3\n")
    loaded = load(lab, "topk")
    assert loaded.gate == 6
    assert pickle.loads(pickle.dumps(loaded)) is loaded


def test_two_routers_with_the_same_file_names_stay_apart(lab: Lab, add_router: AddRouter) -> None:
    add_router(lab.root, "one", "class Router:\n    number = 1\n")
    add_router(lab.root, "two", "class Router:\n    number = 2\n")
    assert (load(lab, "one").number, load(lab, "two").number) == (1, 2)
    assert load(lab, "one") is load(lab, "one")


def test_the_same_name_of_another_lab_is_loaded_anew(tmp_path: Path, lab: Lab, add_router: AddRouter) -> None:
    other = Lab(init_lab(tmp_path / "other"), lab.builtin)
    add_router(lab.root, "topk", "class Router:\n    number = 1\n")
    add_router(other.root, "topk", "class Router:\n    number = 2\n")
    assert (load(lab, "topk").number, load(other, "topk").number) == (1, 2)


@pytest.mark.parametrize(
    ("code", "line", "reason"),
    [
        (
            "import json\n\nimport no_such_package\n",
            3,
            "ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("x = (\n", 1, "SyntaxError: '(' was never closed"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError: Expecting property name"),
        ("from .missing import x\n", 1, "No module named 'moe_lab_contributions.routers.topk.missing'"),
    ],
)
def test_code_that_cannot_be_imported_is_named_with_line_and_reason(
    lab: Lab, add_router: AddRouter, code: str, line: int, reason: str
) -> None:
    path = add_router(lab.root, "topk", code) / "router.py"
    with pytest.raises(LabError) as error:
        load(lab, "topk")
    assert str(error.value).startswith(f"{path}:{line}: this router cannot be imported: ")
    assert reason in str(error.value)
    path.write_text("class Router:\n    mended = True\n")
    assert load(lab, "topk").mended


def test_a_missing_class_or_file_is_named(lab: Lab, add_router: AddRouter) -> None:
    path = add_router(lab.root, "topk", "from pathlib import Path\nclass Rooter:\n    pass\n") / "router.py"
    with pytest.raises(LabError) as error:
        load(lab, "topk")
    assert str(error.value) == f'{path}: no class Router. Did you mean "Rooter"? Available: Rooter.'
    path.unlink()
    with pytest.raises(LabError, match=r"router\.py: no such file, but the manifest says"):
        load(lab, "topk")


def test_a_module_without_code_of_its_own_has_nothing_to_load(lab: Lab) -> None:
    (lab.root / "modules" / "python").mkdir()
    (lab.root / "modules" / "python" / "module.yaml").write_text("kind: module\n")
    with pytest.raises(LabError, match="the manifest names no code"):
        lab.load(lab.get("modules", "python"))
