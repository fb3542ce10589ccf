"""The two ways to name an artifact: `owner/name@version:width` for people, `sha256-<hex>` for programs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from moe_lab.errors import LabError

_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,63}(?<!\.)")
_NAME_RULE = (
    "1 to 64 lowercase letters, digits, '-', '_' or '.', "
    "beginning with a letter or digit, without '..' and without a '.' at the end"
)
# Leading zeros are refused so that no version has two spellings, and nine digits stay far from any overflow.
_INTEGER = r"(?:0|[1-9][0-9]{0,8})"
_VERSION = re.compile(rf"{_INTEGER}(?:\.{_INTEGER}){{0,3}}")
_VERSION_RULE = "text of one to four integers joined by dots, such as '1' or '1.2', without leading zeros"
_WIDTH = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")
_CONTENT = re.compile(rf"(?:blobs/({_DIGEST.pattern})|manifests/({_DIGEST.pattern})\.json)")


def is_digest(text: object) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def blob_key(digest: str) -> str:
    assert is_digest(digest)
    return f"blobs/{digest}"


def manifest_key(digest: str) -> str:
    assert is_digest(digest)
    return f"manifests/{digest}.json"


def content_digest(key: str) -> str | None:
    """The digest of the blob or manifest that has this key; None for any other key."""
    match = _CONTENT.fullmatch(key)
    return (match[1] or match[2]) if match else None


def is_name(text: object) -> bool:
    """Whether this may be an owner's or an artifact's name."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_version(text: object) -> bool:
    return isinstance(text, str) and _VERSION.fullmatch(text) is not None


def version_order(version: str) -> tuple[int, ...]:
    """Sort key: 2 < 10, 1 < 1.0 < 1.1 < 2."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class ArtifactRef:
    """A checked `owner/name[@version][:width]`; as a path it cannot lead out of the registry's folder.

    Attributes:
        version: None means the highest one that is not retired.
        width: a rung of the ladder in hidden units; None means all of them.
    """

    owner: str
    name: str
    version: str | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for role, value in (("owner", self.owner), ("name", self.name)):
            if not is_name(value):
                raise LabError(f"{_shown(value)} cannot be the {role} of an artifact: it must be {_NAME_RULE}.")
        if self.version is not None and not is_version(self.version):
            raise LabError(f"{_shown(self.version)} is not a version: it must be {_VERSION_RULE}.")
        if self.width is not None and _WIDTH.fullmatch(str(self.width)) is None:
            raise LabError(f"{_shown(self.width)} is not a width: it must be a positive integer.")

    @classmethod
    def parse(cls, text: str) -> ArtifactRef:
        """Reads `owner/name[@version][:width]`; anything else is a `LabError` that states the rule."""
        rest, colon, width = text.partition(":")
        title, at, version = rest.partition("@")
        owner, slash, name = title.partition("/")
        if not slash or (at and not version) or (colon and not width):
            raise LabError(
                f"{_shown(text)} does not name an artifact: write owner/name, owner/name@version "
                "or owner/name@version:width."
            )
        if colon and _WIDTH.fullmatch(width) is None:
            raise LabError(f"{_shown(width)} in {_shown(text)} is not a width: it must be a positive integer.")
        return cls(owner, name, version if at else None, int(width) if colon else None)

    @property
    def title(self) -> str:
        """`owner/name`, without version and width."""
        return f"{self.owner}/{self.name}"

    def at(self, version: str) -> ArtifactRef:
        """The same artifact and width at the given version."""
        return replace(self, version=version)

    def __str__(self) -> str:
        version = "" if self.version is None else f"@{self.version}"
        width = "" if self.width is None else f":{self.width}"
        return f"{self.title}{version}{width}"


def _shown(value: object) -> str:
    """`ascii` keeps control characters and look-alike letters of hostile names visible and on one line."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
