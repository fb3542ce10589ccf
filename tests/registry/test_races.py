"""Sixteen processes and one version, many times over: one wins, nothing is mixed, nothing is lost.

Programs of `BACKGROUND` run beside all of it. Each gets the registry's folder, works until its standard input ends, and
prints how often it went around; anything that goes wrong ends it with an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe_lab.registry import Registry
from tests.registry.scenario import BLOCKS, fields, files, tensors

pytestmark = pytest.mark.slow
REPOSITORY = str(Path(__file__).parents[2])
ROUNDS = int(os.environ.get("MOE_LAB_ROUNDS", "60"))
PUBLISHERS = 16

READER = """if True:
    import select, sys
    from moe_lab.registry import Registry
    registry, seen, rounds = Registry(sys.argv[1]), {}, 0
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        for entry in registry.list()[-3:]:
            assert entry.problem is None, entry.problem
            assert seen.setdefault(entry.ref, entry.digest) == entry.digest, "a version changed its meaning"
            assert registry.tensors(entry.ref).keys() == registry.tensors(entry.digest).keys()
        rounds += 1
    print(rounds)
"""
COLLECTOR = """if True:
    import select, sys
    from moe_lab.registry import Registry
    rounds = deleted = 0
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        deleted += len(Registry(sys.argv[1]).gc(grace_seconds=10).files)
        rounds += 1
    print(rounds)
"""
"""What fifteen losers of a round leave behind is garbage, and goes while the next rounds run."""
BACKGROUND = [READER, COLLECTOR]


@contextmanager
def beside(root: Path) -> Iterator[None]:
    """Runs the background programs; all of them must have gone around and come to a good end."""
    environment = {**os.environ, "PYTHONPATH": REPOSITORY, "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    programs = [
        subprocess.Popen([sys.executable, "-c", code, str(root)], env=environment, text=True, **pipes)
        for code in BACKGROUND
    ]
    try:
        yield
        answers = [program.communicate("stop\n", timeout=60) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    for answer, error in answers:
        assert int(answer or 0) > 3, error


def publish_at_once(publishers, root: Path, version: int, seeds: list[int]):
    """One process for each seed. File locks do nothing, as on several cluster file systems: none are relied on."""
    jobs = [{"seed": seed, "version": str(version), "blocks": 1, "no_locks": True} for seed in seeds]
    answers = publishers(root, *jobs)
    assert None not in answers
    return answers


def assert_content(registry: Registry, version: int, seed: int) -> None:
    back, wanted = registry.tensors(f"team/part@{version}"), tensors(seed, 1)
    assert back.keys() == wanted.keys()
    assert all(back[name].tobytes() == wanted[name].tobytes() for name in wanted), "mixed"


def test_of_sixteen_with_different_bytes_one_wins_every_time(publishers, root):
    registry, digests = Registry(root), []
    with beside(root):
        for version in range(1, ROUNDS + 1):
            seeds = [PUBLISHERS * version + number for number in range(PUBLISHERS)]
            answers = publish_at_once(publishers, root, version, seeds)
            (winner,) = [number for number, answer in enumerate(answers) if "error" not in answer]
            assert answers[winner]["created"]
            losers = [answer["error"] for number, answer in enumerate(answers) if number != winner]
            assert all("is already published with other content" in error for error in losers)
            assert_content(registry, version, seeds[winner])
            digests.append(answers[winner]["digest"])
    assert [entry.digest for entry in Registry(root).list()] == digests
    assert Registry(root).verify().ok
    manifests = len(list((root / "manifests").iterdir()))
    assert manifests < ROUNDS * PUBLISHERS, "nothing was collected meanwhile"


def test_sixteen_with_the_same_bytes_all_succeed_with_one_set_of_files(publishers, root, quick):
    registry = Registry(root)
    with beside(root):
        for version in range(1, ROUNDS + 1):
            answers = publish_at_once(publishers, root, version, [version] * PUBLISHERS)
            assert [answer.get("error") for answer in answers] == [None] * PUBLISHERS
            assert len({answer["digest"] for answer in answers}) == 1
            assert sum(answer["created"] for answer in answers) == 1
            assert_content(registry, version, version)
    alone = Registry(quick / "alone")
    for version in range(1, ROUNDS + 1):
        alone.publish("team", "part", str(version), fields(), tensors(version, 1), BLOCKS)
    assert files(root) == files(quick / "alone")
    assert Registry(root).verify().ok
    assert not list((root / "tmp").iterdir())
