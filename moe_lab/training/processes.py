"""One training in several processes: who writes, how all wait for each other, and what a lost one looks like.

All processes run the same command and compute the same decisions from the same files. The first one alone writes
into the run folder; the others wait for it where what it wrote decides what happens next.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from moe_lab.errors import LabError, PeerLostError

_PATIENCE_SECONDS = 120
_HEARTBEAT_SECONDS = 30
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
        raise LabError(
            f"could not meet the other processes {where} ({str(error).splitlines()[0][:200]}); start the same command "
            "in all of them, with the same --coordinator and a --process of its own each"
        ) from error


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
        import jax

        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({_first_line(error)}): it was "
            "stopped, or its machine or the network failed. Start the same command again in all processes; training "
            "goes on from the newest checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
