"""How fast a real trunk is here, beside transformers and the machine's own matmul rate, in one run.

    python -m tests.trunks.bench_trunk REGISTRY hf/smollm2-135m FILE.gguf

Loading against reading the same bytes, the forward pass of 4 x 512 tokens, and training steps of a module 512 wide with
and without kept states. Every figure is the best of a few rounds that take turns. The forward pass takes turns with the
matmul that tells the rate, and its share is told of wall time and of processor time: where other work shares the cores,
the second still says something.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from moe_lab.bench.measure import MATMUL_SIZE, calibrate
from moe_lab.compose.kept_states import KeptStates
from moe_lab.compose.lockfile import pin
from moe_lab.compose.parts import LoadedTrunk, load_trunk
from moe_lab.data import Batch
from moe_lab.experts.weights import init_expert
from moe_lab.jobs.objectives import ModuleObjective
from moe_lab.registry import Registry
from moe_lab.registry.read import read_chunk
from moe_lab.training.spec import TrainSpec
from moe_lab.training.step import compile_step, initial_state, place

ROWS, LENGTH, WIDTH, ROUNDS = 4, 512, 512, 3


class Taken(NamedTuple):
    """Seconds of a call, or the least of several."""

    wall: float
    processor: float


def seconds(run: Callable[[], object]) -> Taken:
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return Taken(time.perf_counter() - wall, time.process_time() - processor)


def best(**runs: Callable[[], object]) -> dict[str, Taken]:
    """The least seconds of each; they take turns."""
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return {name: Taken(*map(min, zip(*all_of[1:], strict=True))) for name, all_of in taken.items()}


def bench_loading(registry: Registry, ref: str) -> LoadedTrunk:
    part = pin(registry, ref, "trunk")
    manifest = registry.manifest(part.digest)

    def read_bytes() -> None:
        for chunk in manifest.chunks():
            Path(registry.store.where(f"blobs/{chunk.digest}")).read_bytes()

    found = best(
        read=read_bytes,
        hashed=lambda: [len(read_chunk(registry.store, chunk)) for chunk in manifest.chunks()],
        load=lambda: load_trunk(registry, part).state,
    )
    load, read, hashed = (found[name].wall for name in ("load", "read", "hashed"))
    print(f"load {load:.2f} s; its bytes read {read:.2f} s, read and hashed {hashed:.2f} s")
    return load_trunk(registry, part)


def bench_forward(trunk: LoadedTrunk, source: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, trunk.tokenizer.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    ones, places = np.ones_like(tokens), np.arange(LENGTH, dtype=np.int32)[None].repeat(ROWS, 0)
    ours = jax.jit(lambda state: nnx.merge(trunk.graph, state)(tokens, ones, places))
    square, multiply = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE)), jax.jit(lambda a: a @ a)
    runs: dict[str, Callable[[], object]] = {"matmul": lambda: multiply(square), "ours": lambda: ours(trunk.state)}
    try:
        runs["transformers"] = peer(source, tokens)
    except ImportError:
        print("transformers is not installed: moe-lab[peers]")
    found = best(**runs)
    spec = trunk.spec
    work = sum(spec.multiply_adds(layer, LENGTH) for layer in range(spec.num_layers)) + spec.head_multiply_adds
    matmuls = work * tokens.size / MATMUL_SIZE**3
    rate = found.pop("matmul")
    for name, taken in found.items():
        shares = [matmuls * least / own for least, own in zip(rate, taken, strict=True)]
        print(
            f"forward {ROWS} x {LENGTH}, {name}: {tokens.size / taken.wall:.0f} tokens/s, {shares[0]:.2f} of the rate; "
            f"of processor time {shares[1]:.2f}"
        )


def peer(source: Path, tokens: np.ndarray) -> Callable[[], object]:
    import torch
    from transformers import AutoModelForCausalLM

    where = {"gguf_file": source.name} if source.is_file() else {}
    folder = str(source.parent if source.is_file() else source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    ids = torch.from_numpy(tokens.astype(np.int64))

    def run() -> object:
        with torch.inference_mode():
            return model(ids, use_cache=False).logits

    return run


class DrawnText:
    """Batches of random tokens, one document a row; four of them come again and again."""

    def __init__(self, trunk: LoadedTrunk) -> None:
        self.vocab_size = trunk.tokenizer.vocab_size

    def batch(self, step: int) -> Batch:
        drawn = np.random.default_rng(step % 4).integers(0, self.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
        ones = np.ones((ROWS, LENGTH), np.float32)
        places = np.arange(LENGTH, dtype=np.int32)[None].repeat(ROWS, 0)
        levels, zeros = np.full((ROWS, LENGTH), -1, np.int32), np.zeros(ROWS, np.int32)
        one = np.ones((ROWS, LENGTH), np.int32)
        return Batch(drawn[:, :-1], drawn[:, 1:], one, places, ones, one, zeros, levels, ones)


def bench_training(trunk: LoadedTrunk) -> None:
    spec = TrainSpec(steps=100, batch_size=ROWS, seq_len=LENGTH, learning_rate=1e-3)
    interface = trunk.interface.of_kind("gated_ffn")
    widths = dict.fromkeys(trunk.spec.routed_layers, WIDTH)

    def make(one: Any) -> Callable[[], object]:
        objective = ModuleObjective(
            one,
            interface.expert_kind,
            lambda key: init_expert(key, interface, widths),
            (WIDTH,),
            1.0,
            DrawnText(trunk),
            ROWS * LENGTH,  # type: ignore[arg-type]
        )
        state, key, frozen = initial_state(objective, spec), jax.random.key(0), objective.frozen
        now = SimpleNamespace(step=0, state=state)
        compiled = compile_step(objective, spec, state, frozen, place(objective.batch(0), None), key, None)

        def run() -> object:
            now.state, metrics = compiled(now.state, frozen, place(objective.batch(now.step), None), key)
            now.step += 1
            return metrics

        return run

    with tempfile.TemporaryDirectory() as folder:
        keeping = dataclasses.replace(trunk, states=KeptStates(Path(folder), 10**9))
        runs = {"plain": make(trunk), "with kept states": make(keeping)}
        for _ in range(3):
            runs["with kept states"]()  # all four batches are on the disk then
        found = best(**runs)
    for name, taken in found.items():
        print(f"training step of a module {WIDTH} wide, {name}: {ROWS * LENGTH / taken.wall:.0f} tokens/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak resident memory so far: {peak:.2f} GB")


def main() -> None:
    registry, ref, source = Registry(sys.argv[1], create=False), sys.argv[2], Path(sys.argv[3])
    before = calibrate()
    trunk = bench_loading(registry, ref)
    bench_training(trunk)
    middle = calibrate()
    bench_forward(trunk, source)
    after = calibrate()
    print(f"calibrated: {before.gflops:.0f}, {middle.gflops:.0f}, {after.gflops:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
