"""What `/openapi.json` says of replies: with what a request may be refused, and in which form."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel


class Error(BaseModel):
    """Why a request was refused: a sentence, and one word for programs."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None
    code: str


class ErrorBody(BaseModel):
    """The body of every reply that is not what was asked for."""

    error: Error


MEANINGS = {
    400: "The request is not what is expected, or its body is no JSON in UTF-8",
    401: "A valid key is expected",
    403: "The key is not for that, or the host is none of this machine's names",
    404: "There is no such path, session, block or model",
    405: "The path takes other methods",
    408: "The body did not come in time",
    409: "It does not go with what is there",
    413: "The body is too large",
    415: "A body of another type than application/json",
    429: "Too many requests, waiting ones or sessions",
    500: "The server failed at the request",
    502: "The server that runs the model, where that is another one, failed at the request",
    503: "The server cannot do it now",
    504: "The answer was not complete in time",
    507: "The memory has no room for it",
}
ALWAYS = (400, 403, 408, 413, 415, 500, 503)
"""What stands in front of all endpoints may say so."""
KEYED = (*ALWAYS, 401, 429)
"""The same of those that need a key."""


def replies(*refusals: int, kind: str | None = None) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint: what it may refuse with, and another `kind` of content."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": MEANINGS[status], "model": ErrorBody} for status in sorted(refusals)
    }
    return found if kind is None else {200: {"content": {kind: {}}}, **found}


ANSWERED = replies(404, 409, 502, 504, 507, kind="text/event-stream")
"""The same of those that answer by the model."""


def describe(app: FastAPI) -> None:
    """Let the description of an application tell of the statuses that it replies with."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in found["paths"].values():
                for operation in path.values():
                    # What FastAPI says by itself of bodies that are wrong: here it is 400.
                    operation["responses"].pop("422", None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
