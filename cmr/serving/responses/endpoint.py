"""`POST /v1/responses`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cmr.serving.beginning import SessionHeader, Use, begin, said_in, streamed
from cmr.serving.described import ANSWERED, KEYED, replies
from cmr.serving.replies import gathered
from cmr.serving.responses.bodies import ResponseBody
from cmr.serving.responses.form import ResponseForm

router = APIRouter(prefix="/v1", responses=replies(*KEYED))


@router.post("/responses", responses=ANSWERED)
async def responses(
    asked: Use, request: Request, body: ResponseBody, x_session_id: SessionHeader = None
) -> Response:
    """Answer what is put in, in the memory of its session."""
    said = said_in(body.messages, body.offered)
    ids = partial(asked.service.prompts.of_messages, said.turns, tools=said.tools)
    begun = await begin(asked, request, body, x_session_id, body.max_output_tokens, ids, said)
    form = ResponseForm(asked.service.name, begun.session, begun.job, body)
    if body.stream:
        return streamed(form.stream(begun.events))
    text, ended = await gathered(begun.events)
    return JSONResponse(form.whole(text, ended))
