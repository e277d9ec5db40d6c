"""`/health`, `/ready` and `/metrics`: for whoever watches a server."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cmr.serving.described import ALWAYS, KEYED, replies
from cmr.serving.service import Asked, allowed, service_of

router = APIRouter()


@router.get("/health", responses=replies(*ALWAYS))
async def health(request: Request) -> JSONResponse:
    """Whether the process works on what it is asked; it wants to be started anew where not."""
    alive = service_of(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "broken"}, 200 if alive else 503)


@router.get("/ready", responses=replies(*ALWAYS))
async def ready(request: Request) -> JSONResponse:
    """Whether requests should be sent here: not where what is told now might be lost."""
    service = service_of(request)
    saved, alive = not service.keeping.failed, service.engine.alive
    reply = {"engine": alive, "saving": saved}
    return JSONResponse(reply, 200 if alive and saved else 503)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=replies(*KEYED, kind=CONTENT_TYPE_LATEST),
)
def metrics(asked: Annotated[Asked, Depends(allowed("metrics"))]) -> Response:
    """Figures for Prometheus."""
    return Response(asked.service.watch.page(), media_type=CONTENT_TYPE_LATEST)
