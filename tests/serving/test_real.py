"""Told in one request, answered in the next one of that session alone, on the small real model."""

from __future__ import annotations

import importlib.util
from typing import Any

from tests.docs.blocks import ROOT
from tests.serving.served import served


def test_the_example_client_is_answered_from_its_users_own_memories(
    smollm2: tuple[Any, Any], capsys: Any
) -> None:
    spec = importlib.util.spec_from_file_location("client", ROOT / "examples" / "chat_client.py")
    assert spec is not None and spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    with served(*smollm2, attached={}) as server:
        found = client.main(["--url", str(server.http.base_url), "--tokens", "12"])
    (told, recalled), (other, nothing) = found["anna"], found["ben"]
    assert "Thursday" in told and any(client.TOLD in passage["text"] for passage in recalled)
    assert "Thursday" not in other and nothing == []
    shown = capsys.readouterr().out
    assert told in shown and f": {client.TOLD}" in shown
