"""Answers by the endpoints of OpenAI's clients, each from its own session's memory."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.serving.served import Served, broken_off, until

TOLD = "The gate code of {} is {}. "


def test_a_chat_is_remembered_and_recalled(server: Served) -> None:
    reply = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": TOLD.format("anna", "4712") * 4}],
        max_tokens=5,
        extra_headers={"X-Session-Id": "anna"},
    )
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage is not None and 0 < reply.usage.completion_tokens <= 5
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.model_extra is not None
    assert reply.model_extra["memory"]["session"] == "anna"
    server.idle()
    assert server.stored().startswith(TOLD.format("anna", "4712"))
    again = server.say("Which code?").json()["memory"]
    assert any("anna" in passage["text"] for passage in again["recalled"])
    other = server.say("Which code?", "ben").json()["memory"]
    assert other["recalled"] == [] and other["remembered"] is True


def test_a_stream_says_what_a_whole_reply_says(server: Served) -> None:
    wanted: dict[str, Any] = {"memory": "off", "max_tokens": 12}
    whole = server.say("Go on", None, **wanted).json()
    chunks = list(
        server.client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Go on"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"memory": "off"},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole["choices"][0]["message"]["content"] and text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole["choices"][0]["finish_reason"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump()["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_text_goes_on(server: Served) -> None:
    reply = server.client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=6, user="anna", extra_body={"blocks": 1}
    )
    assert reply.choices[0].text and reply.object == "text_completion"
    server.idle()
    assert server.stored().startswith("Once upon")
    with server.client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=6, user="ben", stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_the_model_has_a_name(server: Served) -> None:
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "cmr"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("another")
    assert server.say("Hello", model="another").status_code == 404


def test_without_a_session_it_is_refused_unless_nothing_is_to_be_remembered(
    server: Served,
) -> None:
    refused = server.say("Hello", None)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "session_missing"
    assert server.memory.sessions == []
    assert server.say("Hello", None, memory="off").json()["memory"]["mode"] == "off"
    once = server.say("Hello", None, ephemeral=True).json()["memory"]
    assert once["session"] is None and once["remembered"] is False
    server.idle()
    assert server.memory.sessions == [] and server.memory.tokens == 0


def test_reading_alone_stores_nothing(server: Served) -> None:
    assert server.say("Hello", "nobody", memory="read").status_code == 404
    server.say(TOLD.format("anna", "4712") * 6)
    server.idle()
    before = [(block.id, block.text) for block in server.memory.inspect()]
    # Longer than the window, so that something leaves it on the way.
    reply = server.say("Which code? " * 12, memory="read", max_tokens=20).json()
    assert reply["memory"]["recalled"]
    server.idle()
    assert [(block.id, block.text) for block in server.memory.inspect()] == before
    assert server.memory.sessions == ["local/anna"]


def test_blocks_say_how_much_is_recalled(server: Served) -> None:
    server.say(TOLD.format("anna", "4712") * 12)
    for blocks in (0, 1):
        reply = server.say("Which code?", memory="read", blocks=blocks).json()
        assert len(reply["memory"]["recalled"]) == blocks


def test_a_resent_history_is_stored_once(server: Served) -> None:
    said = [{"role": "user", "content": "My locker is the blue one at the door."}]
    for more in ("And it squeaks.", "Oil it."):
        reply = server.http.post(
            "/v1/chat/completions",
            json={"messages": said, "max_tokens": 4},
            headers={"x-session-id": "anna"},
        ).json()
        said = [*said, reply["choices"][0]["message"], {"role": "user", "content": more}]
        server.idle()
    assert server.stored().count("My locker") == 1


def test_seeds_settings_and_stops_are_each_requests_own(server: Served) -> None:
    def drawn(seed: int, **more: Any) -> str:
        fields = {"memory": "off", "max_tokens": 16, "temperature": 1.5, "seed": seed, **more}
        text: str = server.say("Go on", None, **fields).json()["choices"][0]["message"]["content"]
        return text

    alone = [drawn(seed) for seed in (1, 2, 3)]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(6) as pool:  # together, in one batch or two, with others between them
        together = [pool.submit(drawn, seed) for seed in (1, 2, 3)]
        greedy = pool.submit(drawn, 0, temperature=0)
        narrow = pool.submit(drawn, 9, top_p=1e-6)
        assert [found.result() for found in together] == alone
        # The likeliest token alone is left to draw from.
        assert narrow.result() == greedy.result()
    text = greedy.result()
    stop = text[2:4]
    cut = drawn(0, temperature=0, stop=[stop])
    assert cut == text[: text.index(stop)]


def test_sixteen_at_once_each_from_its_own_memory(server: Served) -> None:
    names = [f"user{number}" for number in range(16)]

    def tell(name: str) -> None:
        assert server.say(TOLD.format(name, name[::-1]) * 3, name).status_code == 200

    def ask(name: str) -> list[str]:
        reply = server.say("Which code?", name, max_tokens=20, memory="read").json()
        return [passage["text"] for passage in reply["memory"]["recalled"]]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(tell, names))
        server.idle()
        found = list(pool.map(ask, names))
    for name, texts in zip(names, found, strict=True):
        own = server.stored(name)
        assert name[::-1] in own and texts and all(text in own for text in texts)


def test_requests_of_a_session_are_answered_in_their_order(server: Served) -> None:
    texts = [f"{number} is this message's number" for number in range(6)]
    threads = [threading.Thread(target=server.say, args=(text,)) for text in texts]
    came = iter(range(1, len(texts) + 1))
    engine: Any = server.service.engine
    put, arrived = engine._turns.put, 0

    def counted(one: Any) -> None:
        nonlocal arrived
        put(one)
        arrived = next(came)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._turns, "put", counted)
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: arrived > number)
        for thread in threads:
            thread.join()
    server.idle()
    places = [server.stored().index(text) for text in texts]
    assert places == sorted(places)


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_is_not_worked_for(
    tiny: tuple[Any, Any], server: Served, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 64, "memory": "off",
            "temperature": 1.0, "seed": 1}  # fmt: skip
    # An answer that goes on for long, if somebody wants it.
    whole = server.http.post("/v1/chat/completions", json=body).json()
    assert whole["usage"]["completion_tokens"] == 64
    before = broken_off(server)
    steps, begun = 0, threading.Event()

    def slow(*_: Any) -> None:
        nonlocal steps
        steps += 1
        begun.set()
        time.sleep(0.05)

    handle = tiny[0].register_forward_hook(slow)
    try:
        if stream:
            wanted = {**body, "stream": True}
            with server.http.stream("POST", "/v1/chat/completions", json=wanted) as reply:
                pieces = (json.loads(line[6:]) for line in reply.iter_lines() if line)
                assert any(piece["choices"][0]["delta"].get("content") for piece in pieces)
        else:
            with pytest.raises(httpx2.ReadTimeout):
                server.http.post("/v1/chat/completions", json=body, timeout=0.2)
        assert begun.wait(20)
        server.idle()
    finally:
        handle.remove()
    assert steps < 40
    assert broken_off(server) == before + 1


def test_what_it_takes_is_described(server: Served) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/memory/sessions/{id}/forget", "/metrics"} <= set(paths)
