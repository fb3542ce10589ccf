"""The subcommands: where each one is found. A new command is one line here and one file beside this one."""

from __future__ import annotations

# Name -> "package.module:attribute". The attribute is a function with typer annotations, or a typer.Typer of
# class CommandGroup or CommandWithOthers with subcommands of its own. Its docstring is the help text: a short
# sentence, then an "Example:" with indented lines. `moe-lab --help` imports all of them, so heavy packages are
# imported inside the functions.
COMMANDS: dict[str, str] = {
    "init": "moe_lab.cli.init:init",
    "run": "moe_lab.cli.run:run",
    "train": "moe_lab.cli.train:train",
    "module": "moe_lab.cli.module:module",
    "trunk": "moe_lab.cli.trunk:trunk",
    "router": "moe_lab.cli.contributed:router",
    "distill": "moe_lab.cli.contributed:distill",
    "key": "moe_lab.cli.key:key",
    "compose": "moe_lab.cli.compose:compose",
    "export": "moe_lab.cli.export:export",
    "generate": "moe_lab.cli.generate:generate",
    "serve": "moe_lab.cli.serve:serve",
    "usage": "moe_lab.cli.serve:usage",
    "eval": "moe_lab.cli.evaluate:evaluate",
    "outcomes": "moe_lab.cli.outcomes:outcomes",
    "speed": "moe_lab.cli.speed:speed",
    "route-report": "moe_lab.cli.route_report:route_report",
    "plan": "moe_lab.cli.plan:plan",
    "bench": "moe_lab.cli.bench:bench",
    "runs": "moe_lab.cli.runs:runs",
    "schema": "moe_lab.cli.schema:schema",
}
