"""`/v1/responses`, as OpenAI's client asks it and as programs may write it themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from cmr.serving.engines.upstream.client import Upstream
from tests.serving.served import Served, served
from tests.serving.upstream.fake import Fake, delta, faking, says, sends

TOLD = "The gate code of anna is 4712. "
ANNA = {"X-Session-Id": "anna"}
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"},
             "strict": False}  # fmt: skip


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with faking() as found:
        yield found


@pytest.fixture(scope="module")
def other(tiny: tuple[Any, Any], fake: Fake) -> Iterator[Served]:
    """A server that answers what the fake one says."""
    with served(copy.deepcopy(tiny[0]), tiny[1], upstream=Upstream(fake.url, "tiny")) as found:
        yield found


def respond(server: Served, given: Any, **fields: Any) -> Response:
    found: Response = server.client.responses.create(
        model="tiny", input=given, **{"extra_headers": ANNA, "max_output_tokens": 4, **fields}
    )
    return found


def test_told_in_one_known_to_the_next_and_to_the_chat(server: Served) -> None:
    first = respond(server, TOLD * 3)
    assert first.object == "response" and first.id.startswith("resp_")
    assert first.status == "incomplete" and first.incomplete_details is not None
    assert first.incomplete_details.reason == "max_output_tokens"
    # The last token is no part of it yet: nothing was computed behind it.
    assert first.output_text[:2] in server.stored() and TOLD in server.stored()
    assert first.usage is not None and first.usage.output_tokens == 4
    again = respond(server, [{"role": "user", "content": "Which code?"}])
    assert again.model_extra is not None and again.model_extra["memory"]["remembered"] is True
    assert "4712" in str(again.model_extra["memory"]["recalled"])
    assert "4712" in str(server.say("Which code?").json()["memory"]["recalled"])
    ben = respond(server, "Which code?", extra_headers={"X-Session-Id": "ben"})
    assert ben.model_extra is not None and ben.model_extra["memory"]["recalled"] == []


def test_it_says_what_the_chat_says(server: Served) -> None:
    off: dict[str, Any] = {"memory": "off"}
    chat = server.say("", None, messages=[{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "Go on"}], max_tokens=12, **off)  # fmt: skip
    text = chat.json()["choices"][0]["message"]["content"]
    parts = [{"type": "message", "role": "user",
              "content": [{"type": "input_text", "text": "Go on"}]}]  # fmt: skip
    for given in ("Go on", parts):
        found = respond(server, given, instructions="Be brief.", max_output_tokens=12,
                        extra_headers={}, extra_body=off, metadata={"a": "b"})  # fmt: skip
        assert found.output_text == text and found.instructions == "Be brief."
        assert found.store is False and found.metadata == {"a": "b"}
        assert found.usage is not None
        assert found.usage.total_tokens == chat.json()["usage"]["total_tokens"]


def test_a_stream_tells_it_event_by_event(server: Served) -> None:
    wanted: dict[str, Any] = {"extra_headers": {}, "extra_body": {"memory": "off"}}
    whole = respond(server, "Go on", max_output_tokens=12, **wanted)
    events = list(
        server.client.responses.create(
            model="tiny", input="Go on", max_output_tokens=12, stream=True, **wanted
        )
    )
    kinds = [event.type for event in events]
    inner = [kind for kind in kinds if kind != "response.output_text.delta"]
    assert inner == ["response.created", "response.in_progress", "response.output_item.added",
                     "response.content_part.added", "response.output_text.done",
                     "response.content_part.done", "response.output_item.done",
                     "response.incomplete"]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text and kinds.count("response.output_text.delta") > 1
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.output_text == text
    assert last.response.usage == whole.usage and last.response.id == events[0].response.id


def test_calls_are_items_and_come_back_as_such(other: Served, fake: Fake) -> None:
    call = {"index": 0, "id": "call_7", "type": "function",
            "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}  # fmt: skip
    fake.plan = sends(delta(content="Let me see."), delta("tool_calls", tool_calls=[call]))
    said: list[Any] = [{"role": "user", "content": "Weather?"}]
    found = respond(other, said, tools=[TOOL])
    assert found.status == "completed" and found.output_text == "Let me see."
    assert [item.type for item in found.output] == ["message", "function_call"]
    called: Any = found.output[1]
    assert (called.call_id, called.arguments) == ("call_7", '{"town": "Ulm"}')
    events = list(
        other.client.responses.create(
            model="tiny", input=said, tools=[TOOL], stream=True, extra_headers=ANNA
        )
    )
    done = [one for one in events if one.type == "response.function_call_arguments.done"]
    assert [one.arguments for one in done] == [called.arguments]
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert added == [0, 1]
    # What came is sent again as it came, with what the call gave.
    said += [item.model_dump(exclude_none=True) for item in found.output]
    said += [{"type": "function_call_output", "call_id": "call_7", "output": "Rain"}]
    fake.plan = says("It rains.")
    fake.bodies.clear()
    assert respond(other, said, tools=[TOOL]).output_text == "It rains."
    user, assistant, tool = fake.bodies[0]["messages"]
    assert assistant["content"] == "Let me see." and user["content"] == "Weather?"
    assert assistant["tool_calls"][0]["function"] == call["function"]
    assert tool == {"role": "tool", "content": "Rain", "tool_call_id": "call_7"}
    assert fake.bodies[0]["tools"][0]["function"]["name"] == "weather"


def test_the_clients_own_stream_comes_to_its_end(other: Served, fake: Fake) -> None:
    fake.plan = says("It ", "rains.")
    with other.client.responses.stream(
        model="tiny", input="Weather?", extra_headers=ANNA
    ) as stream:
        found = stream.get_final_response()
    assert found.output_text == "It rains." and found.status == "completed"


def test_a_failure_is_told_as_the_last_event(other: Served, fake: Fake) -> None:
    other.memory.clear()
    fake.plan = sends(delta(content="Fi"))
    events = list(
        other.client.responses.create(model="tiny", input="Hi", stream=True, extra_headers=ANNA)
    )
    last = events[-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert last.response.status == "failed" and "broke off" in last.response.error.message
    with pytest.raises(openai.InternalServerError) as error:
        respond(other, "Hi")
    assert error.value.status_code == 502
    assert other.memory.tokens == 0


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"previous_response_id": "resp_1"}, "name the session"),
        ({"store": False}, "store"),
        ({"store": True, "memory": "read"}, "store"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "text"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "role"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"tools": [{**TOOL, "strict": True}]}, "strict"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"max_output_tokens": 65}, "64"),
        ({"user": "ben"}, "two sessions"),
    ],
)
def test_what_it_does_not_do_is_refused(server: Served, fields: dict[str, Any], word: str) -> None:
    body = {"input": "Hello", **fields}
    reply = server.http.post("/v1/responses", json=body, headers=ANNA)
    assert reply.status_code == 400 and word in reply.json()["error"]["message"], reply.text
    assert server.memory.sessions == []


def test_storing_is_said_by_either_word(server: Served) -> None:
    assert respond(server, TOLD, store=True).store is True
    stored = server.stored()
    found = respond(server, "Which code?", store=False, extra_body={"memory": "read"})
    assert found.store is False and server.stored() == stored
    server.client.responses.create(
        model="tiny", input="Go on", max_output_tokens=2, store=False,
        extra_body={"ephemeral": True},
    )  # fmt: skip
    server.idle()
    assert server.memory.sessions == ["local/anna"]
    with pytest.raises(openai.BadRequestError, match="whose memory"):
        server.client.responses.create(model="tiny", input="Go on")
