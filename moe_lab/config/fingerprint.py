"""The identity of a config: the hash of its canonical JSON, so that key order and formatting do not count."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moe_lab.config.spec import Spec


def canonical_json(obj: Any) -> str:
    """Returns the one JSON text of a Spec or JSON-able object: sorted keys, no spaces, no NaN or infinity."""
    plain = obj.model_dump(mode="json") if isinstance(obj, Spec) else obj
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(obj: Any) -> str:
    """Returns the sha256 hex digest of `canonical_json(obj)`."""
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()
