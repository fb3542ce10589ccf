"""The lab as an object: its folders, the contributions it sees, its configs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moe_lab.errors import LabError, NotFound, did_you_mean
from moe_lab.lab.contributions import (
    CATEGORIES,
    Category,
    Contribution,
    Place,
    by_name,
    places_in,
    places_in_packages,
    read,
    singular,
)
from moe_lab.lab.folder import builtin_lab, is_lab, missing_folders
from moe_lab.lab.loading import load

T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """A working folder and the built-in lab behind it.

    Attributes:
        root: where runs and the registry go. Often a lab; outside of one it is the current folder.
        builtin: the lab that came with the framework.
    """

    root: Path
    builtin: Path

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.root / "runs"

    @property
    def registry_path(self) -> str | Path:
        """The registry: MOE_LAB_REGISTRY (a path or URL) where it is set, else a folder of the lab."""
        return os.environ.get("MOE_LAB_REGISTRY") or self.root / "registry"

    @property
    def trust_path(self) -> Path | None:
        """The trust policy: MOE_LAB_TRUST where it is set, else the lab's configs/trust.yaml if it has one."""
        if named := os.environ.get("MOE_LAB_TRUST"):
            return Path(named)
        path, misnamed = (self.root / "configs" / name for name in ("trust.yaml", "trust.yml"))
        if _is_there(misnamed):
            raise LabError(f"{misnamed}: a trust policy is called trust.yaml. Rename it, or it would protect nobody.")
        # Also a broken link or a folder of that name: reading it fails, and so does all that it might forbid.
        return path if _is_there(path) else None

    @property
    def key_name(self) -> str | None:
        """The key that signs what is published: MOE_LAB_KEY, if it is set."""
        return os.environ.get("MOE_LAB_KEY") or None

    def contributions(self, category: Category) -> dict[str, Contribution]:
        """Returns all contributions of a category by name, reading manifests and importing no code.

        Raises:
            LabError: a manifest is broken, or a name is in two places.
        """
        return {name: read(place) for name, place in self._places(category).items()}

    def get(self, category: Category, name: str) -> Contribution:
        """Returns one contribution; another one's broken manifest does not matter.

        Raises:
            LabError: there is none of that name, its manifest is broken, or the name is in two places.
        """
        places = self._places(category)
        if name in places:
            return read(places[name])
        for root, _ in self._labs():
            if (root / category / name).is_dir():
                raise NotFound(
                    f"{root / category / name}: there is no {CATEGORIES[category]} in it. Add one; "
                    f"{category}/README.md says what goes in."
                )
        raise NotFound(f'unknown {singular(category)} "{name}".{did_you_mean(name, places)}')

    def load(self, contribution: Contribution) -> type:
        """Imports the class that a contribution's manifest names.

        Raises:
            LabError: the code or the class is missing, or the code fails while it is imported.
        """
        return load(contribution)

    def choose(self, category: Category, choice: Mapping[str, Any], base: type[T]) -> tuple[type[T], Any]:
        """The contributed class that `type:` names, and its config decoded from the other settings.

        Raises:
            LabError: no `type:`, no such contribution, its class is no subclass of `base`, or a setting is off.
        """
        from moe_lab.config import decode

        settings, role = dict(choice), singular(category)
        name = settings.pop("type", None)
        if not isinstance(name, str):
            raise LabError(f"{role}: needs type: one of {', '.join(sorted(self.contributions(category)))}")
        cls = self.load(self.get(category, name))
        if not issubclass(cls, base):
            raise LabError(
                f"{category}/{name}: {cls.__name__} is not a subclass of {base.__module__}.{base.__qualname__}"
            )
        return cls, decode(cls.Config, settings, f"{role} {name}")  # type: ignore[attr-defined]

    def find_config(self, text: str) -> Path:
        """Returns the YAML file that `text` means.

        That is a file's path; or a path or bare name (`quickstart` for `configs/quickstart.yaml`, `python`
        for `modules/python/module.yaml`) in the working lab, then in the built-in lab.

        Raises:
            NotFound: there is no such file; the message lists the names there are.
        """
        if Path(text).is_file():
            return Path(text)
        for root, _ in self._labs():
            for candidate in (text, f"configs/{text}", f"configs/{text}.yaml", f"modules/{text}/module.yaml"):
                if (root / candidate).is_file():
                    return root / candidate
        for place in places_in_packages("modules"):
            if place.name == text:
                return place.manifest_path
        raise NotFound(f'no config "{text}".{did_you_mean(text, self._config_names())}')

    def find_domain(self, name: str) -> Path:
        """Returns the YAML file that says what text a domain is.

        That is a file of `configs/data/`, or the `module.yaml` of a module's folder: a module's name is its text's too.

        Raises:
            NotFound: there is no such domain; the message lists those there are.
        """
        for root, _ in self._labs():
            for candidate in (f"configs/data/{name}.yaml", f"modules/{name}/module.yaml"):
                if (root / candidate).is_file():
                    return root / candidate
        known = {named.removeprefix("data/") for named in self._config_names() if named.startswith("data/")}
        known |= {path.parent.name for root, _ in self._labs() for path in (root / "modules").glob("*/module.yaml")}
        raise NotFound(
            f'no domain "{name}": it is no file in configs/data and no module of this lab.{did_you_mean(name, known)}'
        )

    def _labs(self) -> Iterator[tuple[Path, str]]:
        """Yields the lab folders to look in, nearest first, each with what to call it."""
        # Outside a lab the current folder may well have an unrelated `modules/`.
        if is_lab(self.root):
            yield self.root, "lab"
        yield self.builtin, "built-in"

    def _places(self, category: Category) -> dict[str, Place]:
        def everywhere() -> Iterator[Place]:
            for root, origin in self._labs():
                yield from places_in(root, category, origin)
            yield from places_in_packages(category)

        return by_name(everywhere())

    def _config_names(self) -> set[str]:
        names = set()
        for root, _ in self._labs():
            configs = root / "configs"
            names |= {path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.yaml")}
            names |= {path.parent.name for path in (root / "modules").glob("*/module.yaml")}
        return names


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find_lab(explicit: str | None = None) -> Lab:
    """Returns the lab to work in.

    That is `explicit`, else MOE_LAB_HOME, else the current folder or its nearest parent that is a lab. Where
    none is, it is the current folder as it is, with only the built-in lab's contributions.

    Raises:
        NotFound: the folder named is not a lab.
    """
    for source, named in (("--lab", explicit), ("MOE_LAB_HOME", os.environ.get("MOE_LAB_HOME"))):
        if named:
            root = Path(named).resolve()
            if missing := missing_folders(root):
                raise NotFound(
                    f"{source} {named}: not a lab, it has no folder {', '.join(missing)}. "
                    f"Make one with: moe-lab init {named}"
                )
            return Lab(root, builtin_lab())
    here = Path.cwd()
    return Lab(next((folder for folder in (here, *here.parents) if is_lab(folder)), here), builtin_lab())
