"""Reading HLO text and the compiler's refusals."""

from pathlib import Path

import pytest

from moe_lab.errors import LabError
from moe_lab.planning.compiled import Collective, Overflow, collectives, overflow

HLO = Path(__file__).with_name("collectives.hlo").read_text()


def test_collectives_are_counted_by_kind_as_often_as_they_run() -> None:
    assert collectives(HLO) == (
        # Five turns of one chain, and three of the asynchronous one, whose operand does not count.
        Collective("all-gather", 5 + 3, 5 * 64 * 128 * 2 + 3 * 40),
        # Those without a name run as often as the loop around them.
        Collective("reduce-scatter", 5 + 5, 5 * 16 * 128 * 2 * 4 + 5 * 16 * 2 * 4),
        Collective("all-reduce", 5 + 1, 5 * 400 + 20),
    )


def test_a_program_without_collectives_has_none() -> None:
    assert collectives("ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2]{0} parameter(0)\n}\n") == ()


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (27.50G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org for more.",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 27.50G of 15.75G hbm. Exceeded by 11.75G.",
    ],
)
def test_a_refusal_says_how_much_is_missing(message: str) -> None:
    needed, available = overflow(message)
    refused = Overflow(seconds=0.0, needed_bytes=needed, available_bytes=available)
    assert refused.short_bytes == 11.75 * 2**30


def test_a_refusal_without_figures_is_passed_on() -> None:
    with pytest.raises(LabError, match="no figures: RESOURCE_EXHAUSTED: something"):
        overflow("RESOURCE_EXHAUSTED: something else")
