"""The arrows between packages go one way, and what must start fast stays light."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from moe_lab.cli.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent

PAGE = REPOSITORY / "docs" / "architecture.md"


def drawn_arrows() -> dict[str, set[str]]:
    """Package -> what it may import besides itself: the table of the page, bottom first."""
    blocks = re.findall(r"^```arrows\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) == 1, f"{PAGE} needs one ```arrows block, with lines `package: allowed, allowed`"
    rows = (line.split(":", 1) for line in blocks[0].splitlines() if line.strip())
    return {package.strip(): set(re.findall(r"\w+", allowed)) for package, allowed in rows}


ARROWS = drawn_arrows()
CONTRIBUTED = ("modules", "routers", "distill")
HEAVY = {
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "tensorstore",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "scipy",
    "torch",
    "transformers",
}


def imports(path: Path, module: str) -> Iterator[tuple[str, int]]:
    """Yields the dotted names a file imports, those inside functions included, with their lines.

    `from a.b import c` yields `a.b.c`: c may be a module.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def files(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Yields the Python files of a package folder with their module names."""
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The package below `moe_lab` that a module belongs to; `moe_lab` for those that only start the command."""
    own = module.split(".")[1] if "." in module else "moe_lab"
    return "cli" if own == "__main__" else own


def broken_arrows(root: Path) -> list[str]:
    """Returns one line for each import in root/moe_lab that no arrow allows."""
    broken = []
    for path, module in files(root, "moe_lab"):
        own = package_of(module)
        for name, line in imports(path, module):
            top, *below = name.split(".")
            where = f"{path.relative_to(root)}:{line}: imports {name}"
            if top in (*CONTRIBUTED, "configs"):
                broken.append(f"{where}: the framework never imports contributions")
            if top == "orbax" and module != "moe_lab.training.checkpoint":
                broken.append(f"{where}: only moe_lab/training/checkpoint.py uses orbax")
            if top != "moe_lab" or not below or below[0] in (own, "__version__"):
                continue
            if below[0] not in ARROWS:
                broken.append(f"{where}: {below[0]} has no arrows yet, here and in docs/architecture.md")
            elif below[0] not in ARROWS.get(own, set()):
                broken.append(f"{where}: {own} may import {', '.join(sorted(ARROWS.get(own, set()))) or 'nothing'}")
    return broken


def public_names() -> dict[str, set[str]]:
    """Module -> the names that contributions may import from it."""
    stub = ast.parse((REPOSITORY / "moe_lab" / "__init__.pyi").read_text(encoding="utf-8"))
    named = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {"moe_lab": named, "moe_lab.testing": set(importlib.import_module("moe_lab.testing").__all__)}


def inner_imports(root: Path) -> list[str]:
    """Returns one line for each import of a contributed file that is no public name of the framework's."""
    allowed = {f"{module}.{name}" for module, names in public_names().items() for name in names}
    return [
        f"{path.relative_to(root)}:{line}: imports {name}, which is not public; see moe_lab/__init__.pyi"
        for folder in CONTRIBUTED
        for path, module in files(root, folder)
        for name, line in imports(path, module)
        if name.partition(".")[0] == "moe_lab" and name not in allowed | {"moe_lab", "moe_lab.testing"}
    ]


def used_arrows(root: Path) -> dict[str, set[str]]:
    """Package -> the packages that its files import."""
    used: dict[str, set[str]] = {}
    for path, module in files(root, "moe_lab"):
        own = package_of(module)
        named = {name.split(".")[1] for name, _ in imports(path, module) if name.startswith("moe_lab.")}
        used.setdefault(own, set()).update(named - {own, "__version__"})
    return used


def circle_of_files(root: Path) -> list[str]:
    """Returns the modules of one circle of imports, those for type checkers and inside functions included."""
    modules = {module: path for path, module in files(root, "moe_lab")}
    graph = {
        module: {
            target
            for name, _ in imports(path, module)
            for target in (name if name in modules else name.rpartition(".")[0],)
            if target in modules and target != module
        }
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_breaks_the_arrows() -> None:
    assert broken_arrows(REPOSITORY) == []


def test_every_package_has_its_arrows() -> None:
    packages = {module.split(".")[1] for _, module in files(REPOSITORY, "moe_lab") if "." in module}
    assert packages - {"__main__"} <= set(ARROWS)


def test_the_arrows_have_no_circle() -> None:
    order = list(ARROWS)
    for package, allowed in ARROWS.items():
        later = {other for other in allowed if order.index(other) >= order.index(package)} - {package}
        assert later == set(), package


def test_the_picture_shows_every_package() -> None:
    picture = PAGE.with_suffix(".svg").read_text(encoding="utf-8")
    assert set(re.findall(r">(\w+)</text>", picture)) >= set(ARROWS), "draw it again: python docs/draw_architecture.py"


def test_every_arrow_is_used() -> None:
    used = used_arrows(REPOSITORY)
    assert {package: sorted(allowed - used.get(package, set())) for package, allowed in ARROWS.items()} == {
        package: [] for package in ARROWS
    }


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle_of_files(REPOSITORY) == []


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "moe_lab" / "nn"
    folder.mkdir(parents=True)
    for init in (folder.parent, folder):
        (init / "__init__.py").touch()
    (folder / "first.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import second\n")
    (folder / "second.py").write_text("def f():\n    from moe_lab.nn.first import x\n")
    assert set(circle_of_files(tmp_path)) == {"moe_lab.nn.first", "moe_lab.nn.second"}


@pytest.mark.parametrize(
    ("package", "code", "reason"),
    [
        ("nn", "from moe_lab.routing import Routing", "nn may import config, errors"),
        ("nn", "def f():\n    from moe_lab import training", "nn may import config, errors"),
        ("nn", "from ..compose.spec import X", "nn may import config, errors"),
        ("nn", "from .. import jobs", "nn may import config, errors"),
        ("errors", "import moe_lab.config.spec", "errors may import nothing"),
        ("config", "import moe_lab.brewing", "brewing has no arrows yet"),
        ("training", "import orbax.checkpoint as ocp", "only moe_lab/training/checkpoint.py uses orbax"),
        ("routing", "from routers.topk.router import TopK", "the framework never imports contributions"),
        ("experts", "from moe_lab.nn import trunk", None),
        ("nn", "from . import ffn\nfrom .ffn import x\nfrom moe_lab import __version__", None),
    ],
)
def test_a_broken_arrow_is_found(tmp_path: Path, package: str, code: str, reason: str | None) -> None:
    folder = tmp_path / "moe_lab" / package
    folder.mkdir(parents=True)
    (tmp_path / "moe_lab" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "code.py").write_text(code)
    found = broken_arrows(tmp_path)
    assert len(found) == (reason is not None)
    assert all(reason in line and "code.py:" in line for line in found if reason)


def test_contributions_use_public_names_only() -> None:
    assert inner_imports(REPOSITORY) == []


def test_an_inner_import_of_a_contribution_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "routers" / "mine"
    folder.mkdir(parents=True)
    (folder / "router.py").write_text("def f():\n    from moe_lab.nn.pool import Pool\nfrom moe_lab import Router\n")
    [line] = inner_imports(tmp_path)
    assert line.startswith("routers/mine/router.py:2: imports moe_lab.nn.pool.Pool, which is not public")


def test_every_public_name_is_there_once() -> None:
    names = [name for public in public_names().values() for name in public]
    assert len(names) == len(set(names))
    for module, public in public_names().items():
        for name in public:
            assert getattr(importlib.import_module(module), name) is not None


def test_listing_help_and_specs_import_nothing_heavy() -> None:
    light = ["moe_lab", "moe_lab.config", "moe_lab.lab", "moe_lab.cli", "moe_lab.registry"]
    light += [target.partition(":")[0] for target in COMMANDS.values()]
    light += [module for path, module in files(REPOSITORY, "moe_lab") if path.name == "spec.py"]
    code = (
        "import importlib, sys\n"
        f"heavy = {sorted(HEAVY)}\n"
        f"for name in {light}:\n"
        "    importlib.import_module(name)\n"
        "    found = [package for package in heavy if package in sys.modules]\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
