"""The `moe-lab` command: one file per subcommand, imported when it is asked for.
Heavy packages are imported only inside the functions that need them."""

from moe_lab.cli.app import current_lab, main

__all__ = ["current_lab", "main"]
