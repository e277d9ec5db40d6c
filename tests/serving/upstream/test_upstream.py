"""Another server answers and the memory is kept here: real ones, and one that does it wrong."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import cmr
from cmr.serving.engines.job import Failed, Job, Piece, Said
from cmr.serving.engines.making import Making
from cmr.serving.engines.turns import Turns
from cmr.serving.engines.upstream.client import Upstream
from cmr.serving.engines.upstream.engine import UpstreamEngine
from cmr.serving.keeping import Keeping
from cmr.serving.prompts import Prompts
from cmr.serving.refusals import refusal_of
from tests.serving.served import ATTACHED, Served, broken_off, served, until
from tests.serving.upstream.fake import Fake, delta, faking, goes_on, says, sends

KEY = "sk-of-the-other-server"
TOLD = "The gate code of {} is {}. "
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with faking() as found:
        yield found


@pytest.fixture(scope="module")
def server(tiny: tuple[Any, Any], fake: Fake) -> Iterator[Served]:
    upstream = Upstream(fake.url, "theirs", KEY, silence=60.0, extra={"top_k": 5})
    # A copy: others attach to the model meanwhile.
    with served(copy.deepcopy(tiny[0]), tiny[1], name="theirs", upstream=upstream) as found:
        yield found


@pytest.fixture
def impatient(tiny: tuple[Any, Any], fake: Fake) -> Iterator[Served]:
    """One that waits for a second: on a busy machine the other one may well take that long."""
    upstream = Upstream(fake.url, "theirs", KEY, silence=1.0)
    with served(copy.deepcopy(tiny[0]), tiny[1], name="theirs", upstream=upstream) as found:
        yield found


@pytest.fixture(autouse=True)
def asked_anew(fake: Fake) -> None:
    fake.plan = says("Fine.")
    fake.left.clear()
    for noted in (fake.bodies, fake.headers, fake.paths):
        noted.clear()


def recalled(reply: httpx2.Response) -> str:
    return "".join(passage["text"] for passage in reply.json()["memory"]["recalled"])


def test_another_server_of_ours_answers_and_the_memory_is_kept_here(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny
    with served(copy.deepcopy(model), tokenizer) as other:
        upstream = Upstream(str(other.http.base_url), "tiny", extra={"memory": "off"})
        with served(*tiny, folder=tmp_path / "kept", upstream=upstream) as server:
            alone = other.say(TOLD.format("anna", 4712), None, memory="off").json()
            first = server.say(TOLD.format("anna", 4712)).json()
            assert first["choices"] == alone["choices"] and first["usage"] == alone["usage"]
            assert first["memory"] == {"session": "anna", "mode": "read_write",
                                       "remembered": True, "recalled": []}  # fmt: skip
            said = first["choices"][0]["message"]["content"]
            assert said and TOLD.format("anna", 4712).strip() in server.stored()
            assert said.strip() in server.stored()
            # What was recalled is in the prompt of the other server, and so in what it says.
            again = server.say("Which code?", memory="read")
            assert "4712" in recalled(again)
            assert again.json()["usage"]["prompt_tokens"] > len("4712Which code?")
            assert recalled(server.say("Which code?", "ben")) == ""
            text = server.client.completions.create(
                model="tiny", prompt="Once upon", max_tokens=6, user="carl", stream=True
            )
            said = "".join(chunk.choices[0].text for chunk in text)
            assert said and server.stored("carl") == f"Once upon{said}"
            found = server.http.post("/v1/memory/sessions/anna/search", json={"query": "code"})
            assert "4712" in found.text
            assert other.memory.sessions == [] and other.memory.tokens == 0
            stored = server.stored()
        with served(*tiny, folder=tmp_path / "kept", upstream=upstream) as server:
            assert server.stored() == stored and stored


def test_it_is_asked_for_what_the_client_wants(server: Served, fake: Fake) -> None:
    server.say(TOLD.format("anna", 4712) * 3)
    rules = {"role": "system", "content": "Be brief."}
    messages = [rules, {"role": "user", "content": "Which code?"}]
    fields = {"stop": ["\n"], "temperature": 0.5, "top_p": 0.9, "seed": 3, "tools": [TOOL]}
    reply = server.say("", "anna", messages=messages, max_tokens=7, **fields)
    body = fake.bodies[-1]
    assert body["messages"][0] == rules and body["tools"] == [TOOL]
    asked = body["messages"][1]["content"]
    assert asked.endswith("\nWhich code?") and len(body["messages"]) == 2
    for passage in reply.json()["memory"]["recalled"]:
        assert " ".join(passage["text"].split()) in asked
    assert "4712" in recalled(reply) and "4712" in asked
    for name, value in (fields | {"max_tokens": 7, "model": "theirs", "top_k": 5}).items():
        assert body[name] == value, name
    assert fake.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert fake.paths[-1] == "/v1/chat/completions"
    # What the other server counts is what is told.
    assert reply.json()["usage"]["prompt_tokens"] == 11


def test_nothing_is_recalled_where_it_is_not_wanted_or_sent_anyway(
    server: Served, fake: Fake
) -> None:
    said = [{"role": "user", "content": TOLD.format("anna", 4712)}]
    reply = server.say("", messages=said).json()
    said += [reply["choices"][0]["message"], {"role": "user", "content": "Which code?"}]
    for fields in ({"messages": said}, {"blocks": 0, "memory": "read"}, {"memory": "off"}):
        fake.bodies.clear()
        found = server.say("Which code?", **fields)
        assert recalled(found) == "" and found.status_code == 200
        assert fake.bodies[0]["messages"][-1] == {"role": "user", "content": "Which code?"}
    assert server.stored().count("4712") == 1
    assert server.say("Hello", "nobody", memory="read").status_code == 404
    server.say("Only for now.", None, ephemeral=True)
    server.idle()
    assert server.memory.sessions == ["local/anna"]


def test_calls_come_in_pieces_and_are_told_whole(server: Served, fake: Fake) -> None:
    def piece(**function: str) -> dict[str, Any]:
        return delta(tool_calls=[{"index": 0, "function": function}])

    begun = {"index": 0, "id": "call_7", "type": "function", "function": {"name": "weather"}}
    fake.plan = sends(delta(tool_calls=[begun]), piece(arguments='{"town": '),
                      piece(arguments='"Ulm"}'), delta("tool_calls"), "[DONE]")  # fmt: skip
    wanted = {"id": "call_7", "type": "function",
              "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}  # fmt: skip
    (choice,) = server.say("Weather?", tools=[TOOL]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["tool_calls"] == [wanted]
    told, fake.plan = fake.plan, sends(delta("tool_calls", tool_calls=[wanted, wanted]))
    (choice_of_two,) = server.say("Weather?", tools=[TOOL]).json()["choices"]
    assert choice_of_two["message"]["tool_calls"] == [wanted, wanted]
    fake.plan = told
    with server.client.chat.completions.create(
        model="theirs", messages=[{"role": "user", "content": "Weather?"}], user="anna",
        tools=[TOOL], stream=True,
    ) as chunks:  # fmt: skip
        found = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert [one.function.arguments for one in found if one.function] == ['{"town": "Ulm"}']
    # The result of the call is handed on as it came.
    said = [{"role": "user", "content": "Weather?"}, choice["message"],
            {"role": "tool", "tool_call_id": "call_7", "content": "Rain"}]  # fmt: skip
    fake.plan = says("It rains.", usage=None)
    reply = server.say("", messages=said, tools=[TOOL]).json()
    assert fake.bodies[-1]["messages"][1]["tool_calls"] == [wanted]
    assert fake.bodies[-1]["messages"][2] == said[2]
    # A server that does not count leaves that to the tokenizer of the memory's model.
    assert reply["usage"]["completion_tokens"] == len("It rains.")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_in_front_of_a_stop_word_whatever_the_other_server_does(
    server: Served, fake: Fake, stream: bool
) -> None:
    def ends_behind(handler: Any) -> None:
        """Leaves the word in the answer, as transformers' own server does."""
        says("Anna, ", "#", "E", "ND", usage=(11, 5))(handler)

    server.say("Hello.")
    for plan, tokens in ((ends_behind, 5), (goes_on, None)):
        fake.plan = plan
        stops = ["#END"] if plan is ends_behind else [" 3"]
        wanted = "Anna, " if plan is ends_behind else " 0 1 2"
        before, began = server.stored(), time.monotonic()
        reply = server.say("Whose turn?", stop=stops, stream=stream)
        if stream:
            events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
            choices = [one for event in events for one in json.loads(event)["choices"]]
            said = "".join(one["delta"].get("content") or "" for one in choices)
            reason = choices[-1]["finish_reason"]
        else:
            body = reply.json()
            said = body["choices"][0]["message"]["content"]
            reason = body["choices"][0]["finish_reason"]
            assert body["usage"]["completion_tokens"] == (tokens or len(wanted))
        assert (said, reason) == (wanted, "stop")
        # It is not asked for more than the next word, and what was not told is not remembered.
        assert time.monotonic() - began < 15
        assert server.stored().removeprefix(before).rstrip().endswith(wanted.rstrip())


def status(code: int, **headers: str) -> Any:
    def plan(handler: Any) -> None:
        handler.begin(code, "application/json", **headers)
        secret = f'{{"error": "{handler.headers["authorization"]} {handler.fake.bodies[-1]}"}}'
        handler.wfile.write(secret.replace('"', "'").encode())

    return plan


WRONG = {
    "fails": (status(500), 502, "status 500"),
    "knows_no_key": (status(401), 502, "status 401"),
    "refuses": (status(400), 502, "status 400"),
    "leads_away": (status(302, location="http://127.0.0.1:1/"), 502, "status 302"),
    "busy": (status(429, retry_after="7"), 429, "too much"),
    "no_stream": (status(200), 502, "form"),
    "no_json": (sends("{"), 502, "form"),
    "no_object": (sends([1]), 502, "form"),
    "no_choices": (sends({"object": "x"}), 502, "form"),
    "no_text": (sends(delta(content=7)), 502, "form"),
    "endless_line": (sends("x" * (2 << 20)), 502, "form"),
    "wrong_usage": (sends({"choices": [], "usage": {"prompt_tokens": -1}}), 502, "form"),
    "error_inside": (sends(delta(content="Fi"), {"error": {"message": "no"}}), 502, "failed"),
    "breaks_off": (sends(delta(content="Fi")), 502, "broke off"),
    "no_reason": (sends(delta(content="Fi"), "[DONE]"), 502, "broke off"),
    "says_nothing": (lambda _: None, 502, "cannot be reached"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", WRONG)
def test_what_another_server_does_wrong_is_told_and_nothing_stored(
    server: Served, fake: Fake, caplog: pytest.LogCaptureFixture, how: str, stream: bool
) -> None:
    server.say(TOLD.format("anna", 4712) * 2)
    caplog.set_level(logging.DEBUG)
    plan, code, word = WRONG[how]
    require_told(server, fake, caplog, plan, code, word, stream)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_falls_silent_is_told_and_nothing_stored(
    impatient: Served, fake: Fake, caplog: pytest.LogCaptureFixture, begins: bool, stream: bool
) -> None:
    over = threading.Event()

    def silent(handler: Any) -> None:
        if begins:
            handler.begin()
            handler.data(delta(content="Fi"))
        over.wait(60)

    impatient.memory.session("local/anna", create=True)
    caplog.set_level(logging.DEBUG)
    try:
        require_told(impatient, fake, caplog, silent, 504, "too long", stream)
    finally:
        over.set()


def require_told(
    server: Served,
    fake: Fake,
    caplog: pytest.LogCaptureFixture,
    plan: Any,
    code: int,
    word: str,
    stream: bool,
) -> None:
    """What the other server does wrong by `plan` is told by a status and a word, nothing stored."""
    before, fake.plan = server.stored(), plan
    reply = server.say("Which code is secret?", stream=stream)
    if stream:
        events = [line[6:] for line in reply.text.splitlines() if line]
        assert reply.status_code == 200 and events[-1] != "[DONE]"
        error = json.loads(events[-1])["error"]
    else:
        assert reply.status_code == code
        error = reply.json()["error"]
    assert word in error["message"] and error["code"].startswith("upstream")
    if code == 429 and not stream:
        assert reply.headers["retry-after"] == "7"
    seen = reply.text + "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("cmr")
    )
    assert KEY not in seen and "secret" not in seen and "4712" not in seen
    assert server.stored() == before
    if word != "too long":
        fake.plan = says("Fine.")
        assert server.say("Again.").status_code == 200


def test_no_server_at_all(tiny: tuple[Any, Any]) -> None:
    with served(*tiny, upstream=Upstream("http://127.0.0.1:9", "none")) as server:
        assert server.say("Hello").status_code == 502
        assert server.memory.tokens == 0


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_is_not_asked_for_any_more(server: Served, fake: Fake, stream: bool) -> None:
    fake.plan, before = goes_on, broken_off(server)
    body = {"messages": [{"role": "user", "content": "Go on"}], "user": "anna", "stream": stream}
    if stream:
        with server.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert any('" 1"' in line for line in reply.iter_lines())
    else:
        with pytest.raises(httpx2.ReadTimeout):
            server.http.post("/v1/chat/completions", json=body, timeout=0.5)
    began = time.monotonic()
    server.idle()
    # It notices at its next word that nobody listens.
    assert fake.left.wait(5) and time.monotonic() - began < 5
    assert server.stored().startswith("Go on 0 1") and " 99" not in server.stored()
    assert broken_off(server) == before + 1


def test_each_session_in_turn_and_others_at_once(server: Served, fake: Fake) -> None:
    open_, most, lock, under_way = threading.Event(), 0, threading.Lock(), 0

    def waits(handler: Any) -> None:
        nonlocal most, under_way
        with lock:
            under_way += 1
            most = max(most, under_way)
        handler.begin()
        handler.data(delta(content="Fi"))
        open_.wait(0.3)
        handler.data(delta("stop"))
        with lock:
            under_way -= 1

    fake.plan = waits
    threads = [
        threading.Thread(target=server.say, args=(f"{number} comes", session))
        for session in ("anna", "ben", "carl")
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3 and len(fake.bodies) == 9
    for session in ("anna", "ben", "carl"):
        assert all(f"{number} comes" in server.stored(session) for number in range(3))


def test_a_server_that_ends_gives_up_what_takes_too_long(tiny: tuple[Any, Any], fake: Fake) -> None:
    model, tokenizer = tiny
    told: list[Any] = []
    said = {"role": "user", "content": "Hello"}
    fake.plan = goes_on
    with cmr.attach(model, tokenizer=tokenizer, **ATTACHED) as memory:
        engine = UpstreamEngine(
            Upstream(fake.url, "x"),
            memory,
            Making(memory, None, Keeping(memory, None, None, 1.0)),
            Prompts(tokenizer, 99, None),
            turns=Turns(8),
        )
        for name in ("a/anna", "a/anna"):
            engine.submit(Job((1,), name, said=Said((said,), (said,))), told.append)
        until(lambda: any(isinstance(one, Piece) for one in told))
        began = time.monotonic()
        engine.close(0.1)
        assert time.monotonic() - began < 5 and not engine.alive and fake.left.wait(5)
        # What was said until then is kept, as where a client leaves.
        blocks = memory.inspect("a/anna")
        assert "".join(block.text or "" for block in blocks).startswith("Hello 0")
    failed = [one for one in told if isinstance(one, Failed)]
    assert [refusal_of(one.error).status for one in failed] == [503, 503]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"url": "127.0.0.1:8001"}, "address"),
        ({"url": "ftp://x/v1"}, "address"),
        ({"url": "http://anna:pw@x/v1"}, "without a name"),
        ({"url": "http://x/v1?key=1"}, "without a name"),
        ({"url": "http://x:y/"}, "address"),
        ({"model": ""}, "name of a model"),
        ({"key": "zwölf\n"}, "ASCII"),
        ({"silence": 0.0}, "seconds"),
        ({"extra": {"stream": False}}, "stream"),
    ],
)
def test_what_is_no_server_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(cmr.ConfigError, match=told) as error:
        Upstream(**{"url": "http://127.0.0.1:8001", "model": "m", **given})
    assert "pw" not in str(error.value) and "zwölf" not in str(error.value)


def test_an_address_is_taken_as_clients_take_it() -> None:
    for url in ("http://x", "http://x/", "http://x/v1", "http://x/v1/"):
        assert Upstream(url, "m").url == "http://x/v1"
    assert Upstream("https://x/api/openai/", "m").url == "https://x/api/openai"
    assert KEY not in repr(Upstream("http://x", "m", KEY))


def test_told_in_one_request_known_to_the_next_one_of_that_session(
    smollm2: tuple[Any, Any],
) -> None:
    """On the real small model, which answers as another server."""
    model, tokenizer = smollm2
    with served(copy.deepcopy(model), tokenizer, attached={}) as other:
        upstream = Upstream(str(other.http.base_url), "tiny", extra={"memory": "off"})
        with served(*smollm2, attached={}, upstream=upstream) as server:
            server.say("The meeting with Mr Harlow is on Thursday at the town hall.", "anna")
            question = "On which day is the meeting with Mr Harlow?"
            found = {
                name: server.say(question, name, max_tokens=16).json() for name in ("anna", "ben")
            }
    text = {name: one["choices"][0]["message"]["content"] for name, one in found.items()}
    assert "Thursday" in text["anna"] and "Thursday" not in text["ben"], text
    assert found["ben"]["memory"]["recalled"] == []
