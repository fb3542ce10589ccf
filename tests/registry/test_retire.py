"""Taking a version out of use and back: only ever adding, whoever else does the same, and nothing is lost."""

import errno
import itertools
import os
import shutil
import threading

import pytest

import moe_lab.registry.stores.local as store_module
from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry, RetiredWarning
from tests.registry.scenario import (
    BLOCKS,
    ShakyOs,
    assert_appears_once,
    fails_with,
    fields,
    files,
    killed_everywhere,
    tensors,
)


def publish(root, seed, version=None):
    return Registry(root).publish("team", "part", version, fields(), tensors(seed, 1), BLOCKS)


@pytest.fixture
def two(root):
    publish(root, 1)
    publish(root, 2)
    return Registry(root)


def in_use(root):
    return [entry.ref.version for entry in Registry(root).list() if entry.retired is None]


def marks(root):
    return sorted(path.name for path in (root / "refs/team/part").iterdir() if not path.name.isdigit())


def test_out_of_use_and_back_and_out_again(two, root):
    before = files(root)
    done = two.retire("team/part@2", "wrong\ndata \u2028 used")
    assert (str(done.ref), done.reason, done.changed) == ("team/part@2", "wrong data used", True)
    assert str(two.resolve("team/part").ref) == "team/part@1"
    with pytest.warns(RetiredWarning, match=r"team/part@2 is retired: wrong data used\."):
        assert two.tensor("team/part@2", "ids").tolist() == tensors(2)["ids"].tolist()
    again = two.retire("team/part@2", "another reason")
    assert (again.reason, again.changed) == ("wrong data used", False)
    assert two.unretire("team/part@2", "it was right").changed
    assert not two.unretire("team/part@2").changed
    assert str(two.resolve("team/part@2").ref) == "team/part@2"
    assert in_use(root) == ["1", "2"]
    assert two.retire("team/part@2", "no, wrong").changed
    assert in_use(root) == ["1"]
    assert marks(root) == ["2.restored-1", "2.retired-1", "2.retired-2"]
    assert {path: data for path, data in files(root).items() if path in before} == before
    assert two.verify().ok


def test_numbers_of_what_is_gone_are_never_used_again(two, root):
    two.retire("team/part@2", "wrong")
    two.unretire("team/part@2")
    publish(root, 3)
    two.retire("team/part@3", "wrong as well")
    for version in ("2", "3"):
        (root / "refs/team/part" / version).unlink()
        with pytest.raises(LabError, match=rf"team/part@{version} was retired and removed.* as team/part@4"):
            publish(root, 9, version)
        with pytest.raises(LabError, match=rf"no version {version}\. Published: 1[.,]"):
            two.retire(f"team/part@{version}", "again")
    assert str(publish(root, 9).ref) == "team/part@4"


@pytest.mark.parametrize(
    ("ref", "reason", "told"),
    [
        ("team/part@7", "x", r"no version 7\. Published: 1, 2\."),
        ("team/prt@1", "x", r'no team/prt\. Did you mean "team/part"'),
        ("team/prt", "x", r'no team/prt\. Did you mean "team/part"'),
        ("team/part", "x", r"names no version to retire; write team/part@VERSION\. Published: 1, 2\."),
        ("team/part@1:64", "x", r"a width has no retirement of its own; retire team/part@VERSION"),
        ("sha256-" + "0" * 64, "x", "does not name an artifact"),
        ("team/part@1", " \n ", "retiring team/part@1 needs a reason"),
        ("team/part@1", "\ud800", r"cannot be written as UTF-8"),
        ("team/part@1", "x" * (64 << 10), r"has 65,536 bytes, and fewer than 65,536 are kept"),
    ],
)
def test_what_cannot_be_retired_is_refused_and_nothing_written(two, root, ref, reason, told):
    before = files(root)
    with pytest.raises(LabError, match=told):
        two.retire(ref, reason)
    assert files(root) == before


@pytest.mark.slow
def test_every_bit_of_the_mark_that_decides_is_seen_by_readers_and_of_any_mark_by_verify(two, root):
    two.retire("team/part@2", "wrong")
    two.unretire("team/part@2", "right")
    two.retire("team/part@1", "wrong")
    deciding = {"1": "1.retired-1", "2": "2.restored-1"}
    for name in marks(root):
        path = root / "refs/team/part" / name
        data = path.read_bytes()
        damages = [
            data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
            for bit in range(0, 8 * len(data), 3)
        ]
        for damaged in [*damages, data[:-1], b"", data + b"\n", bytes(len(data))]:
            path.write_bytes(damaged)
            (problem,) = two.verify().problems
            assert f"{name} is damaged" in problem
            if name in deciding.values():
                with pytest.raises(LabError, match=rf"{name} is damaged"):
                    two.resolve(f"team/part@{name[0]}")
                assert any(name in (entry.problem or "") for entry in two.list())
        path.write_bytes(data)
    assert two.verify().ok


@pytest.mark.parametrize(
    "stray", ["1.retired", "1.retired-0", "1.retired-01", "1.restored-", "x.retired-1", "1.gone-1"]
)
def test_files_that_only_look_like_marks_are_reported_and_ignored(two, root, stray):
    (root / "refs/team/part" / stray).write_text("x")
    (problem,) = two.verify().problems
    assert "neither a reference nor a mark" in problem
    assert in_use(root) == ["1", "2"]


STEPS = {
    "retire": lambda registry: registry.retire("team/part@1", "wrong").changed,
    "unretire": lambda registry: registry.unretire("team/part@1").changed,
}


class Turns:
    """Two threads whose disk operations happen in a given order, one at a time."""

    def __init__(self, order):
        self.order = list(order)
        self.done = set()
        self.changed = threading.Condition()

    def wait(self, who):
        with self.changed:
            assert self.changed.wait_for(lambda: not self._pending() or self._pending()[0] == who, 10)
            if self._pending():
                self.order.remove(who)
            self.changed.notify_all()

    def _pending(self):
        """Turns of those who have ended are skipped."""
        self.order = [who for who in self.order if who not in self.done]
        return self.order

    def end(self, who):
        with self.changed:
            self.done.add(who)
            self.changed.notify_all()


class TurnStore(LocalStore):
    """Waits for its turn before each listing and each write; reading files in between sees what is final."""

    def __init__(self, root, who, turns):
        super().__init__(root)
        self.who, self.turns = who, turns

    def list(self, prefix):
        self.turns.wait(self.who)
        return super().list(prefix)

    def put_if_absent(self, key, data):
        self.turns.wait(self.who)
        return super().put_if_absent(key, data)


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.product(STEPS, STEPS)), ids="-".join)
@pytest.mark.parametrize("retired_before", [False, True], ids=["in use", "retired"])
def test_every_interleaving_of_two_callers_is_one_after_the_other(quick, pair, retired_before):
    """Each order of their operations must give results that some order of the whole calls gives."""
    old = quick / "old"
    publish(old, 1)
    if retired_before:
        Registry(old).retire("team/part@1", "wrong")
    serial = []
    for order in ((0, 1), (1, 0)):
        root = quick / f"serial{order[0]}"
        shutil.copytree(old, root)
        answers = {who: STEPS[pair[who]](Registry(root)) for who in order}
        serial.append((answers[0], answers[1], marks(root)))
    # A caller does at most 2 listings and a write, and does them again after losing.
    for number, ones in enumerate(itertools.combinations(range(8), 4)):
        root = quick / str(number)
        shutil.copytree(old, root)
        answers = interleave(root, pair, [int(place in ones) for place in range(8)])
        assert (answers[0], answers[1], marks(root)) in serial
        assert Registry(root).verify().ok


def interleave(root, pair, order):
    turns, answers = Turns(order), {}

    def call(who):
        registry = Registry(root)
        registry.store = TurnStore(root, who, turns)
        try:
            answers[who] = STEPS[pair[who]](registry)
        finally:
            turns.end(who)

    threads = [threading.Thread(target=call, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.slow
def test_many_processes_at_once_leave_one_history_without_gaps(publishers, tmp_path):
    for round_ in range(4):
        root = tmp_path / str(round_)
        publish(root, 1)
        calls = [{"call": "unretire" if caller % 3 == 2 else "retire"} for caller in range(6)]
        answers = publishers(root, *calls)
        assert not [answer for answer in answers if "error" in answer]
        added = [answer for answer in answers if answer["changed"]]
        assert len(added) == len(marks(root))
        retired = sum(".retired-" in name for name in marks(root))
        assert marks(root) == sorted(
            [f"1.retired-{n}" for n in range(1, retired + 1)]
            + [f"1.restored-{n}" for n in range(1, len(added) - retired + 1)]
        )
        assert len(added) - retired in (retired, retired - 1)
        assert Registry(root).verify().ok


@pytest.mark.parametrize("call", STEPS)
def test_killed_at_any_operation_it_is_old_or_new_and_a_repeat_completes(publishers, quick, call):
    old = quick / "old"
    publish(old, 1)
    if call == "unretire":
        Registry(old).retire("team/part@1", "wrong")
    before, states = files(old), []
    for root, _ in killed_everywhere(publishers, old, {"call": call}):
        assert Registry(root).verify().ok
        states.append(files(root) != before)
        assert files(root) == (files(quick / "whole") if states[-1] else before)
        (repeat,) = publishers(root, {"call": call})
        assert repeat["changed"] != states[-1]
        assert files(root) == files(quick / "whole")
    assert_appears_once(states)


@pytest.mark.parametrize("call", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_an_error_at_any_operation_is_one_line_and_a_repeat_completes(quick, monkeypatch, call, code):
    old = quick / "old"
    publish(old, 1)
    if call == "unretire":
        Registry(old).retire("team/part@1", "wrong")
    shutil.copytree(old, quick / "whole")
    counting = ShakyOs()
    monkeypatch.setattr(store_module, "os", counting)
    assert STEPS[call](Registry(quick / "whole"))
    for at, (operation, *_) in enumerate(counting.trace):
        root = quick / str(at)
        shutil.copytree(old, root)
        monkeypatch.setattr(store_module, "os", ShakyOs(at, fails_with(code)))
        if operation != "unlink":
            with pytest.raises(LabError, match=rf"cannot {call} team/part@1 in .*{os.strerror(code)}") as caught:
                STEPS[call](Registry(root))
            certain = files(root) == files(old)
            assert ("Nothing changed." if certain else "is not certain") in str(caught.value)
        monkeypatch.setattr(store_module, "os", ShakyOs())
        STEPS[call](Registry(root))
        assert files(root) == files(quick / "whole")
