"""How fast a composed model writes beside transformers, in turns: tokens per second at several batch sizes.

Also with weights in bfloat16, and through XLA, where a text's bits depend on what is written beside it.

    OMP_WAIT_POLICY=passive python -m tests.generation.bench_generate LAB OWNER/TRUNK FILE.gguf

The lab needs the trunk only, imported from that file. A module of random numbers, 256 wide in every routed layer, is
published as `bench/random` and composed, and every token runs it. Needs transformers and torch. Where `xllamacpp` is
installed llama.cpp runs the same candidate beside them, one text, exported in float32 and in bfloat16.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
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
from moe_lab.generation.engine import Engine
from moe_lab.generation.reading import Structure
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Sampling
from moe_lab.jobs.export_dense import export_gguf
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab
from moe_lab.nn.backends.native import check
from moe_lab.nn.pool import to_blocks
from moe_lab.nn.spec import PrecisionName
from moe_lab.registry import Registry

MODULE, WIDTH, ROUNDS, TOKENS, PROMPT = "bench/random", 256, 3, 40, 512
BATCHES = (1, 4, 16)
READING = f"reading {PROMPT} tokens"


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
    return build_model(resolve(composition(ref, precision), registry), registry, lab)


def composition(ref: str, precision: PrecisionName = "float32") -> CompositionSpec:
    router = {"type": "fixed", "candidate": f"{MODULE}:{WIDTH}"}
    return CompositionSpec(
        kind="composition", name="bench", trunk=ref, modules=(MODULE,), router=router, precision=precision
    )


def ours(model: ComposedModel, batch: int, promised: bool = True) -> Callable[[], float]:
    """Seconds for a step of so many texts behind a short prompt; not `promised`: through XLA, bits as they come."""
    engine = _engine(model, promised, slots=batch, capacity=256)

    def run() -> float:
        with _perhaps_compiled(promised):
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


def ours_reading(model: ComposedModel, promised: bool = True) -> Callable[[], float]:
    """Seconds to read a long prompt and draw a token."""
    engine = _engine(model, promised, slots=1, capacity=PROMPT + 8, chunk=PROMPT)
    rng = np.random.default_rng(0)

    def run() -> float:
        with _perhaps_compiled(promised):
            ids = tuple(rng.integers(0, 40_000, PROMPT - 1).tolist())
            engine.submit(Request(prompt=ids, sampling=Sampling(max_tokens=1)))
            started = time.perf_counter()
            while engine.busy:
                engine.step()
            return time.perf_counter() - started

    return run


def _engine(model: ComposedModel, promised: bool, **sizes: int) -> Engine:
    engine = Engine(model, **sizes)
    if not promised:
        # Another object is another program, whatever it says: this one is traced without the kernel.
        structure = engine._structure
        engine._structure = Structure(structure.trunk, structure.router, structure.run_layer)
    return engine


@contextlib.contextmanager
def _perhaps_compiled(promised: bool) -> Iterator[None]:
    with contextlib.nullcontext() if promised else mock.patch.object(check, "obstacle", return_value="-"):
        yield


def bound(model: ComposedModel) -> Callable[[], float]:
    """Seconds to read as many bytes as a step reads: all weights, but for an embedding that no head shares."""
    arrays = model.arrays()
    count = sum(leaf.nbytes for leaf in jax.tree.leaves((arrays.trunk, arrays.pools))) // 4
    numbers, total = jnp.ones(count, jnp.float32), jax.jit(jnp.sum)

    def run() -> float:
        started = time.perf_counter()
        total(numbers).block_until_ready()
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


_LLAMA = """
import json, os, sys
import numpy as np, xllamacpp

path, prompt, written = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = path, 1024, 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = os.cpu_count()
server, rng = xllamacpp.Server(settings), np.random.default_rng(0)
for _ in range(2):
    ids = rng.integers(0, 40_000, prompt).tolist()
    asked = {"prompt": ids, "n_predict": written, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    print(json.dumps(server.handle_completions(asked)["timings"]), flush=True)
"""
"""Its own process: its threads would wait in a loop beside ours. The first answer warms it."""


def llama_cpp(root: str, ref: str, dtype: str, folder: Path) -> tuple[Callable[[], float], Callable[[], float]]:
    """The same by llama.cpp with the candidate folded in: one text, and the prompt."""
    workspace, path = Workspace(find_lab(root)), folder / f"{dtype}.gguf"
    lock = resolve(composition(ref), workspace.registry)
    export_gguf(workspace, lock, f"{MODULE}:{WIDTH}", path, dtype)

    def ask(prompt: int, written: int) -> dict[str, float]:
        command = [sys.executable, "-c", _LLAMA, str(path), str(prompt), str(written)]
        # Nobody runs beside it, so its threads may wait for one another as they like best.
        own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        lines = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.splitlines()
        timings: dict[str, float] = json.loads(lines[-1])
        return timings

    return (
        lambda: ask(8, TOKENS)["predicted_per_token_ms"] / 1000,
        lambda: ask(PROMPT, 1)["prompt_ms"] / 1000,
    )


def main() -> None:
    root, ref, file = sys.argv[1:]
    model, narrow = compose(root, ref), compose(root, ref, "bfloat16_weights")
    their_writing, their_reading = theirs(Path(file))
    cases = {
        f"writing {n} texts": (
            n,
            {
                "ours": ours(model, n),
                "bfloat16 weights": ours(narrow, n),
                "without own bits": ours(model, n, promised=False),
                "transformers": their_writing(n),
            },
        )
        for n in BATCHES
    }
    cases[READING] = (
        PROMPT,
        {
            "ours": ours_reading(model),
            "bfloat16 weights": ours_reading(narrow),
            "without own bits": ours_reading(model, promised=False),
            "transformers": their_reading,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("xllamacpp"):
            for dtype in ("float32", "bfloat16"):
                writing, reading = llama_cpp(root, ref, dtype, Path(folder))
                cases["writing 1 texts"][1][f"llama.cpp {dtype}"] = writing
                cases[READING][1][f"llama.cpp {dtype}"] = reading
        limits = {"bytes": bound(model), "bytes, bfloat16 weights": bound(narrow)}
        for name, (tokens, runs) in cases.items():
            measure(name, tokens, runs, limits)


def measure(
    name: str, tokens: int, runs: dict[str, Callable[[], float]], limits: dict[str, Callable[[], float]]
) -> None:
    """Runs all in turns and prints the best of each."""
    for run in runs.values():
        run()
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for label, run in (*runs.items(), *limits.items()):
            best[label] = min(best.get(label, np.inf), run())
    rates = ", ".join(f"{label} {tokens / best[label]:.1f}" for label in runs)
    shares = [best["bytes"] / best["ours"], best["bytes, bfloat16 weights"] / best["bfloat16 weights"]]
    beside = [best["transformers"] / best[label] for label in ("ours", "bfloat16 weights")]
    print(
        f"{name}, tokens/s: {rates}; beside transformers {beside[0]:.2f} and {beside[1]:.2f}; of the rate at which "
        f"bytes can be read {shares[0]:.2f} and {shares[1]:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
