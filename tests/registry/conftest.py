import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_lab.registry import Registry
from tests.registry import servers

Publishers = Callable[..., list[dict[str, Any] | None]]


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: fsync is free there, and some tests publish very often."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Long listings are kept in the user's cache folder; tests have their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))


@pytest.fixture
def root(quick: Path) -> Path:
    return quick / "registry"


@pytest.fixture
def registry(root: Path) -> Registry:
    return Registry(root)


@pytest.fixture(scope="module")
def publishers() -> Iterator[Publishers]:
    """Runs jobs as processes, all at once; see publishers.py."""
    yield from _publishers()


@pytest.fixture
def fresh_publishers(proxy: servers.Proxy) -> Iterator[Publishers]:
    """Those of one test, which have its environment."""
    yield from _publishers()


def _publishers() -> Iterator[Publishers]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("publishers.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    commands, answers = process.stdin, process.stdout
    assert commands is not None
    assert answers is not None

    def run(registry: Path | str, *jobs: dict[str, Any]) -> list[dict[str, Any] | None]:
        commands.write(json.dumps({"registry": str(registry), "jobs": jobs}) + "\n")
        commands.flush()
        answer: list[dict[str, Any] | None] = json.loads(answers.readline())
        return answer

    with process:
        yield run
        commands.close()


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[servers.Proxy]:
    with servers.s3_server() as server, servers.proxy_before(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def gs_proxy() -> Iterator[servers.Proxy]:
    """One for all tests: TensorStore looks for the address of Google Cloud Storage once in a process."""
    with servers.gcs_server() as server, servers.proxy_before(server.url) as proxy:
        yield proxy


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch, quick: Path) -> pytest.MonkeyPatch:
    """No cache and no credentials but the test's own, and little patience."""
    for name in os.environ:
        if name.startswith(("AWS_", "MOE_LAB_", "GOOGLE_", "TENSORSTORE_GCS", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(quick))
    monkeypatch.setenv("XDG_CACHE_HOME", str(quick / "cache"))
    monkeypatch.setenv("MOE_LAB_STORE_PATIENCE", "5")
    return monkeypatch


@pytest.fixture(params=["s3", "gs"])
def proxy(request: pytest.FixtureRequest, isolated: pytest.MonkeyPatch) -> servers.Proxy:
    """What s3:// and gs:// lead to: a proxy before a real server; `url` in it is a registry of this test's own."""
    scheme: str = request.param
    proxy: servers.Proxy = request.getfixturevalue(f"{scheme}_proxy")
    proxy.start_over(
        f"{scheme}://bucket/{secrets.token_hex(4)}", servers.Corrected() if scheme == "gs" else servers.honest
    )
    for variable, value in servers.environment_for(proxy.address).items():
        isolated.setenv(variable, value)
    return proxy
