"""Counts the multiply-adds of a function's matrix products, from what JAX traces: an oracle for costs that are stated.

Elementwise work is not counted, as in all costs of the lab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def traced_multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of all matrix products and convolutions of one call; a loop of unknown length counts once."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_own(equation) + _inner(equation) for equation in jaxpr.eqns)


def _inner(equation: Any) -> int:
    turns = equation.params["length"] if equation.primitive.name == "scan" else 1
    return turns * sum(map(_count, _jaxprs(equation.params)))


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The bodies of compiled functions, loops and branches."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _own(equation: Any) -> int:
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    numbers = equation.params["dimension_numbers"]
    left, right, out = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    if equation.primitive.name == "dot_general":
        return math.prod(out) * math.prod(left[axis] for axis in numbers[0][0])
    return math.prod(out) * math.prod(right) // right[numbers.rhs_spec[0]]
