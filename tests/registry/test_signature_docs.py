"""What the pages say about signatures is so: the worked example is computed anew, and the policy is one."""

import re
from pathlib import Path

from moe_lab.config import decode, parse_yaml
from moe_lab.registry.signatures import split_path
from moe_lab.registry.trust import TrustPolicy
from tests.registry import rfc8032

DOCS = Path(__file__).parents[2] / "docs"
GOLDEN = Path(__file__).with_name("golden") / "format-1"


def block(page: str, kind: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)
    assert len(found) == 1
    return found[0]


def test_the_worked_example_by_the_page_and_rfc_8032_alone():
    """No code of ours: the five parts from the path, the text from the page, the equation from the RFC."""
    path, dump, content = (part.strip() for part in block("registry-format.md", "signature").split("\n\n"))
    _, owner, name, version, file = path.split("/")
    manifest, key = file.split(".")
    (template,) = re.findall(r"^```text\n(moe-lab registry signature 1\n.*?)^```", page(), re.S | re.M)
    parts = {"<owner>": owner, "<name>": name, "<version>": version, "<manifest>": manifest}
    text = template
    for placeholder, part in parts.items():
        text = text.replace(placeholder, part)
    assert bytes.fromhex(dump) == text.encode("ascii")
    assert rfc8032.verifies(bytes.fromhex(key), text.encode("ascii"), bytes.fromhex(content))
    assert f"{content}\n" == (GOLDEN / path).read_text()


def page() -> str:
    return (DOCS / "registry-format.md").read_text(encoding="utf-8")


def test_the_worked_example_by_our_code_and_the_private_key_on_the_page():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path, dump, content = (part.strip() for part in block("registry-format.md", "signature").split("\n\n"))
    (seed,) = re.findall(r'private half is the 32 bytes "(.{32})"', page())
    private = Ed25519PrivateKey.from_private_bytes(seed.encode())
    claim = split_path(path)
    assert claim is not None
    assert claim.key == f"ed25519:{private.public_key().public_bytes_raw().hex()}"
    assert claim.message == bytes.fromhex(dump)
    assert private.sign(claim.message).hex() == content


def test_the_example_policy_is_one():
    policy = decode(TrustPolicy, parse_yaml(block("trust.md", "yaml"), "trust.md"), "trust.md")
    assert policy.unsigned == "allow"
    assert len(policy.keys_of("snakes")) == 2
