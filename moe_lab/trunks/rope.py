"""Rotary positions as configs say them, in both formats.

Old: `rope_theta` and `rope_scaling` beside the other keys. New: one object `rope_parameters`, or one for each type of
layer. https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/modeling_rope_utils.py
"""

from __future__ import annotations

import math
from typing import Any

from moe_lab.errors import Refused
from moe_lab.trunks.config_keys import ConfigKeys

FULL, SLIDING = "full_attention", "sliding_attention"


def read_rope(keys: ConfigKeys, default_base: float, *, partial: bool = False) -> dict[str, Any]:
    """The `rope_base`, `rope_scaling` and, where `partial`, `rotary_fraction` of a config with one kind of layer.

    Args:
        keys: the config.
        default_base: where it names none.
        partial: whether the family turns a part of each head if asked to; others ignore the key, so it is refused.
    """
    original = _max_positions(keys)
    one = _one_object(keys, ("rope_scaling", "rope_parameters"))
    base = _base(keys, one, default_base)
    fraction = _fraction(keys, one, partial)
    return {**_fields(one, base, original), **fraction}


def read_rope_of_types(
    keys: ConfigKeys, sliding_layers: list[int], full_base: float, sliding_base: float, sliding_key: str
) -> dict[str, Any]:
    """The `rope_base`, `rope_scaling` and, where layers slide, `sliding_rope` of a config with two kinds of layers.

    Args:
        keys: the config.
        sliding_layers: those that slide; there may be none.
        full_base: of full layers where it names none.
        sliding_base: of sliding layers where it names none.
        sliding_key: names the base of sliding layers in the old format; `rope_theta` where all have one.
    """
    original = _max_positions(keys)
    nested, scaling = keys.inner("rope_parameters"), keys.inner("rope_scaling")
    if nested is not None and scaling is not None:
        raise Refused(f"{keys.label} has rope_parameters and rope_scaling; keep the one that the model was made with.")
    if nested is None:
        base = keys.number("rope_theta", full_base)
        if sliding_key == "rope_theta" and base != sliding_base:
            # transformers gives the sliding layers the family's own base then, whatever the file says.
            keys.refuse("rope_theta", f"{sliding_base:g}, or in rope_parameters for each type of layer,")
        local = base if sliding_key == "rope_theta" else keys.number(sliding_key, sliding_base)
        sliding: dict[str, Any] = {"base": local}
        full = _fields(scaling, base, original)
    else:
        for old in {"rope_theta", sliding_key} & keys.values.keys():
            raise Refused(f"{keys.label} has rope_parameters and {old}; keep the one that the model was made with.")
        by_type = {name: nested.inner(name) for name in (FULL, SLIDING)}
        nested.finish()
        full = _fields(by_type[FULL], _base(None, by_type[FULL], full_base), original)
        of_sliding = _fields(by_type[SLIDING], _base(None, by_type[SLIDING], sliding_base), original)
        sliding = {"base": of_sliding["rope_base"], "scaling": of_sliding["rope_scaling"]}
    for one in (full, sliding):
        scaled = one.get("rope_scaling") or one.get("scaling")
        if scaled and not scaled.get("truncate", True):
            raise Refused(f"{keys.label}: truncate has no effect where layers differ; remove it.")
    return {**full, "sliding_rope": sliding} if sliding_layers else full


def _max_positions(keys: ConfigKeys) -> int | None:
    return keys.optional_count("max_position_embeddings", None)


def _one_object(keys: ConfigKeys, names: tuple[str, str]) -> ConfigKeys | None:
    found = [inner for inner in map(keys.inner, names) if inner is not None]
    if len(found) == 2 and found[0].values != found[1].values:
        raise Refused(f"{keys.label} has {' and '.join(names)}, and they differ; keep the one that the model has.")
    return found[0] if found else None


def _base(keys: ConfigKeys | None, one: ConfigKeys | None, default: float) -> float:
    outer = None if keys is None else keys.optional_number("rope_theta", None)
    if one is None or "rope_theta" not in one:
        return default if outer is None else outer
    inner = one.number("rope_theta")
    if outer is not None and outer != inner:
        raise Refused(f"{one.label}: rope_theta is {inner:g} here and {outer:g} outside; keep the model's own.")
    return inner


def _fraction(keys: ConfigKeys, one: ConfigKeys | None, partial: bool) -> dict[str, Any]:
    if not partial:
        for holder in (keys, one):
            if holder is not None:
                holder.require("partial_rotary_factor", 1, 1.0, None)
        return {}
    outer = keys.number("partial_rotary_factor", 1.0)
    return {"rotary_fraction": outer if one is None else one.number("partial_rotary_factor", outer)}


def _fields(one: ConfigKeys | None, base: float, original: int | None) -> dict[str, Any]:
    return {"rope_base": base, "rope_scaling": None if one is None else _scaling(one, original)}


def _scaling(one: ConfigKeys, max_positions: int | None) -> dict[str, Any] | None:
    one.take("rope_theta", None)
    name = one.take("rope_type", one.take("type", "default"))
    match name:
        case None | "default":
            scaling = None
        case "linear":
            scaling = {"type": "linear", "factor": one.number("factor")}
        case "llama3":
            scaling = {
                "type": "llama3",
                "factor": one.number("factor"),
                "low_frequency_factor": one.number("low_freq_factor"),
                "high_frequency_factor": one.number("high_freq_factor"),
                "original_length": _original(one, max_positions),
            }
        case "yarn":
            scaling = _yarn(one, max_positions)
        case _:
            raise Refused(
                f"{one.label}: rope type {ascii(name)[:40]} is not read; those that are: default, linear, llama3, yarn."
            )
    one.finish()
    return scaling


def _original(one: ConfigKeys, max_positions: int | None) -> int:
    if one.optional_count("original_max_position_embeddings") is None and max_positions is not None:
        return max_positions
    return one.count("original_max_position_embeddings")


def _yarn(one: ConfigKeys, max_positions: int | None) -> dict[str, Any]:
    factor = one.number("factor")
    attention = one.optional_number("attention_factor")
    over, all_over = one.optional_number("mscale"), one.optional_number("mscale_all_dim")
    if attention is None and over and all_over:
        attention = _magnitude(factor, over) / _magnitude(factor, all_over)
    return {
        "type": "yarn",
        "factor": factor,
        "original_length": _original(one, max_positions),
        "beta_fast": one.optional_number("beta_fast") or 32.0,
        "beta_slow": one.optional_number("beta_slow") or 1.0,
        "attention_factor": attention,
        "truncate": one.flag("truncate", True),
    }


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
