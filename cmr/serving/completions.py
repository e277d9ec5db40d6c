"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cmr.serving.answer import Answer
from cmr.serving.bodies import SESSION, ChatBody, TextBody, Wanted
from cmr.serving.described import KEYED, replies
from cmr.serving.engines.job import Ended, Event, Job, Said
from cmr.serving.keys import Caller
from cmr.serving.refusals import Refusal
from cmr.serving.replies import Form, gathered, told
from cmr.serving.service import Asked, Service, allowed

router = APIRouter(prefix="/v1", responses=replies(*KEYED))
ANSWERED = replies(404, 409, 504, 507, kind="text/event-stream")
Use = Annotated[Asked, Depends(allowed("use"))]
SessionHeader = Annotated[str | None, Header(alias="X-Session-Id")]


@router.get("/models")
def models(asked: Use) -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [_model(asked.service)]}


@router.get("/models/{name:path}", responses=replies(404))
def model(asked: Use, name: str) -> dict[str, Any]:
    """What is known of the model."""
    _require_model(asked.service, name)
    return _model(asked.service)


@router.post("/chat/completions", responses=ANSWERED)
async def chat(
    asked: Use, request: Request, body: ChatBody, x_session_id: SessionHeader = None
) -> Response:
    """Answer a conversation, in the memory of its session."""
    turns = [message.to_dict() for message in body.messages]
    ids = partial(asked.service.prompts.of_messages, turns, tools=body.offered)
    said = Said(
        messages=tuple(message.model_dump(exclude_none=True) for message in body.messages),
        turns=tuple(turns),
        tools=tuple(body.offered),
    )
    return await _answered(asked, request, body, x_session_id, body.length, ids, said)


@router.post("/completions", responses=ANSWERED)
async def completion(
    asked: Use, request: Request, body: TextBody, x_session_id: SessionHeader = None
) -> Response:
    """Go on with a text, in the memory of its session."""
    ids = partial(asked.service.prompts.of_text, body.prompt)
    said = Said(text=body.prompt)
    return await _answered(asked, request, body, x_session_id, body.max_tokens, ids, said)


async def _answered(
    asked: Asked,
    request: Request,
    body: Wanted,
    header: str | None,
    wanted: int | None,
    prompt: Callable[[int, bool], tuple[int, ...]],
    said: Said,
) -> Response:
    """The reply: `prompt` gives its ids, by how many tokens may come and whether without memory."""
    service, length = asked.service, _length(asked.service, wanted)
    _require_model(service, body.model)
    session = _session(body, header)
    ids = await asyncio.get_running_loop().run_in_executor(
        service.encoding, prompt, length, body.memory == "off"
    )
    job = _job(asked, body, session, ids, length, said)
    answer = Answer(service.engine, job, service.settings.deadline, request.is_disconnected)
    # Also where the client leaves before the first event is asked for.
    asked.after.callback(answer.cancel)
    form = Form(isinstance(body, ChatBody), service.name, session, job)
    events = told(_watched(service, answer.events()), bool(said.tools))
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        # Proxies that gather a reply before they pass it on would make a stream of none.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        stream = form.stream(events, usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    text, ended = await gathered(events)
    return JSONResponse(form.whole(text, ended))


async def _watched(service: Service, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    async for event in events:
        if isinstance(event, Ended):
            service.watch.answer(event)
        yield event


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.began, "owned_by": "cmr"}


def _require_model(service: Service, name: str | None) -> None:
    if name not in (None, service.name):
        raise Refusal(404, "model_not_found", f"this server has the model {service.name!r} alone")


def _length(service: Service, wanted: int | None) -> int:
    most = service.settings.max_tokens
    if wanted is not None and wanted > most:
        raise Refusal(400, "max_tokens", f"max_tokens: at most {most} expected, got {wanted}")
    return most if wanted is None else wanted


def _session(body: Wanted, header: str | None) -> str | None:
    """The id of the session that is meant; raises `Refusal` where that is not said, or twice."""
    if header is not None and not re.fullmatch(SESSION, header):
        raise Refusal(400, "session", "X-Session-Id: 1 to 128 letters, digits and ._@+:- expected, "
                                      "no dot or colon first")  # fmt: skip
    if None not in (header, body.user) and header != body.user:
        raise Refusal(400, "session", "X-Session-Id and user name two sessions")
    found = header or body.user
    if body.memory == "off":
        return None
    if found is None and not body.ephemeral:
        raise Refusal(
            400, "session_missing",
            "whose memory? Give the header X-Session-Id or the field user, or "
            "\"ephemeral\": true or \"memory\": \"off\"",
        )  # fmt: skip
    return found


def _job(
    asked: Asked,
    body: Wanted,
    session: str | None,
    ids: tuple[int, ...],
    length: int,
    said: Said,
) -> Job:
    once = session is None and body.memory != "off"
    return Job(
        ids=ids,
        session=_name(asked.caller, session) if body.memory != "off" else None,
        mode=body.memory,
        ephemeral=body.ephemeral,
        once=once,
        blocks=body.blocks,
        max_tokens=length,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stops=body.stops,
        said=said,
    )


def _name(caller: Caller, session: str | None) -> str:
    # A slash is in no id: what is made for one answer is never a session that somebody names.
    return caller.name(f"/{secrets.token_hex(16)}" if session is None else session)
