"""How fast a composed model writes beside transformers, in turns: tokens per second at several batch sizes.

    OMP_WAIT_POLICY=passive python -m tests.generation.bench_generate LAB OWNER/TRUNK FILE.gguf

The lab needs the trunk only, imported from that file. A module of random numbers, 256 wide in every routed layer, is
published as `bench/random` and composed, and every token runs it. Needs transformers and torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_lab.artifacts.weights import to_tensors
from moe_lab.compose.build import build_model
from moe_lab.compose.lockfile import pin, resolve
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import load_trunk
from moe_lab.compose.spec import CompositionSpec
from moe_lab.errors import NotFound
from moe_lab.experts.interface import declared_cost
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.generation.engine import Engine, Request
from moe_lab.generation.sampling import Sampling
from moe_lab.lab import find_lab
from moe_lab.nn.pool import to_blocks
from moe_lab.nn.spec import PrecisionName
from moe_lab.registry import Registry

MODULE, WIDTH, ROUNDS, TOKENS, PROMPT = "bench/random", 256, 3, 40, 512
BATCHES = (1, 4, 16)


def compose(root: str, ref: str, precision: PrecisionName = "float32") -> ComposedModel:
    """The trunk with one module of random numbers."""
    lab = find_lab(root)
    registry = Registry(lab.registry_path)
    trunk = load_trunk(registry, pin(registry, ref, "trunk"))
    try:
        pin(registry, MODULE, "module")
    except NotFound:
        rng, interface = np.random.default_rng(0), trunk.interface
        shapes = ((interface.d_model, WIDTH), (interface.d_model, WIDTH), (WIDTH, interface.d_model))
        weights = {
            layer: to_blocks(*(jnp.asarray(rng.normal(size=s) * 0.02, jnp.float32) for s in shapes), interface.block)
            for layer in trunk.spec.routed_layers
        }
        counts = {layer: blocks.num_blocks for layer, blocks in weights.items()}
        fields = {
            "kind": "module",
            "interface": interface.to_json(),
            "ladder": [WIDTH],
            "cost": declared_cost(interface, counts, (WIDTH,)),
            "lineage": {"parents": [{**trunk.part.model_dump(), "relation": "trunk"}]},
            "config": {},
            "licence": "CC0-1.0",
            "summary": "random numbers",
            "claims": [],
            "data": {"domains": []},
        }
        tensors = to_tensors(weights, KIND)
        registry.publish(*MODULE.split("/"), None, fields, tensors, set(tensors))
    router = {"type": "fixed", "candidate": f"{MODULE}:{WIDTH}"}
    spec = CompositionSpec(
        kind="composition", name="bench", trunk=ref, modules=(MODULE,), router=router, precision=precision
    )
    return build_model(resolve(spec, registry), registry, lab)


def ours(model: ComposedModel, batch: int) -> Callable[[], float]:
    """Seconds for a step of so many texts behind a short prompt."""
    engine = Engine(model, slots=batch, capacity=256)

    def run() -> float:
        for _ in range(batch):
            text = Sampling(max_tokens=TOKENS + batch + 4, ignore_end=True)
            engine.submit(Request(prompt="The history of the town begins", sampling=text))
        for _ in range(batch + 3):
            engine.step()
        started, steps = time.perf_counter(), 0
        while engine.busy and steps < TOKENS - batch:
            engine.step()
            steps += 1
        took = (time.perf_counter() - started) / steps
        while engine.busy:
            engine.step()
        return took

    return run


def ours_reading(model: ComposedModel) -> Callable[[], float]:
    """Seconds to read a long prompt and draw a token."""
    engine, rng = Engine(model, slots=1, capacity=PROMPT + 8, chunk=PROMPT), np.random.default_rng(0)

    def run() -> float:
        ids = tuple(rng.integers(0, 40_000, PROMPT - 1).tolist())
        engine.submit(Request(prompt=ids, sampling=Sampling(max_tokens=1)))
        started = time.perf_counter()
        while engine.busy:
            engine.step()
        return time.perf_counter() - started

    return run


def theirs(file: Path) -> tuple[Callable[[int], Callable[[], float]], Callable[[], float]]:
    """The same by transformers, in float32 with its cache."""
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()

    def writing(batch: int) -> Callable[[], float]:
        def run() -> float:
            ids = torch.randint(0, 40_000, (batch, 8))
            asked = {"attention_mask": torch.ones_like(ids), "do_sample": False}
            started = time.perf_counter()
            with torch.no_grad():
                model.generate(ids, **asked, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
            return (time.perf_counter() - started) / TOKENS

        return run

    def reading() -> float:
        ids = torch.randint(0, 40_000, (1, PROMPT))
        started = time.perf_counter()
        with torch.no_grad():
            model(ids, logits_to_keep=1)
        return time.perf_counter() - started

    return writing, reading


def main() -> None:
    root, ref, file = sys.argv[1:]
    model, (their_writing, their_reading) = compose(root, ref), theirs(Path(file))
    cases = [(f"writing {n} texts", n, ours(model, n), their_writing(n)) for n in BATCHES]
    cases += [(f"reading {PROMPT} tokens", PROMPT, ours_reading(model), their_reading)]
    for name, tokens, own, other in cases:
        own(), other()
        times = [(own(), other()) for _ in range(ROUNDS)]
        mine, their = (tokens / min(column) for column in zip(*times, strict=True))
        print(f"{name}: {mine:.1f} tokens/s, transformers {their:.1f}, ratio {mine / their:.2f}", flush=True)


if __name__ == "__main__":
    main()
