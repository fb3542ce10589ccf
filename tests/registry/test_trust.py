"""Policies: what is refused, by which words, on every way into the registry; and files that are no policy."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.cli import main
from moe_lab.config import decode, load_config, parse_yaml, to_yaml
from moe_lab.errors import LabError
from moe_lab.registry import Registry
from moe_lab.registry.keys import parse_public
from moe_lab.registry.trust import TrustPolicy, load_policy
from tests.registry.scenario import BLOCKS, fields, owner_key, retire, tensors

SNAKES, BIRDS, STRANGER = owner_key(1), owner_key(2), owner_key(3)


def policy(unsigned="allow", revoked=(), **owners) -> TrustPolicy:
    owners = owners or {"snakes": (SNAKES.public,), "birds": (BIRDS.public,)}
    return TrustPolicy(unsigned=unsigned, owners=owners, revoked=revoked)


def put(root, name, key=None, version=None, seed=1, **sections):
    owner, _, own = name.partition("/")
    made = Registry(root, key=key).publish(owner, own, version, fields(**sections), tensors(seed, 1), BLOCKS)
    return made.digest


def refusal(registry, name) -> str:
    """What every way in says; none of them may give anything."""
    told = set()
    for way in (registry.resolve, registry.manifest, registry.tensors, registry.lineage, lambda n: one(registry, n)):
        with pytest.raises(LabError) as caught:
            way(name)
        told.add(str(caught.value))
    (text,) = told
    assert "\n" not in text
    return text


def problem(call) -> str | None:
    """The one line of the `LabError` that a call ends with, or None; any other error is a failure."""
    try:
        call()
    except LabError as error:
        told = str(error)
    else:
        return None
    assert "\n" not in told
    return told


def one(registry, name):
    return registry.tensor(name, "ids")


def listed(registry) -> dict[str, str | None]:
    return {str(entry.ref): entry.problem for entry in registry.list()}


def test_a_listed_owner_needs_one_of_its_keys_and_others_need_none(root):
    digest = put(root, "snakes/python", SNAKES)
    put(root, "snakes/unsigned", seed=2)
    put(root, "snakes/stolen", BIRDS, seed=3)
    put(root, "free/part", seed=4)
    put(root, "free/signed", STRANGER, seed=5)
    registry = Registry(root, trust=policy())
    assert registry.resolve("snakes/python").digest == digest
    assert registry.tensors("free/part").keys() == registry.tensors("free/signed").keys()
    wants = "the trust policy wants a signature by a key of snakes"
    assert refusal(registry, "snakes/unsigned@1") == (
        f"snakes/unsigned@1 is untrusted: {wants}; there is none. Ask its owner to sign it."
    )
    assert refusal(registry, "snakes/stolen@1").startswith(
        f"snakes/stolen@1 is untrusted: {wants}; {BIRDS.public} is not listed for snakes."
    )
    problems = {name: problem for name, problem in listed(registry).items() if problem}
    assert problems == {
        "snakes/unsigned@1": f"untrusted: {wants}; there is none",
        "snakes/stolen@1": f"untrusted: {wants}; {BIRDS.public} is not listed for snakes",
    }
    report = registry.verify()
    assert sorted(report.problems) == sorted(
        f"untrusted: {name}: {problem.removeprefix('untrusted: ')}" for name, problem in problems.items()
    )
    assert registry.verify("snakes/python").ok
    assert len(registry.verify("snakes/stolen").problems) == 1
    assert Registry(root).verify().ok


def test_refusing_the_unsigned_refuses_owners_that_are_not_listed_whoever_signed(root):
    put(root, "free/part", STRANGER)
    registry = Registry(root, trust=policy("refuse"))
    assert "lists no key of free and refuses what no listed key signed" in refusal(registry, "free/part")
    assert set(listed(registry)) == {"free/part@1"}


def test_one_of_several_keys_and_one_of_several_signatures_suffice(root):
    put(root, "snakes/python", STRANGER)
    registry = Registry(root)
    registry.sign("snakes/python@1", SNAKES)
    assert Registry(root, trust=policy("refuse", snakes=(BIRDS.public, SNAKES.public))).resolve("snakes/python")
    # A third one that is damaged stops nobody, or everyone with write permission could stop everything.
    claim, _ = registry.sign("snakes/python@1", BIRDS)
    (root / claim.path).write_text("damage")
    trusting = Registry(root, trust=policy("refuse", snakes=(BIRDS.public, SNAKES.public)))
    assert trusting.resolve("snakes/python")
    assert len(trusting.verify().problems) == 1
    told = refusal(Registry(root, trust=policy(snakes=(BIRDS.public,))), "snakes/python")
    assert "does not hold 128 lowercase hex digits" in told


def test_a_signature_that_nobody_may_read_stops_nobody(root, monkeypatch):
    put(root, "snakes/python", SNAKES)
    claim, _ = Registry(root).sign("snakes/python@1", BIRDS)
    registry = Registry(root, trust=policy(snakes=(BIRDS.public, SNAKES.public)))
    read = registry.store.get

    def get(key, limit):
        if key == claim.path:
            raise PermissionError(13, "Permission denied")
        return read(key, limit)

    monkeypatch.setattr(registry.store, "get", get)
    assert registry.resolve("snakes/python")
    monkeypatch.setattr(registry.trust, "policy", policy(snakes=(BIRDS.public,)))
    assert "cannot be read: Permission denied" in refusal(registry, "snakes/python")
    assert registry.list()[0].problem


def test_a_revoked_key_counts_for_nobody(root):
    put(root, "snakes/python", SNAKES)
    both = {"snakes": (SNAKES.public, BIRDS.public)}
    registry = Registry(root, trust=policy("allow", (SNAKES.public,), **both))
    assert f"{SNAKES.public} is revoked" in refusal(registry, "snakes/python")
    # The way back: the owner signs with the new key, and no version changes.
    registry.sign("snakes/python@1", BIRDS)
    assert registry.resolve("snakes/python")
    assert registry.verify().ok


def test_the_newest_version_is_not_passed_over(root):
    put(root, "snakes/python", SNAKES, "1")
    put(root, "snakes/python", None, "2", seed=2)
    registry = Registry(root, trust=policy())
    told = refusal(registry, "snakes/python")
    assert told.startswith("snakes/python@2 is untrusted: ")
    assert "It is the newest version, and no older one is taken in its place unasked" in told
    assert registry.resolve("snakes/python@1")
    retire(root, "snakes/python@2", "not ours")
    assert str(registry.resolve("snakes/python").ref) == "snakes/python@1"


def test_an_unsigned_copy_of_signed_content_is_refused_where_signatures_are_wanted(root):
    """The downgrade: the same bytes under another name, or the same name without its signature."""
    digest = put(root, "snakes/python", SNAKES)
    assert put(root, "snakes/copy") == digest
    registry = Registry(root, trust=policy("refuse"))
    assert "there is none" in refusal(registry, "snakes/copy")
    for path in (root / "signatures").rglob("*.*"):
        path.unlink() if path.is_file() else None
    assert "there is none" in refusal(registry, "snakes/python")


@pytest.mark.parametrize("unsigned", ["allow", "refuse"])
def test_a_bare_digest_is_believed_by_a_name_it_is_published_under(root, unsigned):
    good = put(root, "snakes/python", SNAKES)
    bad = put(root, "snakes/viper", STRANGER, seed=2)
    free = put(root, "free/part", STRANGER, seed=3)
    nameless = put(root, "snakes/gone", SNAKES, seed=4)
    (root / "refs/snakes/gone/1").unlink()

    def reads(digest) -> bool:
        told = problem(lambda: Registry(root, trust=policy(unsigned)).tensors(digest))
        assert told is None or f"{digest} is untrusted: " in told
        return told is None

    assert reads(good)
    assert not reads(bad)
    assert reads(free) == reads(nameless) == (unsigned == "allow")
    # A name of a free owner's makes it free content; a signature there by its own key does not where it is refused.
    put(root, "free/viper", STRANGER, seed=2)
    assert reads(bad) == (unsigned == "allow")


def test_a_digest_believed_under_one_name_is_not_under_another(root):
    digest = put(root, "snakes/python", SNAKES)
    put(root, "snakes/copy")
    registry = Registry(root, trust=policy())
    assert registry.manifest("snakes/python").digest == digest
    assert registry.manifest(digest)
    assert "snakes/copy@1 is untrusted" in refusal(registry, "snakes/copy")


def test_publishing_what_the_policy_would_refuse_is_refused_first(root):
    for key, word in ((None, "no key is given"), (STRANGER, f"{STRANGER.public} is none")):
        registry = Registry(root, trust=policy("refuse"), key=key)
        for owner in ("snakes", "free"):
            with pytest.raises(LabError, match=rf"cannot publish for {owner}: .*{word}.*Nothing was published"):
                registry.publish(owner, "python", None, fields(), tensors(1, 1), BLOCKS)
    assert not (root / "blobs").exists()
    signed = Registry(root, trust=policy("refuse"), key=SNAKES)
    assert signed.publish("snakes", "python", None, fields(), tensors(1, 1), BLOCKS).created
    assert signed.resolve("snakes/python")


def test_a_pin_is_asked_again_under_its_name(root):
    first, second = put(root, "snakes/python", SNAKES), put(root, "snakes/python", SNAKES, seed=2)
    unsigned = put(root, "snakes/viper", seed=3)
    registry = Registry(root, trust=policy())
    retire(root, "snakes/python@1", "old")
    registry.require_pinned("snakes/python@1", first)
    registry.require_pinned(first, first)
    for name, digest, reason in (
        ("snakes/python@1", second, "is pinned to sha256-.*, but here it is sha256-.*; compose it again"),
        ("snakes/viper@1", unsigned, "snakes/viper@1 is untrusted"),
        ("snakes/viper@1", first, "snakes/viper@1 is untrusted"),
        (unsigned, unsigned, "is untrusted"),
        ("snakes/boa@1", first, "the registry has no snakes/boa"),
    ):
        with pytest.raises(LabError, match=reason):
            registry.require_pinned(name, digest)
        Registry(root).require_pinned(name, digest)


KEY = SNAKES.public
BROKEN = {
    "kind: trust": "unsigned: this is required and missing",
    "kind: trusted\nunsigned: allow": 'kind: unknown kind "trusted"',
    "kind: data\nunsigned: allow": 'kind: expected "trust" here, got "data"',
    "unsigned: allow": "kind: this is required",
    "kind: trust\nunsigned: forbid": 'unsigned: unknown value "forbid"',
    "kind: trust\nunsigned: no": 'unsigned: unknown value "no"',
    "kind: trust\nunsigned: allow\nowner: {}": 'owner: unknown key. Did you mean "owners"',
    "kind: trust\nunsigned: allow\nowners: []": "owners: expected a mapping",
    f"kind: trust\nunsigned: allow\nowners: {{Snakes: ['{KEY}']}}": "cannot be the owner of an artifact",
    f"kind: trust\nunsigned: allow\nowners: {{snakes: '{KEY}'}}": "owners.snakes: expected a list",
    f"kind: trust\nunsigned: allow\nowners: {{snakes: ['{KEY.upper()}']}}": "is not a public key",
    f"kind: trust\nunsigned: allow\nowners: {{snakes: ['{KEY[:-1]}']}}": "is not a public key",
    f"kind: trust\nunsigned: allow\nrevoked: ['ed25519:{'0' * 64}']": "is nobody's key",
    f"kind: trust\nunsigned: allow\nowners:\n  a: ['{KEY}']\n  a: []": 'key "a" is given twice',
    "kind: trust\nunsigned: allow\n\t": "not valid YAML",
    "": "the file is empty",
    "\0": "not valid YAML",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", BROKEN)
def test_a_policy_that_cannot_be_understood_stops_everything(lab_folder, monkeypatch, capsys, text):
    put(lab_folder / "registry", "snakes/python")
    path = lab_folder / "configs/trust.yaml"
    path.write_text(text)
    monkeypatch.setenv("MOE_LAB_HOME", str(lab_folder))
    for command in (["list"], ["show", "snakes/python"], ["verify"], ["lineage", "snakes/python"]):
        assert main(["module", *command]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.match(rf"error: {re.escape(str(path))}.*{re.escape(BROKEN[text])}", err), err
        assert err.endswith(" This is the trust policy: nothing is read until it is mended.\n")


@pytest.mark.parametrize("harm", ["link", "folder", "latin", "unreadable", "misnamed", "named"])
def test_a_policy_that_cannot_be_read_stops_everything(lab_folder, monkeypatch, capsys, harm):
    put(lab_folder / "registry", "snakes/python")
    path = lab_folder / "configs/trust.yaml"
    monkeypatch.setenv("MOE_LAB_HOME", str(lab_folder))
    if harm == "link":
        path.symlink_to(lab_folder / "nowhere")
    elif harm == "folder":
        path.mkdir()
    elif harm == "latin":
        path.write_bytes(b"kind: trust\nunsigned: allow # \xfc")
    elif harm == "unreadable":
        path.write_text("kind: trust\nunsigned: allow\n")
        path.chmod(0)
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
    elif harm == "misnamed":
        path.with_suffix(".yml").write_text("kind: trust\nunsigned: refuse\n")
    else:
        monkeypatch.setenv("MOE_LAB_TRUST", str(lab_folder / "none.yaml"))
    assert main(["module", "list"]) == 2
    assert "trust" in capsys.readouterr().err


def test_the_command_finds_the_labs_policy_or_the_named_one(lab_folder, monkeypatch, capsys, tmp_path):
    registry = lab_folder / "registry"
    put(registry, "snakes/python", SNAKES)
    put(registry, "snakes/viper", seed=2)
    monkeypatch.setenv("MOE_LAB_HOME", str(lab_folder))
    assert main(["module", "verify"]) == 0
    assert main(["module", "show", "snakes/viper"]) == 0
    assert capsys.readouterr().out.endswith("\nnot signed\n")
    path = lab_folder / "configs/trust.yaml"
    path.write_text(to_yaml(policy()))
    assert main(["module", "list"]) == 0
    python, viper = capsys.readouterr().out.splitlines()
    assert python.startswith("snakes/python@1 ")
    assert viper == f"snakes/viper@1   untrusted: {path} wants a signature by a key of snakes; there is none"
    assert main(["module", "verify"]) == 2
    assert capsys.readouterr().out.startswith("untrusted: snakes/viper@1: ")
    assert main(["module", "show", "snakes/viper"]) == 2
    assert capsys.readouterr().err.startswith("error: snakes/viper@1 is untrusted: ")
    other = tmp_path / "mine.yaml"
    other.write_text(to_yaml(policy("refuse", birds=(BIRDS.public,))))
    monkeypatch.setenv("MOE_LAB_TRUST", str(other))
    assert main(["module", "show", "snakes/python"]) == 2
    assert str(other) in capsys.readouterr().err


def test_the_schema_for_editors(capsys):
    assert main(["schema", "trust"]) == 0
    assert '"refuse"' in capsys.readouterr().out


PUBLIC = st.integers(1, 250).map(lambda number: owner_key(number).public)
POLICIES = st.builds(
    TrustPolicy,
    unsigned=st.sampled_from(["allow", "refuse"]),
    owners=st.dictionaries(st.text("ab0", min_size=1, max_size=4), st.lists(PUBLIC, max_size=3).map(tuple), max_size=4),
    revoked=st.lists(PUBLIC, max_size=3).map(tuple),
)


@settings(max_examples=60)
@given(POLICIES)
def test_a_policy_comes_back_as_it_was_written(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("policy") / "trust.yaml"
    path.write_text(to_yaml(made))
    assert load_policy(path) == load_config(path) == made


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["allow", "trust", KEY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["kind", "unsigned", "owners", "revoked", "Owners", ""])


@pytest.mark.slow
@settings(max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_hostile_policies_are_a_lab_error_or_a_policy(data):
    def read_twice():
        made = decode(TrustPolicy, {"kind": "trust", "unsigned": "allow", **data}, "x")
        assert decode(TrustPolicy, parse_yaml(to_yaml(made), "x"), "x") == made

    problem(read_twice)


@settings(max_examples=100)
@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"kind: trust\n{text}".encode(errors="replace"))
)
def test_hostile_files_are_a_lab_error_or_a_policy(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_bytes(data)
    problem(lambda: load_policy(path))


@settings(max_examples=200)
@given(st.text(max_size=80) | st.binary(min_size=32, max_size=32).map(lambda raw: f"ed25519:{raw.hex()}"))
def test_hostile_keys_are_a_lab_error_or_a_key(text):
    told = problem(lambda: parse_public(text))
    assert (told is None) == text.startswith("ed25519:") or (told and "nobody's key" in told)


BINDING = TrustPolicy(unsigned="allow", first_key_binds=True)


def test_the_keys_of_a_names_first_version_bind_the_later_ones_where_the_policy_says_so(root):
    put(root, "snakes/python", SNAKES)
    put(root, "snakes/python", BIRDS, seed=2)
    put(root, "snakes/python", seed=3)
    put(root, "snakes/python", SNAKES, seed=4)
    put(root, "snakes/other", BIRDS, seed=5)
    registry = Registry(root, trust=BINDING)
    for fine in ("snakes/python@1", "snakes/python@4", "snakes/python", "snakes/other"):
        assert registry.resolve(fine)
    for taken in ("snakes/python@2", "snakes/python@3"):
        assert refusal(registry, taken).startswith(
            f"{taken} is untrusted: the trust policy wants a signature by a key that signed snakes/python@1, "
            f"{SNAKES.public}."
        )
    assert {name for name, found in listed(registry).items() if found} == {"snakes/python@2", "snakes/python@3"}
    assert len(registry.verify().problems) == 2
    # Whoever it belongs to may change keys: a second one signs the first version too.
    registry.sign("snakes/python@1", BIRDS)
    assert Registry(root, trust=BINDING).resolve("snakes/python@2")
    assert Registry(root, trust=policy()).resolve("snakes/python@4")
    # A list of keys stands above what the first version says.
    assert "is not listed for snakes" in refusal(
        Registry(root, trust=TrustPolicy(unsigned="allow", first_key_binds=True, owners={"snakes": (SNAKES.public,)})),
        "snakes/python@2",
    )


def test_a_first_version_without_a_signature_binds_nobody_and_one_by_a_revoked_key_nobody_else(root):
    put(root, "free/part")
    put(root, "free/part", STRANGER, seed=2)
    put(root, "snakes/python", SNAKES, seed=3)
    put(root, "snakes/python", SNAKES, seed=4)
    registry = Registry(root, trust=TrustPolicy(unsigned="allow", first_key_binds=True, revoked=(SNAKES.public,)))
    assert registry.resolve("free/part@2")
    assert "every key that signed snakes/python@1 is revoked; list the keys of snakes" in refusal(
        registry, "snakes/python@2"
    )


def test_a_first_version_that_is_damaged_refuses_the_others_and_hides_nothing_else(root):
    put(root, "snakes/python", SNAKES)
    put(root, "snakes/python", SNAKES, seed=2)
    put(root, "birds/song", BIRDS)
    (root / "refs/snakes/python/1").write_text("damage")
    registry = Registry(root, trust=BINDING)
    assert "nobody knows whose key binds" in refusal(registry, "snakes/python@2")
    assert [name for name, found in listed(registry).items() if not found] == ["birds/song@1"]


def test_what_a_first_key_would_refuse_is_not_published(root):
    put(root, "snakes/python", SNAKES)
    before = sorted(root.rglob("*"))
    for key, signer in ((BIRDS, f"and {BIRDS.public} is none"), (None, "and no key is given")):
        with pytest.raises(LabError, match=f"cannot publish snakes/python: .* that signed snakes/python@1, {signer}"):
            Registry(root, trust=BINDING, key=key).publish("snakes", "python", None, fields(), tensors(2, 1), BLOCKS)
    assert sorted(root.rglob("*")) == before
    for key in (SNAKES, BIRDS):
        name = "python" if key is SNAKES else "new"
        done = Registry(root, trust=BINDING, key=key).publish("snakes", name, None, fields(), tensors(2, 1), BLOCKS)
        assert Registry(root, trust=BINDING).resolve(str(done.ref))


def test_an_owner_who_published_nothing_is_named_for_it_may_be_misspelt(root, monkeypatch, capsys, tmp_path):
    file = tmp_path / "trust.yaml"
    file.write_text(f"kind: trust\nunsigned: allow\nowners: {{snaks: ['{SNAKES.public}'], birds: []}}\n")
    assert Registry(root, trust=file).unknown_owners() == []
    put(root, "snakes/python")
    put(root, "birds/song", BIRDS, seed=2)
    monkeypatch.setenv("MOE_LAB_REGISTRY", str(root))
    monkeypatch.setenv("MOE_LAB_TRUST", str(file))
    for command, code in (("list", 0), ("verify", 2)):
        assert main(["module", command]) == code
        told = "".join(capsys.readouterr())
        assert f"note: {file} lists owner 'snaks', who has published nothing here. Did you mean \"snakes\"?" in told
        assert "lists owner 'birds'" not in told
