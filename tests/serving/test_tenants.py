"""Keys: who may do what, and that tenants see nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmr.errors import ConfigError
from cmr.serving.keys import SCOPES, Keys, make_key
from tests.serving.served import Served, served

TEXT = "The gate code is 4712. " * 3


@pytest.fixture(scope="module")
def keyed(
    tiny: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, dict[str, dict[str, str]]]]:
    """A server with keys, and the headers of each of its callers."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "acme": make_key(file, "acme", SCOPES),
        "acme's app": make_key(file, "acme", ["use"]),
        "bolt": make_key(file, "bolt", ["use", "admin"]),
        "ac": make_key(file, "ac", ["use", "admin"]),
        "wrong": "cmr-wrong",
    }
    headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    with served(*tiny, keys=file) as server:
        yield server, headers


def call(keyed: Any, who: str, method: str, path: str, body: Any = None) -> Any:
    server, headers = keyed
    more = {} if body is None else {"json": body}
    return server.http.request(method, path, headers=headers.get(who, {}), **more)


def test_tenants_see_nothing_of_each_other(keyed: Any) -> None:
    server, _ = keyed
    say = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2, "user": "anna"}
    assert call(keyed, "acme's app", "POST", "/v1/chat/completions", say).status_code == 200
    server.idle()
    assert server.memory.sessions == ["acme/anna"]
    (block, *_) = call(keyed, "acme", "GET", "/v1/memory/sessions/anna/blocks").json()["data"]
    before = [(b.id, b.text, b.pinned) for b in server.memory.inspect()]
    # The same id is another session, and the other tenant's cannot be named.
    for who in ("bolt", "ac"):
        assert call(keyed, who, "GET", "/v1/memory/sessions").json()["data"] == []
        for method, tail, body in (
            ("GET", "anna/blocks", None),
            ("GET", "anna/export", None),
            ("DELETE", "anna", None),
            ("POST", "anna/search", {"query": "Which code?"}),
            ("POST", "anna/pin", {"blocks": [block["id"]]}),
            ("POST", "anna/forget", {"blocks": [block["id"]]}),
            ("POST", "anna/forget", {"text": "4712"}),
            ("POST", "anna/rename", {"to": "mine"}),
            ("POST", "anna/fork", {"to": "mine"}),
        ):
            reply = call(keyed, who, method, f"/v1/memory/sessions/{tail}", body)
            assert reply.status_code == 404, (method, tail, reply.text)
            assert "acme" not in reply.text and "4712" not in reply.text
    asked = {**say, "messages": [{"role": "user", "content": "Which code?"}]}
    reply = call(keyed, "bolt", "POST", "/v1/chat/completions", asked).json()
    assert reply["memory"]["recalled"] == []
    server.idle()
    assert [(b.id, b.text, b.pinned) for b in server.memory.inspect("acme/anna")] == before
    own = call(keyed, "bolt", "POST", "/v1/memory/sessions/mine/read", {"text": TEXT})
    assert own.status_code == 200
    (its, *_) = call(keyed, "bolt", "GET", "/v1/memory/sessions/mine/blocks").json()["data"]
    reply = call(keyed, "acme", "POST", "/v1/memory/sessions/anna/forget", {"blocks": [its["id"]]})
    assert reply.status_code == 404


@pytest.mark.parametrize(
    ("who", "method", "path", "status"),
    [
        ("nobody", "GET", "/v1/models", 401),
        ("wrong", "GET", "/v1/models", 401),
        ("acme's app", "GET", "/v1/models", 200),
        ("acme's app", "GET", "/v1/memory/sessions", 403),
        ("acme's app", "GET", "/metrics", 403),
        ("bolt", "GET", "/metrics", 403),
        ("acme", "GET", "/metrics", 200),
        ("nobody", "GET", "/metrics", 401),
        ("nobody", "GET", "/health", 200),
        ("nobody", "GET", "/ready", 200),
        ("nobody", "GET", "/nothing", 404),
        ("nobody", "POST", "/v1/chat/completions", 401),
    ],
)
def test_what_a_key_is_for(keyed: Any, who: str, method: str, path: str, status: int) -> None:
    reply = call(keyed, who, method, path, {} if method == "POST" else None)
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "invalid_api_key"


def test_a_file_of_keys_knows_their_hashes_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = make_key(file, "acme", ["use", "use"])
    assert key not in file.read_text() and file.stat().st_mode & 0o077 == 0
    caller = Keys(file).caller(f"bearer {key}")
    assert (caller.tenant, caller.scopes) == ("acme", {"use"})
    assert caller.name("anna") == "acme/anna"


@pytest.mark.parametrize("tenant", ["", "a/b", "../a", "a b", "-a", "ä", "a" * 65, "a\n"])
def test_a_tenant_has_a_plain_name(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ConfigError, match="tenant"):
        make_key(tmp_path / "keys", tenant, ["use"])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "content", ["", "not json\n", '{"tenant": "a"}\n', '{"tenant": "a/b", "scopes": ["use"], '
                '"sha256": "' + "0" * 64 + '"}\n', "[]\n", "null\n"],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError):
        Keys(file)
    file.chmod(0o620)
    with pytest.raises(ConfigError, match="others may write it"):
        Keys(file)
    with pytest.raises(ConfigError):
        make_key(tmp_path / "keys", "acme", ["root"])
