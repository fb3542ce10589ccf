"""From plain data to a typed spec. What pydantic finds wrong becomes one line: where, which rule, what to do.

The spec's JSON Schema is walked along the data, to name the path people wrote (pydantic mixes the tags of
unions into it) and to list the names that would have been right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from moe_lab.config.spec import Spec
from moe_lab.errors import LabError, did_you_mean

T = TypeVar("T", bound=Spec)
Schema = Mapping[str, Any]

_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "none_required": "null",
}


def decode(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Returns `data` as a `cls`.

    Args:
        cls: the spec class.
        data: what was read from a file; only what JSON can say.
        where: opens the error line, usually the file's path.

    Raises:
        LabError: the first problem in one line, with the number of further ones.
    """
    try:
        # Through JSON, because only there strict mode takes a list for a tuple and text for a path.
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise LabError(f"{where}: {_explain(cls.model_json_schema(), data, error)}") from None
    except LabError as error:
        raise type(error)(f"{where}: {error}") from None


@dataclass(frozen=True)
class _Problem:
    """One error of pydantic's, with the path people wrote and the schemas that hold there."""

    detail: ErrorDetails
    path: tuple[str | int, ...]
    schemas: list[Schema]

    @property
    def kind(self) -> str:
        return self.detail["type"]


def _explain(root: Schema, data: Any, error: ValidationError) -> str:
    problems = _mendable([_locate(root, data, detail) for detail in error.errors(include_url=False)])
    first = problems[0]
    line = _sentence(first, [problem for problem in problems if problem.path == first.path])
    if first.path:
        line = f"{'.'.join(str(part) for part in first.path)}: {line}"
    more = len({problem.path for problem in problems}) - 1
    if more:
        line += f" ({more} more problem{'s' if more > 1 else ''} in this file.)"
    return " ".join(line.splitlines())


def _mendable(problems: list[_Problem]) -> list[_Problem]:
    """Leaves out what is only a consequence of another problem, and puts misspelt keys first."""
    # A misspelt key is also a missing one.
    misspelt_in = {problem.path[:-1] for problem in problems if problem.kind == "extra_forbidden"}
    # Where text or a mapping may stand, a mapping with an error in it is also "not text".
    holders = {problem.path[:depth] for problem in problems for depth in range(len(problem.path))}
    kept = [
        problem
        for problem in problems
        if not (problem.kind == "missing" and problem.path[:-1] in misspelt_in)
        and not (problem.kind in _EXPECTED and problem.path in holders)
    ]
    return sorted(kept, key=lambda problem: problem.kind != "extra_forbidden")


def _sentence(problem: _Problem, alternatives: list[_Problem]) -> str:
    context = problem.detail.get("ctx", {})
    got = _show(problem.detail["input"])
    match problem.kind:
        case "extra_forbidden":
            return f"unknown key.{did_you_mean(str(problem.path[-1]), _keys(problem.schemas))}"
        case "missing":
            return "this is required and missing. Add it."
        case "union_tag_not_found":
            name = context["discriminator"].strip("'")
            return f"needs `{name}:` to say what it is.{did_you_mean('', _tags(problem.schemas))}"
        case "union_tag_invalid":
            name, tag = context["discriminator"].strip("'"), str(context["tag"])
            return f'unknown {name} "{tag}".{did_you_mean(tag, _tags(problem.schemas))}'
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "literal_error" | "enum" if len(alternatives) == 1:
            return f"unknown value {got}.{did_you_mean(str(problem.detail['input']), _choices(problem.schemas))}"
    rules = list(dict.fromkeys(rule for other in alternatives if (rule := _expected(other))))
    # Where a number or a mapping may stand, a number out of range is told the range and not that it is no mapping.
    broken = [other for other in alternatives if _expected(other) is None]
    if rules and not broken:
        return f"expected {' or '.join(rules)}, got {got}."
    rule = re.sub(r"^\w+ should ", "must ", broken[0].detail["msg"])
    rule = re.sub(r" after validation, not \d+$", "", rule)
    return f"{rule[0].lower()}{rule[1:]}, got {got}."


def _expected(problem: _Problem) -> str | None:
    if problem.kind in ("literal_error", "enum"):
        return problem.detail["ctx"]["expected"].replace("'", '"')
    return _EXPECTED.get(problem.kind)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(schemas: list[Schema]) -> set[str]:
    return {key for schema in schemas for key in schema.get("properties", {})}


def _tags(schemas: list[Schema]) -> set[str]:
    return {tag for schema in schemas for tag in schema.get("discriminator", {}).get("mapping", {})}


def _choices(schemas: list[Schema]) -> list[str]:
    return [
        str(choice) for schema in schemas for choice in schema.get("enum", [schema.get("const")]) if choice is not None
    ]


def _locate(root: Schema, data: Any, detail: ErrorDetails) -> _Problem:
    """Follows pydantic's location through schema and data, dropping the parts that name a union member."""
    parts = list(detail["loc"])
    last = [parts.pop()] if detail["type"] in ("extra_forbidden", "missing") else []
    path: list[str | int] = []
    schemas, value = _members(root, root), data
    for part in parts:
        tags = [tag for schema in schemas if (tag := schema.get("discriminator"))]
        if tags and _get(value, tags[0]["propertyName"]) == part:
            schemas = _members(root, {"$ref": tags[0]["mapping"][part]})
            continue
        below = [child for schema in schemas if (child := _child(schema, part, value)) is not None]
        if below:
            path.append(part)
            value = _get(value, part)
            schemas = [member for child in below for member in _members(root, child)]
    return _Problem(detail, (*path, *last), schemas)


def _members(root: Schema, node: Schema) -> list[Schema]:
    """Returns the schemas that `node` stands for: references followed, unions without a tag taken apart."""
    if "$ref" in node:
        return _members(root, root["$defs"][node["$ref"].removeprefix("#/$defs/")])
    options = node.get("anyOf") or ("discriminator" not in node and node.get("oneOf"))
    return [member for option in options for member in _members(root, option)] if options else [node]


def _child(schema: Schema, part: str | int, value: Any) -> Schema | None:
    """Returns the schema of a key or list item, or None where `part` is not one of `value`'s."""
    if isinstance(part, int):
        fixed = schema.get("prefixItems", [])
        return fixed[part] if part < len(fixed) else schema.get("items")
    if part in schema.get("properties", {}):
        return schema["properties"][part]
    values = schema.get("additionalProperties")
    return values if isinstance(values, dict) and _has(value, part) else None


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _get(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None
