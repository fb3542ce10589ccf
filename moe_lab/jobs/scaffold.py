"""The folder of a new module."""

from __future__ import annotations

import re
from pathlib import Path

from moe_lab.artifacts.trunk import TrunkArtifact
from moe_lab.config import decode, to_yaml
from moe_lab.data.files import find_files
from moe_lab.errors import LabError, NotFound, Refused
from moe_lab.experts.interface import require_ladder
from moe_lab.jobs.spec import ModuleSpec
from moe_lab.lab import TRAIN_A_TRUNK, Lab, is_lab
from moe_lab.registry import Registry

_README = """# {name}

One paragraph: what text this module knows, who looks after it, what it is not good at.

    moe-lab train {name}
    moe-lab module check {name}
    moe-lab module publish {name}
"""

_TEST = """from pathlib import Path

from moe_lab.testing import check_module_folder


def test_the_folder_is_a_contribution() -> None:
    check_module_folder(Path(__file__).parent)
"""


_TRAIN = {
    "steps": 200,
    "batch_size": 16,
    "seq_len": 256,
    "learning_rate": 3e-3,
    "schedule": "wsd",
    "warmup_steps": 10,
    "decay_fraction": 0.4,
}


def new_module(lab: Lab, name: str, *, owner: str, trunk: str, text: str, width: int, licence: str) -> Path:
    """Writes module.yaml, README.md and a test; refuses a name that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise LabError(f'"{name}" cannot name a module folder: lowercase letters, digits and underscores, e.g. poems')
    if not is_lab(lab.root):
        raise NotFound(f"{lab.root} is not a lab, so nothing would find the module; make one with: moe-lab init DIR")
    folder = lab.root / "modules" / name
    if name in lab.contributions("modules") or folder.exists():
        raise Refused(f'module "{name}" exists already; choose another name or edit modules/{name}/module.yaml')
    block = _block(lab, trunk)
    ladder = tuple(dict.fromkeys([*(w for w in (block, width // 4 // block * block) if 0 < w < width), width]))
    require_ladder(ladder, width, block, "--width")
    pattern = str(Path(text).expanduser().absolute())
    config = {
        "kind": "module",
        "name": f"{owner}/{name}",
        "summary": f"Learned from {Path(text).name}",  # it is published, and the folders are the author's own
        "licence": licence,
        "trunk": trunk,
        "width": width,
        "ladder": list(ladder),
        "data": {"name": name, "sources": [{"type": "files", "paths": [pattern]}]},
        "train": dict(_TRAIN),
    }
    decode(ModuleSpec, config, "module new")
    if not find_files(lab.root, [pattern]):
        raise NotFound(f"--text {text}: no file matches; put the text there first, or give another pattern")
    folder.mkdir(parents=True)
    (folder / "module.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "README.md").write_text(_README.format(name=name), encoding="utf-8")
    (folder / f"test_{name}.py").write_text(_TEST, encoding="utf-8")
    return folder


def _block(lab: Lab, trunk: str) -> int:
    try:
        manifest = Registry(lab.registry_path, create=False, trust=lab.trust_path).manifest(trunk)
    except LabError as error:
        raise type(error)(
            f"--trunk {trunk}: a module is trained beside a published trunk, and {error} Set MOE_LAB_REGISTRY to the "
            f"registry that your team shares, or train the quickstart's trunk here: {TRAIN_A_TRUNK}"
        ) from error
    if manifest.kind != "trunk":
        raise LabError(f"--trunk {trunk} is a {manifest.kind}; name a published trunk")
    return TrunkArtifact.of(manifest, trunk).spec.block
