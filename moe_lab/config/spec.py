"""The base of every typed spec that people write as YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, strict, keyword-only record: an unknown key or a wrong type is an error, never a guess."""

    # No infinities or NaN: they cannot be written as JSON, so they could not be fingerprinted.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
