"""YAML as people mean it: the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

`1e-4` is a number, `on` and `no` are text, `010` is ten, a date is text, a key is always text, and a repeated
key is an error. PyYAML alone follows YAML 1.1 and gets each of these wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from moe_lab.config.spec import Spec
from moe_lab.errors import LabError, NotFound, classify

_CORE = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only the double-quoted style writes line breaks of every sort as escapes, and so keeps them.
    return dumper.represent_scalar(f"{_CORE}str", text, style=None if text.isprintable() else '"')


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    # Python spells the special values without YAML's dot.
    return float(re.sub(r"\.(?=[inIN])", "", node.value))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
        key = key_node.value
        if key == "<<" and key_node.style is None:
            raise yaml.MarkedYAMLError(
                problem="merge keys (<<) are not supported; write the keys out", problem_mark=key_node.start_mark
            )
        if key in mapping:
            raise yaml.MarkedYAMLError(
                problem=f'key "{key}" is given twice; keep one', problem_mark=key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    raise yaml.MarkedYAMLError(
        problem=f"tag {node.tag} is not supported; write plain values", problem_mark=node.start_mark
    )


# Fresh tables: what PyYAML registered on its own classes follows YAML 1.1.
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}
_Dumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_CORE}{_name}", re.compile(f"(?:{_pattern})$"), _first)
_Dumper.add_representer(str, _represent_text)
_Loader.add_constructor(f"{_CORE}null", lambda loader, node: None)
_Loader.add_constructor(f"{_CORE}bool", lambda loader, node: node.value.lower() == "true")
_Loader.add_constructor(f"{_CORE}int", _construct_int)
_Loader.add_constructor(f"{_CORE}float", _construct_float)
_Loader.add_constructor(f"{_CORE}str", lambda loader, node: node.value)
_Loader.add_constructor(
    f"{_CORE}seq", lambda loader, node: [loader.construct_object(item, deep=True) for item in node.value]
)
_Loader.add_constructor(f"{_CORE}map", _construct_mapping)
_Loader.add_constructor(None, _refuse_tag)


_MOST_NODES = 1_000_000


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for once its aliases are written out; each node is looked at once."""
    if id(node) not in known:
        known[id(node)] = 0  # a node inside itself is refused where it is constructed
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in below)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """Returns the value of one YAML document; `where` opens the error line of a text that is not valid."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > _MOST_NODES:
            raise LabError(
                f"{where}: not valid YAML: its aliases stand for more than {_MOST_NODES:,} values. Write them out."
            )
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        if error.problem == "mapping values are not allowed here":
            reason += '; put quotes around text with ": " in it'
        raise LabError(f"{where}{line}: not valid YAML: {reason}.") from None
    except (yaml.YAMLError, ValueError) as error:
        # A control character, or a number with more digits than Python converts.
        raise LabError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise LabError(f"{where}: not valid YAML: nested too deeply.") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        LabError: the file is missing, unreadable, not UTF-8, empty, not valid, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file. Check the path, or run from the folder it is in.") from None
    except UnicodeDecodeError as error:
        raise LabError(f"{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8.") from None
    except OSError as error:
        raise classify(error)(f"{path}: cannot be read: {error.strerror}.") from None
    data = parse_yaml(text, str(path))
    if data is None:
        raise LabError(f"{path}: the file is empty. Write `key: value` lines.")
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else "a single value"
        raise LabError(f"{path}: expected `key: value` lines at the top level, got {what}.")
    return data


def to_yaml(spec: Spec | dict[str, Any]) -> str:
    """Returns the YAML text of a spec with every default filled in; loading it gives an equal spec."""
    data = spec.model_dump(mode="json") if isinstance(spec, Spec) else spec
    # One line per scalar: a folded line is valid YAML but hard to search and to compare.
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
