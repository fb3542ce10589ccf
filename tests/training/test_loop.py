from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_lab.errors import Interrupted, LabError
from moe_lab.training import FitResult, PlainProgress, loop
from moe_lab.training.metrics import TIMING_FIELDS
from moe_lab.training.optimizer import make_optimizer
from moe_lab.training.step import initial_state

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMPILED = "/jax/core/compile/backend_compile_duration"


def lines_of(runs: Path) -> list[dict[str, Any]]:
    (file,) = runs.glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def lasting(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMING_FIELDS} for line in lines]


def bits(params: Any) -> dict[str, bytes]:
    return {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@dataclasses.dataclass(frozen=True)
class Calm:
    """A training that nothing interrupted."""

    runs: Path
    result: FitResult


@pytest.fixture(scope="module")
def calm(mlp_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    runs = tmp_path_factory.mktemp("calm")
    return Calm(runs, mlp_run.train(runs, mlp_run.Mlp()))


def test_it_equals_a_plain_optax_loop(mlp_run: Any, calm: Calm) -> None:
    """The oracle: no donation, no files, a fresh jit, one step after the other."""
    objective, spec = mlp_run.Mlp(), mlp_run.SPEC
    optimizer = make_optimizer(spec)
    params = initial_state(objective, spec)["params"]
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any, key: Any) -> Any:
        (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(params, objective.frozen, batch, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = {}
    for index in range(spec.steps):
        key = jax.random.fold_in(jax.random.key(spec.seed), index)
        params, state, loss = step(params, state, objective.batch(index), key)
        losses[index + 1] = float(loss)

    for name, value in calm.result.params.items():
        np.testing.assert_allclose(value, params[name], rtol=1e-5, atol=1e-6)
    logged = {line["step"]: line["loss"] for line in lines_of(calm.runs)}
    assert sorted(logged) == list(range(3, 25, 3))
    for index, loss in logged.items():
        assert loss == pytest.approx(losses[index], rel=1e-5)
    assert losses[24] < losses[1] / 2


class PowerCut(Exception):
    pass


def altered(objective: Any, **changes: Callable[[Any], Any]) -> Any:
    """Replaces methods of one objective, each by what its change makes of the original."""
    for name, change in changes.items():
        setattr(objective, name, change(getattr(objective, name)))
    return objective


def cut_at(objective: Any, step: int) -> Any:
    """Makes the batches of an objective fail from `step` on."""

    def change(whole: Any) -> Any:
        def batch(index: int) -> Any:
            if index >= step:
                raise PowerCut
            return whole(index)

        return batch

    return altered(objective, batch=change)


@pytest.mark.parametrize("cuts", [[1, 5], [9, 10, 23]])
def test_resumed_it_ends_with_the_same_bits_and_metrics(
    tmp_path: Path, mlp_run: Any, calm: Calm, cuts: list[int]
) -> None:
    for cut in cuts:
        with pytest.raises(PowerCut):
            mlp_run.train(tmp_path, cut_at(mlp_run.Mlp(), cut))
    resumed = mlp_run.train(tmp_path, mlp_run.Mlp())
    # The batch of step 4k + 1 is asked for before checkpoint 4k is saved.
    assert resumed.resumed_from == ((cuts[-1] - 1) // 4 * 4 or None)
    assert bits(resumed.params) == bits(calm.result.params)
    assert lasting(lines_of(tmp_path)) == lasting(lines_of(calm.runs))
    seconds = [line["seconds"] for line in lines_of(tmp_path)]
    assert seconds == sorted(seconds)


def test_a_complete_training_comes_back_without_a_step(mlp_run: Any, calm: Calm) -> None:
    first = calm.result
    again = mlp_run.train(calm.runs, cut_at(mlp_run.Mlp(), 0))
    assert again.resumed_from == first.steps == 24
    assert bits(again.params) == bits(first.params)
    assert again.metrics == first.metrics == lines_of(calm.runs)[-1]


def test_it_traces_once_and_compiles_nothing_after_the_first_step(tmp_path: Path, mlp_run: Any) -> None:
    """Counted whenever a batch is asked for; that of step 1 comes after the compilation."""
    compilations: list[float] = []
    counts: list[int] = []
    traces: list[None] = []

    def counted_batch(batch: Any) -> Any:
        def counted(step: int) -> Any:
            counts.append(len(compilations))
            return batch(step)

        return counted

    def counted_loss(loss: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            traces.append(None)
            return loss(*arguments)

        return counted

    def counted() -> Any:
        return altered(mlp_run.Mlp(), batch=counted_batch, loss=counted_loss)

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            compilations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(PowerCut):
            mlp_run.train(tmp_path, cut_at(counted(), 18))
        assert counts[0] < counts[1], "the listener hears nothing"
        assert counts[1:] == [counts[1]] * (len(counts) - 1)
        assert len(traces) == 1
        counts.clear()
        assert mlp_run.train(tmp_path, counted()).resumed_from == 16
        assert counts[1] == counts[0] + 1
        assert counts[1:] == [counts[1]] * (len(counts) - 1)
        assert len(traces) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_device_is_asked_at_log_points_only(tmp_path: Path, mlp_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = mlp_run.SPEC.model_copy(update={"steps": 20, "log_every": 8, "checkpoint_every": 100})
    asked: list[Any] = []
    fetch = jax.device_get

    def counted_fetch(tree: Any) -> Any:
        asked.append(tree)
        return fetch(tree)

    monkeypatch.setattr(jax, "device_get", counted_fetch)
    mlp_run.train(tmp_path, mlp_run.Mlp(), spec)
    assert len(asked) == 3 + 1  # at each log point, and at the one checkpoint
    assert [line["step"] for line in lines_of(tmp_path)] == [8, 16, 20]


def test_frozen_arrays_survive_even_where_params_share_their_memory(tmp_path: Path, mlp_run: Any) -> None:
    shared = jnp.ones((8, 4))

    extra = {"one": shared, "other": shared, "weak": 1.0 * jnp.asarray(2.0)}
    objective = altered(mlp_run.Mlp(), init=lambda init: lambda key: init(key) | extra)
    objective.frozen = {"mixing": shared}
    result = mlp_run.train(tmp_path, objective, mlp_run.SPEC.model_copy(update={"steps": 3}))
    assert float(shared.sum()) == 32.0
    assert float(result.params["one"].sum()) != 32.0  # decayed, though the loss does not read it


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(100, 4), (5, 100), (100, 100)])
def test_a_nan_stops_the_run_at_its_step_and_is_never_saved(
    tmp_path: Path, mlp_run: Any, log_every: int, checkpoint_every: int
) -> None:
    spec = mlp_run.SPEC.model_copy(update={"log_every": log_every, "checkpoint_every": checkpoint_every})
    poisoned = altered(
        mlp_run.Mlp(), batch=lambda batch: lambda step: batch(step) * np.float32("nan" if step >= 10 else 1)
    )
    with pytest.raises(LabError, match=r"not finite at step 11: try .* learning_rate \(now 0.01\).* batch\(10\)"):
        mlp_run.train(tmp_path, poisoned, spec)
    saved = sorted(int(path.parent.name) for path in tmp_path.glob("*/checkpoints/*/seal.json"))
    assert saved == ([4, 8] if checkpoint_every == 4 else [])
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert ledger[-1]["event"] == "failed"
    assert "not finite at step 11" in ledger[-1]["reason"]


@pytest.mark.parametrize(
    ("loss", "metrics", "complaint"),
    [
        (lambda error: error, {}, r"float32\[16, 4\]: return a float32 scalar"),
        (lambda error: error.mean().astype(jnp.bfloat16), {}, r"bfloat16\[\]: return a float32 scalar"),
        (lambda error: error.mean(), {"share": jnp.ones(3)}, r'"share" has shape \(3,\)'),
        (
            lambda error: error.mean(),
            {"grad_norm": jnp.ones(())},
            '"grad_norm" is a name that the loop writes',
        ),
        (lambda error: error.mean(), {"step": jnp.ones(())}, '"step" is a name that the loop writes'),
    ],
)
def test_an_objective_that_cannot_be_logged_is_refused_by_name(
    tmp_path: Path, mlp_run: Any, loss: Any, metrics: dict[str, Any], complaint: str
) -> None:
    def wrong(_: Any) -> Any:
        return lambda params, frozen, batch, key: (loss(batch @ params["hidden"] @ params["out"]), metrics)

    with pytest.raises(LabError, match=complaint):
        mlp_run.train(tmp_path, altered(mlp_run.Mlp(), loss=wrong))


def test_a_batch_of_another_shape_is_an_error_and_not_a_second_compilation(tmp_path: Path, mlp_run: Any) -> None:
    ragged = altered(mlp_run.Mlp(), batch=lambda batch: lambda step: batch(step)[: 16 - step])
    with pytest.raises(TypeError, match="compiled"):
        mlp_run.train(tmp_path, ragged)


def test_a_metric_that_is_not_finite_is_null_in_the_log(tmp_path: Path, mlp_run: Any) -> None:
    extra = {"accuracy": jnp.float32("nan")}
    undefined = altered(mlp_run.Mlp(), loss=lambda loss: lambda *arguments: (loss(*arguments)[0], extra))
    mlp_run.train(tmp_path, undefined, mlp_run.SPEC.model_copy(update={"steps": 3}))
    assert [line["accuracy"] for line in lines_of(tmp_path)] == [None]


def test_what_a_person_sees(tmp_path: Path, mlp_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spec = mlp_run.SPEC.model_copy(update={"decay_fraction": 0.5})
    mlp_run.train(tmp_path, mlp_run.Mlp(), spec, progress=PlainProgress(every=1000))
    note, compiling, last = capsys.readouterr().err.splitlines()
    assert note == "note: decay_fraction has no effect with schedule: cosine"
    assert compiling == "test team/mlp  step 0/24  compiling"
    assert last.startswith("test team/mlp  step 24/24  loss 0.")
    assert last.endswith("rows/s")


def test_a_person_is_told_where_a_run_resumes(mlp_run: Any, calm: Calm, capsys: pytest.CaptureFixture[str]) -> None:
    mlp_run.train(calm.runs, mlp_run.Mlp(), progress=PlainProgress())
    assert "note: test team/mlp: resuming from step 24 of 24" in capsys.readouterr().err


def test_reading_specs_runs_and_the_ledger_does_not_import_jax() -> None:
    code = (
        "import sys, moe_lab.training\n"
        "from moe_lab.training import Objective, TrainSpec, make_progress, open_run, read_ledger\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from moe_lab.training import Objective, TrainSpec, fit, open_run

mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))

class Sharded(Objective):
    units_per_step = 8
    frozen = {"scale": np.float32(0.5) * np.ones((16,), np.float32)}

    def init(self, key):
        w = jax.device_put(jax.random.normal(key, (8, 16)), NamedSharding(mesh, P("expert")))
        return {"w": w, "b": jnp.zeros(16)}

    def loss(self, params, frozen, batch, key):
        return jnp.mean((batch @ params["w"] * frozen["scale"] + params["b"] - 1) ** 2), {}

    def batch(self, step):
        if step == STOP:
            raise KeyboardInterrupt
        return np.random.default_rng(step).normal(size=(8, 8)).astype(np.float32)

def train(runs, stop):
    global STOP
    STOP = stop
    spec = TrainSpec(steps=9, batch_size=8, seq_len=1, learning_rate=0.1, checkpoint_every=2)
    try:
        with open_run(runs, "test", "sharded", {}, {}) as run:
            result = fit(Sharded(), spec, run)
            run.finish({})
            return result
    except KeyboardInterrupt:
        return None

calm = train(sys.argv[1] + "/calm", None)
train(sys.argv[1] + "/cut", 6)
cut = train(sys.argv[1] + "/cut", None)
assert cut.resumed_from == 4, cut.resumed_from
for name in ("w", "b"):
    expected, found = calm.params[name], cut.params[name]
    assert found.tobytes() == expected.tobytes(), name
    assert found.sharding.is_equivalent_to(expected.sharding, expected.ndim), name
assert not cut.params["w"].sharding.is_fully_replicated
"""


def test_parameters_on_a_mesh_stay_there_and_resume_there(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    subprocess.run([sys.executable, "-W", "error", "-c", SHARDED, str(tmp_path)], env=environment, check=True)


def test_steps_are_saved_by_time_too_and_it_is_no_other_run(mlp_run: Any, tmp_path: Path) -> None:
    often = mlp_run.SPEC.model_copy(
        update={"steps": 5, "checkpoint_every": 1000, "keep": 9, "checkpoint_seconds": 1e-9}
    )
    mlp_run.train(tmp_path, mlp_run.Mlp(), often)
    saved = sorted(int(path.name) for path in next(tmp_path.glob("test-*/checkpoints")).iterdir() if path.is_dir())
    assert saved == [1, 2, 3, 4, 5]
    assert often.model_dump() == often.model_copy(update={"checkpoint_seconds": 60.0}).model_dump()


def test_a_signal_ends_the_training_after_its_step(mlp_run: Any, tmp_path: Path) -> None:
    class Asked(mlp_run.Mlp):
        def batch(self, step: int) -> Any:
            if step == 7:  # made while step 7 runs
                signal.raise_signal(signal.SIGINT)
            return super().batch(step)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        mlp_run.train(tmp_path, Asked())
    assert (stopped.value.signum, stopped.value.kept) == (signal.SIGINT, "step 7 of 24 of test team/mlp")
    assert signal.getsignal(signal.SIGINT) is handler
    assert mlp_run.train(tmp_path, mlp_run.Mlp()).resumed_from == 7


def test_a_signal_after_the_last_step_is_not_forgotten(mlp_run: Any, tmp_path: Path) -> None:
    class Asked(mlp_run.Mlp):
        def batch(self, step: int) -> Any:
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
            return super().batch(step)

    asked = mlp_run.SPEC.model_copy(update={"steps": 5, "log_every": 5, "checkpoint_every": 5})
    with pytest.MonkeyPatch.context() as patch:
        # As if it came with the last step: nobody looks before.
        patch.setattr(loop._Training, "_agree", lambda training, stop, logs: (0, 0))
        with pytest.raises(Interrupted) as stopped:
            mlp_run.train(tmp_path, Asked(), asked)
    assert (stopped.value.signum, stopped.value.kept) == (signal.SIGTERM, "step 5 of 5 of test team/mlp")


def test_at_most_a_minute_is_lost(mlp_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 25 seconds on a clock of the test's own, and a process that dies after any of them."""
    now = 0.0

    class Slow(mlp_run.Mlp):
        def batch(self, step: int) -> Any:
            nonlocal now
            now += 25.0
            return super().batch(step)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    seldom = mlp_run.SPEC.model_copy(update={"checkpoint_every": 1000})
    for death in (8, 15):
        with pytest.raises(PowerCut):
            mlp_run.train(tmp_path, cut_at(Slow(), death), seldom)
    resumed = mlp_run.train(tmp_path, Slow(), seldom).resumed_from
    assert resumed is not None
    assert (14 - resumed) * 25 <= 60


def test_the_host_runs_one_step_ahead_and_no_more(
    mlp_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further ahead, the time between two saves and the step that a signal ends would be other ones."""
    waited: list[Any] = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: waited.append(tree) or wait(tree))
    mlp_run.train(tmp_path, mlp_run.Mlp(), mlp_run.SPEC.model_copy(update={"steps": 6}))
    assert len(waited) == 6
    assert waited[0] is None
    assert all("loss" in metrics for metrics in waited[1:])
