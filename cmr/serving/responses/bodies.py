"""What clients of `/v1/responses` may send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from cmr.serving.bodies import (
    Body,
    Called,
    Function,
    Message,
    Remembered,
    Text,
    Tool,
    ToolCall,
    require_whole,
)

CallId = Annotated[str, Field(min_length=1, max_length=128)]
ItemId = Annotated[str, Field(max_length=128)]


class InputPart(Body):
    """A piece of what is said; of the model's own the client may send what else came with it."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class InputMessage(Body):
    """A message, also as an earlier reply brought it."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(min_length=1)]
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def message(self) -> Message:
        """As the chat's endpoint takes it."""
        text = self.content
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        return Message(role=self.role, content=text)


class InputCall(Called):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: CallId
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def call(self) -> ToolCall:
        """As the chat's endpoint takes it."""
        function = Called(name=self.name, arguments=self.arguments)
        return ToolCall(id=self.call_id, type="function", function=function)


class CallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def message(self) -> Message:
        """As the chat's endpoint takes it."""
        return Message(role="tool", content=self.output, tool_call_id=self.call_id)


def _kind(item: Any) -> Any:
    """Which item it is, said or shown; a message need not say so."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class ResponseTool(Function):
    """A tool that the model may call."""

    type: Literal["function"]

    def to_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = self.model_dump(exclude={"type"})
        return Tool(type="function", function=Function(**function)).to_dict()


class TextFormat(Body):
    """In which form the answer comes: as text."""

    format: dict[Literal["type"], Literal["text"]] | None = None


class ResponseBody(Remembered):
    """`POST /v1/responses`."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    # Fields that clients send with the one value that is served.
    parallel_tool_calls: Literal[True] | None = None
    text: TextFormat | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None

    @field_validator("previous_response_id")
    @classmethod
    def _no_reply_before(cls, given: str | None) -> None:
        if given is not None:
            raise ValueError(
                "no reply is kept by its id; name the session, in X-Session-Id or user, and send "
                "what is new, or the whole conversation in input"
            )

    @field_validator("metadata")
    @classmethod
    def _plain(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for name, value in (metadata or {}).items():
            require_whole(name)
            require_whole(value)
        return metadata

    @model_validator(mode="after")
    def _stored_as_said(self) -> ResponseBody:
        if self.store is not None and self.store != self.stored:
            raise ValueError(
                "store: what is stored is the memory: true goes with memory 'read_write', false "
                "with 'read', 'off' or ephemeral"
            )
        return self

    @property
    def stored(self) -> bool:
        """Whether what is said may outlive the server."""
        return self.memory == "read_write" and not self.ephemeral

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates take them."""
        given = self.tools if self.tool_choice != "none" else None
        return [tool.to_dict() for tool in given or ()]

    @property
    def messages(self) -> list[Message]:
        """The conversation as the chat's endpoint takes it; calls of one answer are one message."""
        found: list[Message] = []
        if self.instructions is not None:
            found.append(Message(role="system", content=self.instructions))
        if isinstance(self.input, str):
            return [*found, Message(role="user", content=self.input)]
        for item in self.input:
            if not isinstance(item, InputCall):
                found.append(item.message())
                continue
            last = found.pop() if found and found[-1].role == "assistant" else None
            calls = [*((last and last.tool_calls) or ()), item.call()]
            text = None if last is None else last.content
            found.append(Message(role="assistant", content=text, tool_calls=calls))
        return found
