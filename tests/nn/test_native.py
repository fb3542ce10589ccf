"""What only the compiled kernel promises, and what happens where it cannot be had."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.nn.backends import native
from moe_lab.nn.backends.native import build, check, layer
from moe_lab.nn.expert_ffn import choose_backend, expert_ffn, require_backend
from moe_lab.nn.pool import Pool, Routing, make_pool
from tests.nn.drawing import NATIVE, ffn_gradients, random_blocks, random_routing

(compiled,) = NATIVE.marks


def draw(counts: list[int], tokens: int, d_model: int, block: int, top_k: int = 2) -> tuple[jax.Array, Pool, Routing]:
    rng = np.random.default_rng(tokens)
    pool = make_pool([random_blocks(rng, count, d_model, block) for count in counts])
    h = jnp.asarray(rng.normal(size=(tokens, d_model)) / d_model**0.5, jnp.float32)
    return h, pool, random_routing(rng, tokens, top_k, counts)


@pytest.mark.slow
@compiled
def test_a_token_s_bits_depend_on_no_other_token() -> None:
    h, pool, routing = draw([3, 1, 5], tokens=150, d_model=20, block=12)
    together = expert_ffn(h, pool, routing, backend="native")
    for some in (slice(0, 1), slice(70, 71), slice(3, 149)):
        alone = expert_ffn(h[some], pool, Routing(*(field[some] for field in routing)), backend="native")
        np.testing.assert_array_equal(alone, together[some])


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(("d_model", "block"), [(48, 16), (33, 1), (100, 20)])
def test_widths_that_fill_no_vector(d_model: int, block: int) -> None:
    h, pool, routing = draw([9, 1, 4], tokens=77, d_model=d_model, block=block)
    expected, got = (ffn_gradients(h, pool, routing, backend) for backend in ("reference", "native"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), got, expected)


@pytest.fixture
def no_programs_of_other_sizes() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


@compiled
@pytest.mark.slow
@pytest.mark.usefixtures("no_programs_of_other_sizes")
def test_no_size_of_the_kernel_s_arrays_changes_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, chunks and segments, and room to keep a part of the work or none."""
    h, pool, routing = draw([7, 2, 4], tokens=300, d_model=24, block=16)
    expected = ffn_gradients(h, pool, routing, "native")
    sizes = layer.make_sizes(routing.expert.size, 3, pool.blocks)
    rows = layer.panel_tokens()
    for kept in (0, 5 * rows * 16, sizes.kept):
        small = sizes._replace(
            tile_rows=rows, segment=7, max_panels=2, max_elements=2 * rows * 7 * 16, kept=kept, slots=1
        )
        monkeypatch.setattr(layer, "make_sizes", lambda *_, small=small: small)
        jax.clear_caches()
        got = ffn_gradients(h, pool, routing, "native")
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    # Segments of a module are added to each other, so here only the order of a token's sum is another.
    cut = small._replace(tile_rows=4 * rows, segment=2, max_panels=5, max_elements=5 * rows * 2 * 16)
    monkeypatch.setattr(layer, "make_sizes", lambda *_: cut)
    jax.clear_caches()
    got = ffn_gradients(h, pool, routing, "native")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, expected)


@compiled
def test_it_can_be_chosen_in_the_middle_of_tracing() -> None:
    h, pool, routing = draw([2, 3], tokens=5, d_model=12, block=4)
    check.obstacle.cache_clear()
    got = jax.jit(lambda h: expert_ffn(h, pool, routing))(h)
    np.testing.assert_array_equal(got, expert_ffn(h, pool, routing, backend="native"))


@compiled
def test_other_dtypes_take_another_backend() -> None:
    choice = choose_backend(d_model=12, block=4, platform="cpu", dtype=jnp.bfloat16)
    assert choice.backend == "worklist"
    assert "float32, not" in choice.reason


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check.obstacle.cache_clear()
    yield tmp_path
    check.obstacle.cache_clear()


def test_without_a_compiler_it_says_so_and_takes_the_worklist(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(empty_cache))
    choice = choose_backend(d_model=12, block=4, platform="cpu")
    assert (choice.backend, choice.reason) == (
        "worklist",
        "no C++ compiler was found (looked for $CXX, c++, g++, clang++)",
    )
    with pytest.raises(LabError, match='backend "native" cannot run here: no C.. compiler was found'):
        require_backend("native")


def test_a_compiler_that_fails_is_quoted(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", script(empty_cache / "broken", "echo 'kernel.cc:1: error: no such flag' >&2; exit 1"))
    assert str(native.obstacle()).endswith("broken failed: kernel.cc:1: error: no such flag")


def test_a_cache_that_cannot_be_written_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", script(empty_cache / "any", "exit 0"))
    (empty_cache / "cache").write_text("a file where a folder should be")
    assert "set XDG_CACHE_HOME to a folder" in str(native.obstacle())


@compiled
def test_a_kernel_with_wrong_numbers_is_not_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compile", lambda _, target: target.write_bytes(b""))
    monkeypatch.setattr(build, "_register", lambda _: None)
    monkeypatch.setattr(build, "_loaded", {})
    with pytest.raises(build.CannotBuildError, match="wrong here: off by 2"):
        build.load_kernel(lambda: "off by 2")
    assert not list((empty_cache / "cache" / "moe-lab" / "kernels").iterdir())


@compiled
@pytest.mark.parametrize("damaged", [b"", b"ker", b"kernes"])
def test_a_whole_kernel_is_compiled_once_and_a_damaged_one_again(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes
) -> None:
    """A damaged one must not even be loaded: half a file ends the process with a bus error."""
    compiled: list[Path] = []

    def compile_now(_: str, target: Path) -> None:
        compiled.append(target)
        target.write_bytes(b"kernel")

    def load() -> list[str]:
        monkeypatch.setattr(build, "_loaded", {})
        build.load_kernel(lambda: None)
        return [path.name for path in (empty_cache / "cache" / "moe-lab" / "kernels").iterdir()]

    monkeypatch.setattr(build, "_compile", compile_now)
    monkeypatch.setattr(build, "_register", lambda _: None)
    first = load()
    assert (load(), len(compiled)) == (first, 1)
    (empty_cache / "cache" / "moe-lab" / "kernels" / first[0]).write_bytes(damaged)
    assert (load(), len(compiled)) == (first, 2)


def test_a_slower_way_is_said_once(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(empty_cache))
    for _ in range(2):
        assert choose_backend(d_model=12, block=4, platform="cpu").backend == "worklist"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "note: routed layers and attention run without the compiled kernel, slower: no C++ compiler was found"
    )


@compiled
@pytest.mark.slow
def test_a_result_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.disagreement() is None
    monkeypatch.setattr(check, "expert_ffn", lambda h, *rest: 1.001 * layer.expert_ffn(h, *rest))
    assert "output is off by 0.001 of its largest number" in str(check.disagreement())
