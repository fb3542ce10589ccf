"""The real command in two real processes with two devices each, which meet on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES = 2


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_together(lab: Path, *arguments: str, devices: int = 2) -> list[subprocess.Popen[str]]:
    """Starts all processes; the first one's number is 0."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    meet = ["--coordinator", f"127.0.0.1:{free_port()}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "moe_lab", "--lab", str(lab), *arguments, *meet, "--process", f"{me}/{PROCESSES}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(PROCESSES)
    ]


def stop(*processes: subprocess.Popen[str]) -> None:
    """Ends what still runs, and closes its pipes."""
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run_together(lab: Path, *arguments: str, devices: int = 2, timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process."""
    processes = start_together(lab, *arguments, devices=devices)
    try:
        done = [process.communicate(timeout=timeout) for process in processes]
    finally:
        stop(*processes)
    return [(process.returncode, *texts) for process, texts in zip(processes, done, strict=True)]
