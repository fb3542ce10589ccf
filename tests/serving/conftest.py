"""The tiny registry that composed models are tested with."""

from __future__ import annotations

from tests.compose.conftest import published  # noqa: F401
