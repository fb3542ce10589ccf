"""A lab small enough to train in seconds, on real text."""

from __future__ import annotations

from pathlib import Path

from moe_lab.lab import init_lab

TRUNK = """
kind: trunk
name: lab/tiny
licence: Apache-2.0
trunk: {{d_model: 16, num_layers: 2, num_heads: 2, ffn_width: 24, routed_layers: [1], block: 8}}
data:
  - {{domain: code}}
  - {{domain: prose, weight: 0.5}}
train: {{steps: {steps}, batch_size: 4, seq_len: 64, learning_rate: 1e-2, log_every: 5, checkpoint_every: 5}}
heldout_rows: 4
"""
MODULE = """
kind: module
name: {owner}/{name}
licence: Apache-2.0
trunk: lab/tiny
width: {width}
ladder: {ladder}
data: {data}
train: {{steps: 8, batch_size: 4, seq_len: 64, learning_rate: 1e-2}}
heldout_rows: 4
"""
CHILD = """
kind: distill
name: north/code-mini
licence: Apache-2.0
teacher: north/code
ladder: [8]
strategy: {type: nested_prune}
data: code
train: {steps: 4, batch_size: 4, seq_len: 64, learning_rate: 1e-2}
calibration_rows: 4
heldout_rows: 4
"""
ROUTER = """
kind: router
name: lab/{name}
licence: Apache-2.0
router: {{type: {name}}}
trunk: lab/tiny
modules: [north/code, south/prose, north/code-mini]
domains: [code, prose]
rows: 4
train: {{steps: 6, batch_size: 4, seq_len: 64, learning_rate: 1e-2}}
"""
COMPOSITION = """
kind: composition
name: {name}
trunk: lab/tiny
modules: {modules}
router: {router}
price: 0.01
"""
EVALUATION = """
kind: evaluation
name: tiny
composition: composition.yaml
domains: [code, prose]
rows: 4
decision_rows: 4
seq_len: 64
batch_size: 4
prices: [0.0, 0.1]
routers: [lab/domain]
resamples: 20
"""
STUDY = """
kind: study
name: tiny
stages:
  - trunk.yaml
  - modules/code/module.yaml
  - modules/prose/module.yaml
  - child.yaml
  - router-gain.yaml
  - router-domain.yaml
  - router-topk.yaml
  - composition.yaml
  - evaluation.yaml
"""
ALL = "[north/code, south/prose, north/code-mini]"


def write_tiny_lab(folder: Path, steps: int = 10) -> Path:
    """A lab with a trunk, two modules, a child, three routers, a composition, an evaluation, and a study of all."""
    lab = init_lab(folder)
    data = "kind: data\nname: {}\nheldout: 0.4\nlongest_document: 1024\nsources:\n  - {{type: {}, max_bytes: 60000}}\n"
    files = {
        "configs/data/code.yaml": data.format("code", "stdlib"),
        "configs/data/prose.yaml": data.format("prose", "pydoc"),
        "configs/trunk.yaml": TRUNK.format(steps=steps),
        "modules/code/module.yaml": MODULE.format(owner="north", name="code", width=24, ladder="[8, 24]", data="code"),
        "modules/prose/module.yaml": MODULE.format(
            owner="south", name="prose", width=13, ladder="[8, 13]", data="prose"
        ),
        "configs/child.yaml": CHILD,
        "configs/composition.yaml": COMPOSITION.format(name="tiny", modules=ALL, router="lab/gain"),
        "configs/evaluation.yaml": EVALUATION,
        "configs/tiny.yaml": STUDY,
        **{f"configs/router-{name}.yaml": ROUTER.format(name=name) for name in ("gain", "domain", "topk")},
    }
    for name, text in files.items():
        path = lab / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    return lab
