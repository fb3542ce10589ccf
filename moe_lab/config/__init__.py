"""Typed specs: strict YAML, decoding with one-line errors, overrides, the table of kinds, JSON Schema.
The spec classes of other packages are named in a table and imported when first used."""

from moe_lab.config.decoding import decode
from moe_lab.config.fingerprint import canonical_json, fingerprint
from moe_lab.config.kinds import KINDS, json_schema, load_config, spec_class
from moe_lab.config.overrides import apply_overrides
from moe_lab.config.spec import Spec
from moe_lab.config.strict_yaml import load_yaml, parse_yaml, to_yaml

__all__ = [
    "KINDS",
    "Spec",
    "apply_overrides",
    "canonical_json",
    "decode",
    "fingerprint",
    "json_schema",
    "load_config",
    "load_yaml",
    "parse_yaml",
    "spec_class",
    "to_yaml",
]
