"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cmr.serving.beginning import Begun, SessionHeader, Use, begin, require_model, said_in, streamed
from cmr.serving.bodies import ChatBody, TextBody, Wanted
from cmr.serving.described import ANSWERED, KEYED, replies
from cmr.serving.engines.job import Said
from cmr.serving.replies import Form, gathered
from cmr.serving.service import Asked, Service

router = APIRouter(prefix="/v1", responses=replies(*KEYED))


@router.get("/models")
def models(asked: Use) -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [_model(asked.service)]}


@router.get("/models/{name:path}", responses=replies(404))
def model(asked: Use, name: str) -> dict[str, Any]:
    """What is known of the model."""
    require_model(asked.service, name)
    return _model(asked.service)


@router.post("/chat/completions", responses=ANSWERED)
async def chat(
    asked: Use, request: Request, body: ChatBody, x_session_id: SessionHeader = None
) -> Response:
    """Answer a conversation, in the memory of its session."""
    said = said_in(body.messages, body.offered)
    ids = partial(asked.service.prompts.of_messages, said.turns, tools=said.tools)
    begun = await begin(asked, request, body, x_session_id, body.length, ids, said)
    return await _answered(asked, body, begun)


@router.post("/completions", responses=ANSWERED)
async def completion(
    asked: Use, request: Request, body: TextBody, x_session_id: SessionHeader = None
) -> Response:
    """Go on with a text, in the memory of its session."""
    ids = partial(asked.service.prompts.of_text, body.prompt)
    said = Said(text=body.prompt)
    begun = await begin(asked, request, body, x_session_id, body.max_tokens, ids, said)
    return await _answered(asked, body, begun)


async def _answered(asked: Asked, body: Wanted, begun: Begun) -> Response:
    form = Form(isinstance(body, ChatBody), asked.service.name, begun.session, begun.job)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return streamed(form.stream(begun.events, usage))
    text, ended = await gathered(begun.events)
    return JSONResponse(form.whole(text, ended))


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.began, "owned_by": "cmr"}
