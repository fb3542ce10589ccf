"""A model's `config.json`, read so that no key is passed over: each is used, known to be harmless, or refused by name.

Loaders that ignore what they do not know give a model that looks right on short texts and is wrong on long ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from moe_lab.errors import Refused, printable

HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_llama_config",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys that change no logit: names, dtypes of storage, dropout (of training), limits that only warn, ids that the
tokenizer knows. `initializer_range` is of fresh weights."""

_REQUIRED = object()


class ConfigKeys:
    """A config whose keys are counted as they are read.

    Args:
        values: the JSON object.
        label: how errors call it.
    """

    def __init__(self, values: Mapping[str, Any], label: str) -> None:
        self.values, self.label = values, label
        self._used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a key as it is; `default` where the key is missing, but not where it is null."""
        self._used.add(key)
        if key in self.values:
            return self.values[key]
        if default is _REQUIRED:
            raise Refused(f"{self.label} has no {key}, which a model of this kind needs; take the whole config.")
        return default

    def count(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number from 1 up."""
        value = self.take(key, default)
        if type(value) is not int or value < 1:
            self.refuse(key, "a whole number from 1 up")
        return int(value)

    def optional_count(self, key: str, default: int | None = None) -> int | None:
        """A whole number from 1 up, or None where it is null or missing without a default."""
        value = self.take(key, default)
        return None if value is None else self.count(key, default)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(key, "a finite number")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A finite number, or None where it is null or missing without a default."""
        return None if self.take(key, default) is None else self.number(key, default)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return bool(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            self.refuse(key, "a text")
        return str(value)

    def items(self, key: str, of: type, length: int) -> list[Any] | None:
        """A list of so many values of a type, or None where it is null or missing."""
        value = self.take(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(type(item) is not of for item in value):
            self.refuse(key, f"a list of {length} values, one for each layer")
        return list(value)

    def inner(self, key: str) -> ConfigKeys | None:
        """An object in the config, or None where it is null or missing; its keys are counted by themselves."""
        value = self.take(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return ConfigKeys(value, f"{self.label}: {key}")

    def require(self, key: str, *allowed: Any) -> None:
        """A key that may be missing, and otherwise has one of these values."""
        if key in self.values and not any(self.take(key) is value or self.take(key) == value for value in allowed):
            self.refuse(key, " or ".join(_spell(value) for value in allowed))

    def refuse(self, key: str, wanted: str) -> NoReturn:
        raise Refused(f"{self.label}: {key} is {_spell(self.values.get(key))} and must be {wanted} to be read here.")

    def finish(self) -> None:
        """Refuses keys that nobody has read and that are not known to be harmless."""
        left = sorted(self.values.keys() - self._used - HARMLESS)
        if left:
            named = ", ".join(printable(key)[:60] for key in left[:5])
            raise Refused(
                f"{self.label} has {'a key' if len(left) == 1 else f'{len(left)} keys'} that this family does not "
                f"have: {named}. It may change what the model computes; remove it only if you know that it does not."
            )


def _spell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ascii(value)[:60]
