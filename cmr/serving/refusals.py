"""What a server answers in place of what was asked for: a status, a word, and a sentence."""

from __future__ import annotations

import logging

from cmr._frames import raised_at
from cmr.errors import (
    CMRError,
    ConfigError,
    ModelMismatchError,
    SessionNameError,
    StoreError,
    UnknownSessionError,
)


class Refusal(CMRError):
    """A request that is not served, as its client is told.

    Attributes:
        status: of HTTP.
        kind: one word for programs.
        retry_after: whole seconds after which it may be tried again; None: not by waiting.
    """

    def __init__(
        self, status: int, kind: str, message: str, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The body of the reply, in the form that clients of OpenAI's endpoints know."""
        group = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": group, "param": None, "code": self.kind}}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error.

    Of the error's own message nothing: the library's name sessions, which may be others'.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnknownSessionError):
        return Refusal(404, "session_not_found", "there is no session of that id")
    if isinstance(error, SessionNameError):
        return Refusal(409, "session_exists", "there is a session of that id already")
    if isinstance(error, ModelMismatchError):
        return Refusal(503, "model_changed", "the model is not the one that memory was made with")
    if isinstance(error, StoreError):
        return Refusal(503, "storage", "the folder of the memory could not be changed; try again",
                       retry_after=5)  # fmt: skip
    if isinstance(error, ConfigError):
        return Refusal(507, "no_room", "the memory has no room for that")
    return Refusal(500, "internal_error", "the server failed at this request")


def log_failure(log: logging.Logger, error: Exception) -> None:
    """Log what the server itself did wrong: what broke and where, and nothing that was said.

    What a client is told as its own mistake is not logged, and neither is an error's message: it
    may quote what it is about.
    """
    if isinstance(error, Refusal) or refusal_of(error).status < 500:
        return
    log.error("a request failed: %s at %s", type(error).__name__, raised_at(error))
