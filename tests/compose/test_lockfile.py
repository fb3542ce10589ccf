"""A composition resolves to digests, and a lockfile keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_lab.compose.build import with_router
from moe_lab.compose.lockfile import LockedPart, artifact_name, load_lock, pin, resolve
from moe_lab.compose.spec import CompositionSpec
from moe_lab.errors import LabError
from moe_lab.files import write_json
from moe_lab.planning.model import model_of_lock
from moe_lab.planning.spec import PlanSettings
from tests.compose.published import FIXED, LADDERS, MODULES, ROUTERS, WIDTHS, Published


def test_every_part_is_pinned_to_what_its_name_means_now(published: Published) -> None:
    lock = published.lock("lab/gain", price=0.25)
    assert lock.trunk == published.trunk
    assert [part.ref for part in lock.modules] == [f"{name}@1" for name in MODULES]
    for part in (lock.trunk, lock.router, *lock.modules):
        assert published.registry.resolve(part.ref).digest == part.digest
    assert (lock.price, lock.backend, lock.dtype) == (0.25, "worklist", "float32")


@pytest.mark.parametrize("router", ["lab/gain", FIXED])
def test_a_lockfile_comes_back_as_it_was_saved(published: Published, tmp_path: Path, router) -> None:
    lock, path = published.lock(router, price=0.25, backend="reference"), tmp_path / "tiny.lock.json"
    write_json(path, lock.model_dump(mode="json"))
    assert load_lock(path) == lock


def test_a_new_version_moves_the_name_but_not_the_lock(own: Published) -> None:
    before = own.lock(FIXED)
    newer = own.put_module("north/code", WIDTHS["north/code"], LADDERS["north/code"], seed=9)
    after = own.lock(FIXED)
    assert after.modules == (newer, *before.modules[1:])
    assert newer.ref == "north/code@2"
    assert own.lock(FIXED, ("north/code@1", "south/prose")).modules == before.modules[:2]


def test_an_artifact_keeps_its_name_through_its_versions() -> None:
    assert artifact_name("south/prose@3") == artifact_name("south/prose") == "south/prose"


@pytest.mark.parametrize("twice", [("north/code", "north/code"), ("north/code", "west/sums", "north/code@1")])
def test_a_module_is_listed_once(published: Published, twice: tuple[str, ...]) -> None:
    with pytest.raises(LabError, match="composition tiny: module north/code is listed twice"):
        published.lock(FIXED, twice)


def test_each_place_takes_its_own_kind(published: Published) -> None:
    with pytest.raises(LabError, match="lab/trunk is a trunk, but a module is needed here"):
        published.lock(FIXED, ("north/code", "lab/trunk"))
    with pytest.raises(LabError, match="north/code is a module, but a router is needed here"):
        published.lock("north/code")
    with pytest.raises(LabError, match="lab/gain is a router, but a trunk is needed here"):
        published.lock(FIXED, trunk="lab/gain")
    with pytest.raises(LabError, match="north/cod"):
        published.lock(FIXED, ("north/cod",))


def test_a_composition_takes_whole_modules(published: Published) -> None:
    with pytest.raises(LabError, match="north/code@1:4 names one width; name the whole module"):
        published.lock(FIXED, ("north/code@1:4", "south/prose"))


def test_a_digest_is_a_name_too(published: Published) -> None:
    part = pin(published.registry, published.trunk.digest, "trunk")
    assert part.digest == published.trunk.digest


def _lock_json(published: Published) -> dict:
    return published.lock(FIXED).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("trunk"), "trunk"),
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data.update(format=2), "format"),
        (lambda data: data.update(price="high"), "price"),
    ],
)
def test_what_is_no_lockfile_is_refused(published: Published, tmp_path: Path, change, message: str) -> None:
    data, path = _lock_json(published), tmp_path / "tiny.lock.json"
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(LabError, match=rf"tiny.lock.json.*{message}"):
        load_lock(path)


def test_a_lockfile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.lock.json"
    with pytest.raises(LabError, match="tiny.lock.json: cannot be read as a lockfile"):
        load_lock(path)
    path.write_text('{"format": 1,')
    with pytest.raises(LabError, match="tiny.lock.json: cannot be read as a lockfile"):
        load_lock(path)


def _replace_code(own: Published) -> LockedPart:
    return own.put_module("north/code", WIDTHS["north/code"], LADDERS["north/code"], seed=9)


@pytest.mark.parametrize("recorded", ["module_digests", "parents"])
def test_a_module_that_replaced_the_one_learned_from_is_refused_until_accepted(own: Published, recorded: str) -> None:
    learned = [pin(own.registry, name, "module") for name in MODULES]
    own.put_router("lab/pinned", ROUTERS["gain"], learned=learned, recorded=recorded)
    own.model(own.lock("lab/pinned"))
    newer, old = _replace_code(own), learned[0]
    lock = own.lock("lab/pinned")
    both = rf"lab/pinned@1 learned from {old.ref} \({old.digest[:19]}\), but {newer.ref} \({newer.digest[:19]}\)"
    for refused in (
        lambda: own.model(lock),
        lambda: model_of_lock(lock, own.registry, PlanSettings()),
        lambda: with_router(own.model(own.lock("lab/gain")), lock.router, own.registry, own.lab),
    ):
        with pytest.raises(LabError, match=f"{both}.* train the router again, or name north/code@1 .*, or "):
            refused()
    own.model(own.lock("lab/pinned", ("north/code@1", "south/prose")))
    own.model(own.lock("lab/pinned", ("south/prose", "west/sums")))


def test_what_was_accepted_is_in_the_lockfile_and_holds_for_that_pair_only(own: Published, tmp_path: Path) -> None:
    learned = [pin(own.registry, name, "module") for name in MODULES]
    own.put_router("lab/pinned", ROUTERS["gain"], learned=learned)
    spec = CompositionSpec(kind="composition", name="tiny", trunk="lab/trunk", modules=MODULES, router="lab/pinned")
    unchanged = resolve(spec, own.registry, accept_replaced=True)
    assert "replaced" not in unchanged.model_dump(mode="json")
    newer = _replace_code(own)
    lock, path = resolve(spec, own.registry, accept_replaced=True), tmp_path / "tiny.lock.json"
    write_json(path, lock.model_dump(mode="json"))
    assert load_lock(path) == lock
    assert lock.replaced == {"north/code": learned[0]}
    model = own.model(lock)
    assert model.modules[0].part == newer
    with_router(model, lock.router, own.registry, own.lab, lock.replaced)
    elsewhere = {"north/code": newer}
    with pytest.raises(LabError, match="lab/pinned@1 learned from north/code@1"):
        own.model(lock.model_copy(update={"replaced": elsewhere}))


def test_modules_keep_the_order_in_which_they_are_listed(published: Published) -> None:
    listed = ("west/sums", "north/code", "south/prose")
    assert [part.ref for part in published.lock(FIXED, listed).modules] == [f"{name}@1" for name in listed]
