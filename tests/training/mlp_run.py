"""A small but real training, imported by tests and run as a child: two layers with noise on generated data.

    python mlp_run.py RUNS_DIR OUT.npz [DEATH]

trains in RUNS_DIR and writes the final parameters. DEATH names a place where the process kills itself.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.training import Objective, TrainSpec, fit, open_run

SPEC = TrainSpec(
    steps=24,
    batch_size=16,
    seq_len=4,
    learning_rate=0.01,
    warmup_steps=5,
    log_every=3,
    checkpoint_every=4,
    keep=2,
    seed=3,
)


class Mlp(Objective):
    """Regression of a fixed random function of the rows, with noise so that the step's key matters."""

    units_per_step = 16
    unit = "rows"

    def __init__(self, pause: float = 0.0, width: int = 32) -> None:
        self.frozen = {"mixing": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
        self._pause = pause
        self._width = width

    def init(self, key: Any) -> Any:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        shapes = {"hidden": (8, self._width), "bias": (self._width,), "out": (self._width, 4)}
        return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}

    def loss(self, params: Any, frozen: Any, batch: Any, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = jax.nn.relu(batch @ params["hidden"] + params["bias"])
        noise = jnp.sin(jax.random.key_data(key).astype(jnp.float32)).sum()  # a stand-in for dropout, fast to compile
        error = (hidden + 0.1 * noise) @ params["out"] - jnp.sin(batch @ frozen["mixing"])
        return jnp.mean(error**2), {"largest_error": jnp.max(jnp.abs(error))}

    def batch(self, step: int) -> np.ndarray:
        time.sleep(self._pause)
        return np.random.default_rng((7, step)).normal(size=(16, 8)).astype(np.float32)


def train(runs_dir: Path, objective: Objective, spec: TrainSpec = SPEC, **options: Any) -> Any:
    """Trains in the run of `spec` and leaves it unfinished, so that it can be opened again."""
    with open_run(runs_dir, "test", "team/mlp", spec.model_dump(mode="json"), {"data": "0"}) as run:
        result = fit(objective, spec, run, **options)
        run.fail("left open by the test")
    return result


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(place: str) -> None:
    """Replaces one function of the checkpoint code by one in which the process is killed."""
    checkpoint: Any = importlib.import_module("moe_lab.training.checkpoint")
    metrics: Any = importlib.import_module("moe_lab.training.metrics")

    fatal = random.randrange(2, 4)  # early enough that later deaths find work to do
    calls = 0

    def is_fatal() -> bool:
        nonlocal calls
        calls += 1
        return calls == fatal

    if place == "while saving":
        save = checkpoint.ocp.save

        def killed_save(*arguments: Any) -> None:
            if is_fatal():
                threading.Timer(random.uniform(0, 0.04), die).start()
            save(*arguments)

        checkpoint.ocp.save = killed_save
    elif place == "before the seal":
        write = checkpoint.write_json
        checkpoint.write_json = lambda *arguments: die() if is_fatal() else write(*arguments)
    elif place == "while removing an old checkpoint":
        checkpoint.shutil.rmtree = lambda path: die()
    elif place == "in the middle of a line of metrics":
        append = metrics.append_line

        def torn(path: Path, line: str) -> None:
            if is_fatal():
                with path.open("a") as file:
                    file.write(line[: len(line) // 2])
                die()
            append(path, line)

        metrics.append_line = torn
    else:
        raise ValueError(place)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        arrange_death(sys.argv[3])
    trained = train(Path(sys.argv[1]), Mlp(pause=0.004))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params)}
    np.savez(sys.argv[2], **leaves)
