"""Keys: one private file each, never overwritten, listed without their passphrases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from moe_lab.cli import main
from moe_lab.errors import LabError
from moe_lab.registry.keys import is_valid, key_names, keys_folder, load_key, new_key, parse_public, public_of
from tests.registry import rfc8032
from tests.registry.scenario import owner_key


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "moe-lab" / "keys"


def test_a_key_comes_back_and_signs(folder):
    made = new_key("snakes")
    again = load_key("snakes")
    assert again.public == made.public == public_of("snakes")
    public, signature = bytes.fromhex(made.public.removeprefix("ed25519:")), again.sign(b"text")
    assert signature == made.sign(b"text")
    Ed25519PublicKey.from_public_bytes(public).verify(signature, b"text")
    assert rfc8032.verifies(public, b"text", signature)
    assert is_valid(made.public, b"text", signature)
    assert not is_valid(made.public, b"other", signature)
    assert not is_valid(new_key("other").public, b"text", signature)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_can_read_a_key_whatever_the_umask(folder, mask):
    before = os.umask(mask)
    try:
        new_key("snakes")
    finally:
        os.umask(before)
    assert (folder / "snakes.pem").stat().st_mode & 0o7777 == 0o600
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == ["snakes.pem"]


def test_a_key_is_never_overwritten(folder):
    new_key("snakes")
    before = (folder / "snakes.pem").read_bytes()
    with pytest.raises(LabError, match=r"there is a key snakes already.*no key is overwritten"):
        new_key("snakes")
    assert (folder / "snakes.pem").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["snakes.pem"]


def test_a_passphrase_encrypts_and_is_needed_again(folder, monkeypatch):
    made = new_key("snakes", "open sesame")
    assert b"ENCRYPTED" in (folder / "snakes.pem").read_bytes()
    assert public_of("snakes") == made.public
    with pytest.raises(LabError, match="key snakes is encrypted; put its passphrase into MOE_LAB_KEY_PASSPHRASE"):
        load_key("snakes")
    with pytest.raises(LabError, match="cannot be read with this passphrase"):
        load_key("snakes", lambda: "wrong")
    assert load_key("snakes", lambda: "open sesame").public == made.public
    monkeypatch.setenv("MOE_LAB_KEY_PASSPHRASE", "open sesame")
    assert load_key("snakes").sign(b"x") == made.sign(b"x")


def test_a_key_file_is_plain_pem_for_other_programs(folder):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    made = new_key("snakes")
    private = load_pem_private_key((folder / "snakes.pem").read_bytes(), None)
    assert private.public_key().public_bytes_raw().hex() == made.public.removeprefix("ed25519:")


def test_a_key_of_another_program_is_listed_too(folder):
    folder.mkdir(parents=True)
    pem = owner_key(3).private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "foreign.pem").write_bytes(pem)
    (folder / "foreign.pem").chmod(0o600)
    assert key_names() == ["foreign"]
    assert public_of("foreign") == owner_key(3).public


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.chmod(0o640), "others may read or change .*chmod 600"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "cannot be read as a PEM file"),
        (lambda path: path.write_bytes(b""), "cannot be read as a PEM file"),
        (lambda path: path.unlink(), r'no key "snakes" in .* Available: none\.'),
        (lambda path: (path.unlink(), path.mkdir(mode=0o700)), "is not a plain file"),
        (
            lambda path: path.write_bytes(
                generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            ),
            "is not an Ed25519 key",
        ),
        (
            lambda path: path.write_bytes(
                path.read_bytes().replace(path.read_bytes()[12:84], owner_key(9).public.encode())
            ),
            r"says ed25519:.*, but its key is ed25519:",
        ),
    ],
)
def test_a_key_file_that_is_not_what_it_should_be(folder, harm, reason):
    new_key("snakes")
    harm(folder / "snakes.pem")
    with pytest.raises(LabError, match=reason) as caught:
        load_key("snakes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".hidden", "a..b", "-x", "a\n", "x" * 65, "é"])
def test_names_that_could_leave_the_folder_are_refused(folder, name):
    for use in (new_key, load_key):
        with pytest.raises(LabError, match="cannot name a key"):
            use(name)
    assert not folder.exists()


def test_the_folder_follows_the_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/config"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert keys_folder() == tmp_path / ".config/moe-lab/keys"


# The encodings of points of small order that libsodium refuses (ed25519_ref10.c, ge25519_has_small_order).
SMALL = [
    "00" * 32,
    "01" + "00" * 31,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("sign", [0, 128])
@pytest.mark.parametrize("text", SMALL)
def test_a_key_for_which_everybody_can_sign_is_refused(text, sign):
    data = bytearray.fromhex(text)
    data[31] |= sign
    with pytest.raises(LabError, match="is nobody's key"):
        parse_public(f"ed25519:{data.hex()}")


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:" + "A" * 64, "ed25519:" + "a" * 63, "rsa:" + "a" * 64, "a" * 64]
)
def test_other_texts_are_no_public_keys(text):
    with pytest.raises(LabError, match="is not a public key: it must be ed25519: and 64 lowercase hex digits"):
        parse_public(text)
    assert parse_public(owner_key(1).public) == owner_key(1).public


def test_the_command_makes_lists_and_shows(folder, capsys, monkeypatch):
    assert main(["key", "list"]) == 0
    assert "next: moe-lab key new NAME" in capsys.readouterr().out
    assert main(["key", "new", "snakes"]) == 0
    public = load_key("snakes").public
    assert capsys.readouterr().out.splitlines()[:2] == [f"made {folder / 'snakes.pem'}", public]
    monkeypatch.setenv("MOE_LAB_KEY_PASSPHRASE", "x")
    assert main(["key", "new", "lab"]) == 0
    monkeypatch.delenv("MOE_LAB_KEY_PASSPHRASE")
    capsys.readouterr()
    assert main(["key", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"lab     {public_of('lab')}", f"snakes  {public}"]
    assert main(["key", "show", "snakes"]) == 0
    assert capsys.readouterr().out == f"{public}\n"
    assert main(["key", "new", "snakes"]) == 2
    assert main(["key", "show", "snake"]) == 2
    assert 'no key "snake"' in capsys.readouterr().err


def test_no_terminal_no_prompt(folder):
    """An encrypted key in a job that nobody watches is an error, not a wait."""
    new_key("snakes", "x")
    code = "from moe_lab.cli.signing import read_key; read_key('snakes')"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    assert "key snakes is encrypted" in done.stderr
