"""A trunk's spec as a `config.json` of a family that can say all of it: what is written is read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from moe_lab.config import decode
from moe_lab.errors import Refused
from moe_lab.nn.spec import Llama3Scaling, RopeScaling, TrunkSpec, YarnScaling
from moe_lab.trunks.checkpoint import read_config
from moe_lab.trunks.families import FAMILIES
from moe_lab.trunks.family import ACTIVATIONS, Family

USUAL_POSITIONS = 8192
"""What a config says of the longest text where nothing is known: readers warn beyond it, or stop."""
_ACTIVATION_NAMES = MappingProxyType({ours: theirs for theirs, ours in reversed(list(ACTIVATIONS.items()))})


class WrittenConfig(NamedTuple):
    """A config, and the family whose words it uses."""

    family: Family
    config: Mapping[str, Any]


def write_config(spec: TrunkSpec, first: str | None = None, positions: int = USUAL_POSITIONS) -> WrittenConfig:
    """The config of a decoder, for transformers and all that read its configs.

    Args:
        spec: of the decoder; where modules work and how blocks are cut is not in a config.
        first: the family to be tried before the others, such as the one that the trunk came from.
        positions: the longest text.

    Raises:
        Refused: no family that is written here has words for all of the spec's switches.
    """
    names = sorted(_WORDS, key=lambda name: name != first)
    families = {family.name: family for family in FAMILIES}
    odd: dict[str, list[str]] = {}
    for name in names:
        config = {**_shared(spec, positions), **_WORDS[name](spec)}
        odd[name] = _differences(spec, families[name], config)
        if not odd[name]:
            return WrittenConfig(families[name], config)
    raise Refused(
        f"no config of {', '.join(names)} says what this trunk is; beside {names[0]} it differs in "
        f"{', '.join(odd[names[0]][:4])}. It can be exported for this program alone: moe-lab module export."
    )


def _differences(spec: TrunkSpec, family: Family, config: Mapping[str, Any]) -> list[str]:
    """The fields that would be read otherwise than they are."""
    try:
        fields = read_config(family, config, "config.json")
        kept = {name: getattr(spec, name) for name in ("vocab_padding", "routed_layers", "block", "shared_ffn")}
        read = decode(TrunkSpec, {**fields, **kept, "routed_layers": list(spec.routed_layers)}, "config.json")
    except Refused as error:
        return [str(error)]
    return differing_fields(read, spec)


def differing_fields(read: TrunkSpec, spec: TrunkSpec) -> list[str]:
    """The fields in which two decoders differ; numbers that are one number in float32 do not."""
    return [name for name in TrunkSpec.model_fields if not _same(_meaning(read, name), _meaning(spec, name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return np.float32(one) == np.float32(other)
    return bool(one == other)


def _meaning(spec: TrunkSpec, name: str) -> Any:
    """What a field comes to, where leaving it out means something."""
    whole = {"num_kv_heads": spec.kv_heads, "head_dim": spec.attention_dim, "attention_out_bias": spec.out_bias}
    if name == "attention_scale":
        return spec.attention_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
    return whole.get(name, getattr(spec, name))


def _shared(spec: TrunkSpec, positions: int) -> dict[str, Any]:
    """What all families say in the same words."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.ffn_width,
        "hidden_act": _ACTIVATION_NAMES.get(spec.activation, spec.activation),
        "rms_norm_eps": spec.rms_norm_eps,
        "tie_word_embeddings": spec.tie_embeddings,
        "max_position_embeddings": positions,
        "rope_theta": spec.rope_base,
        **({} if spec.rope_scaling is None else {"rope_scaling": _scaling(spec.rope_scaling)}),
    }


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    says: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        says |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor}
    if isinstance(scaling, YarnScaling):
        says |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            says["attention_factor"] = scaling.attention_factor
    if isinstance(scaling, Llama3Scaling | YarnScaling):
        says["original_max_position_embeddings"] = scaling.original_length
    return says


def _llama(spec: TrunkSpec) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "head_dim": spec.attention_dim,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.ffn_bias,
    }


def _mistral(spec: TrunkSpec) -> dict[str, Any]:
    own = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": spec.attention_dim}
    return {**own, "sliding_window": spec.sliding_window}


def _qwen2(spec: TrunkSpec) -> dict[str, Any]:
    return {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **_qwen_window(spec)}


def _qwen3(spec: TrunkSpec) -> dict[str, Any]:
    own = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": spec.attention_dim}
    return {**own, "attention_bias": spec.attention_bias, **_qwen_window(spec)}


def _qwen_window(spec: TrunkSpec) -> dict[str, Any]:
    if not spec.sliding_layers:
        return {"use_sliding_window": False}
    sliding = set(spec.sliding_layers)
    types = ["sliding_attention" if layer in sliding else "full_attention" for layer in range(spec.num_layers)]
    return {"use_sliding_window": True, "sliding_window": spec.sliding_window, "layer_types": types}


def _olmo2(spec: TrunkSpec) -> dict[str, Any]:
    own = {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    return {**own, "attention_bias": spec.attention_bias}


def _granite(spec: TrunkSpec) -> dict[str, Any]:
    return {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.ffn_bias,
        "attention_multiplier": _meaning(spec, "attention_scale"),
        "embedding_multiplier": spec.embedding_multiplier,
        "residual_multiplier": spec.residual_multiplier,
        "logits_scaling": 1 / spec.logit_multiplier,
    }


_WORDS = MappingProxyType(
    {"llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "olmo2": _olmo2, "granite": _granite}
)
"""What a family says beside what all say; the first whose config reads back as the spec is taken."""
