"""What a router or a shrinking strategy says about itself, read without importing its code."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moe_lab.config import Spec

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Implementation = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.py:[A-Za-z_][A-Za-z0-9_]*$",
        description="the file beside the manifest and the class in it, such as router.py:TopK",
    ),
]
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]


class RouterManifest(Spec):
    """`routers/<name>/router.yaml`."""

    name: Annotated[Name, Field(description="the folder's name")]
    summary: Annotated[Line, Field(description="one line for listings")]
    implementation: Implementation
    owner: Annotated[Line, Field(description="who answers questions about it")]
    licence: Annotated[Line, Field(description="SPDX identifier, such as Apache-2.0")]


class StrategyManifest(RouterManifest):
    """`distill/<name>/strategy.yaml`: the same fields, for a class that shrinks modules."""


MANIFESTS: dict[str, type[Spec]] = {"routers": RouterManifest, "distill": StrategyManifest}
