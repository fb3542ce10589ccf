"""Train expert modules apart, publish them, and compose them into one model that is routed token by token.

The names of this package are what notebooks, scripts and contributions use; `moe_lab.testing` has what their tests use.
All other modules are the framework's own. Each name is imported when it is first used, so that listings and `--help`
start without the numerical stack; the stub beside this file says where each comes from.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
