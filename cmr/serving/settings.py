"""What a server allows, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.config import checks as check


@dataclass(frozen=True)
class ServerSettings(check.Checked):
    """Limits of a server.

    Attributes:
        rows: requests of a batch, at most; so many for each lane are with another server at once.
        batch_tokens: of a batch's prompts with their padding; one alone may have more.
        lanes: batches under way at once, whose forwards take turns.
        queue: requests that may wait.
        max_tokens: of an answer, at most, and where a request does not say.
        max_prompt: tokens of a prompt, at most.
        deadline: seconds from a request to the end of its answer.
        max_body: bytes of a request.
        rate: requests a minute of a tenant; None: any number.
        at_once: requests of a tenant at once; None: any number.
        sessions: of a tenant at once; None: any number.
        save_every: seconds within which what was stored is saved.
        drain: seconds that requests under way have when the server ends.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    rows: int = check.setting(16, check.integer, 1)
    batch_tokens: int = check.setting(16_384, check.integer, 1)
    lanes: int = check.setting(2, check.integer, 1)
    queue: int = check.setting(64, check.integer, 1)
    max_tokens: int = check.setting(512, check.integer, 1)
    max_prompt: int = check.setting(16_384, check.integer, 1)
    deadline: float = check.setting(120.0, check.real, 0.1)
    max_body: int = check.setting(1 << 20, check.integer, 1)
    rate: int | None = check.setting(None, check.integer, 1)
    at_once: int | None = check.setting(32, check.integer, 1)
    sessions: int | None = check.setting(None, check.integer, 1)
    save_every: float = check.setting(30.0, check.real, 0.1)
    drain: float = check.setting(30.0, check.real, 0.0)
