"""Train expert modules apart, publish them, and compose them into one model that is routed token by token.

Every concern is a subpackage of its own and is imported by name (`from moe_lab import routing`); nothing is
imported here, so that listings and `--help` start without the numerical stack.
"""

__version__ = "0.1.0"
