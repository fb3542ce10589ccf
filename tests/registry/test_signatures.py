"""Signatures: bound to owner, name, version and every byte; whatever is changed or moved no longer holds."""

import random
import re
import shutil
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_lab.cli import main
from moe_lab.errors import LabError
from moe_lab.registry import ArtifactRef, LocalStore, OwnerKey, Registry, Signature
from moe_lab.registry.signatures import BYTES, check_file, split_path
from tests.registry import rfc8032
from tests.registry.scenario import BLOCKS, fields, files, owner_key, tensors

SNAKES, OTHER = owner_key(1), owner_key(2)
POLICY = f"""
kind: trust
unsigned: refuse
owners:
  team: ["{SNAKES.public}"]
  rivals: ["{OTHER.public}"]
"""


@pytest.fixture
def lab(lab_folder, monkeypatch):
    """A lab that demands signatures, with one signed artifact."""
    Registry(lab_folder / "registry", key=SNAKES).publish("team", "part", "1", fields(), tensors(1, 1), BLOCKS)
    (lab_folder / "configs/trust.yaml").write_text(POLICY)
    monkeypatch.setenv("MOE_LAB_HOME", str(lab_folder))
    return lab_folder


@pytest.fixture
def signature(lab) -> Path:
    (path,) = (path for path in (lab / "registry/signatures").rglob("*") if path.is_file())
    return path


def loads(lab) -> bool:
    """Whether a reader under the lab's policy is given the artifact."""
    try:
        Registry(lab / "registry", trust=lab / "configs/trust.yaml").tensors("team/part@1")
    except LabError:
        return False
    return True


def test_publishing_signs_and_the_bytes_are_those_of_the_format(lab, signature):
    digest = Registry(lab / "registry").resolve("team/part").digest
    public = SNAKES.public.removeprefix("ed25519:")
    assert signature.parent == lab / "registry/signatures/team/part/1"
    assert signature.name == f"{digest.removeprefix('sha256-')}.{public}"
    data = signature.read_bytes()
    assert len(data) == 129
    message = f"moe-lab registry signature 1\nteam\npart\n1\n{digest}\n".encode()
    # A second implementation, which shares no line with ours.
    assert rfc8032.verifies(bytes.fromhex(public), message, bytes.fromhex(data.decode().removesuffix("\n")))
    assert not rfc8032.verifies(bytes.fromhex(public), message + b"x", bytes.fromhex(data.decode()[:-1]))
    assert main(["module", "verify"]) == 0
    assert loads(lab)


@pytest.mark.slow
def test_every_byte_of_a_signature_counts(lab, signature, capsys):
    data = signature.read_bytes()
    reader = Registry(lab / "registry", trust=lab / "configs/trust.yaml")
    for position in range(len(data)):
        for change in (1, 32):
            harmed = data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]
            signature.write_bytes(harmed)
            with pytest.raises(LabError, match="team/part@1 is untrusted: "):
                reader.tensors("team/part@1")
        assert any(signature.name in problem for problem in reader.verify("team/part@1").problems), position
        if position % 8 == 0:
            assert main(["module", "verify"]) == 2
    signature.write_bytes(data)
    capsys.readouterr()
    assert main(["module", "verify"]) == 0
    assert loads(lab)


@pytest.mark.parametrize("change", [b"", b"\n", b"00", b"\r\n"], ids=["empty", "line end", "more", "crlf"])
def test_a_signature_has_one_length_and_one_spelling(lab, signature, change):
    data = signature.read_bytes()
    for harmed in (change, data + change, data[:-1] + change, data[:-1].upper() + b"\n"):
        if harmed != data:
            signature.write_bytes(harmed)
            assert not loads(lab)
            assert main(["module", "verify"]) == 2


def test_the_other_scalar_of_the_same_signature_is_refused(lab, signature):
    """S + L satisfies the equation too; RFC 8032 refuses it, or a signature would have several spellings."""
    data = bytes.fromhex(signature.read_text())
    other = data[:32] + (int.from_bytes(data[32:], "little") + rfc8032.L).to_bytes(32, "little")
    signature.write_text(f"{other.hex()}\n")
    assert not loads(lab)
    assert main(["module", "verify"]) == 2


@pytest.mark.slow
def test_any_changed_byte_of_anything_fails_the_real_command(lab, signature, moe_lab):
    """Sampled bytes of blobs, manifest and reference; the last of each file in a process of its own."""
    chance, registry = random.Random(0), lab / "registry"
    stored = files(registry)
    for path, data in stored.items():
        for position in {chance.randrange(len(data)) for _ in range(3)}:
            (registry / path).write_bytes(
                data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :]
            )
            assert main(["module", "verify"]) == 2
            assert not loads(lab)
        if path.startswith(("manifests", "refs", "signatures")):
            done = moe_lab("module", "verify", cwd=lab)
            assert done.returncode == 2
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
        (registry / path).write_bytes(data)
    assert moe_lab("module", "verify", cwd=lab).returncode == 0


@pytest.mark.slow
def test_any_changed_digit_of_the_file_name_fails(lab, signature, capsys):
    """The name holds the manifest's digest and the public key: neither can be exchanged."""
    name = signature.name
    for position in range(0, len(name), 3):
        other = "0" if name[position] != "0" else "1"
        moved = signature.with_name(name[:position] + other + name[position + 1 :])
        signature.rename(moved)
        assert not loads(lab)
        assert main(["module", "verify"]) == 2
        assert moved.name in capsys.readouterr().out
        moved.rename(signature)
    assert loads(lab)


@pytest.mark.parametrize(
    "target",
    [("team", "part", "2"), ("team", "other", "1"), ("rivals", "part", "1"), ("team", "part", "1.0")],
    ids=["version", "name", "owner", "spelling"],
)
def test_a_signature_moved_to_another_place_says_nothing_there(lab, signature, target):
    """Even with the very same content published there."""
    registry = lab / "registry"
    owner, name, version = target
    Registry(registry).publish(owner, name, version, fields(), tensors(1, 1), BLOCKS)
    copy = registry / "signatures" / owner / name / version / signature.name
    copy.parent.mkdir(parents=True)
    shutil.copy(signature, copy)
    trusting = Registry(registry, trust=lab / "configs/trust.yaml")
    with pytest.raises(LabError, match=rf"^{owner}/{name}@{version} is untrusted: "):
        trusting.resolve(f"{owner}/{name}@{version}")
    (problem,) = Registry(registry).verify().problems
    assert "is not valid" in problem
    assert str(copy) in problem
    assert loads(lab)


def test_a_signature_of_other_content_is_a_harmless_left_over(lab, signature):
    """As a publisher leaves behind who lost the race for a version."""
    registry = lab / "registry"
    lost = Signature(ArtifactRef("team", "part", "1"), "sha256-" + "5" * 64, SNAKES.public)
    (registry / lost.path).write_text(f"{SNAKES.sign(lost.message).hex()}\n")
    assert loads(lab)
    assert main(["module", "verify"]) == 0
    signature.unlink()
    assert not loads(lab)


@pytest.mark.parametrize(
    "stray",
    ["README", "team/part/1/notes.txt", "team/part/1/deep/x", "team/part/latest/x", "Team/part/1/x", "team/part/1/"],
)
def test_stray_files_are_reported_and_change_nothing(lab, signature, stray, capsys):
    path = lab / "registry/signatures" / (f"{stray}{signature.name.upper()}" if stray.endswith("/") else stray)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("stray")
    assert main(["module", "verify"]) == 2
    assert path.name in capsys.readouterr().out
    assert loads(lab)


@pytest.mark.parametrize("kind", ["link", "folder", "missing"])
def test_a_signature_must_be_a_plain_file(lab, signature, tmp_path, kind):
    signature.rename(tmp_path / "elsewhere")
    if kind == "link":
        signature.symlink_to(tmp_path / "elsewhere")
        assert main(["module", "verify"]) == 2
    elif kind == "folder":
        signature.mkdir()
    assert not loads(lab)


def test_a_signature_that_everybody_can_make_is_none(lab, signature):
    """By the key 0100..00, the neutral element, this one holds for every text: R = A and S = 0 satisfy the equation."""
    public, forged = b"\x01" + bytes(31), b"\x01" + bytes(63)
    assert rfc8032.verifies(public, b"any text", forged)
    path = signature.with_name(f"{signature.name.partition('.')[0]}.{public.hex()}")
    path.write_text(f"{forged.hex()}\n")
    (problem,) = Registry(lab / "registry").verify().problems
    assert path.name in problem
    assert loads(lab)


def test_signing_again_and_by_others(lab, signature, capsys, monkeypatch, tmp_path):
    from moe_lab.registry.keys import new_key

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = new_key("second")
    before = files(lab / "registry")
    for word in ("signed", "already signed"):
        assert main(["module", "sign", "team/part", "--key", "second"]) == 0
        assert capsys.readouterr().out.startswith(f"{word} team/part@1\n")
    after = files(lab / "registry")
    assert len(after) == len(before) + 1
    assert {path: after[path] for path in before} == before
    assert main(["module", "verify"]) == 0
    assert main(["module", "show", "team/part"]) == 0
    shown = capsys.readouterr().out
    assert f"signed as team/part@1 by {SNAKES.public}" in shown
    assert f"signed as team/part@1 by {made.public}" in shown
    monkeypatch.setenv("MOE_LAB_KEY", "second")
    assert main(["module", "sign", "team/part@1"]) == 0
    monkeypatch.delenv("MOE_LAB_KEY")
    for wrong, reason in (
        (["team/part"], "no key to sign with"),
        (["team/none", "--key", "second"], "the registry has no team/none"),
        (["team/part", "--key", "third"], r'no key "third" in .* Available: second'),
        ([Registry(lab / "registry").resolve("team/part").digest, "--key", "second"], "name the version"),
    ):
        assert main(["module", "sign", *wrong]) == 2
        assert re.search(reason, capsys.readouterr().err)


def test_signing_over_a_damaged_signature_is_refused(lab, signature):
    signature.write_bytes(b"0" * 128 + b"\n")
    registry = Registry(lab / "registry", key=SNAKES)
    with pytest.raises(LabError, match="is not valid.*Delete it"):
        registry.sign("team/part@1", SNAKES)
    with pytest.raises(LabError, match="is not valid"):
        registry.publish("team", "part", "1", fields(), tensors(1, 1), BLOCKS)
    signature.unlink()
    assert not registry.publish("team", "part", "1", fields(), tensors(1, 1), BLOCKS).created
    assert loads(lab)


def test_a_damaged_manifest_is_not_signed(lab, signature):
    manifest = next((lab / "registry/manifests").iterdir())
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(LabError, match="is damaged"):
        Registry(lab / "registry").sign("team/part@1", OTHER)
    assert len(list(signature.parent.iterdir())) == 1


def test_publishing_the_same_with_another_key_adds_its_signature(lab):
    again = Registry(lab / "registry", key=OTHER).publish("team", "part", None, fields(), tensors(1, 1), BLOCKS)
    assert (str(again.ref), again.created) == ("team/part@1", False)
    found = Registry(lab / "registry").signatures("team/part@1")
    assert {claim.key for claim, problem in found if problem is None} == {SNAKES.public, OTHER.public}


def test_no_network_is_used(lab, signature, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert loads(lab)
    assert main(["module", "verify"]) == 0
    signature.unlink()
    assert main(["module", "verify"]) == 2


NAMES = st.text("az09_-", max_size=6).map(lambda text: f"a{text}")
VERSIONS = st.lists(st.integers(0, 99), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
CLAIMS = st.builds(
    Signature,
    st.builds(ArtifactRef, NAMES, NAMES, VERSIONS),
    HEX.map(lambda text: f"sha256-{text}"),
    HEX.map(lambda text: f"ed25519:{text}"),
)


@settings(max_examples=100)
@given(CLAIMS)
def test_a_path_says_what_it_was_made_from(claim):
    assert split_path(claim.path) == claim
    assert rfc_lines(claim.message) == [claim.ref.owner, claim.ref.name, claim.ref.version, claim.digest]


def rfc_lines(message: bytes) -> list[str]:
    first, *lines, last = message.decode().split("\n")
    assert (first, last) == ("moe-lab registry signature 1", "")
    return lines


@pytest.mark.slow
@settings(max_examples=100)
@given(CLAIMS, CLAIMS)
def test_no_two_claims_share_a_message(one, other):
    same = (one.ref, one.digest) == (other.ref, other.digest)
    assert (one.message == other.message) == same


@pytest.mark.slow
@settings(max_examples=200)
@given(st.text(max_size=200) | st.builds("signatures/{}/{}/{}/{}".format, *[st.text(max_size=70)] * 4))
@example("signatures/team/part/1/" + "a" * 64 + "." + "b" * 64 + "\n")
@example("signatures/team/part/01/" + "a" * 64 + "." + "b" * 64)
def test_hostile_paths_are_no_signatures(path):
    claim = split_path(path)
    assert claim is None or claim.path == path


@pytest.mark.slow
@settings(max_examples=150)
@given(CLAIMS, st.binary(max_size=140) | HEX.map(lambda text: f"{text}{text}\n".encode()))
@example(
    Signature(ArtifactRef("a", "a", "0"), "sha256-" + "0" * 64, "ed25519:01" + "00" * 31), b"01" + b"0" * 126 + b"\n"
)
def test_hostile_bytes_are_a_lab_error(claim, data):
    class Store(LocalStore):
        def __init__(self):
            self.root = Path("registry")

        def get(self, key, limit):
            assert limit == BYTES
            return data[:limit]

    with pytest.raises(LabError) as caught:
        check_file(Store(), claim.path)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(CLAIMS, st.binary(min_size=32, max_size=32), st.integers(0, 1031))
def test_what_was_signed_verifies_and_with_any_bit_changed_does_not(claim, seed, bit):
    key = OwnerKey(Ed25519PrivateKey.from_private_bytes(seed))
    claim = Signature(claim.ref, claim.digest, key.public)
    data = bytearray(f"{key.sign(claim.message).hex()}\n".encode())

    class Store(LocalStore):
        def __init__(self):
            self.root = Path("registry")

        def get(self, key, limit):
            return bytes(data)

    assert check_file(Store(), claim.path) == BYTES
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LabError):
        check_file(Store(), claim.path)
