"""A text that is to be written, and what is said of it while it is."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.errors import LabError
from moe_lab.generation.receipts import Receipt
from moe_lab.generation.sampling import Sampling

Lane = Literal["interactive", "batch"]
End = Literal["stop", "length"]
"""Why a text ended: by a stop or the trunk's own end, or because it has `max_tokens` tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A text to write on.

    Attributes:
        prompt: a text, or the ids of its tokens; may be empty.
        sampling: how.
        price: nats per token that the dearest candidate must save; the composition's own if left out.
        without: modules that this text does without, `owner/name`.
        domain: told to routers that take it, as if somebody knew whose text it is.
        document_start: whether what stands in front of a document stands in front of the prompt, too; a conversation
            has marks of its own.
        lane: `interactive`, or `batch` for a text that nobody waits for: it takes what the others leave.
        score_prompt: also tell what the model says of the prompt's own tokens, with the first step.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    price: float | None = None
    without: tuple[str, ...] = ()
    domain: str | None = None
    document_start: bool = True
    score_prompt: bool = False
    lane: Lane = "interactive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """One token, and what the model said of it in front: before temperature and cuts."""

    token: int
    logprob: float
    """Nats."""
    likeliest: tuple[tuple[int, float], ...]
    """The likeliest tokens with theirs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One token that was written."""

    request: int
    """Number of the request, from `submit`."""
    said: Said
    text: str
    """What is certain to be the text's next part: whole characters, nothing that may begin a stop string."""
    modules: tuple[tuple[str, int], ...]
    """Modules that worked when the token was chosen, with the width in hidden units; none is the bare trunk."""
    multiply_adds: int
    """In the routed layers, for the token before, which chose this one; the router's own included."""
    end: End | None = None
    receipt: Receipt | None = None
    """Of the whole text; there at its end."""
    prompt: tuple[Said, ...] = ()
    """Where the request asks for it: the prompt's tokens, with the text's first step."""
    reused: int = 0
    """Tokens of the prompt that an earlier text had read already; told with the first step."""

    @property
    def token(self) -> int:
        return self.said.token


def read_prompt(model: ComposedModel, request: Request) -> np.ndarray:
    """int32 ids: what stands in front of a document, then the prompt. Ids may begin with it already.

    Raises:
        LabError: an id stands for no token, or there is nothing at all to read.
    """
    tokenizer, prompt = model.trunk.tokenizer, request.prompt
    if isinstance(prompt, str):
        return np.array([tokenizer.start_id, *tokenizer.encode(prompt)[0]], np.int32)
    known = model.trunk.spec.vocab_size - model.trunk.spec.vocab_padding
    for token in prompt:
        if not 0 <= token < known:
            raise LabError(f"the prompt has token {token}; tokens of this trunk are 0 to {known - 1}")
    if not request.document_start:
        if not prompt:
            raise LabError("the prompt is empty, and nothing stands in front of it; give at least one token")
        return np.array(prompt, np.int32)
    front = [] if prompt[:1] == (tokenizer.start_id,) else [tokenizer.start_id]
    return np.array([*front, *prompt], np.int32)


def said(token: Any, logprob: Any, likeliest_N: Any, likeliest_logprob_N: Any) -> Said:
    pairs = zip(likeliest_N.tolist(), likeliest_logprob_N.tolist(), strict=True)
    return Said(token=int(token), logprob=float(logprob), likeliest=tuple(pairs))
