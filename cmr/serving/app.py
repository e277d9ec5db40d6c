"""The server as an ASGI application, of a model with a memory that is attached already."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

import cmr
from cmr.errors import CMRError
from cmr.integration.memory import Memory
from cmr.serving import administration, completions, health, page
from cmr.serving.bodies import SESSION, SESSION_SAID
from cmr.serving.described import describe
from cmr.serving.engines.batch_engine import BatchEngine
from cmr.serving.engines.engine import Engine
from cmr.serving.engines.making import Making
from cmr.serving.engines.storing import Storing
from cmr.serving.engines.turns import Turns
from cmr.serving.engines.upstream.client import Upstream
from cmr.serving.engines.upstream.engine import UpstreamEngine
from cmr.serving.guard import Guard, reply_of
from cmr.serving.homes.homes import Homes
from cmr.serving.keeping import Keeping
from cmr.serving.keys import Keys
from cmr.serving.limits import Limits
from cmr.serving.prompts import Prompts
from cmr.serving.refusals import Refusal, refusal_of
from cmr.serving.responses import endpoint
from cmr.serving.service import Service
from cmr.serving.settings import ServerSettings
from cmr.serving.watching import Watch

SAID = {"extra_forbidden": "there is no such field here", "json_invalid": "JSON expected"}
"""Of kinds of mistakes what is said in place of the words of the package that finds them."""


def create_app(
    model: Any,
    memory: Memory,
    storing: Storing,
    tokenizer: Any,
    *,
    name: str,
    settings: ServerSettings | None = None,
    keys: Path | None = None,
    folder: Path | None = None,
    key: bytes | str | None = None,
    upstream: Upstream | None = None,
    shared: bool = False,
) -> FastAPI:
    """The application; what it runs begins and ends with its lifespan, the memory stays attached.

    Args:
        model: the decoder.
        memory: attached to it with `remember="all"`, `unnamed="refuse"` and `keep=storing`.
        storing: see `Storing`.
        tokenizer: of the model.
        name: what clients call the model.
        settings: limits; None: the defaults.
        keys: file of the keys; None: nobody needs one.
        folder: where the memory is kept; None: nowhere.
        key: encrypts the folder.
        upstream: another server that answers; the model here keeps and searches the memory alone.
            None: the model here answers.
        shared: other servers keep sessions in the folder, too. The memory has none yet: each comes
            here when it is asked for.

    Raises:
        ConfigError: the memory is not attached as it must be, a file of keys that is none, or a
            folder that cannot be shared.
    """
    settings = settings or ServerSettings()
    config = memory.config
    if (config.remember, config.unnamed) != ("all", "refuse"):
        raise cmr.ConfigError(
            "memory: attached with remember='all' and unnamed='refuse' expected, got "
            f"{config.remember!r} and {config.unnamed!r}"
        )
    if shared and (folder is None or memory.sessions):
        raise cmr.ConfigError("shared: a folder, and a memory without sessions, expected")
    known = Keys(keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping: Keeping
        if shared and folder is not None:
            keeping = homes = Homes(memory, folder, key, settings.save_every)
            turns = homes.turns = Turns(settings.queue, homes.here)
        else:
            keeping = Keeping(memory, folder, key, settings.save_every)
            turns = Turns(settings.queue)
        making = Making(memory, settings.sessions, keeping)
        positions = None if upstream else getattr(model.config, "max_position_embeddings", None)
        prompts = Prompts(tokenizer, settings.max_prompt, positions, tools=upstream is None)
        engine: Engine
        if upstream is None:
            engine = BatchEngine(
                model, memory, storing, making, tokenizer, turns=turns, changed=keeping.changed,
                rows=settings.rows, tokens=settings.batch_tokens, lanes=settings.lanes,
            )  # fmt: skip
        else:
            engine = UpstreamEngine(
                upstream, memory, making, prompts, turns=turns, changed=keeping.changed,
                at_once=settings.rows * settings.lanes,
            )  # fmt: skip
        service = app.state.service = Service(
            name=name, began=int(time.time()), memory=memory, engine=engine, making=making,
            prompts=prompts, keys=known, limits=Limits(settings.rate, settings.at_once),
            settings=settings, watch=Watch(model, engine, keeping), keeping=keeping,
        )  # fmt: skip
        keeping.start()
        try:
            yield
        finally:
            # What was answered is stored first, and saved then.
            engine.close(settings.drain)
            service.encoding.shutdown()
            keeping.close()
            service.watch.close()

    # No pages of documentation: they would load scripts from elsewhere. openapi.json is there.
    app = FastAPI(title="cmr", version=cmr.__version__, lifespan=lifespan, docs_url=None,
                  redoc_url=None)  # fmt: skip
    app.add_middleware(Guard)
    for part in (completions, endpoint, administration, health, page):
        app.include_router(part.router)
    describe(app)
    app.add_exception_handler(CMRError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return reply_of(refusal_of(error))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Where a body is wrong and what was expected; what was given is not repeated."""
    assert isinstance(error, RequestValidationError)
    # The one that is told furthest inside: of a text or a list, the text is always wrong, too.
    told = max(error.errors(), key=lambda one: len(one["loc"]))
    where = ".".join(str(part) for part in told["loc"])[:200]
    said = SAID.get(told["type"], told["msg"])
    if told.get("ctx", {}).get("pattern") == SESSION:
        said = SESSION_SAID
    elif told["type"] == "json_invalid":
        where = "body"
    return reply_of(Refusal(400, "invalid", f"{where}: {said}"))


async def _unknown(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return reply_of(Refusal(error.status_code, "http", str(error.detail)))
