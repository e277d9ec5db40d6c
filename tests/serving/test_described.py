"""What `/openapi.json` describes is what the server does, whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cmr.serving.settings import ServerSettings
from tests.serving.served import Served, served, until

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OTHER = "other/anna"
"""A session that no request can name: the server has no keys, and its one tenant is `local`."""
OPERATIONS = (
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "GET /v1/memory/sessions",
    "DELETE /v1/memory/sessions/{id}",
    "POST /v1/memory/sessions/{id}/fork",
    "POST /v1/memory/sessions/{id}/merge",
    "POST /v1/memory/sessions/{id}/rename",
    "GET /v1/memory/sessions/{id}/blocks",
    "POST /v1/memory/sessions/{id}/search",
    "POST /v1/memory/sessions/{id}/read",
    "POST /v1/memory/sessions/{id}/pin",
    "POST /v1/memory/sessions/{id}/forget",
    "GET /v1/memory/sessions/{id}/export",
    "GET /health",
    "GET /ready",
    "GET /metrics",
)


@pytest.fixture(scope="module")
def server(tiny: tuple[Any, Any]) -> Iterator[Served]:
    """A server whose answers are short."""
    with served(*tiny, settings=ServerSettings(max_tokens=4)) as found:
        said = [{"role": "user", "content": "The gate code is 4712. " * 3}]
        found.memory.session(OTHER, create=True).remember(said)
        yield found


@pytest.fixture(autouse=True)
def without_sessions(server: Served) -> None:
    """The other tenant's session stays through all tests."""


def test_all_of_it_is_asked(server: Served) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert found == set(OPERATIONS)


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    *((operation, RIGHT) for operation in OPERATIONS),
    # Of the others nothing is described that could be wrong.
    *((one, WRONG) for one in OPERATIONS if one.startswith("POST") or "{id}" in one),
]


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{one} {mode.value}" for one, mode in CASES]
)
def test_it_replies_as_it_is_described(
    server: Served, operation: str, mode: GenerationMode
) -> None:
    method, path = operation.split()
    described = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    cases = described[path][method].as_strategy(generation_mode=mode)
    url, seen = str(server.http.base_url), list[int]()
    before = [(block.id, block.token_ids) for block in server.memory.inspect(OTHER)]

    @hypothesis.settings(
        max_examples=8, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=cases, known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and "id" in case.path_parameters:
            server.say("The dog is called Bruno. " * 3)
            case.path_parameters["id"] = "anna"
        reply = case.call(base_url=url)
        seen.append(reply.status_code)
        case.validate_response(reply, checks=CHECKS)

    ask()
    assert seen
    until(lambda: server.service.engine.load == (0, 0))
    assert [(block.id, block.token_ids) for block in server.memory.inspect(OTHER)] == before
