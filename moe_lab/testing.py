"""What the tests of contributions use: the conformance suites, and a small world for routers to be tried in."""

from moe_lab.compose.parts import state_from_tensors, state_tensors
from moe_lab.experts.conformance import check_strategy
from moe_lab.experts.shrink import order_by_importance
from moe_lab.jobs.contribution import check_module_folder
from moe_lab.routing.conformance import check_router
from moe_lab.routing.example import D_MODEL, SPACE, Example, draw_example, learn_example, make_example_router
from moe_lab.routing.joining import joined_router

__all__ = [
    "D_MODEL",
    "SPACE",
    "Example",
    "check_module_folder",
    "check_router",
    "check_strategy",
    "draw_example",
    "joined_router",
    "learn_example",
    "make_example_router",
    "order_by_importance",
    "state_from_tensors",
    "state_tensors",
]
