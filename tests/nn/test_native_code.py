"""The compiled products: no multiply-add of an inner loop reads memory, for every x86 instruction set and compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe_lab.nn.backends.native import build
from tests.nn.drawing import NATIVE

(compiled,) = NATIVE.marks
needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump to read machine code with")

INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*?)(?:\s*#.*)?$")
# Flags of a processor (compilers fold loads when they tune for AMD's), then of a step of the full sliver: multiply-adds
# and loads, which are the vectors of B and one number of A for each row.
PROCESSORS = {
    "AVX2": (["-march=znver2"], 4 * 3, 3 + 4),
    "AVX-512": (["-march=skylake-avx512", "-mtune=znver3"], 8 * 3, 3 + 8),
}
PRODUCTS = """
#include "products.h"
extern "C" void product(long count, moe_lab::Left a, const float* b, float* c, long length, long tokens) {
  moe_lab::panel_product(count, a, b, c, length, tokens, false);
}
"""


def inner_loops(library: Path) -> list[list[tuple[str, str]]]:
    """The instructions, as (name, operands), of every loop that holds no other loop."""
    shown = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    found = [match.groups() for match in map(INSTRUCTION.match, shown.stdout.splitlines()) if match]
    place = {int(address, 16): i for i, (address, _, _) in enumerate(found)}
    loops = []
    for end, (_, name, operands) in enumerate(found):
        target = re.match(r"[0-9a-f]+", operands)
        begin = place.get(int(target[0], 16), end) if name.startswith("j") and target else end
        if begin < end:
            loops.append((begin, end))
    inner = [(b, e) for b, e in loops if not any((b, e) != other and b <= other[0] < other[1] <= e for other in loops)]
    return [[(name, operands) for _, name, operands in found[b : e + 1]] for b, e in inner]


def product_loops(library: Path) -> list[list[tuple[str, str]]]:
    """Inner loops of products: each of their 12 or more multiply-adds has a sum of its own."""
    found = []
    for loop in inner_loops(library):
        sums = [operands.split(",")[-1] for name, operands in loop if name.startswith("vfmadd")]
        if len(sums) >= 12 and len(set(sums)) == len(sums):
            found.append(loop)
    return found


def assert_operands_are_in_registers(loops: list[list[tuple[str, str]]]) -> None:
    assert loops, "no inner loop of a product was found"
    for loop in loops:
        folded = [f"{name} {operands}" for name, operands in loop if name.startswith("vfmadd") and "(" in operands]
        assert not folded, "multiply-adds that load an operand:\n" + "\n".join(folded)


@needs_objdump
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_a_step_loads_every_vector_once(tmp_path: Path, compiler: str, processor: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    source, target = tmp_path / "products.cc", tmp_path / "products.so"
    source.write_text(PRODUCTS)
    for_processor, multiply_adds, loads = PROCESSORS[processor]
    flags = [flag for flag in build.FLAGS if not flag.startswith("-march")] + for_processor
    made = subprocess.run(
        [compiler, *flags, "-I", build.SOURCES, source, "-o", target], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"{compiler} cannot compile for {processor}: {made.stderr.splitlines()[:1]}")
    loops = product_loops(target)
    assert_operands_are_in_registers(loops)
    steps = [
        (
            sum(name.startswith("vfmadd") for name, _ in loop),
            sum("(" in operands for name, operands in loop if name != "lea"),
        )
        for loop in loops
    ]
    assert (multiply_adds, loads) in steps


@needs_objdump
@compiled
def test_the_kernel_of_this_machine_folds_no_load() -> None:
    """The library as it is built and kept, with everything inlined."""
    if "fma" not in build._processor().split():
        pytest.skip("this processor has no multiply-adds that could load")
    library = build._whole(build._cache_folder(), next(iter(build._loaded)))
    assert library is not None
    assert_operands_are_in_registers(product_loops(library))
