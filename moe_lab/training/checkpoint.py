"""Checkpoints that are whole or do not count. The only file that imports Orbax.

A checkpoint is `checkpoints/<step>/state`, written by Orbax, and then `checkpoints/<step>/seal.json`: the
size and SHA-256 of every file, and the name, dtype and shape of every leaf. A folder without a seal is what a
killed process left; it is ignored and removed. Orbax itself renames a finished folder into place, but neither
syncs it to the disk nor notices most changed bytes when it reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from moe_lab.errors import Damaged, PeerLostError, Refused
from moe_lab.files import sync, write_json
from moe_lab.training.processes import (
    explain_lost_peer,
    first_goes_first,
    is_first,
    several,
    together,
)
from moe_lab.training.seal import SEAL, sealed_steps

# Orbax prints the tracebacks of its threads beside raising their errors; the raised one reaches the user, in one line.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_STATE = "state"


class Checkpoints:
    """The checkpoints of one run. One process at a time may hold an instance for a folder (the run's lock).

    `save` returns once the state is copied on the device. A background thread writes the copy, because Orbax
    takes about 2 ms a leaf whatever its size; an error there is raised by the next `save` or `wait`. While a
    save is under way the state exists twice in device memory.

    Args:
        folder: made on entering if missing; what incomplete saves left in it is removed then.
        keep: how many of the newest checkpoints stay.
        note: told when a checkpoint is unreadable and an older one is used instead.
    """

    def __init__(self, folder: Path, keep: int, note: Callable[[str], None] = lambda text: None) -> None:
        self._folder = folder.absolute()
        self._keep = keep
        self._note = note
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.seconds = 0.0
        """How long the last complete save took to write."""

    def __enter__(self) -> Self:
        with first_goes_first(f"checkpoints of {self._folder.parent.name}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            for entry in self._folder.iterdir():
                if entry.name.isdigit() and not (entry / SEAL).exists():
                    _remove(entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or not issubclass(kind, PeerLostError):
                self.wait()
        finally:
            self._writer.shutdown(wait=self._pending is None)

    def save(self, step: int, state: Any) -> None:
        """Begins to save `state` as the checkpoint of `step`, after the save before it is complete."""
        self.wait()
        if several():
            # All processes write their parts, and must do so in the same order as they compute.
            with explain_lost_peer():
                self._write(step, state)
            return
        # The loop donates its state to the next step, so the writer needs arrays of its own.
        copy = jax.tree.map(jnp.copy, state)
        self._pending = self._writer.submit(self._write, step, copy)

    def wait(self) -> None:
        """Returns when the last save is complete; raises what went wrong in it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint."""
        return max(sealed_steps(self._folder), default=None)

    def restore(self, abstract_state: Any) -> tuple[int, Any]:
        """Returns the newest readable checkpoint's step and its state, placed as `abstract_state` says.

        A checkpoint with a missing, truncated or changed file is reported through `note`, and removed if an
        older one can take its place: the steps in between run again and give the same bits.

        Args:
            abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
            LabError: no checkpoint is readable, or the newest one holds a state of another form.
        """
        self.wait()
        damaged: dict[Path, str] = {}
        for step in sorted(sealed_steps(self._folder), reverse=True):
            folder = self._folder / str(step)
            problem = _damage(folder)
            if problem is None:
                state = _read(folder, abstract_state)
                for path, reason in damaged.items():
                    self._note(f"checkpoint {path} is unreadable ({reason}): resuming from step {step} instead")
                together(f"read step {step}")
                if is_first():
                    for path in damaged:
                        _remove(path)
                return step, state
            damaged[folder] = problem
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise Damaged(
            f"no checkpoint in {self._folder} is readable ({reasons or 'there is none'}): "
            f"restore the folder from a backup, or delete it to train from the start"
        )

    def _write(self, step: int, state: Any) -> None:
        folder, began = self._folder / str(step), time.monotonic()
        leaves = _named_leaves(state)
        with first_goes_first(f"save {step}"):
            if is_first():
                if folder.exists():
                    _remove(folder)
                folder.mkdir()
        try:
            with _options():
                ocp.save(folder / _STATE, {name: leaf for name, leaf in leaves.items() if leaf.size})
            if is_first():
                self._seal(step, folder, leaves)
        except Exception:
            if is_first():
                _remove(folder)  # a full disk needs the space at once
            raise
        together(f"saved {step}")
        self.seconds = time.monotonic() - began

    def _seal(self, step: int, folder: Path, leaves: dict[str, Any]) -> None:
        """Makes a written checkpoint count, and lets the oldest go."""
        files = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
        for path in [*folder.rglob("*"), folder, self._folder]:
            sync(path)
        seal = {
            "step": step,
            "leaves": {name: _form(leaf) for name, leaf in leaves.items()},
            "files": files,
        }
        write_json(folder / SEAL, seal)
        for old in sorted(sealed_steps(self._folder))[: -self._keep]:
            _remove(self._folder / str(old))


def _options() -> ocp.Context:
    """Returns Orbax options for a state that is restored into an explicit target and does not compress."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.enable_write_sharding_file = False
    return context


def _remove(path: Path) -> None:
    """Removes a checkpoint, its seal first: killed halfway, it is left incomplete and not damaged."""
    (path / SEAL).unlink(missing_ok=True)
    shutil.rmtree(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _damage(folder: Path) -> str | None:
    """Returns what is wrong with a sealed checkpoint's files, None if nothing is."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, OSError) as error:
        return f"{SEAL}: {error}"
    for name, sealed in files.items():
        try:
            digest = _digest(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if digest["bytes"] != sealed["bytes"]:
            return f"{name}: {digest['bytes']} bytes, {sealed['bytes']} were written"
        if digest["sha256"] != sealed["sha256"]:
            return f"{name}: its bytes are not those that were written"
    return None


def _read(folder: Path, abstract_state: Any) -> Any:
    """Restores a checkpoint whose files are whole."""
    wanted = _named_leaves(abstract_state)
    saved = json.loads((folder / SEAL).read_text(encoding="utf-8"))["leaves"]
    _check_form(folder, saved, {name: _form(leaf) for name, leaf in wanted.items()})
    with _options():
        loaded = ocp.load(folder / _STATE, {name: leaf for name, leaf in wanted.items() if leaf.size})
    leaves = [loaded[name] if leaf.size else _empty(leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _check_form(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuses a state of another form by its first leaf that differs; Orbax converts dtypes in silence."""
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise Refused(
                f"checkpoint {folder} holds {name} as {saved.get(name, 'nothing')}, this training has "
                f"{wanted.get(name, 'nothing')}: the code changed since; delete {folder.parent} to start over"
            )


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Makes a leaf without elements, which Orbax refuses to store."""
    return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
