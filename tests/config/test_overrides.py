from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.config import apply_overrides, parse_yaml, to_yaml
from moe_lab.errors import LabError

DATA: dict[str, Any] = {
    "name": "x",
    "train": {"steps": 1, "betas": [0.9, 0.95]},
    "sources": [{"type": "files"}, {"type": "jsonl"}],
    "later": None,
}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("name=y", ["name"], "y"),
        ("train.steps=100", ["train", "steps"], 100),
        ("train.rate=1e-4", ["train", "rate"], 1e-4),
        ("train.betas.1=0.99", ["train", "betas", 1], 0.99),
        ("train.betas=[1, 2]", ["train", "betas"], [1, 2]),
        ("sources.0.max_bytes=5", ["sources", 0, "max_bytes"], 5),
        ("sources.1={type: files}", ["sources", 1], {"type": "files"}),
        ("later.on.demand=yes", ["later", "on", "demand"], "yes"),
        ("new.section.flag=true", ["new", "section", "flag"], True),
        ("name=a=b", ["name"], "a=b"),
        ("name=", ["name"], None),
        ('name="1"', ["name"], "1"),
    ],
)
def test_an_override_sets_the_one_value_it_names(override: str, path: list[str | int], value: Any) -> None:
    changed: Any = apply_overrides(DATA, [override])
    for part in path:
        changed = changed[part]
    assert changed == value
    assert type(changed) is type(value)


def test_the_last_override_wins_and_the_input_stays_as_it_was() -> None:
    before = to_yaml(DATA)
    assert apply_overrides(DATA, ["train.steps=2", "train.steps=3"])["train"]["steps"] == 3
    assert to_yaml(DATA) == before


def test_an_override_changes_one_place_of_an_aliased_value() -> None:
    data = parse_yaml("a: &shared {x: 1}\nb: *shared", "test")
    assert apply_overrides(data, ["a.x=2"]) == {"a": {"x": 2}, "b": {"x": 1}}


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(), min_size=1), st.integers(), st.data())
def test_nothing_but_the_named_key_changes(section: dict[str, int], value: int, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(section)))
    changed = apply_overrides({"section": section}, [f"section.{key}={value}"])
    assert changed == {"section": {**section, key: value}}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.steps", "expected key=value"),
        ("=5", "expected key=value"),
        ("train..steps=1", "expected key=value"),
        ("name.first=x", "name is the plain value 'x'"),
        ("train.steps.x=1", "train.steps is the plain value 1"),
        ("train.betas.2=1", 'train.betas is a list, and "2" names no item. Use an item from 0 to 1.'),
        ("train.betas.-1=1", '"-1" names no item'),
        ("sources.first.type=x", '"first" names no item'),
        ("name=[1", "not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_set_says_why(override: str, reason: str) -> None:
    with pytest.raises(LabError) as error:
        apply_overrides(DATA, [override])
    assert str(error.value).startswith(f'override "{override}"')
    assert reason in str(error.value)
