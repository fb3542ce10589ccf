"""Where contributions may lie, and what their manifests say. Imports no contributed code.

A place is a folder that holds a manifest: in the working lab, in the built-in lab, or in an installed package
that names it under an entry point. The same name in two places is an error, never a silent choice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_lab.errors import LabError

Category = Literal["modules", "routers", "distill"]
# Each category with the file name of its manifest.
CATEGORIES: dict[Category, str] = {
    "modules": "module.yaml",
    "routers": "router.yaml",
    "distill": "strategy.yaml",
}
_SINGULAR: dict[Category, str] = {"modules": "module", "routers": "router", "distill": "strategy"}


@dataclass(frozen=True)
class Contribution:
    """A contributed folder and what its manifest says.

    Attributes:
        name: the name to use in configs; the folder's, or the entry point's.
        category: the kind of folder it lies in.
        path: the folder.
        origin: "lab", "built-in" or "package NAME".
        manifest: the manifest as plain data.
    """

    name: str
    category: Category
    path: Path
    origin: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A folder that holds a contribution, its manifest not read yet."""

    name: str
    category: Category
    path: Path
    origin: str

    @property
    def manifest_path(self) -> Path:
        return self.path / CATEGORIES[self.category]


def singular(category: Category) -> str:
    """Returns what one contribution of a category is called in messages."""
    return _SINGULAR[category]


def places_in(lab: Path, category: Category, origin: str) -> Iterator[Place]:
    """Yields the contributions lying in a lab folder; what has no manifest is not one."""
    folder = lab / category
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if (path / CATEGORIES[category]).is_file():
            if not _is_name(path.name):
                raise LabError(
                    f'{path}: "{path.name}" is no {singular(category)} name. Rename the folder: a lowercase '
                    "letter, then lowercase letters, digits and underscores."
                )
            yield Place(path.name, category, path, origin)


def places_in_packages(category: Category) -> Iterator[Place]:
    """Yields the contributions that installed packages declare under `moe_lab.<category>`."""
    from importlib.metadata import entry_points

    for point in entry_points(group=f"moe_lab.{category}"):
        owner = point.dist.name if point.dist else "?"
        where = f'package {owner}: entry point "{point.name} = {point.value}" in moe_lab.{category}'
        if not _is_name(point.name):
            raise LabError(f"{where}: the name must be a lowercase identifier. Mend or uninstall {owner}.")
        folder = _package_folder(point.value, CATEGORIES[category])
        if folder is None:
            raise LabError(
                f"{where}: no folder of that package holds {CATEGORIES[category]}. Mend or uninstall {owner}."
            )
        yield Place(point.name, category, folder, f"package {owner}")


def by_name(places: Iterator[Place]) -> dict[str, Place]:
    """Returns the places by name; two different folders for one name are an error that shows both."""
    named: dict[str, Place] = {}
    for place in places:
        other = named.setdefault(place.name, place)
        if other.path.resolve() != place.path.resolve():
            raise LabError(
                f'{singular(place.category)} "{place.name}" is in two places: {other.path} ({other.origin}) '
                f"and {place.path} ({place.origin}). Rename or remove one."
            )
    return dict(sorted(named.items()))


def read(place: Place) -> Contribution:
    """Reads and checks the manifest of one place."""
    # Many commands only need to know where the lab is, and start faster without pydantic.
    from moe_lab.config import decode, load_yaml
    from moe_lab.lab.manifest import MANIFESTS

    path = place.manifest_path
    manifest = load_yaml(path)
    if place.category in MANIFESTS:
        decode(MANIFESTS[place.category], manifest, str(path))
        if manifest["name"] != place.name:
            raise LabError(
                f'{path}: name: expected "{place.name}" as the {_namer(place)} says, '
                f'got "{manifest["name"]}". Make the two the same.'
            )
    return Contribution(place.name, place.category, place.path, place.origin, manifest)


def _namer(place: Place) -> str:
    return "entry point" if place.origin.startswith("package ") else "folder"


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier() and name == name.lower() and not name.startswith("_")


def _package_folder(dotted: str, manifest: str) -> Path | None:
    """Returns the folder of a package that holds `manifest`, importing nothing.

    Only the top-level package is looked up: looking up a subpackage would import its parents.
    """
    top, *below = dotted.partition(":")[0].split(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root).joinpath(*below)
        if (folder / manifest).is_file():
            return folder
    return None
