"""The families that are read, one file each. Others are refused by name."""

from __future__ import annotations

from moe_lab.errors import Refused, did_you_mean
from moe_lab.trunks.families import gemma, granite, llama, mistral, olmo, phi3, qwen, smollm3
from moe_lab.trunks.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    smollm3.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
    olmo.OLMO2,
    olmo.OLMO3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    granite.FAMILY,
    phi3.FAMILY,
)


def find_family(model_type: str, label: str) -> Family:
    """The family of a `model_type` of `config.json`."""
    types = {name: family for family in FAMILIES for name in family.model_types}
    return _find(types, model_type, f"{label}: model_type")


def find_gguf_family(architecture: str, label: str) -> Family:
    """The family of a `general.architecture` of a GGUF file."""
    types = {name: family for family in FAMILIES for name in family.gguf}
    return _find(types, architecture, f"{label}: architecture")


def _find(types: dict[str, Family], name: str, what: str) -> Family:
    if name not in types:
        raise Refused(f"{what} {ascii(name)[:60]} is not read.{did_you_mean(name, types)} Read are {', '.join(types)}.")
    return types[name]
