"""Names of topologies, and where their compiler comes from. Nothing here compiles."""

import pytest

from moe_lab.errors import LabError
from moe_lab.planning import topologies
from moe_lab.planning.topologies import GIB, parse_topology, prepare_compiler


@pytest.mark.parametrize(
    ("name", "chips", "devices", "hbm_gib"),
    [
        ("v5e:4x4", 16, 16, 15.75),
        ("v5p:4x4x4", 64, 64, 95.74),
        ("v6e:16x16", 256, 256, 31.25),
        ("tpu7x:4x4x4", 64, 128, 94.75),
        ("v5e:2x8", 16, 16, 15.75),
        ("v6e:1x1", 1, 1, 31.25),
    ],
)
def test_a_name_says_how_many_chips_and_how_much_memory(name: str, chips: int, devices: int, hbm_gib: float) -> None:
    topology = parse_topology(name)
    assert (topology.name, topology.chips, topology.num_devices) == (name, chips, devices)
    assert topology.hbm_bytes == pytest.approx(hbm_gib * GIB, abs=1)


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:", "v5e:4", "v5e:0x4", "v5e:-2x2", "v5e:4by4", "", "v5e:4x4x"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(LabError) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)
    assert "v5e:4" in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("v5p:4x4", "v5p has shapes NxMxK"),
        ("v5e:4x4x4", "v5e has shapes NxM"),
        ("v5e:3x4", "the first two numbers must be even"),
        ("v5e:16x32", "v5e comes with 256 at most"),
    ],
)
def test_a_shape_that_does_not_exist_is_refused(name: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        parse_topology(name)


def test_without_the_compiler_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_COMPILER", "")
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"pip install 'moe-lab\[tpu-plan\]'"):
        prepare_compiler()
