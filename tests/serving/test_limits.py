"""What one tenant may ask, and how long anybody waits."""

from __future__ import annotations

import time
from typing import Any

from cmr.serving.settings import ServerSettings
from tests.serving.served import served


def test_each_limit_is_told(tiny: tuple[Any, Any]) -> None:
    limits = ServerSettings(rate=6, sessions=2, max_tokens=8, deadline=1.5)
    with served(*tiny, settings=limits) as server:
        assert [server.say("Hi", name).status_code for name in ("a", "b", "c", "a")] == [
            200, 200, 429, 200,
        ]  # fmt: skip
        assert server.memory.sessions == ["local/a", "local/b"]
        server.idle()
        handle = tiny[0].register_forward_hook(lambda *_: time.sleep(0.4))
        try:
            assert server.say("Hi", "a", max_tokens=8).status_code == 504
            server.idle()
        finally:
            handle.remove()
        assert server.say("Hi", "a").status_code == 200
        refused = server.say("Hi", "a")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert refused.json()["error"]["code"] == "rate"
