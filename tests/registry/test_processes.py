"""Real processes, all at once or killed half-way: one whole artifact or none, never a mixture."""

import random
import threading

import pytest

from moe_lab.registry import LocalStore, Registry
from tests.registry.scenario import BLOCKS, assert_appears_once, fields, files, killed_everywhere, tensors


def assert_whole(root, version, seed, blocks=4):
    """The published content is exactly what the publisher with this seed had."""
    back = Registry(root).tensors(f"team/part@{version}")
    wanted = tensors(seed, blocks)
    assert back.keys() == wanted.keys()
    assert all(back[name].tobytes() == wanted[name].tobytes() for name in wanted)


@pytest.mark.slow
def test_of_many_publishers_of_one_version_exactly_one_wins(publishers, tmp_path):
    for round_ in range(6):
        root = tmp_path / str(round_)
        answers = publishers(root, *({"seed": seed, "version": "1"} for seed in range(6)))
        winners = [seed for seed, answer in enumerate(answers) if "error" not in answer]
        assert len(winners) == 1
        assert answers[winners[0]]["created"]
        for seed in set(range(6)) - set(winners):
            assert "team/part@1 is already published with other content" in answers[seed]["error"]
        assert_whole(root, "1", winners[0])
        assert Registry(root).resolve("team/part@1").digest == answers[winners[0]]["digest"]
        assert Registry(root).verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1", None], ids=["explicit", "next"])
def test_publishers_of_the_same_bytes_all_succeed(publishers, tmp_path, version):
    for round_ in range(5):
        root = tmp_path / str(round_)
        answers = publishers(root, *({"seed": 7, "version": version} for _ in range(6)))
        assert [answer.get("version") for answer in answers] == ["1"] * 6
        assert len({answer["digest"] for answer in answers}) == 1
        assert sum(answer["created"] for answer in answers) == 1
        assert len([path for path in files(root) if path.startswith(("refs", "manifests"))]) == 2
        assert Registry(root).verify().ok


@pytest.mark.slow
def test_publishers_without_a_version_each_get_their_own(publishers, tmp_path):
    for round_ in range(5):
        root = tmp_path / str(round_)
        answers = publishers(root, *({"seed": seed % 5, "version": None} for seed in range(7)))
        by_version = {answer["version"]: seed % 5 for seed, answer in enumerate(answers)}
        assert sorted(by_version) == [str(number) for number in range(1, len(by_version) + 1)]
        assert len({answer["digest"] for answer in answers}) == 5
        for version, seed in by_version.items():
            assert_whole(root, version, seed)
        assert Registry(root).verify().ok


@pytest.mark.parametrize(("seed", "version"), [(1, "1"), (2, "2")], ids=["same bytes", "other bytes"])
def test_a_publisher_that_comes_between_listing_and_claiming(root, seed, version):
    registry = Registry(root)

    class Interrupted(LocalStore):
        def list(self, prefix):
            keys = super().list(prefix)
            registry.publish("team", "part", None, fields(), tensors(1), BLOCKS)
            return keys

    late = Registry(root)
    late.store = Interrupted(root)
    done = late.publish("team", "part", None, fields(), tensors(seed), BLOCKS)
    assert (str(done.ref), done.created) == (f"team/part@{version}", seed == 2)
    assert_whole(root, version, seed)


@pytest.mark.slow
def test_killed_at_any_operation_and_repeated(publishers, quick):
    old, new = ({"seed": seed, "version": str(seed), "blocks": 1} for seed in (1, 2))
    publishers(quick / "old", old)
    before, appeared = files(quick / "old"), []
    for root, whole in killed_everywhere(publishers, quick / "old", new):
        after = files(root)
        assert before.items() <= after.items()
        report = Registry(root).verify()
        assert report.ok, report.problems
        appeared.append("refs/team/part/2" in after)
        if appeared[-1]:
            assert_whole(root, "2", 2, blocks=1)
        else:
            assert str(Registry(root).resolve("team/part").ref) == "team/part@1"
        (repeat,) = publishers(root, new)
        assert repeat["digest"] == whole["digest"]
        assert repeat["created"] != appeared[-1]
        assert_whole(root, "2", 2, blocks=1)
        assert_whole(root, "1", 1, blocks=1)
        assert Registry(root).verify().ok
    assert_appears_once(appeared)
    assert len(appeared) > 30


@pytest.mark.slow
def test_killed_at_random_moments_and_repeated(publishers, tmp_path):
    chance = random.Random(0)
    job = {"seed": 3, "version": None, "blocks": 64}
    root = tmp_path / "registry"
    killed = 0
    for _ in range(25):
        killed += publishers(root, {**job, "kill_after": chance.uniform(0.001, 0.06)}) == [None]
        report = Registry(root).verify()
        assert report.ok, report.problems
        assert len(Registry(root).list()) <= 1
    assert killed
    (done,) = publishers(root, job)
    assert done["version"] == "1"
    back = Registry(root).tensors("team/part")
    assert all(back[name].tobytes() == array.tobytes() for name, array in tensors(3, 64).items())


@pytest.mark.slow
def test_readers_beside_publishers_see_whole_artifacts_only(publishers, tmp_path):
    root = tmp_path / "registry"
    Registry(root)
    seen, stop = set(), threading.Event()

    def read():
        registry = Registry(root)
        while not stop.is_set():
            for entry in registry.list():
                assert entry.problem is None, entry.problem
                seen.add((entry.ref.version, entry.digest, len(registry.tensors(entry.digest))))

    failures = []

    def guarded():
        try:
            read()
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=guarded)
    reader.start()
    for round_ in range(4):
        publishers(root, *({"seed": seed + 10 * round_, "version": None} for seed in range(4)))
    stop.set()
    reader.join()
    assert failures == []
    assert len(Registry(root).list()) == 16
    assert {count for _, _, count in seen} <= {4}
    assert len({version for version, _, _ in seen}) == len({(version, digest) for version, digest, _ in seen})
