"""The one training loop: steps, metrics, checkpoints, resume. It knows pytrees and an `Objective` only."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from moe_lab.errors import Interrupted, LabError
from moe_lab.files import explain_full_disk
from moe_lab.training.checkpoint import Checkpoints
from moe_lab.training.clock import utc_now
from moe_lab.training.metrics import TIMING_FIELDS, MetricsLog
from moe_lab.training.objective import Objective
from moe_lab.training.processes import explain_lost_peer, largest, several
from moe_lab.training.progress import Progress, SilentProgress, Stage
from moe_lab.training.runs import Run
from moe_lab.training.seal import CHECKPOINTS
from moe_lab.training.spec import TrainSpec
from moe_lab.training.step import OWN_METRICS, State, abstract, compile_step, initial_state, place, placement
from moe_lab.training.stopping import Stop, stop_between_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training ends with."""

    params: Any
    steps: int
    seconds: float
    """Time spent training, the attempts that a checkpoint saved included."""
    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`."""
    resumed_from: int | None
    """The step of the checkpoint that this process began with."""


def fit(objective: Objective, spec: TrainSpec, run: Run, *, progress: Progress | None = None) -> FitResult:
    """Trains an objective in a run folder, from the newest checkpoint there if there is one.

    Killed at any moment and called again with the same arguments on the same machine, it ends with the same
    parameter bits and the same `metrics.jsonl`, timing fields apart, as if it had not been killed.

    Raises:
        LabError: the loss or the gradient is not finite, the disk is full, or no checkpoint is readable.
        Interrupted: SIGINT or SIGTERM came; the step that was running is saved. Several processes stop together, after
            the next step that is logged.
    """
    progress = progress or SilentProgress()
    for note in [*run.notes, *spec.without_effect()]:
        progress.note(note)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, spec.keep, progress.note)

    def goes_on() -> str:
        step = checkpoints.latest()
        return "starts over" if step is None else f"resumes from step {step}"

    with explain_lost_peer(), explain_full_disk(run.path, goes_on), checkpoints, explain_lost_peer():
        training = _Training(objective, spec, run, checkpoints)
        label = f"{run.kind} {run.name}"
        if training.start:
            progress.note(f"{label}: resuming from step {training.start} of {spec.steps}")
        with (
            progress.stage(label, spec.steps, objective.unit, done=training.start) as stage,
            stop_between_steps() as stop,
        ):
            training.advance(stage, stop)
        if stop.signum is not None:  # it came after the last step
            raise Interrupted(stop.signum, f"step {spec.steps} of {spec.steps} of {label}")
        return training.result()


class _Training:
    """One call of `fit`: the state on the device and the files that follow it."""

    def __init__(self, objective: Objective, spec: TrainSpec, run: Run, checkpoints: Checkpoints) -> None:
        self._objective, self._spec, self._run, self._checkpoints = objective, spec, run, checkpoints
        self._clock = time.perf_counter()
        state = initial_state(objective, spec)
        self._where = placement(state, objective.frozen)
        self._state: State = place(state, self._where)
        self.resumed_from = None
        if checkpoints.latest() is not None:
            self.resumed_from, self._state = checkpoints.restore(abstract(self._state))
        self.start = self.resumed_from or 0
        self._log = MetricsLog(run.path / "metrics.jsonl")
        self._last = self._log.cut_back(self.start)
        self._clock -= self._last.get("seconds", 0.0)
        self._window = (self.start, time.perf_counter())
        self._saved_at = time.monotonic()

    def advance(self, stage: Stage, stop: Stop) -> None:
        """Takes the remaining steps. The device is asked for values at log points and checkpoints only."""
        spec, objective = self._spec, self._objective
        if self.start >= spec.steps:
            return
        key, frozen = place((jax.random.key(spec.seed), objective.frozen), self._where)
        batch = place(objective.batch(self.start), self._where)
        stage.status("compiling")
        step = compile_step(objective, spec, self._state, frozen, batch, key, self._where)
        self._window = (self.start, time.perf_counter())
        before: Any = None
        for done in range(self.start + 1, spec.steps + 1):
            self._state, metrics = step(self._state, frozen, batch, key)
            # The step is only dispatched: its successor's batch is made while the device works.
            if done < spec.steps:
                batch = place(objective.batch(done), self._where)
            # One step ahead of the device and no more, or neither the clock nor a signal would mean this step.
            jax.block_until_ready(before)
            before = metrics
            logs = done % spec.log_every == 0 or done == spec.steps
            if logs:
                self._record(done, metrics, stage)
            signum, due = self._agree(stop, logs)
            if done % spec.checkpoint_every == 0 or done == spec.steps or signum or due:
                self._save(done)
            if signum:
                self._checkpoints.wait()
                raise Interrupted(signum, f"step {done} of {spec.steps} of {self._run.kind} {self._run.name}")
        self._checkpoints.wait()

    def _agree(self, stop: Stop, logs: bool) -> tuple[int, int]:
        """Returns the signal to stop for and whether it is time to save, 0 for no: the same in all processes.

        Several processes ask each other at log points, where all of them wait for the device anyway.
        """
        if several() and not logs:
            return 0, 0
        # As long after the last save as leaves time to write this one; writing takes at most half of the time.
        seconds, took = self._spec.checkpoint_seconds, self._checkpoints.seconds
        due = time.monotonic() - self._saved_at >= max(seconds - took, min(seconds, took))
        signum, save = largest(stop.signum or 0, int(due))
        return signum, save

    def result(self) -> FitResult:
        return FitResult(
            params=self._state["params"],
            steps=self._spec.steps,
            seconds=self._seconds(),
            metrics=self._last,
            resumed_from=self.resumed_from,
        )

    def _record(self, done: int, metrics: dict[str, jax.Array], stage: Stage) -> None:
        """Fetches the metrics of the last step, logs them and shows them."""
        fetched, first_nonfinite = jax.device_get((metrics, self._state["first_nonfinite"]))
        self._check_finite(int(first_nonfinite))
        values = {name: float(value) for name, value in fetched.items()}
        since, then = self._window
        now = time.perf_counter()
        rate = (done - since) * self._objective.units_per_step / max(now - then, 1e-9)
        self._window = (done, now)
        timing = dict(zip(TIMING_FIELDS, (round(rate, 1), round(self._seconds(), 3), utc_now()), strict=True))
        own = {name: values.pop(name) for name in OWN_METRICS}
        self._last = self._log.append({"step": done, **own, **values, **timing})
        stage.update(done, own["loss"], rate, seconds_per_step=(now - then) / (done - since))

    def _save(self, done: int) -> None:
        """Saves a finite state; its metrics reach the disk before the checkpoint that stands for them."""
        self._check_finite(int(jax.device_get(self._state["first_nonfinite"])))
        self._log.sync()
        self._saved_at = time.monotonic()
        self._checkpoints.save(done, self._state)

    def _check_finite(self, first: int) -> None:
        """Stops the run at the first loss or gradient that was not finite, before such a state is saved."""
        if first < 0:
            return
        spec = self._spec
        clip = "null" if spec.grad_clip is None else spec.grad_clip
        raise LabError(
            f"{self._run.kind} {self._run.name}: the loss or its gradient is not finite at step {first + 1}: "
            f"try a smaller learning_rate (now {spec.learning_rate}), more warmup_steps (now "
            f"{spec.warmup_steps}) or a smaller grad_clip (now {clip}), and look at its data, batch({first})"
        )

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock
