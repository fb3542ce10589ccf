"""What clients get: OpenAI's answers, with the routing and the receipt of each text under `moe_lab`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from moe_lab.data import Tokenizer
from moe_lab.generation.requests import Said, Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What all parts of one answer say.

    Attributes:
        object: what OpenAI calls this kind of answer.
        created: seconds since 1970.
    """

    id: str
    object: str
    created: int
    model: str

    def answer(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A whole answer, or one event of a stream."""
        return dataclasses.asdict(self) | {"choices": choices} | ({} if usage is None else {"usage": usage})


def usage(prompt_tokens: int, texts: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """Tokens of a request, and what they cost."""
    written = sum(map(len, texts))
    receipts = [step.receipt for steps in texts for step in steps if step.receipt is not None]
    reused = sum(steps[0].reused for steps in texts if steps)
    return {
        "prompt_tokens": prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": reused},
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
        "moe_lab": {
            "multiply_adds": sum(receipt.multiply_adds for receipt in receipts),
            "receipts": [receipt.as_json() for receipt in receipts],
        },
    }


def choice(
    index: int, steps: Sequence[Step], tokenizer: Tokenizer, alternatives: int | None, echo: str | None = None
) -> dict[str, Any]:
    """One text, or the part of it that some steps wrote; `echo` is the prompt, to be put in front."""
    text = "".join(step.text for step in steps)
    said = [step.said for step in steps]
    if echo is not None:
        text, said = echo + text, [*(one for step in steps for one in step.prompt), *said]
    made: dict[str, Any] = {
        "index": index,
        "text": text,
        "finish_reason": steps[-1].end if steps else None,
        "logprobs": None if alternatives is None else logprobs(said, tokenizer, alternatives),
    }
    return made | _routing(steps)


def turn(
    index: int, steps: Sequence[Step], tokenizer: Tokenizer, alternatives: int | None, part: str = "message"
) -> dict[str, Any]:
    """One turn of a conversation, or with `part` delta what some steps add to it; the first says whose turn it is."""
    said: dict[str, Any] = {"content": "".join(step.text for step in steps)}
    if part == "message":
        said = {"role": "assistant", **said, "refusal": None}
    told = None if alternatives is None else {"content": turn_logprobs(steps, tokenizer, alternatives), "refusal": None}
    made = {"index": index, part: said, "finish_reason": steps[-1].end if steps else None, "logprobs": told}
    return made | _routing(steps)


def turn_logprobs(steps: Sequence[Step], tokenizer: Tokenizer, alternatives: int) -> list[dict[str, Any]]:
    """Of each token its text, its bytes and its log-probability, and the likeliest likewise."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = _name(token, tokenizer)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return [
        one(step.said.token, step.said.logprob)
        | {"top_logprobs": [one(*pair) for pair in step.said.likeliest[:alternatives]]}
        for step in steps
    ]


def _routing(steps: Sequence[Step]) -> dict[str, Any]:
    routing = [
        {"text": step.text, "modules": dict(step.modules), "multiply_adds": step.multiply_adds} for step in steps
    ]
    return {"moe_lab": {"routing": routing}}


def _name(token: int, tokenizer: Tokenizer) -> str:
    text = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else f"token_id:{token}"


def logprobs(said: Sequence[Said], tokenizer: Tokenizer, alternatives: int) -> dict[str, Any]:
    """Of each token its name, its log-probability, and the likeliest with theirs.

    A name is the token's text; where that is no text of its own, `token_id:N`.
    """
    tokens, offsets, at = [_name(one.token, tokenizer) for one in said], [], 0
    for one in said:
        offsets.append(at)
        at += len(tokenizer.decode([one.token]))
    tops = []
    for one in said:
        top: dict[str, float] = {}
        for token, value in one.likeliest[:alternatives]:
            top.setdefault(_name(token, tokenizer), value)
        tops.append(top)
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in said],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
