"""What clients may send. A field that is not here is refused: none is accepted and ignored."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SESSION = r"^[A-Za-z0-9_@+-][A-Za-z0-9._@+:-]{0,127}$"
SESSION_SAID = "1 to 128 letters, digits and ._@+:- expected, no dot or colon first"
"""Ids of sessions, and what is said of others."""
TOOL_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
MOST_BLOCKS = 32
DEEP = 32
"""Levels of what a tool takes."""

_HALF = re.compile("[\ud800-\udfff]")

SessionId = Annotated[str, Field(pattern=SESSION)]
ToolName = Annotated[str, Field(pattern=TOOL_NAME)]
Text = Annotated[str, Field(min_length=1)]
Number = Annotated[int, Field(ge=0, lt=1 << 53)]


class Body(BaseModel):
    """What all bodies have in common."""

    # Strictly: the text "4" is no number, and neither is true.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="after")
    def _whole_characters(self) -> Body:
        for value in vars(self).values():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    require_whole(text)
        return self


def require_whole(text: str) -> None:
    """Raises ValueError for a text with half a character."""
    # JSON can write halves of characters, which no tokenizer takes.
    if _HALF.search(text):
        raise ValueError("a text holds half a character (a lone surrogate)")


def _require_plain(value: Any, deep: int = DEEP) -> None:
    """Raises ValueError for JSON with halves of characters, or deeper than templates write it."""
    if isinstance(value, str):
        require_whole(value)
    elif isinstance(value, (dict, list)):
        if not deep:
            raise ValueError(f"at most {DEEP} levels expected")
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _require_plain(inner, deep - 1)


class Part(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Function(Body):
    """What a tool does and takes."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    # Nothing holds the model to a schema.
    strict: Literal[False] | None = None

    @field_validator("parameters")
    @classmethod
    def _plain(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        _require_plain(parameters)
        return parameters


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    def to_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        return self.model_dump(exclude_none=True)


class Called(Body):
    """A function that was called, with its arguments as JSON."""

    name: ToolName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _an_object(cls, arguments: str) -> str:
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("a JSON object as text expected")
        _require_plain(found)
        return arguments


class ToolCall(Body):
    """A call that the model made, as a client sends it again."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"]
    function: Called

    def to_dict(self) -> dict[str, Any]:
        """As chat templates take it: with the arguments as an object."""
        arguments = json.loads(self.function.arguments)
        return {"type": "function", "function": {"name": self.function.name,
                                                 "arguments": arguments}}  # fmt: skip


class Message(Body):
    """One message of a conversation; of a tool what a call of it gave."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _of_its_role(self) -> Message:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls: only of an assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id: of a tool's message, and of no other")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content: a text expected")
        return self

    def to_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        text = self.content or ""
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        said: dict[str, Any] = {"role": role, "content": text}
        if self.tool_calls is not None:
            said["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            said["tool_call_id"] = self.tool_call_id
        return said


class StreamOptions(Body):
    """What a stream brings beside the answer."""

    include_usage: bool = False


class Remembered(Body):
    """What everything that is answered takes; see docs/serving.md."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Number | None = None
    stream: bool = False
    user: SessionId | None = None
    memory: Literal["off", "read", "read_write"] = "read_write"
    blocks: Annotated[int, Field(ge=0, le=MOST_BLOCKS)] | None = None
    ephemeral: bool = False

    @model_validator(mode="after")
    def _one_memory(self) -> Remembered:
        if self.memory == "off" and (self.blocks is not None or self.ephemeral):
            raise ValueError("memory 'off': neither blocks nor ephemeral go with it")
        if self.memory == "read" and self.ephemeral:
            raise ValueError("memory 'read': an ephemeral session has nothing to read")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts in front of which the answer ends."""
        return ()


class Wanted(Remembered):
    """What both kinds of completion take."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    # Fields that clients send with the one value that is served.
    n: Literal[1] = 1
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        given = [stop] if isinstance(stop, str) else stop or []
        if len(given) > 4 or not all(0 < len(text) <= 64 for text in given):
            raise ValueError("at most 4 texts of 1 to 64 characters expected")
        return stop

    @model_validator(mode="after")
    def _fits(self) -> Wanted:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only where stream is true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts in front of which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatBody(Wanted):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> ChatBody:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens: give it or max_completion_tokens, not both")
        return self

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates take them."""
        given = self.tools if self.tool_choice != "none" else None
        return [tool.to_dict() for tool in given or ()]

    @property
    def length(self) -> int | None:
        """Tokens of the answer, at most."""
        return self.max_completion_tokens or self.max_tokens


class TextBody(Wanted):
    """`POST /v1/completions`."""

    prompt: Text


# -- the memory's administration -------------------------------------------------------------------


class ForkBody(Body):
    """The copy's session."""

    to: SessionId


class RenameBody(ForkBody):
    """The session's new id."""


class MergeBody(Body):
    """The session that goes on."""

    into: SessionId


class SearchBody(Body):
    """A question."""

    query: Annotated[str, Field(min_length=1, max_length=16_384)]
    blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] | None = None


class ReadBody(Body):
    """A text, or a conversation of which what is new is read."""

    text: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def _one(self) -> ReadBody:
        if (self.text is None) == (self.messages is None):
            raise ValueError("text or messages, one of both, expected")
        return self


Blocks = Annotated[list[Number], Field(min_length=1, max_length=4096)]


class PinBody(Body):
    """Blocks by their numbers."""

    blocks: Blocks
    pinned: bool = True


class ForgetBody(Body):
    """Which blocks: those that fit all that is given."""

    blocks: Blocks | None = None
    text: Annotated[str, Field(min_length=1, max_length=16_384)] | None = None
    older_than: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _something(self) -> ForgetBody:
        if self.blocks is None and self.text is None and self.older_than is None:
            raise ValueError("blocks, text or older_than expected; DELETE ends the whole session")
        return self
