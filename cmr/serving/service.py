"""What the endpoints share, and who may call them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from fastapi import Request

from cmr.integration.memory import Memory
from cmr.serving.engines.engine import Engine
from cmr.serving.engines.making import Making
from cmr.serving.keeping import Keeping
from cmr.serving.keys import Caller, Keys
from cmr.serving.limits import Limits
from cmr.serving.prompts import Prompts
from cmr.serving.settings import ServerSettings
from cmr.serving.watching import Watch


@dataclass(frozen=True)
class Service:
    """The parts of a running server; `name` is the model's, `began` when it started.

    `encoding` is the thread that turns what clients send into ids, beside the event loop.
    """

    name: str
    began: int
    memory: Memory
    engine: Engine
    making: Making
    prompts: Prompts
    keys: Keys
    limits: Limits
    settings: ServerSettings
    watch: Watch
    keeping: Keeping
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "cmr-ids"))


@dataclass(frozen=True)
class Asked:
    """One request: whose it is, of which server, and what is done when its reply is through."""

    service: Service
    caller: Caller
    after: ExitStack


def service_of(request: Request) -> Service:
    """The server that a request is made to."""
    service: Service = request.app.state.service
    return service


def allowed(scope: str) -> Callable[[Request], AsyncIterator[Asked]]:
    """A dependency: a request by a key for `scope`, counted among its tenant's while it lasts."""

    # No function of the thread pool: those who wait there would keep others from being counted.
    async def asked(request: Request) -> AsyncIterator[Asked]:
        service = service_of(request)
        caller = service.keys.caller(request.headers.get("authorization"))
        caller.require(scope)
        with service.limits.request(caller.tenant), ExitStack() as after:
            yield Asked(service, caller, after)

    return asked
