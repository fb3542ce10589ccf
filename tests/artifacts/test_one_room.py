"""Only `moe_lab/artifacts` knows what a manifest's sections hold, and how tensors are called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_lab.registry.manifest import SECTIONS
from tests.test_architecture import REPOSITORY, files

NAMES = {"kind", "interface", *SECTIONS}
OWN = {"interface", "lineage"}
"""Names that nothing but a manifest has."""
ROOM = "moe_lab.artifacts"
FORMAT = "moe_lab.registry.manifest"
"""What the registry's format itself says of any artifact; see `docs/registry-format.md`."""
OTHER_DOTS = {"moe_lab.config.overrides", "moe_lab.lab.contributions", "moe_lab.registry.references"}
"""They take apart what is no tensor's name: the path of a setting, a Python module, a version."""
# A contribution has a manifest too: its module.yaml.
_MANIFEST = re.compile(r"(?<!contribution\.)\b(\w*manifest|\w*sections|fields|card)\b")
_ASK = f"{ROOM} reads manifests: ask an artifact of it (`of(manifest)`), or a property of Manifest"
_TEXT = f"{ROOM} reads and writes the JSON text inside manifests: let an artifact hold the settings plain"
_TENSOR = f"{ROOM}.tensor_names puts names of tensors together and takes them apart: call that"


def strays(root: Path) -> list[str]:
    """Returns one line for each place in root/moe_lab that does what only `moe_lab/artifacts` may."""
    return [
        f"{path.relative_to(root)}:{line}: {what}"
        for path, module in files(root, "moe_lab")
        if not module.startswith(ROOM) and module != FORMAT
        for line, what in sorted(_strays(ast.parse(path.read_text(encoding="utf-8"), str(path)), module))
    ]


def _strays(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for holder, key in _lookups(node):
            if key in OWN or (key in NAMES and _MANIFEST.search(ast.unparse(holder))):
                yield node.lineno, f'spells the section "{key}"; {_ASK}'  # type: ignore[attr-defined]
        if isinstance(node, ast.Dict):
            own = {key.value for key in node.keys if isinstance(key, ast.Constant)} & OWN
            yield from ((node.lineno, f'spells the section "{key}"; {_ASK}') for key in own)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("loads", "model_validate_json") and any(_lookups(arg) for arg in node.args):
                yield node.lineno, f"parses a text inside an object; {_TEXT}"
            dots = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)] == ["."]
            if dots and node.func.attr in ("split", "rsplit") and module not in OTHER_DOTS:
                yield node.lineno, f'calls {node.func.attr}("."); {_TENSOR}'
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("layers."):
            yield node.lineno, f"names a tensor, {node.value}; {_TENSOR}"


def _lookups(node: ast.AST) -> list[tuple[ast.expr, str]]:
    """The thing that is looked into, and the key, of `x["key"]`, `x.get("key")`, `x.pop("key")`, `"key" in x`."""
    match node:
        case ast.Subscript(value=holder, slice=ast.Constant(value=str(key))):
            return [(holder, key)]
        case ast.Call(
            func=ast.Attribute(value=holder, attr="get" | "pop" | "setdefault"), args=[ast.Constant(value=str(key)), *_]
        ):
            return [(holder, key)]
        case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()], comparators=[holder]):
            return [(holder, key)]
    return []


def test_no_other_room_spells_sections_or_names_tensors() -> None:
    assert strays(REPOSITORY) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('registry.manifest(digest)["config"]', 'spells the section "config"'),
        ('if "kind" in card.sections: pass', 'spells the section "kind"'),
        ('manifest.get("claims", [])', 'spells the section "claims"'),
        ('anything["interface"]["space"]', 'spells the section "interface"'),
        ('fields = {"lineage": {}}', 'spells the section "lineage"'),
        ('json.loads(config["router"])', "parses a text inside an object"),
        ('Spec.model_validate_json(described.get("features"))', "parses a text inside an object"),
        ('layer = int(name.split(".")[1])', 'calls split(".")'),
        ('f"layers.{layer}.gate"', "names a tensor, layers."),
        ('contribution.manifest["summary"]', None),
        ('settings = {"kind": "module", "ladder": [8], "data": "code"}', None),
        ('result["claims"], json.loads(text)["config"]', None),
        ('"""layers of it"""\nname.split("/")', None),
    ],
)
def test_a_stray_is_found(tmp_path: Path, code: str, reason: str | None) -> None:
    folder = tmp_path / "moe_lab" / "jobs"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text(code)
    found = strays(tmp_path)
    assert len(found) == (reason is not None), found
    assert all(f"jobs/code.py:1: {reason}" in line and ROOM in line for line in found)
