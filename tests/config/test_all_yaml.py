"""Every YAML file that ships with the lab is valid: read, decoded into its spec, and written back."""

from pathlib import Path

import pytest

from moe_lab.config import decode, load_config, load_yaml, to_yaml
from moe_lab.lab import CATEGORIES, FOLDERS
from moe_lab.lab.manifest import MANIFESTS

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in FOLDERS
    for pattern in ("*.yaml", "*.yml")
    for path in (REPOSITORY / folder).rglob(pattern)
)
MANIFEST_OF = {CATEGORIES[category]: cls for category, cls in MANIFESTS.items()}  # type: ignore[index]


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_is_valid_and_survives_being_resolved(name: str, tmp_path: Path) -> None:
    path = REPOSITORY / name
    resolved = tmp_path / path.name
    if path.name in MANIFEST_OF:
        cls = MANIFEST_OF[path.name]
        resolved.write_text(to_yaml(decode(cls, load_yaml(path), name)))
        assert decode(cls, load_yaml(resolved), name) == decode(cls, load_yaml(path), name)
    else:
        spec = load_config(path)
        resolved.write_text(to_yaml(spec))
        assert load_config(resolved) == spec


def test_files_end_in_yaml() -> None:
    # Discovery and `moe-lab run NAME` look for this ending only.
    assert [name for name in FILES if name.endswith(".yml")] == []
