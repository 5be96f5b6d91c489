# SPDX-License-Identifier: Apache-2.0
"""Requests as they may be: every field bounded, unknown fields refused."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm.serve.errors import ApiError

Stop = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_BIASES = 300


class TextPart(BaseModel):
    """A piece of a message's content; only text is served."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, max_length=64)
    refusal: None = None

    def plain(self) -> dict[str, str]:
        """Return {"role", "content"} with the text joined."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a stream reports beside text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(BaseModel):
    """The form of the answer; only free text is served."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class Common(BaseModel):
    """Fields of both kinds of request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=256)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=100_000)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    n: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: str | None = Field(None, max_length=256)
    max_tokens: int | None = Field(None, ge=1)

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        # JSON has one kind of number: 1 may stand for 1.0 (strict mode allows that) and 0.0 for 0.
        if isinstance(data, dict):
            for name in ("frequency_penalty", "presence_penalty"):
                if isinstance(data.get(name), float) and data[name] == 0:
                    data = {**data, name: 0}
        return data


class ChatRequest(Common):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None

    def limit(self) -> int | None:
        """Return the number of tokens asked for, by its new or its old name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Common):
    """Body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1)]
    )
    logprobs: int | None = Field(None, ge=0, le=1)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or several, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [one for one in self.prompt if isinstance(one, int)]
        return [ids] if ids else [one for one in self.prompt if not isinstance(one, int)]


Body = TypeVar("Body", bound=Common)


def parse(kind: type[Body], raw: bytes) -> Body:
    """Read a request's body.

    Raises:
        ApiError: 400, naming the first field that is wrong. The value itself is not repeated.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid_json")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ascii(".".join(str(part) for part in first["loc"][:6]))[1:-1]
        message = "is not a field of this request" if first["type"] == "extra_forbidden" else ""
        shown = f"{place[:200]}: {message or first['msg']}"
        raise ApiError(400, shown, param=place[:200], code=first["type"]) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
