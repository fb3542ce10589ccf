"""What clients send: OpenAI's bodies, with `price`, `without` and `domain` beside.

What this server does not do is refused by name, never silently left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, StrictStr, ValidationError

from moe_lab.config.spec import Spec
from moe_lab.errors import LabError
from moe_lab.generation.chat import Message
from moe_lab.generation.requests import Lane, Request
from moe_lab.generation.sampling import ALTERNATIVES, Sampling

Ids = Annotated[list[NonNegativeInt], Field(min_length=1)]
MOST_STOPS = 16
MOST_PROMPTS = 64
MOST_MESSAGES = 1024


class StreamOptions(Spec):
    """Of a streamed answer."""

    include_usage: bool = False


class Body(Spec):
    """What all requests may say.

    Attributes:
        model: the one that is served, or left out.
        stream: server-sent events instead of one answer.
        price, without, domain, lane: terms of this request, as in `generation.requests.Request`.
        user: anything; it is not looked at.
    """

    model: StrictStr | None = None
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: NonNegativeInt = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_ids: list[NonNegativeInt] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = None
    user: StrictStr | None = None
    price: Annotated[float, Field(ge=0)] | None = None
    without: list[StrictStr] = []
    domain: StrictStr | None = None
    lane: Lane = "interactive"

    def requests_for(
        self, prompt: str | Sequence[int], *, max_tokens: int, document_start: bool = True, score_prompt: bool = False
    ) -> list[Request]:
        """One request for each choice; each has a seed of its own."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS:
            raise LabError(f"stop has {len(stops)} strings; {MOST_STOPS} at most")
        if self.logit_bias:
            raise LabError("logit_bias is not supported; leave it out")
        return [
            Request(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt),
                sampling=Sampling(
                    max_tokens=self.max_tokens or max_tokens,
                    temperature=1.0 if self.temperature is None else self.temperature,
                    top_k=self.top_k,
                    top_p=1.0 if self.top_p is None else self.top_p,
                    min_p=self.min_p,
                    seed=((self.seed or 0) + choice) % 2**32,
                    stop=tuple(stop for stop in stops if stop),
                    stop_ids=tuple(self.stop_ids),
                ),
                price=self.price,
                without=tuple(self.without),
                domain=self.domain,
                lane=self.lane,
                document_start=document_start,
                score_prompt=score_prompt,
            )
            for choice in range(self.n or 1)
        ]


class CompletionBody(Body):
    """`/v1/completions`.

    Attributes:
        prompt: one or more, as texts or as ids.
    """

    prompt: StrictStr | Ids | list[StrictStr] | list[Ids] = ""
    logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One by one."""
        prompt: Any = self.prompt
        many = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        if len(many) > MOST_PROMPTS:
            raise LabError(f"there are {len(many)} prompts; {MOST_PROMPTS} at most in one request")
        return many


class TextPart(Spec):
    """A part of a message; others, such as images, are not read here."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(Spec):
    """One turn.

    Attributes:
        name: who of several said it; it is not looked at.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart]
    name: StrictStr | None = None

    @property
    def message(self) -> Message:
        """As the template takes it; `developer` is what OpenAI calls `system` now."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class TextFormat(Spec):
    """The one form of an answer."""

    type: Literal["text"]


class ChatBody(Body):
    """`/v1/chat/completions`.

    Attributes:
        messages: the turns so far.
        max_completion_tokens: what `max_tokens` is called now.
        top_logprobs: with `logprobs`, how many of the likeliest tokens to tell at each place.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to tell; none if nothing is to be told."""
        return (self.top_logprobs or 0) if self.logprobs else None


Endpoint = Literal["/v1/completions", "/v1/chat/completions"]
"""Where texts are asked for."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class BatchBody(Spec):
    """`/v1/batches`.

    Attributes:
        input_file_id: from `/v1/files`.
        endpoint: where all lines of the file go.
        completion_window: OpenAI's only one; here a batch takes as long as it takes.
        metadata: anything; it is given back.
    """

    input_file_id: StrictStr
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class BatchLine(Spec):
    """A line of a batch file: a request under a name of the client's own."""

    custom_id: Annotated[StrictStr, Field(min_length=1)]
    method: Literal["POST"]
    url: StrictStr
    body: dict[str, Any]


AnySpec = TypeVar("AnySpec", bound=Spec)


def read_body(data: bytes, kind: type[AnySpec], what: str = "the body") -> AnySpec:
    """Decodes a body of this kind.

    Args:
        data: JSON.
        kind: what it is to be.
        what: it is called in messages.

    Raises:
        LabError: it is not JSON, or a field has the wrong type or value or is not known; one line that names it.
    """
    try:
        values = json.loads(data.decode(), parse_constant=functools.partial(_no_such_number, what))
    except UnicodeDecodeError as error:
        raise LabError(f"{what} is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise LabError(f"{what} is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise LabError(f"{what} is nested too deeply") from None
    except ValueError:  # a limit of Python's own
        raise LabError(f"{what} has a whole number of thousands of digits; send a smaller one") from None
    if not isinstance(values, dict):
        raise LabError(f"{what} must be a JSON object: {{...}}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else what
        if first["type"] == "extra_forbidden":
            raise LabError(f"{field} is no field of this server; leave it out") from None
        raise LabError(f"{field}: {first['msg'][:200]}, and it is {_shown(values.get(field))}") from None


def _no_such_number(what: str, name: str) -> None:
    raise LabError(f"{what} has {name}, which is no number of JSON")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
