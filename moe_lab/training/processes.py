"""One training in several processes: who writes, how all wait for each other, and what a lost one looks like.

All processes run the same command and compute the same decisions from the same files. The first one alone writes
into the run folder; the others wait for it where what it wrote decides what happens next.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from moe_lab.errors import LabError, PeerLostError, Unavailable

_PATIENCE_SECONDS = 120
_HEARTBEAT_SECONDS = 30
_BEAT_SECONDS = 2
_SILENCE_SECONDS = 45
_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|coordination service|heartbeat|deadline.?exceeded|"
    r"barrier|unavailable|peer",
    re.IGNORECASE,
)


def join(coordinator: str | None = None, process: int | None = None, processes: int | None = None) -> None:
    """Meets the other processes; without arguments the cluster's environment says who and where they are."""
    import jax

    # A process that loses another one ends with a message of ours, and not by an abort from the network layer.
    jax.config.update("jax_enable_recoverability", True)
    # It would take SIGTERM for itself, and the process would neither end nor save.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            initialization_timeout=_PATIENCE_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = f"at {coordinator}" if coordinator else "that the cluster's environment names"
        raise Unavailable(
            f"could not meet the other processes {where} ({str(error).splitlines()[0][:200]}); start the same command "
            "in all of them, with the same --coordinator and a --process of its own each"
        ) from error
    threading.Thread(target=_watch, name="watch over the other processes", daemon=True).start()


def _watch() -> None:
    """Ends this process once another one gives no more sign of life.

    A collective may wait for ever for a process that hangs, and at times for one that was killed: its devices here have
    heard of it and the others not.
    """
    from jax._src import distributed  # the key-value store of `jax.distributed` has no public name

    state: Any = distributed.global_state
    client, me, now = state.client, state.process_id, time.monotonic()
    last = {peer: ("", now) for peer in range(state.num_processes) if peer != me}
    for beat in itertools.count():
        with contextlib.suppress(Exception):  # who cannot be asked has given no sign
            client.key_value_set(f"beat/{me}", str(beat), allow_overwrite=True)
            said = dict(client.key_value_dir_get("beat/"))
            said = {int(key.rpartition("/")[2]): value for key, value in said.items()}
            last = {
                peer: heard if said.get(peer, "") == heard[0] else (said[peer], time.monotonic())
                for peer, heard in last.items()
            }
        silent = min(last, key=lambda peer: last[peer][1], default=me)
        if silent != me and time.monotonic() - last[silent][1] > _SILENCE_SECONDS:
            reason = f"process {silent} gave no sign of life for {_SILENCE_SECONDS} seconds"
            print(f"error: {_lost(reason)}", file=sys.stderr, flush=True)
            os._exit(2)
        time.sleep(_BEAT_SECONDS)


def several() -> bool:
    """Whether this process is one of several that work together."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what all of them made."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def together(what: str) -> None:
    """Waits until every process has come this far."""
    if several():
        from jax.experimental import multihost_utils

        with explain_lost_peer():
            multihost_utils.sync_global_devices(what)


def largest(*numbers: int) -> list[int]:
    """Returns the largest of each number over all processes, which must all come here at the same point of the work."""
    if not several():
        return list(numbers)
    import numpy as np
    from jax.experimental import multihost_utils

    with explain_lost_peer():
        return np.max(multihost_utils.process_allgather(np.array(numbers, np.int32)), axis=0).tolist()


def leave(code: int) -> None:
    """Ends one of several processes: all together after success, at once after a failure. Alone it does nothing.

    What the network layer does at exit would wait for lost processes, or take the first one's leaving for a failure.
    """
    if not several():
        return
    if code == 0:
        together("leaving")
    if code or not is_first():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def first_goes_first(what: str) -> Iterator[None]:
    """The first process runs the block alone; then the others run it, and find what it left."""
    if not is_first():
        together(what)
    try:
        yield
    finally:
        if is_first():
            together(what)


@contextlib.contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Turns what the network says when another process dies into one line."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        if not several() or not _LOST.search(str(error)):
            raise
        raise PeerLostError(_lost(_first_line(error))) from error


def _lost(reason: str) -> str:
    import jax

    return (
        f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}): it was stopped, or its "
        "machine or the network failed. Start the same command again in all processes; training goes on from the "
        "newest checkpoint"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
