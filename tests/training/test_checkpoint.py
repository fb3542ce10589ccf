from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_lab.errors import LabError
from moe_lab.training import checkpoint
from moe_lab.training.checkpoint import Checkpoints
from moe_lab.training.step import abstract


def state_of(step: int) -> dict[str, Any]:
    return {"w": jnp.arange(1200.0).reshape(30, 40) * step, "nested": [{}, None, (jnp.int32(step),)]}


def save_all(folder: Path, *steps: int, keep: int = 10) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step))


def same_bits(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    same_structure = str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    return same_structure and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs
    )


def restored(folder: Path, notes: list[str] | None = None) -> tuple[int, Any]:
    with Checkpoints(folder, 10, (notes if notes is not None else []).append) as checkpoints:
        return checkpoints.restore(abstract(state_of(0)))


def data_file(folder: Path) -> Path:
    """Returns the file that holds the numbers: the largest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "seal.json")
    return max(files, key=lambda path: path.stat().st_size)


SPECIAL = np.array([-0.0, np.nan, -np.inf, 1e-45, np.float32(1) / 3], np.float32)
DTYPES = ["float32", "int32", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn"]


def random_bits(dtype: str, shape: tuple[int, ...]) -> jax.Array:
    if dtype == "bool":
        return jnp.asarray(np.random.default_rng(0).integers(0, 2, shape).astype(bool))
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return jnp.asarray(np.frombuffer(np.random.default_rng(0).bytes(size), np.dtype(dtype)).reshape(shape))


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4, unique=True),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    shapes=st.lists(hnp.array_shapes(min_dims=0, min_side=0, max_side=3), min_size=4, max_size=4),
)
def test_any_pytree_of_arrays_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    dtypes: list[str],
    shapes: list[tuple[int, ...]],
) -> None:
    arrays = (random_bits(dtype, shape) for dtype, shape in zip(dtypes, shapes, strict=True))
    numbers = dict(zip(names, arrays, strict=False))
    state = {
        "odd names": numbers,
        "special": jnp.asarray(SPECIAL),
        "zeros": jnp.full((3,), -0.0),
        "none": None,
    }
    with Checkpoints(tmp_path_factory.mktemp("run"), keep=1) as checkpoints:
        checkpoints.save(1, state)
        step, found = checkpoints.restore(abstract(state))
    assert step == 1
    assert same_bits(found, state)


def test_the_newest_are_kept_and_the_newest_of_them_is_restored(tmp_path: Path) -> None:
    save_all(tmp_path, 5, 10, 15, 100, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "15"]
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest() == 100
    step, state = restored(tmp_path)
    assert step == 100
    assert same_bits(state, state_of(100))


def test_saving_does_not_see_what_the_next_step_does_to_the_state(tmp_path: Path) -> None:
    advance = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    advance({"w": jnp.zeros((200, 200))})  # compiled beforehand, so that the steps overtake the save
    state = {"w": jnp.zeros((200, 200))}
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(20):
            state = advance(state)
        _, found = checkpoints.restore(abstract(state))
    assert float(found["w"].max()) == 0.0


def test_an_incomplete_checkpoint_is_ignored_and_removed_and_other_files_are_not(tmp_path: Path) -> None:
    save_all(tmp_path, 5, 10)
    (tmp_path / "10" / "seal.json").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "5-backup").mkdir()
    step, _ = restored(tmp_path)
    assert step == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "5-backup", "notes.txt"]


def test_a_removal_that_is_cut_short_leaves_an_incomplete_checkpoint_and_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path) -> None:
        data_file(path).unlink()
        raise KeyboardInterrupt

    save_all(tmp_path, 5)
    with monkeypatch.context() as patch, Checkpoints(tmp_path, keep=1) as checkpoints:
        patch.setattr(checkpoint.shutil, "rmtree", cut_short)
        checkpoints.save(10, state_of(10))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
        assert checkpoints.latest() == 10
    notes: list[str] = []
    assert restored(tmp_path, notes)[0] == 10
    assert notes == []
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "bytes, .* were written"),
        (flip_a_bit, "not those that were written"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_takes_its_place(
    tmp_path: Path, damage: Any, complaint: str
) -> None:
    save_all(tmp_path, 5, 10)
    victim = data_file(tmp_path / "10")
    damage(victim)
    notes: list[str] = []
    step, state = restored(tmp_path, notes)
    assert step == 5
    assert same_bits(state, state_of(5))
    (note,) = notes
    assert str(tmp_path / "10") in note
    assert victim.name in note
    assert "resuming from step 5" in note
    assert not (tmp_path / "10").exists()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_damage_to_any_file_is_noticed(tmp_path: Path, damage: Any) -> None:
    save_all(tmp_path, 5)
    files = [path for path in (tmp_path / "5").rglob("*") if path.is_file() and path.name != "seal.json"]
    assert len(files) >= 5
    for path in files:
        whole = path.read_bytes()
        if not whole and damage is not Path.unlink:
            continue
        damage(path)
        with pytest.raises(LabError, match=path.name.replace(".", r"\.")):
            restored(tmp_path)
        path.write_bytes(whole)
    assert restored(tmp_path)[0] == 5


def test_with_no_readable_checkpoint_nothing_is_removed_and_the_way_out_is_named(tmp_path: Path) -> None:
    save_all(tmp_path, 5, 10)
    truncate(data_file(tmp_path / "5"))
    (tmp_path / "10" / "seal.json").write_text("{")
    with pytest.raises(LabError, match=r"no checkpoint .*10: seal.json.*; 5: .* delete it to train from the start"):
        restored(tmp_path)
    assert (tmp_path / "5").exists()
    assert (tmp_path / "10").exists()


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"w": jnp.zeros((3, 5))}, r"\['w'\] as float32\[3, 4\], this training has float32\[3, 5\]"),
        ({"w": jnp.zeros((3, 4), jnp.bfloat16)}, r"this training has bfloat16\[3, 4\]"),
        ({"v": jnp.zeros((3, 4))}, r"\['v'\] as nothing, this training has float32\[3, 4\]"),
        ({}, r"\['w'\] as float32\[3, 4\], this training has nothing"),
    ],
)
def test_a_state_of_another_form_is_refused_by_its_leaf(tmp_path: Path, other: Any, complaint: str) -> None:
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros((3, 4))})
        with pytest.raises(LabError, match=complaint):
            checkpoints.restore(abstract(other))


def test_a_failed_save_is_raised_by_the_next_one_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, 5)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(10, state_of(10))
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(15, state_of(15))
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_all(tmp_path, 5)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(5, state_of(6))
    assert same_bits(restored(tmp_path)[1], state_of(6))


def test_only_one_file_imports_orbax() -> None:
    package = Path(checkpoint.__file__).parents[1]
    assert [
        path.name
        for path in package.rglob("*.py")
        if "import orbax" in path.read_text() or "from orbax" in path.read_text()
    ] == ["checkpoint.py"]
