"""What an engine is asked to do, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MODES = ("off", "read", "read_write")


@dataclass(frozen=True)
class Said:
    """What a client sent, for an engine that hands it on: a conversation, or else a text.

    Attributes:
        messages: of the conversation, as OpenAI's endpoints take them; () of a text.
        turns: the same as chat templates take them.
        text: that is to be gone on with.
        tools: that may be called.
    """

    messages: tuple[dict[str, Any], ...] = ()
    turns: tuple[dict[str, Any], ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        ids: token ids of the prompt by the memory's own tokenizer, 1 or more.
        session: name of the session, its tenant in front; None: of nobody, with `mode` 'off' alone.
        mode: 'off': the model is exactly itself; 'read': memory is read and nothing stored;
            'read_write': prompt and answer become memory.
        ephemeral: a session that is made for it never reaches a file.
        once: the session ends with the answer.
        blocks: passages recalled at once, at most; None: as the memory is set.
        max_tokens: of the answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the likeliest tokens that are drawn from.
        seed: of what is drawn; None: another one each time.
        stops: texts in front of which an answer ends.
        said: what the ids were made of.
    """

    ids: tuple[int, ...] = field(repr=False)
    session: str | None
    mode: str = "read_write"
    ephemeral: bool = False
    once: bool = False
    blocks: int | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = field(default=(), repr=False)
    said: Said = field(default=Said(), repr=False)


@dataclass(frozen=True)
class Passage:
    """A passage that was recalled for an answer, positions counting in its session's text."""

    text: str = field(repr=False)
    score: float
    gate: float
    start: int
    end: int
    tokens: int


@dataclass(frozen=True)
class Piece:
    """The next characters of an answer."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class Ended:
    """An answer is complete.

    Attributes:
        reason: 'stop', 'length', 'cancelled' or, of another server, 'content_filter'.
        prompt: tokens of the prompt, as whoever ran the model counts them.
        tokens: of the answer, likewise.
        recalled: what was read meanwhile, best first.
        waited: seconds in front of the model.
        first: seconds from there to the first token.
        seconds: from the submission to the end.
        calls: of tools that are told apart from the text, as OpenAI's endpoints write them.
    """

    reason: str
    prompt: int
    tokens: int
    recalled: tuple[Passage, ...]
    waited: float
    first: float
    seconds: float
    calls: tuple[dict[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Failed:
    """There is no answer, or not all of it. `error` is a `Refusal`, or what was raised."""

    error: Exception = field(repr=False)


Event = Piece | Ended | Failed
Tell = Callable[[Event], None]
