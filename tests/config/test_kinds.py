from pathlib import Path
from typing import Literal, get_args

import pytest

from moe_lab.config import KINDS, Spec, json_schema, load_config, spec_class, to_yaml
from moe_lab.errors import LabError


class Cake(Spec):
    kind: Literal["cake"] = "cake"
    layers: int
    rates: tuple[float, ...] = ()


class Pie(Spec):
    kind: Literal["pie"] = "pie"


KITCHEN = {"cake": f"{__name__}:Cake", "pie": f"{__name__}:Pie"}


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def test_the_kind_picks_the_class_and_overrides_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: cake\nlayers: 3\n")
    loaded = load_config(path, ["layers=4", "rates=[1e-4, 1]"], kinds=KITCHEN)
    assert loaded == Cake(layers=4, rates=(1e-4, 1.0))
    assert load_config(path, kind="cake", kinds=KITCHEN) == Cake(layers=3)


def test_the_resolved_config_is_a_config(tmp_path: Path) -> None:
    cake = Cake(layers=2, rates=(1e-5, 3e-4))
    assert load_config(write(tmp_path, to_yaml(cake)), kinds=KITCHEN) == cake


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("layers: 3", None, "kind: this is required and must be text. Available: cake, pie."),
        ("kind: 5", None, "kind: this is required and must be text. Available: cake, pie."),
        ("kind: cak", None, 'kind: unknown kind "cak". Did you mean "cake"? Available: cake, pie.'),
        ("kind: pie", "cake", 'kind: expected "cake" here, got "pie". Give a config of that kind.'),
        ("kind: cake\nlayerz: 3", None, 'layerz: unknown key. Did you mean "layers"?'),
    ],
)
def test_a_config_of_no_or_another_kind_is_refused(tmp_path: Path, text: str, kind: str | None, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(LabError) as error:
        load_config(path, kind=kind, kinds=KITCHEN)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_a_miss_in_the_frameworks_own_kinds() -> None:
    with pytest.raises(LabError, match=r'unknown kind "modul"\. Did you mean "module"\?'):
        spec_class("modul")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_names_a_spec_that_says_its_kind(kind: str) -> None:
    cls = spec_class(kind)
    assert issubclass(cls, Spec)
    assert get_args(cls.model_fields["kind"].annotation) == (kind,)


def test_the_schema_of_a_kind_asks_for_the_kind() -> None:
    schema = json_schema("cake", kinds=KITCHEN)
    assert schema["required"] == ["kind", "layers"]
    assert schema["properties"]["kind"]["const"] == "cake"
    assert schema["additionalProperties"] is False
