"""What `moe-lab module` says and does about signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.key import ask_passphrase
from moe_lab.errors import LabError

if TYPE_CHECKING:
    from moe_lab.registry import Manifest, OwnerKey, Registry

KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="The key that signs; else the one MOE_LAB_KEY names.")
]


def read_key(name: str | None) -> OwnerKey:
    """The private key of that name, or the one that the environment names."""
    from moe_lab.registry.keys import load_key

    if name is None:
        raise LabError("no key to sign with; name one with --key or MOE_LAB_KEY, or make one: moe-lab key new NAME")
    return load_key(name, ask_passphrase)


def sign(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version].")],
    key: KeyOption = None,
) -> None:
    """Sign a published version, the newest if none is named. It may have several signatures.

    Example:
      moe-lab module sign snakes/python@1 --key snakes
    """
    from moe_lab.registry import Registry

    lab = current_lab(ctx)
    owner_key = read_key(key or lab.key_name)
    made, created = Registry(lab.registry_path, create=False).sign(ref, owner_key)
    print(f"{'signed' if created else 'already signed'} {made.ref}\n  {made.digest}\n  by {made.key}")


def print_signatures(registry: Registry, manifest: Manifest) -> None:
    """Who signed an artifact, under the name it was asked for by or, asked for by digest, under any."""
    signatures = registry.signatures(manifest.label)
    for claim, problem in signatures:
        print(f"signed as {claim.ref} by {claim.key}" + (f": NOT VALID: {problem}" if problem else ""))
    if not signatures:
        print("not signed")
