"""The registry of published artifacts: content-addressed, immutable, every byte hashed as it is read.

Needs no jax, and loads numpy only where tensors are touched.
"""

from moe_lab.registry.catalogue import Entry
from moe_lab.registry.collect import Collected
from moe_lab.registry.diff import ArtifactDiff
from moe_lab.registry.keys import OwnerKey
from moe_lab.registry.lineage import LineageNode
from moe_lab.registry.manifest import Manifest
from moe_lab.registry.mirror import Mirrored
from moe_lab.registry.picture import lineage_svg
from moe_lab.registry.publish import Published
from moe_lab.registry.references import ArtifactRef
from moe_lab.registry.refs import Resolved, RetiredWarning
from moe_lab.registry.registry import Registry
from moe_lab.registry.retire import Retirement
from moe_lab.registry.signatures import Signature
from moe_lab.registry.stores import LocalStore, Store
from moe_lab.registry.verify import VerifyReport

__all__ = [
    "ArtifactDiff",
    "ArtifactRef",
    "Collected",
    "Entry",
    "LineageNode",
    "LocalStore",
    "Manifest",
    "Mirrored",
    "OwnerKey",
    "Published",
    "Registry",
    "Resolved",
    "RetiredWarning",
    "Retirement",
    "Signature",
    "Store",
    "VerifyReport",
    "lineage_svg",
]
