"""States under the first routed layer, kept: found by what they were computed from, and never believed when damaged."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.compose.kept_states import KeptStates

ROWS, LENGTH, WIDE = 2, 8, 4
SIZE = ROWS * LENGTH * WIDE * 4 + 71  # and the digest in front


class Text(NamedTuple):
    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def text(first: int = 0) -> Text:
    tokens = np.arange(first, first + ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH)
    return Text(tokens, np.ones_like(tokens), np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)))


class Layers:
    """Counts how often it is run."""

    def __init__(self, batch: Text, dtype: Any = jnp.float32) -> None:
        self.runs, self.batch, self.dtype = 0, batch, dtype

    def __call__(self) -> jax.Array:
        self.runs += 1
        return jnp.asarray(np.repeat(np.sin(self.batch.tokens)[..., None], WIDE, -1), self.dtype)


def ask(kept: KeptStates, layers: Layers, trunk: str = "sha256-a") -> np.ndarray:
    states = kept.of(trunk, layers.batch, layers.dtype, layers)
    expected = Layers(layers.batch, layers.dtype)()
    assert states.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(states, np.float32), np.asarray(expected, np.float32))
    return np.asarray(states)


def test_states_are_computed_once_and_found_by_another_process_too(tmp_path: Path) -> None:
    layers = Layers(text())
    ask(KeptStates(tmp_path, 10_000), layers)
    again = KeptStates(tmp_path, 10_000)
    ask(again, layers)
    assert layers.runs == 1
    assert (again.read, again.computed) == (1, 0)


@pytest.mark.parametrize("what", ["trunk", "tokens", "segments", "positions", "dtype"])
def test_another_trunk_text_or_dtype_has_its_own(tmp_path: Path, what: str) -> None:
    kept, batch = KeptStates(tmp_path, 10_000), text()
    ask(kept, Layers(batch))
    changed = {
        "tokens": batch._replace(tokens=batch.tokens + 1),
        "segments": batch._replace(segment_ids=batch.segment_ids + 1),
        "positions": batch._replace(positions=batch.positions + 1),
    }.get(what, batch)
    other = Layers(changed, jnp.bfloat16 if what == "dtype" else jnp.float32)
    ask(kept, other, "sha256-b" if what == "trunk" else "sha256-a")
    assert other.runs == 1
    assert kept.computed == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_file_is_computed_again_and_mended(tmp_path: Path, damage: str) -> None:
    kept, layers = KeptStates(tmp_path, 10_000), Layers(text())
    ask(kept, layers)
    (path,) = tmp_path.glob("*.states")
    whole = path.read_bytes()
    damaged = {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-4], "empty": b"", "longer": whole + b"\0"}
    path.write_bytes(damaged[damage])
    ask(kept, layers)
    assert layers.runs == 2
    assert path.read_bytes() == whole


def test_what_was_not_read_for_longest_makes_room(tmp_path: Path) -> None:
    kept = KeptStates(tmp_path, 2 * SIZE)
    batches = [Layers(text(100 * number)) for number in range(3)]
    for age, layers in zip((50, 100), batches[:2], strict=True):
        ask(kept, layers)
        newest = max(tmp_path.glob("*.states"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1e9 - age, 1e9 - age))
    ask(kept, batches[2])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * SIZE
    ask(kept, batches[0])
    ask(kept, batches[1])
    assert [layers.runs for layers in batches] == [1, 2, 1]


def test_more_than_may_be_kept_is_not_kept(tmp_path: Path) -> None:
    layers = Layers(text())
    ask(KeptStates(tmp_path, SIZE - 1), layers)
    assert list(tmp_path.iterdir()) == []
    ask(KeptStates(tmp_path, SIZE), layers)
    assert len(list(tmp_path.iterdir())) == 1
