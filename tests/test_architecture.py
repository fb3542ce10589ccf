"""The arrows between packages go one way, and what must start fast stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_lab.cli.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent

# Package -> what it may import besides itself. docs/architecture.md draws the same table.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "folders": set(),
    "config": {"errors"},
    "lab": {"errors", "config"},
    "data": {"errors", "config"},
    "nn": {"errors", "folders", "config"},
    "registry": {"errors", "folders", "config"},
    "experts": {"errors", "config", "nn", "registry"},
    "artifacts": {"errors", "config", "data", "nn", "registry", "experts"},
    "parallel": {"errors", "config", "nn"},
    "routing": {"errors", "config", "data", "nn", "experts", "registry"},
    "training": {"errors", "config"},
    "compose": {"errors", "config", "lab", "data", "nn", "parallel", "registry", "experts", "artifacts", "routing"},
    "metrics": {"errors", "config"},
    "questions": {"errors", "folders", "config", "data", "metrics"},
    "evaluation": {
        "errors",
        "config",
        "data",
        "nn",
        "parallel",
        "experts",
        "routing",
        "compose",
        "metrics",
        "questions",
    },
}
ARROWS["jobs"] = set(ARROWS)
ARROWS["api"] = {"lab", "compose", "jobs"}
ARROWS["bench"] = {"errors", "config", "nn"}
ARROWS["cli"] = set(ARROWS) - {"api"}

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


def broken_arrows(root: Path) -> list[str]:
    """Returns one line for each import in root/moe_lab that no arrow allows."""
    broken = []
    for path, module in files(root, "moe_lab"):
        own = module.split(".")[1] if "." in module else "moe_lab"
        if own == "__main__":
            own = "cli"
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


def private_imports(root: Path) -> list[str]:
    """Returns one line for each import of a private name of moe_lab's in a contributed file."""
    return [
        f"{path.relative_to(root)}:{line}: imports {name}, which is private"
        for folder in CONTRIBUTED
        for path, module in files(root, folder)
        for name, line in imports(path, module)
        if name.startswith("moe_lab.") and any(part.startswith("_") for part in name.split("."))
    ]


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


@pytest.mark.parametrize(
    ("package", "code", "reason"),
    [
        ("nn", "from moe_lab.routing import Routing", "nn may import config, errors"),
        ("nn", "def f():\n    from moe_lab import training", "nn may import config, errors"),
        ("nn", "from ..compose.spec import X", "nn may import config, errors"),
        ("nn", "from .. import jobs", "nn may import config, errors"),
        ("errors", "import moe_lab.config.spec", "errors may import nothing"),
        ("config", "import moe_lab.serving", "serving has no arrows yet"),
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
    assert private_imports(REPOSITORY) == []


def test_a_private_import_of_a_contribution_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "routers" / "mine"
    folder.mkdir(parents=True)
    (folder / "router.py").write_text("def f():\n    from moe_lab.nn._kernels import fast\nfrom moe_lab import nn\n")
    assert private_imports(tmp_path) == ["routers/mine/router.py:2: imports moe_lab.nn._kernels.fast, which is private"]


def test_the_architecture_page_has_the_same_arrows() -> None:
    page = REPOSITORY / "docs" / "architecture.md"
    blocks = re.findall(r"^```arrows\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) == 1, "docs/architecture.md needs one ```arrows block, with lines `package: allowed, allowed`"
    drawn = dict(line.split(":", 1) for line in blocks[0].splitlines() if line.strip())
    assert {
        package.strip(): {name.strip() for name in allowed.split(",") if name.strip()}
        for package, allowed in drawn.items()
    } == ARROWS


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
