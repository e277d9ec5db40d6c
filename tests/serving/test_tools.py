"""Tools: the template tells the model of them, and its calls reach the client as calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmr.serving.engines.ticket import Ticket
from cmr.serving.tools import Calls
from tests.serving.served import TEMPLATE, Served

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a day",
            "parameters": {"type": "object", "properties": {"day": {"type": "string"}}},
        },
    }
]
KNOWING = (
    "{% if tools %}{% for tool in tools %}[system]{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>"
    '{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}</tool_call>'
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"day": "Mon – Tue"}}\n</tool_call>'


@pytest.fixture
def knowing(server: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The server, whose template knows tools."""
    monkeypatch.setattr(server.service.prompts._tokenizer, "chat_template", KNOWING)
    return server


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts pieces into the mouth of the model, in place of its first tokens."""

    def saying(*pieces: str) -> None:
        own, left = Ticket.say, list(pieces)

        def say(ticket: Ticket, text: str) -> None:
            while text and left:
                own(ticket, left.pop(0))

        monkeypatch.setattr(Ticket, "say", say)
        ended = Ticket.end
        monkeypatch.setattr(
            Ticket, "end", lambda t, e: ended(t, type(e)(**{**vars(e), "reason": "stop"}))
        )

    return saying


def asked(server: Served, **fields: Any) -> Any:
    return server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Which weather on Monday?"}],
        tools=TOOLS,
        max_tokens=4,
        user="anna",
        **fields,
    )


def test_a_call_is_told_as_one(knowing: Served, says: Any) -> None:
    says("I look. ", CALL)
    (choice,) = asked(knowing).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look. "
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"day": "Mon – Tue"}


def test_a_call_is_streamed_as_one(knowing: Served, says: Any) -> None:
    says("I look < ", CALL[:5], CALL[5:30], CALL[30:], " and ", CALL)
    chunks = list(asked(knowing, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "I look <  and " and chunks[-1].choices[0].finish_reason == "tool_calls"
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1] and len({call.id for call in calls}) == 2
    assert all(json.loads(call.function.arguments) == {"day": "Mon – Tue"} for call in calls)


def test_the_model_is_told_of_tools_calls_and_what_they_gave(knowing: Served) -> None:
    prompts, length = knowing.service.prompts, 8
    said = [{"role": "user", "content": "Hello"}]
    with_tools = prompts._tokenizer.decode(prompts.of_messages(said, length, False, TOOLS))
    assert "The weather of a day" in with_tools
    assert with_tools.endswith(prompts._tokenizer.decode(prompts.of_messages(said, length, False)))
    function = {"name": "weather", "arguments": '{"day": "Monday"}'}
    messages = [
        {"role": "user", "content": "Which weather?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
    ]  # fmt: skip
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        own = prompts._encoded
        patch.setattr(prompts, "_encoded", lambda text, *a, **k: written.append(text) or own(
            text, *a, **k))  # fmt: skip
        reply = knowing.http.post("/v1/chat/completions", headers={"x-session-id": "anna"}, json={
            "messages": messages, "tools": TOOLS, "max_tokens": 4})  # fmt: skip
    assert reply.status_code == 200, reply.text
    assert '<tool_call>{"name": "weather", "arguments": {"day": "Monday"}}' in written[0]
    assert "[tool]It rains." in written[0]


def test_offered_tools_do_not_become_memory(knowing: Served) -> None:
    for _ in range(2):
        asked(knowing)
        knowing.idle()
    stored = knowing.stored()
    assert "Which weather on Monday?" in stored
    assert "The weather of a day" not in stored and "properties" not in stored


def test_tools_that_nobody_would_hear_of_are_refused(server: Served) -> None:
    assert server.service.prompts._tokenizer.chat_template == TEMPLATE
    reply = server.say("Hello", tools=TOOLS)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "tools"
    assert "chat template" in reply.json()["error"]["message"]
    assert server.say("Hello", tools=TOOLS, tool_choice="none").status_code == 200


def test_what_is_no_tool_is_refused_by_name(knowing: Served) -> None:
    (tool,) = TOOLS
    half = {"type": "function", "function": {"name": "x", "parameters": {"a": "\ud800"}}}
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"a": deep}
    sunk = {"type": "function", "function": {"name": "x", "parameters": deep}}
    call = {"id": "1", "type": "function", "function": {"name": "x", "arguments": "[1]"}}
    asks = {"role": "user", "content": "Hello"}
    for fields, told in (
        ({"tools": [{**tool, "type": "oracle"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x", "strict": True}}]}, "strict"),
        ({"tools": [half]}, "half a character"),
        ({"tools": []}, "tools"),
        ({"tools": [sunk]}, "32 levels"),
        ({"tools": [tool], "tool_choice": "required"}, "tool_choice"),
        ({"messages": [asks, {"role": "tool", "content": "no id"}]}, "tool_call_id"),
        ({"messages": [asks, {"role": "assistant", "content": None}]}, "content"),
        ({"messages": [{**asks, "tool_calls": [call]}]}, "JSON object"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
    ):
        text = json.dumps(fields if "messages" in fields else {**fields, "messages": [asks]})
        reply = knowing.http.post("/v1/chat/completions", content=text, headers={
            "x-session-id": "anna", "content-type": "application/json"})  # fmt: skip
        assert reply.status_code == 400 and told in reply.text, (fields, reply.text)
    assert knowing.memory.sessions == []


@pytest.mark.parametrize("width", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "names"),
    [
        (f"a {CALL} b{CALL}", "a  b", ["weather", "weather"]),
        ('<tool_call>{"name": "now"}', "", ["now"]),
        ("1 < 2 <tool <tool_cal", "1 < 2 <tool <tool_cal", []),
        ("<tool_call>no JSON</tool_call> x", "<tool_call>no JSON</tool_call> x", []),
        ('<tool_call>{"name": 4}</tool_call>', '<tool_call>{"name": 4}</tool_call>', []),
        ("<tool_call>[]", "<tool_call>[]", []),
        ('<tool_call>{"name": "a b"}', '<tool_call>{"name": "a b"}', []),
        ('<tool_call>{"name": "a", "arguments": {"b": NaN}}',) * 2 + ([],),
        ('<tool_call>{"name": "a", "arguments": {"b": "\\ud800"}}', "", ["a"]),
        ("<tool_call>" + "[" * 9_999, "<tool_call>" + "[" * 9_999, []),
    ],
    ids=range(10),
)
def test_calls_are_found_however_the_text_is_cut(
    width: int, text: str, said: str, names: list[str]
) -> None:
    calls, shown = Calls(), ""
    for at in range(0, len(text), width):
        shown += calls.take(text[at : at + width])
    assert shown + calls.rest() == said
    json.dumps(calls.found, ensure_ascii=False).encode()
    assert [call["function"]["name"] for call in calls.found] == names
