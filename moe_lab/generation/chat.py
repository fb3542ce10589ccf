"""Conversations as the prompts that a model was taught to answer: by the template that came with its trunk.

A template is a program of somebody else's, so it runs in jinja2's sandbox. What a person writes in a message stays
text: a message that holds a special token of the template's, such as the end of a turn, is refused.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import LoadedTrunk
from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import LabError, Refused, counted, printable
from moe_lab.generation.requests import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn: `role` is `system`, `user`, `assistant` or what else the template knows."""

    role: str
    content: str


def chat_request(model: ComposedModel, messages: Sequence[Message], **terms: Any) -> Request:
    """A request for the next turn of a conversation.

    Args:
        model: whose trunk came with a chat template.
        messages: the turns so far.
        terms: other fields of `Request`, such as `sampling` and `price`.

    Raises:
        Refused: the trunk came without a template.
        LabError: the template refuses the conversation, or a message holds one of its special tokens.
    """
    return Request(prompt=chat_prompt(model.trunk, messages), document_start=False, **terms)


def chat_prompt(trunk: LoadedTrunk, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids of a conversation, and of what the next turn of the assistant begins with. See `chat_request`."""
    tokenizer = trunk.tokenizer
    if trunk.chat_template is None or not isinstance(tokenizer, HFTokenizer):
        raise Refused(
            f"{trunk.part.ref} came without a chat template, so nobody knows how it was taught to converse; let it "
            "write on from a text (a completion), or import a trunk that was tuned for conversation"
        )
    for number, message in enumerate(messages, start=1):
        for special in tokenizer.special_tokens:
            if special in message.content:
                raise LabError(
                    f'message {number} holds "{special}", which the model reads as a mark of its own and not as text; '
                    "write it in another way"
                )
    return tokenizer.encode_marked(_render(trunk.chat_template, tokenizer, messages))


def _render(template: str, tokenizer: HFTokenizer, messages: Sequence[Message]) -> str:
    import jinja2

    if not messages:
        raise LabError("there is no message in the conversation; give at least one")
    marks = {"bos_token": tokenizer.text_of(tokenizer.start_id), "eos_token": tokenizer.text_of(tokenizer.eos_id)}
    try:
        rendered: str = compile_template(template).render(
            messages=[dataclasses.asdict(message) for message in messages], add_generation_prompt=True, **marks
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise LabError(
            f"the model's chat template does not take a conversation of {counted(len(messages), 'message')} with roles "
            f"{', '.join(message.role for message in messages)[:100]}: {printable(str(error))[:200]}"
        ) from None
    return rendered


@functools.lru_cache(maxsize=8)
def compile_template(template: str) -> Any:
    """A template with what transformers gives templates.

    Raises:
        jinja2.TemplateError: it is none.
    """
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
