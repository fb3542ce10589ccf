"""How fast the registry is, beside plain tools on the same bytes and the same file system, in one run.

    python tests/registry/bench_registry.py [--folder DIR] [--megabytes N] [--modules N] [--json FILE]

Prints a table; each target is a ratio or a count, so it means the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from moe_lab.registry import LocalStore, Registry  # noqa: E402
from moe_lab.registry.manifest import TensorRecord, build  # noqa: E402
from moe_lab.registry.references import digest_of  # noqa: E402

ROUNDS = 3
LAYERS = 8
BLOCKS = 16


def expert(megabytes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """An expert of random bytes: per layer two tensors of 16 blocks."""
    random = np.random.default_rng(seed)
    block = megabytes * (1 << 20) // (2 * LAYERS * BLOCKS)
    return {
        f"layers.{layer}.{name}": random.integers(0, 256, (BLOCKS, block), dtype=np.uint8)
        for layer in range(LAYERS)
        for name in ("gate", "down")
    }


def publish(root: Path, name: str, tensors: dict[str, np.ndarray]) -> str:
    return Registry(root).publish("bench", name, None, {"kind": "module"}, tensors, frozenset(tensors)).digest


def plain_copy(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """The same pieces, hashed, written and synced one after the other."""
    folder.mkdir()
    for name, array in tensors.items():
        for index, piece in enumerate(array):
            hashlib.sha256(piece).digest()
            with (folder / f"{name}.{index}").open("wb") as file:
                file.write(piece)
                file.flush()
                os.fsync(file.fileno())


def plain_read(folder: Path) -> None:
    for path in folder.iterdir():
        hashlib.sha256(path.read_bytes()).digest()


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def stored(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "blobs").iterdir())


def speed(folder: Path, megabytes: int) -> dict[str, Any]:
    """In turns, and the middle of several rounds: the machine may be busy with other things."""
    tensors, times = expert(megabytes), {"copy": [], "publish": [], "read": [], "verify": []}
    for number in range(ROUNDS):
        root, copy = folder / f"registry{number}", folder / f"copy{number}"
        times["copy"].append(seconds(lambda copy=copy: plain_copy(copy, tensors)))
        times["publish"].append(seconds(lambda root=root: publish(root, "expert", tensors)))
        times["read"].append(seconds(lambda copy=copy: plain_read(copy)))
        times["verify"].append(seconds(lambda root=root: Registry(root).verify()))
        shutil.rmtree(root)
        shutil.rmtree(copy)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        **{f"{name}_MB_per_s": megabytes / taken for name, taken in middle.items()},
        "publish_to_copy": middle["copy"] / middle["publish"],
        "verify_to_read": middle["read"] / middle["verify"],
    }


class CountingStore(LocalStore):
    read = 0

    def get(self, key: str, limit: int) -> bytes:
        data = super().get(key, limit)
        self.read += len(data) if key.startswith("blobs/") else 0
        return data


def sharing(folder: Path) -> dict[str, Any]:
    """What a ladder, a changed layer and a narrow width cost in bytes."""
    root, tensors = folder / "shared", expert(16)
    publish(root, "expert", tensors)
    widest = stored(root)
    for share in (2, 4, 8, 16):
        publish(root, f"part{share}", {name: array[: BLOCKS // share] for name, array in tensors.items()})
    ladder = stored(root)
    layer = {name: array + np.uint8(1) for name, array in tensors.items() if name.startswith("layers.3.")}
    publish(root, "expert", {**tensors, **layer})
    counting = Registry(root)
    counting.store = store = CountingStore(root)
    counting.tensors("bench/expert@1", blocks=BLOCKS // 4)
    return {
        "ladder_to_widest": ladder / widest,
        "changed_layer_bytes_to_layer": (stored(root) - ladder) / sum(array.nbytes for array in layer.values()),
        "quarter_width_bytes_to_all": store.read / widest,
    }


def many(root: Path, count: int) -> None:
    """Manifests of ordinary size, written without fsync: only reading them is timed."""
    for name in ("manifests", "refs"):
        (root / name).mkdir(parents=True)
    chunks = tuple(digest_of(str(index).encode()) for index in range(8))
    record = TensorRecord("float32", (8, 64, 16), 64 * 16 * 4, chunks, True)
    records = {f"layers.{layer}.{name}": record for layer in range(2) for name in ("gate", "up", "down")}
    for number in range(count):
        about = {"kind": "module", "summary": f"module {number}", "ladder": [64, 128, 256]}
        manifest, data = build(about, records)
        (root / "manifests" / f"{manifest.digest}.json").write_bytes(data)
        folder = root / "refs" / f"team{number % 50}" / f"part{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(1 + number % 2)).write_text(f"{manifest.digest}\n")


def command(lab: Path, cache: Path, *arguments: str) -> tuple[float, float, str]:
    """Wall and processor seconds of a whole command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "moe_lab", "--lab", str(lab), *arguments]
    output = subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


def listing(folder: Path, count: int) -> dict[str, Any]:
    lab, cache = folder / "lab", folder / "cache"
    command(folder, cache, "init", str(lab))
    many(lab / "registry", count)
    cold = command(lab, cache, "module", "list")
    warm = [command(lab, cache, "module", "list") for _ in range(ROUNDS)]
    nothing = [command(lab, cache, "module", "list", "--help") for _ in range(ROUNDS)]
    assert {output.count("\n") for *_, output in (cold, *warm)} == {count}
    return {
        "list_modules": count,
        "list_cold_s": cold[0],
        "list_cold_cpu_s": cold[1],
        "list_s": min(run[0] for run in warm),
        "list_cpu_s": min(run[1] for run in warm),
        "list_help_s": min(run[0] for run in nothing),
        "list_help_cpu_s": min(run[1] for run in nothing),
    }


TARGETS: dict[str, tuple[str, float]] = {
    "publish_to_copy": (">=", 0.7),
    "verify_to_read": (">=", 0.7),
    "ladder_to_widest": ("<=", 1.05),
    "changed_layer_bytes_to_layer": ("<=", 1.0),
    "quarter_width_bytes_to_all": ("<=", 0.27),
    "list_s": ("<", 1.0),
}


def verdict(name: str, value: float) -> str:
    if name not in TARGETS:
        return ""
    sign, target = TARGETS[name]
    met = value >= target if sign == ">=" else value <= target if sign == "<=" else value < target
    return f"{sign} {target:g}  {'met' if met else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to measure; the system's temporary folder if left out")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--modules", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        figures = {**speed(folder, options.megabytes), **sharing(folder), **listing(folder, options.modules)}
    for name, value in figures.items():
        print(f"{name:30} {value:10.3f}  {verdict(name, value)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
