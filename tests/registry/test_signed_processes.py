"""Publishers that sign, at once or killed half-way: a reader who demands signatures sees old or new, both signed."""

import itertools
import sys

import pytest

import moe_lab.registry.stores.local as store_module
from moe_lab.errors import LabError
from moe_lab.registry import Registry
from moe_lab.registry.trust import TrustPolicy
from tests.registry.scenario import (
    BLOCKS,
    ShakyOs,
    assert_appears_once,
    fields,
    files,
    killed_everywhere,
    owner_key,
    safe_order,
    tensors,
)

POLICY = TrustPolicy(unsigned="refuse", owners={"team": (owner_key(1).public, owner_key(2).public)})


def trusting(root) -> Registry:
    return Registry(root, trust=POLICY)


def seen(root) -> dict[str, str]:
    """What a demanding reader is given, by version; nothing may be there that it is refused."""
    found = {}
    for entry in trusting(root).list():
        assert entry.problem is None, entry.problem
        read = trusting(root).tensors(str(entry.ref))
        wanted = tensors(int(read["scale"]), read["layers.0.gate"].shape[0])
        assert all(read[name].tobytes() == wanted[name].tobytes() for name in wanted)
        found[entry.ref.version] = entry.digest
    return found


@pytest.mark.slow
def test_of_two_that_sign_the_same_version_one_wins_and_its_signature_holds(publishers, tmp_path):
    for round_ in range(6):
        root = tmp_path / str(round_)
        answers = publishers(root, *({"seed": key, "version": "1", "key": key} for key in (1, 2)))
        (winner,) = (key for key, answer in zip((1, 2), answers, strict=True) if "error" not in answer)
        assert seen(root) == {"1": answers[winner - 1]["digest"]}
        found = Registry(root).signatures("team/part@1")
        assert found == [(claim, None) for claim, _ in found]
        assert [claim.key for claim, _ in found] == [owner_key(winner).public]
        assert len([path for path in files(root) if path.startswith("refs")]) == 1
        assert trusting(root).verify().ok


@pytest.mark.slow
def test_signers_without_a_version_each_get_their_own(publishers, tmp_path):
    for round_ in range(4):
        root = tmp_path / str(round_)
        answers = publishers(root, *({"seed": seed, "version": None, "key": 1 + seed % 2} for seed in range(6)))
        versions = {answer["version"]: answer["digest"] for answer in answers}
        assert sorted(versions) == [str(number) for number in range(1, 7)]
        assert seen(root) == versions
        assert trusting(root).verify().ok


@pytest.mark.slow
def test_killed_at_any_operation_and_repeated(publishers, quick):
    old, new = ({"seed": seed, "version": str(seed), "blocks": 1, "key": 1} for seed in (1, 2))
    publishers(quick / "old", old)
    before, first = files(quick / "old"), seen(quick / "old")
    appeared = []
    for root, whole in killed_everywhere(publishers, quick / "old", new):
        after, both = files(root), {**first, "2": whole["digest"]}
        assert before.items() <= after.items()
        appeared.append("refs/team/part/2" in after)
        assert seen(root) == (both if appeared[-1] else first)
        assert trusting(root).verify().ok
        (repeat,) = publishers(root, new)
        assert repeat["digest"] == whole["digest"]
        assert seen(root) == both
    assert_appears_once(appeared)
    # The signature is one more file than an unsigned publisher writes, with its folders.
    assert len(appeared) > 40


@pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors come from /proc")
def test_a_signature_is_on_disk_before_its_reference(root, monkeypatch):
    shaken = ShakyOs()
    monkeypatch.setattr(store_module, "os", shaken)
    Registry(root, key=owner_key(1)).publish("team", "part", None, fields(), tensors(1, 1), BLOCKS)
    order = safe_order(shaken.trace, root, {str(root)})
    assert [key for key, _ in itertools.groupby(order)] == ["blobs", "manifests", "signatures", "refs"]


def test_a_place_that_takes_no_signature_publishes_nothing(root):
    put = Registry(root, key=owner_key(1)).publish
    root.joinpath("signatures").write_text("in the way")
    with pytest.raises(LabError, match="signatures.*neither a plain file nor a folder"):
        put("team", "part", None, fields(), tensors(1, 1), BLOCKS)
    assert not (root / "refs").exists()
    (root / "signatures").unlink()
    assert put("team", "part", None, fields(), tensors(1, 1), BLOCKS).created
    assert seen(root).keys() == {"1"}
