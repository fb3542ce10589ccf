"""Several processes as one: everything is left to `jax.distributed`."""

from __future__ import annotations

import jax

from moe_lab.errors import LabError

_PATIENCE_SECONDS = 120
_HEARTBEAT_SECONDS = 30


def join(coordinator: str | None = None, process: int | None = None, processes: int | None = None) -> None:
    """Meets the other processes; without arguments the cluster's environment says who and where they are."""
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
