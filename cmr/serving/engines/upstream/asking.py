"""What another server is asked: what its client sent, with what was recalled in front of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cmr.serving.engines.job import Job, Passage

ASKED = 4096
"""Characters at the end of what is asked by which memory is searched."""
BEFORE = "From earlier conversations:"
BEHIND = "Use it where it helps to answer this:"


def question(job: Job) -> str:
    """By what memory is searched: the end of the newest message of the user's, or of a text."""
    if not job.said.messages:
        return job.said.text[-ASKED:].strip()
    at = _newest(job)
    return "" if at is None else str(job.said.turns[at]["content"])[-ASKED:].strip()


def unsent(job: Job, passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """Those that do not stand in what the client sent anyway."""
    texts = [str(turn["content"]) for turn in job.said.turns] or [job.said.text]
    sent = _bare("".join(texts))
    return tuple(one for one in passages if _bare(one.text) not in sent)


def body_of(job: Job, passages: Sequence[Passage]) -> tuple[str, dict[str, Any]]:
    """The endpoint, and the body of a request to it.

    The passages stand in front of the newest message of the user's, inside of it: whatever chat
    template the model has takes that, and the client's instructions stay what they are.
    """
    wanted: dict[str, Any] = {
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
        "top_p": job.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if job.seed is not None:
        wanted["seed"] = job.seed
    if job.stops:
        wanted["stop"] = list(job.stops)
    if not job.said.messages:
        return "/completions", {"prompt": _told(passages, job.said.text), **wanted}
    messages, at = list(job.said.messages), _newest(job)
    if passages and at is not None:
        text = _told(passages, str(job.said.turns[at]["content"]))
        messages[at] = {**messages[at], "content": text}
    if job.said.tools:
        wanted["tools"] = list(job.said.tools)
    return "/chat/completions", {"messages": messages, **wanted}


def _newest(job: Job) -> int | None:
    """Which turn is the newest of the user's."""
    turns = job.said.turns
    return next((at for at in reversed(range(len(turns))) if turns[at]["role"] == "user"), None)


def _told(passages: Sequence[Passage], asked: str) -> str:
    if not passages:
        return asked
    lines = "\n".join(f"- {' '.join(one.text.split())}" for one in passages)
    return f"{BEFORE}\n{lines}\n\n{BEHIND}\n{asked}"


def _bare(text: str) -> str:
    """A text without what templates put between words and messages."""
    return re.sub(r"\s", "", text)
