"""Where an artifact comes from: its parents, theirs, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from moe_lab.errors import LabError
from moe_lab.registry.manifest import Manifest
from moe_lab.registry.read import read_manifest
from moe_lab.registry.references import manifest_key
from moe_lab.registry.stores import Store


@dataclass
class LineageNode:
    """One artifact of the tree; an ancestor reached along two ways shares its `parents` list.

    Attributes:
        ref: the name it had when its child was published, for people; the digest is what counts.
        relation: what it is to its child, such as "teacher"; "" at the root.
        kind: "" where this registry does not hold it.
        problem: why its own parents are unknown, or None.
    """

    ref: str
    digest: str
    relation: str
    kind: str = ""
    summary: str = ""
    problem: str | None = None
    parents: list[LineageNode] = field(default_factory=list)


def lineage(store: Store, ref: str, digest: str) -> LineageNode:
    """Follows `lineage.parents` by digest. No cycle can exist: a manifest cannot contain a hash of itself."""
    root = LineageNode(ref, digest, relation="")
    known: dict[str, list[LineageNode]] = {}
    manifests: dict[str, Manifest | str] = {}
    pending = [root]
    while pending:
        node = pending.pop()
        fresh = node.digest not in known
        if fresh:
            manifests[node.digest] = _manifest_or_problem(store, node)
        node.parents = known.setdefault(node.digest, node.parents)
        manifest = manifests[node.digest]
        if isinstance(manifest, str):
            node.problem = manifest
            continue
        node.kind, node.summary = manifest.kind, manifest.summary
        if fresh:
            node.parents.extend(_parents_of(manifest))
            pending.extend(node.parents)
    return root


def _parents_of(manifest: Manifest) -> list[LineageNode]:
    """The parents that a manifest names, their own not yet looked up."""
    return [LineageNode(parent.ref, parent.digest, parent.relation) for parent in manifest.parents]


def companions(manifest: Manifest) -> list[LineageNode]:
    """The parents that an artifact works beside: the trunk, and for a router its modules. Others only made it."""
    relations = {"module": ("trunk",), "router": ("trunk", "module")}.get(manifest.kind, ())
    return [parent for parent in _parents_of(manifest) if parent.relation in relations]


def ancestors(
    store: Store, manifest: Manifest, call: Callable[[LineageNode, str], str], known: set[str]
) -> Iterator[Manifest]:
    """The manifests of all ancestors that this registry holds, each once. Absent ones stay absent.

    Args:
        call: what error messages call a parent; it gets the parent and what they call its child.
        known: keys of manifests to pass over; those that are found join them.
    """
    pending = [(parent, manifest.label) for parent in _parents_of(manifest)]
    while pending:
        parent, child = pending.pop()
        key = manifest_key(parent.digest)
        if key in known or not store.exists(key):
            continue
        above = read_manifest(store, parent.digest, call(parent, child))
        known.add(key)
        yield above
        pending.extend((further, above.label) for further in _parents_of(above))


def _manifest_or_problem(store: Store, node: LineageNode) -> Manifest | str:
    try:
        return read_manifest(store, node.digest, node.ref)
    except LabError as error:
        return str(error)
