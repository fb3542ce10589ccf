"""The routed layer in C++, called by XLA: the fastest way on a CPU, where a compiler is found."""

from moe_lab.nn.backends.native.check import obstacle
from moe_lab.nn.backends.native.layer import expert_ffn

__all__ = ["expert_ffn", "obstacle"]
