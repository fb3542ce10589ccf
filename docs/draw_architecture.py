"""Draws architecture.svg from the arrows of architecture.md: `python docs/draw_architecture.py`, which needs graphviz.

An arrow is left out where a longer way down leads to the same package.
"""

import re
import subprocess
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
# Fill and border, and the packages drawn so.
COLOURS = {
    ("#eef0f3", "#7d8796"): "errors files config",
    ("#e8eefc", "#5b7bd0"): "lab data jobs testing cli",
    ("#e3f3ee", "#3f9478"): "nn experts parallel routing compose generation serving planning bench",
    ("#fdf1dc", "#c08a2b"): "registry artifacts trunks",
    ("#f3eafb", "#8f63bd"): "training metrics questions evaluation reports",
}
SAYS = {
    "errors": "one-line errors and their classes",
    "files": "whole files or none",
    "config": "typed YAML, kinds",
    "lab": "finds contributions",
    "data": "text, splits, batches",
    "nn": "trunk, pool, expert_ffn, backends",
    "registry": "content-addressed, signed",
    "experts": "modules, kinds of experts",
    "artifacts": "what manifests say",
    "trunks": "families, folders, GGUF",
    "parallel": "mesh, placement, transport",
    "routing": "router contract, outcome tables",
    "training": "one resumable loop",
    "metrics": "curves, areas, intervals",
    "questions": "routers for whole questions",
    "compose": "lockfile, composed model",
    "generation": "text, token by token",
    "serving": "HTTP, receipts, ledger",
    "evaluation": "passes, comparison, results",
    "planning": "TPU topologies, verdict",
    "reports": "pages and pictures",
    "jobs": "what the commands do",
    "testing": "suites for contributions",
    "bench": "speed, as ratios",
    "cli": "the moe-lab command",
}
STYLE = (
    'rankdir=TB; bgcolor=white; nodesep=0.28; ranksep=0.42; edge [color="#5a6474" arrowsize=0.6]; '
    'node [shape=box style="rounded,filled" fontname=Helvetica fontsize=11 margin="0.12,0.06"];'
)
HEAD = """<title>The packages of moe-lab and what each may import</title>
<desc>Every arrow points down, from a package to one that it imports.</desc>
<g id="graph0\""""


def draw() -> str:
    """The picture as SVG."""
    page = (FOLDER / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(\w+):(.*)$", re.findall(r"```arrows\n(.*?)```", page, re.S)[0], re.M)
    colour = {name: pair for pair, names in COLOURS.items() for name in names.split()}
    lines = [f"digraph {{ {STYLE}"]
    for name, allowed in rows:
        fill, border = colour[name]
        said = "<br/>".join(textwrap.wrap(SAYS[name], 24))
        label = f'<b>{name}</b><br/><font point-size="9">{said}</font>'
        lines.append(f'{name} [fillcolor="{fill}" color="{border}" label=<{label}>];')
        lines += [f"{name} -> {below};" for below in re.findall(r"\w+", allowed)]
    reduced = _run(["tred"], "\n".join([*lines, "}"]))
    svg = re.sub(r"<!--.*?-->\n?", "", _run(["dot", "-Tsvg"], reduced), flags=re.S)
    svg = re.sub(r"<title>[^<]*</title>\n", "", svg[svg.index("<svg") :])
    return svg.replace('<g id="graph0"', HEAD, 1)


def _run(command: list[str], text: str) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    (FOLDER / "architecture.svg").write_text(draw(), encoding="utf-8")
