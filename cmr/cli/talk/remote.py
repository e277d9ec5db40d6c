"""``cmr ask --url``: the model and the memory of a server that runs already, so nothing loads."""

from __future__ import annotations

import hashlib
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from cmr.cli.display import answered, console, counted
from cmr.cli.errors import UsageError
from cmr.cli.input.documents import read_document
from cmr.cli.input.questions import checked
from cmr.cli.talk.server import Refused, Server

_PIECE = 1 << 17
"""Characters that are sent at once: a server takes 1 MiB, and each may take six bytes."""


def run(url: str, options: dict[str, Any], documents: list[Path], questions: list[str]) -> None:
    """Read the documents into a session of the server, unless it has them, and ask there.

    Args:
        url: of the server.
        options: all others of the command by name; those of a model or memory here are refused.
        documents: paths.
        questions: of the command line.
    """
    server, out = Server(url), console()
    session, max_new_tokens = options.pop("session"), options.pop("max_new_tokens")
    for name, value in options.items():
        if value not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')}: with --url it is the server's business; leave it "
                "out, or give it to `cmr serve`"
            )
    if not documents and session is None:
        raise UsageError("nothing to ask about: give --document, or --session of the server's")
    questions = checked(questions, documents, needed=True)
    texts = [read_document(path) for path in dict.fromkeys(documents)]
    if session is None:
        session = _session_of(texts)
        if _is_there(server, session):
            out.print(f"[dim]the server has read that before, as session {session}[/dim]")
        else:
            _read_whole(out, server, session, texts)
    else:
        _read(out, server, session, texts)
    for question in questions:
        _ask(out, server, session, question, max_new_tokens)


def _session_of(texts: list[str]) -> str:
    """A session's name by what was read into it: the same documents are read once."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        # With its length, or two texts could be cut elsewhere and be the same.
        digest.update(f"{len(text)}:{text}".encode())
    return f"ask-{digest.hexdigest()}"


def _path(session: str) -> str:
    return f"/memory/sessions/{urllib.parse.quote(session, safe='')}"


def _is_there(server: Server, session: str) -> bool:
    try:
        server.get(f"{_path(session)}/blocks?limit=1")
    except Refused as error:
        if error.status == 404:
            return False
        raise
    return True


def _read_whole(out: Console, server: Server, session: str, texts: list[str]) -> None:
    """Read into a session that has its name only when all of it is there."""
    half = f"{session}.reading"
    if _is_there(server, half):
        server.delete(_path(half))
    _read(out, server, half, texts)
    server.post(f"{_path(half)}/rename", {"to": session})
    out.print(f"[dim]kept there as session {session}: the next question is answered at once[/dim]")


def _read(out: Console, server: Server, session: str, texts: list[str]) -> None:
    began, tokens = time.perf_counter(), 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            body = {"text": text[start : start + _PIECE]}
            tokens += server.post(f"{_path(session)}/read", body)["tokens"]
    if texts:
        seconds = time.perf_counter() - began
        out.print(f"[dim]read {counted(len(texts), 'document')}: {tokens:,} tokens in "
                  f"{seconds:.1f} s[/dim]")  # fmt: skip


def _ask(out: Console, server: Server, session: str, question: str, max_new_tokens: int) -> None:
    began = time.perf_counter()
    # Only read, as a question is no part of what it asks about.
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "user": session,
        "memory": "read",
        "max_tokens": max_new_tokens,
    }
    try:
        reply = server.post("/chat/completions", body)
    except Refused as error:
        if error.status != 404:
            raise
        raise UsageError(
            f"--session {session}: the server has none of that name; --document makes one"
        ) from None
    recalled = [SimpleNamespace(**passage) for passage in reply["memory"]["recalled"]]
    said, tokens = reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]
    answered(out, question, said, recalled, tokens, time.perf_counter() - began)
