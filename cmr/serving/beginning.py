"""How every answer begins: whose session it is for, how long it may be, and the job of it."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from starlette.responses import StreamingResponse

from cmr.serving.answer import Answer
from cmr.serving.bodies import SESSION, SESSION_SAID, Message, Remembered
from cmr.serving.engines.job import Ended, Job, Piece, Said
from cmr.serving.keys import Caller
from cmr.serving.refusals import Refusal
from cmr.serving.replies import told
from cmr.serving.service import Asked, Service, allowed

Use = Annotated[Asked, Depends(allowed("use"))]
SessionHeader = Annotated[str | None, Header(alias="X-Session-Id")]


@dataclass(frozen=True)
class Begun:
    """An answer on its way: for which session, as the client calls it, the job, what is told."""

    session: str | None
    job: Job
    events: AsyncIterator[Piece | Ended]


async def begin(
    asked: Asked,
    request: Request,
    body: Remembered,
    header: str | None,
    wanted: int | None,
    prompt: Callable[[int, bool], tuple[int, ...]],
    said: Said,
) -> Begun:
    """Hand what is wanted to the engine.

    Args:
        asked: whose request it is.
        request: the same, as it came.
        body: what is wanted.
        header: the session by the header.
        wanted: tokens of the answer, at most; None: as the server has it.
        prompt: gives its ids, by how many tokens may come and whether without memory.
        said: what the ids are made of.

    Raises:
        Refusal: it is not served.
    """
    service, length = asked.service, _length(asked.service, wanted)
    require_model(service, body.model)
    session = _session(body, header)
    ids = await asyncio.get_running_loop().run_in_executor(
        service.encoding, prompt, length, body.memory == "off"
    )
    job = _job(asked, body, session, ids, length, said)
    deadline, gone = service.settings.deadline, request.is_disconnected
    answer = Answer(service.engine, job, deadline, gone, service.watch.answer)
    # Also where the client leaves before the first event is asked for.
    asked.after.callback(answer.cancel)
    return Begun(session, job, told(answer.events(), bool(said.tools)))


def said_in(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Said:
    """A conversation as engines take it, with the tools that may be called."""
    return Said(
        messages=tuple(message.model_dump(exclude_none=True) for message in messages),
        turns=tuple(message.to_dict() for message in messages),
        tools=tuple(tools),
    )


def streamed(events: AsyncIterator[str]) -> StreamingResponse:
    """A reply of server-sent events."""
    # Proxies that gather a reply before they pass it on would make a stream of none.
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def require_model(service: Service, name: str | None) -> None:
    """Raises `Refusal` for another model than the one that there is; None: that one."""
    if name not in (None, service.name):
        raise Refusal(404, "model_not_found", f"model: {service.name!r} expected, as this server "
                                              f"has no other, got {name[:200]!r}")  # fmt: skip


def _length(service: Service, wanted: int | None) -> int:
    most = service.settings.max_tokens
    if wanted is not None and wanted > most:
        raise Refusal(400, "max_tokens", f"max_tokens: at most {most} expected, got {wanted}")
    return most if wanted is None else wanted


def _session(body: Remembered, header: str | None) -> str | None:
    """The id of the session that is meant; raises `Refusal` where that is not said, or twice."""
    if header is not None and not re.fullmatch(SESSION, header):
        raise Refusal(400, "session", f"X-Session-Id: {SESSION_SAID}")
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
    body: Remembered,
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
