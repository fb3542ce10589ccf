"""Which class a failure has, through the functions that people call; and who may catch all of them."""

from __future__ import annotations

import ast
import dataclasses
import errno
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moe_lab
from moe_lab.cli.failures import explain
from moe_lab.compose.lockfile import load_lock, pin
from moe_lab.config import load_config
from moe_lab.data.sources import read_documents
from moe_lab.data.spec import DataSpec, FilesSource, HFTokenizerSpec
from moe_lab.data.tokenizers import load_tokenizer
from moe_lab.errors import Damaged, LabError, NotFound, PeerLostError, Refused, Unavailable, classify
from moe_lab.jobs.admission import require_admission, run_checks
from moe_lab.lab import find_lab, init_lab
from moe_lab.registry import Registry
from moe_lab.registry.trust import TrustPolicy
from moe_lab.training.lock import ProcessIdentity, RunLock
from moe_lab.trunks.against import reference_logits
from tests.registry import servers
from tests.registry.scenario import BLOCKS, fields, tensors

HOUSE = Path(moe_lab.__file__).parent
FAMILY = (LabError, NotFound, Refused, Damaged, Unavailable, PeerLostError)

# Function -> why it may go on after any `LabError`. All others catch the class that they mean, or raise it again.
GO_ON_AFTER_ANY = {
    "jobs/admission.py:run_checks": "a report: whatever a check says is its finding",
    "jobs/router_join.py:_text": "a report: a text that cannot be had is named, and the router learns without it",
    "registry/catalogue.py:read": "a report: a list shows beside each artifact why it cannot be read",
    "registry/lineage.py:_manifest_or_problem": "a report: a tree shows at each ancestor why it cannot be read",
    "registry/mirror.py:_settle": "a report: why each artifact was not copied",
    "registry/verify.py:_outcome": "a report: every problem of a registry",
    "registry/mirror.py:_reference": "the name of a parent is free text: what cannot be read names nothing here",
    "questions/delimited.py:delimited_rows": "the mistake is one of the text, which is read in another way",
    "questions/delimited.py:_unquoted": "the mistake is one of the text, which is read in another way",
    "questions/items.py:_agrees": "two answers of different types differ",
    "serving/app.py:answer_line": "a report: a line of a batch is answered with the mistake, and the batch goes on",
    "serving/app.py:events": "a report: a stream that has begun ends with the mistake",
    "serving/writer.py:_submit": "it is handed to whoever asked, who raises it",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a registry of one module, and a few files."""
    publish(tmp_path, seed=1)
    (tmp_path / "cut.json").write_text('{"trunk": ')
    (tmp_path / "odd.yaml").write_text("kind: data\nname: x\nsources: 3\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def publish(root: Path, seed: int) -> None:
    Registry(root / "registry").publish("team", "part", "1", fields(), tensors(seed, 1), BLOCKS)


def opened(root: Path) -> Registry:
    return Registry(root / "registry", create=False)


def harmed(root: Path, folder: str, data: bytes | None) -> Registry:
    """The registry after all files of one of its folders were written over, or were lost."""
    for path in [path for path in (root / "registry" / folder).rglob("*") if path.is_file()]:
        path.unlink()
        if data is not None:
            path.write_bytes(data)
    return opened(root)


def ask_policy(root: Path) -> object:
    policy = TrustPolicy(unsigned="refuse", owners={"birds": ()})
    return Registry(root / "registry", create=False, trust=policy).resolve("team/part")


def admit(root: Path) -> None:
    """The admission of a module that was made beside a trunk which is not here."""
    require_admission(run_checks([("trunk", lambda: opened(root).resolve("team/trunk").digest)]), "team/part")


def take_lock(root: Path) -> None:
    holder = dataclasses.replace(ProcessIdentity.current(), host="elsewhere")
    (root / "lock").write_text(json.dumps(dataclasses.asdict(holder)))
    RunLock(root / "lock").acquire()


def read_text_of(root: Path, path: str) -> object:
    return read_documents(DataSpec(name="poems", sources=(FilesSource(type="files", paths=(path,)),)), root)


SITUATIONS: dict[str, tuple[type[LabError], Callable[[Path], object]]] = {
    "no name": (LabError, lambda root: opened(root).resolve("no name")),
    "a bad value": (LabError, lambda root: load_config(root / "odd.yaml")),
    "no override": (LabError, lambda root: load_config(root / "odd.yaml", ["name"])),
    "no such artifact": (NotFound, lambda root: opened(root).resolve("team/prat")),
    "no such version": (NotFound, lambda root: opened(root).manifest("team/part@7")),
    "no such digest": (NotFound, lambda root: opened(root).manifest(f"sha256-{'0' * 64}")),
    "no such tensor": (NotFound, lambda root: opened(root).tensor("team/part", "layers.9.gate")),
    "no such module to compose": (NotFound, lambda root: pin(opened(root), "team/prat", "module")),
    "no such registry": (NotFound, lambda root: Registry(root / "elsewhere", create=False)),
    "no such config": (NotFound, lambda _: find_lab(None).find_config("quickstrat")),
    "no such router": (NotFound, lambda _: find_lab(None).get("routers", "gian")),
    "no such file": (NotFound, lambda root: load_config(root / "absent.yaml")),
    "no such file of a source": (NotFound, lambda root: read_text_of(root, "absent.txt")),
    "no such lockfile": (NotFound, lambda root: load_lock(root / "absent.json")),
    "untrusted": (Refused, ask_policy),
    "a taken version": (Refused, lambda root: publish(root, seed=2)),
    "not admitted": (Refused, admit),
    "a taken folder": (Refused, init_lab),
    "a tampered blob": (Damaged, lambda root: harmed(root, "blobs", b"other").tensors("team/part")),
    "a lost blob": (Damaged, lambda root: harmed(root, "blobs", None).tensors("team/part")),
    "a tampered manifest": (Damaged, lambda root: harmed(root, "manifests", b"{}").manifest("team/part")),
    "a cut reference": (Damaged, lambda root: harmed(root, "refs", b"sha").resolve("team/part")),
    "a collection that stops": (Damaged, lambda root: harmed(root, "refs", b"sha").gc(0)),
    "a cut lockfile": (Damaged, lambda root: load_lock(root / "cut.json")),
    "a lock that another one holds": (Unavailable, take_lock),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_failure_has_the_class_that_its_callers_need(root: Path, situation: str) -> None:
    kind, call = SITUATIONS[situation]
    require_class(kind, lambda: call(root))


def require_class(kind: type[LabError], call: Callable[[], object]) -> None:
    with pytest.raises(LabError) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/registry", "gs://bucket/registry"])
def test_a_store_out_of_reach_is_unavailable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in servers.environment_for(f"http://127.0.0.1:{servers.free_port()}").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOE_LAB_CACHE", "off")
    monkeypatch.setenv("MOE_LAB_STORE_PATIENCE", "0.1")
    require_class(Unavailable, lambda: Registry(url).resolve("team/part"))
    require_class(Unavailable, lambda: Registry(url).publish("team", "part", "1", fields(), tensors(1, 1), BLOCKS))


def test_what_is_not_in_the_cache_is_unavailable_offline(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LAB_CACHE", str(root / "cache"))
    monkeypatch.setenv("MOE_LAB_OFFLINE", "1")
    require_class(Unavailable, lambda: opened(root).resolve("team/part"))


def test_an_optional_package_is_unavailable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    require_class(Unavailable, lambda: reference_logits(root, np.zeros(1, np.int32)))


def test_a_tokenizer_that_is_not_there_is_not_found(root: Path) -> None:
    spec = HFTokenizerSpec(type="hf", path="tokenizer.json")
    require_class(NotFound, lambda: load_tokenizer(spec, root / "absent"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EACCES, Refused),
        (errno.EROFS, Refused),
        (errno.ENOSPC, Unavailable),
        (errno.EIO, Unavailable),
        (errno.EISDIR, LabError),
    ],
)
def test_the_system_says_no_in_the_same_classes(number: int, kind: type[LabError]) -> None:
    assert classify(OSError(number, "said")) is kind


@pytest.mark.parametrize("kind", FAMILY)
def test_an_error_keeps_its_class_and_is_printed_on_one_line(kind: type[LabError]) -> None:
    assert classify(kind("said")) is kind
    assert explain(kind("said\nthere")) == "said there"


def test_what_no_system_said_is_a_plain_mistake() -> None:
    assert classify(OSError("not a gzip file")) is classify(ValueError("half of a pair")) is LabError


@functools.cache
def nodes_of_the_house() -> list[tuple[str, ast.AST]]:
    """Every piece of its code, with the file and the innermost function that it is in."""

    found = []
    for path in sorted(HOUSE.rglob("*.py")):
        file = str(path.relative_to(HOUSE))
        inside: list[tuple[str, ast.AST]] = [(f"{file}:", ast.parse(path.read_text(encoding="utf-8")))]
        for where, node in inside:  # grows as it is read
            for child in ast.iter_child_nodes(node):
                is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                inside.append((f"{file}:{child.name}" if is_function else where, child))
        found += inside
    return found


def names_in(node: ast.AST | None) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} if node else set()


def goes_on_after_any(node: ast.AST) -> bool:
    """Whether this catches every `LabError`, and there is a way on that raises none."""
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return called == "suppress" and any("LabError" in names_in(argument) for argument in node.args)
    if not isinstance(node, ast.ExceptHandler) or "LabError" not in names_in(node.type):
        return False
    leaves = (ast.Return, ast.Continue, ast.Break)
    return not isinstance(node.body[-1], ast.Raise) or any(isinstance(inner, leaves) for inner in ast.walk(node))


def test_only_reports_go_on_after_any_error() -> None:
    found = {where for where, node in nodes_of_the_house() if goes_on_after_any(node)}
    assert {where for where in found if not where.startswith("cli/")} == set(GO_ON_AFTER_ANY)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("try:\n    f()\nexcept LabError:\n    pass", True),
        ("try:\n    f()\nexcept (OSError, LabError):\n    if g():\n        return 1\n    raise", True),
        ("with contextlib.suppress(LabError):\n    f()", True),
        ("with suppress(Damaged, OSError):\n    f()", False),
        ("try:\n    f()\nexcept Damaged:\n    pass", False),
        ("try:\n    f()\nexcept LabError as error:\n    raise type(error)(str(error))", False),
    ],
)
def test_going_on_is_seen(code: str, found: bool) -> None:
    assert any(map(goes_on_after_any, ast.walk(ast.parse(code)))) is found


def test_what_adds_words_to_an_error_keeps_its_class() -> None:
    lost = [
        where
        for where, node in nodes_of_the_house()
        if isinstance(node, ast.ExceptHandler) and "LabError" in names_in(node.type)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Call) and names_in(inner.func) & {kind.__name__ for kind in FAMILY}
    ]
    assert lost == []


def test_the_texts_have_one_line() -> None:
    raised = [
        (where, node.exc if isinstance(node, ast.Raise) else node)
        for where, node in nodes_of_the_house()
        if isinstance(node, ast.Raise)
        or (isinstance(node, ast.Call) and names_in(node.func) & {kind.__name__ for kind in FAMILY})
    ]
    assert len(raised) > 400
    for where, call in raised:
        texts = [inner.value for inner in ast.walk(call) if isinstance(inner, ast.Constant)] if call else []
        assert not any("\n" in text for text in texts if isinstance(text, str)), where
