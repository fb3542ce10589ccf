"""Which spec a file's top-level `kind:` stands for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_lab.config.decoding import decode
from moe_lab.config.overrides import apply_overrides
from moe_lab.config.spec import Spec
from moe_lab.config.strict_yaml import load_yaml
from moe_lab.errors import LabError, did_you_mean

# Text, so that naming the specs of the packages above imports none of them.
KINDS: dict[str, str] = {
    "trunk": "moe_lab.jobs.spec:TrunkRun",
    "import": "moe_lab.jobs.spec:TrunkImport",
    "module": "moe_lab.jobs.spec:ModuleSpec",
    "distill": "moe_lab.jobs.spec:DistillRun",
    "router": "moe_lab.jobs.spec:RouterRun",
    "composition": "moe_lab.compose.spec:CompositionSpec",
    "study": "moe_lab.jobs.spec:StudySpec",
    "evaluation": "moe_lab.evaluation.spec:EvaluationSpec",
    "plan": "moe_lab.planning.spec:PlanSpec",
    "data": "moe_lab.data.spec:DataSpec",
    "trust": "moe_lab.registry.trust:TrustPolicy",
    "outcomes": "moe_lab.questions.spec:OutcomesSpec",
    "question_router": "moe_lab.jobs.spec:QuestionRouterRun",
    "question_join": "moe_lab.jobs.spec:QuestionJoinRun",
}

EXTENDING: dict[str, str] = {"router": "moe_lab.jobs.spec:RouterJoinRun"}
"""What a kind stands for in a file that says `extends:`, which names something published that is added to."""


def spec_class(kind: str, kinds: Mapping[str, str] = KINDS) -> type[Spec]:
    """Imports and returns the spec class of a kind; `kinds` maps a kind to "package.module:Class"."""
    if kind not in kinds:
        raise LabError(f'unknown kind "{kind}".{did_you_mean(kind, kinds)}')
    module, _, name = kinds[kind].partition(":")
    cls: type[Spec] = getattr(importlib.import_module(module), name)
    return cls


def load_config(
    path: str | Path,
    overrides: Iterable[str] = (),
    kind: str | None = None,
    kinds: Mapping[str, str] = KINDS,
) -> Spec:
    """Reads a config file, applies `key=value` overrides and decodes it into the class its `kind:` names.

    Args:
        path: the YAML file.
        overrides: such as `train.steps=100`, applied in order.
        kind: the only kind the caller takes, where there is one.
        kinds: the table of kinds, by default the framework's own.

    Raises:
        LabError: the file cannot be read, has no or another kind, or does not fit its spec.
    """
    data = apply_overrides(load_yaml(path), overrides)
    kind_there = data.get("kind")
    if not isinstance(kind_there, str):
        raise LabError(f"{path}: kind: this is required and must be text.{did_you_mean('', kinds)}")
    if kind_there not in kinds:
        raise LabError(f'{path}: kind: unknown kind "{kind_there}".{did_you_mean(kind_there, kinds)}')
    if kind is not None and kind_there != kind:
        raise LabError(f'{path}: kind: expected "{kind}" here, got "{kind_there}". Give a config of that kind.')
    extending = "extends" in data and kind_there in EXTENDING
    return decode(spec_class(kind_there, EXTENDING if extending else kinds), data, str(path))


def json_schema(kind: str, kinds: Mapping[str, str] = KINDS) -> dict[str, Any]:
    """Returns the JSON Schema of a kind's files, for editors."""
    schema = _schema_of_files(spec_class(kind, kinds))
    if kind in EXTENDING:
        extending = _schema_of_files(spec_class(kind, EXTENDING))
        shared = schema.pop("$defs", {}) | extending.pop("$defs", {})
        schema = {"anyOf": [schema, extending], "$defs": shared}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _schema_of_files(cls: type[Spec]) -> dict[str, Any]:
    schema = cls.model_json_schema()
    # The class may have a default for `kind`; in a file it is what picks the class.
    return {**schema, "required": ["kind", *(name for name in schema.get("required", []) if name != "kind")]}
