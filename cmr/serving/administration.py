"""`/v1/memory`: what a tenant's sessions hold, and what becomes of it.

Whatever concerns a session waits for its turn among that session's requests, so that it sees what
was asked before it and nothing of what comes later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import StreamingResponse

from cmr.memory.inspection import StoredBlock
from cmr.serving.bodies import (
    SESSION,
    ForgetBody,
    ForkBody,
    MergeBody,
    PinBody,
    ReadBody,
    RenameBody,
    SearchBody,
)
from cmr.serving.described import KEYED, replies
from cmr.serving.refusals import Refusal
from cmr.serving.service import Asked, allowed

audit = logging.getLogger("cmr.audit")
router = APIRouter(prefix="/v1/memory/sessions", responses=replies(*KEYED, 404, 409, 507))
Admin = Annotated[Asked, Depends(allowed("admin"))]
Id = Annotated[str, Path(pattern=SESSION)]
Most = Annotated[int, Query(ge=1, le=1000)]


@contextmanager
def _turn(asked: Asked, action: str, *ids: str) -> Iterator[list[str]]:
    """The turn of some sessions; gives their names, and notes what was done to them."""
    service, names = asked.service, [asked.caller.name(one) for one in ids]
    done = "refused"
    try:
        with service.engine.alone(*names, seconds=service.settings.deadline):
            try:
                service.keeping.enter(*names)
                yield names
            finally:
                if action:
                    service.keeping.changed(*names)
                service.keeping.leave(*names)
        done = "done"
    except Refusal:
        raise
    except Exception:
        done = "failed"
        raise
    finally:
        if action:
            audit.info("tenant=%s action=%s sessions=%s %s",
                       asked.caller.tenant, action, ",".join(ids), done)  # fmt: skip


@router.get("")
def sessions(asked: Admin, limit: Most = 100, after: str | None = None) -> dict[str, Any]:
    """The tenant's sessions, oldest first; `after` is the id behind which the list goes on.

    Where servers share a folder they come by their ids, and `tokens` is null of one elsewhere.
    """
    memory, own = asked.service.memory, asked.caller.name("")
    # Those that are made for one answer have a slash of their own.
    ids = [name.removeprefix(own) for name in asked.service.keeping.names(asked.caller.tenant)]
    ids = [one for one in ids if not one.startswith("/")]
    if after is not None and after not in ids:
        raise Refusal(404, "session_not_found", "after: the id of a session expected")
    first = 0 if after is None else ids.index(after) + 1
    shown: list[dict[str, Any]] = []
    for one in ids[first : first + limit]:
        try:
            shown.append({"id": one, "tokens": memory.session(asked.caller.name(one)).tokens})
        except KeyError:
            if asked.service.keeping.shared:
                shown.append({"id": one, "tokens": None})
            # Else it has ended meanwhile.
    return {"object": "list", "data": shown, "total": len(ids)}


@router.delete("/{id}")
def delete(asked: Admin, id: Id) -> dict[str, Any]:
    """End a session and forget all that it stored, in the folder as well."""
    with _turn(asked, "delete", id) as (name,):
        report = asked.service.memory.forget(name)
    return _forgotten(report)


@router.post("/{id}/fork")
def fork(asked: Admin, id: Id, body: ForkBody) -> dict[str, Any]:
    """Copy a session; from then on the two know nothing of each other."""
    with _turn(asked, "fork", id, body.to) as (name, to), asked.service.making.new(to):
        try:
            return {"id": body.to, "blocks": asked.service.memory.fork(name, to)}
        except ValueError:
            raise Refusal(507, "no_room", "the memory has no room for the copy") from None


@router.post("/{id}/merge")
def merge(asked: Admin, id: Id, body: MergeBody) -> dict[str, Any]:
    """Put a session's text behind another one's, and end it."""
    if id == body.into:
        raise Refusal(409, "same_session", "into: another session expected")
    with _turn(asked, "merge", id, body.into) as (name, into):
        memory = asked.service.memory
        memory.session(name, into)
        try:
            return {"id": body.into, "blocks": memory.merge(name, into)}
        except ValueError:
            raise Refusal(409, "not_ephemeral", "only one of the two is ephemeral") from None


@router.post("/{id}/rename")
def rename(asked: Admin, id: Id, body: RenameBody) -> dict[str, Any]:
    """Give a session another id."""
    with _turn(asked, "rename", id, body.to) as (name, to):
        memory = asked.service.memory
        if to in memory.sessions:
            raise Refusal(409, "session_exists", "there is a session of that id already")
        memory.rename(name, to)
    return {"id": body.to}


@router.get("/{id}/blocks")
def blocks(
    asked: Admin,
    id: Id,
    limit: Most = 100,
    start: Annotated[int, Query(ge=0, lt=1 << 53)] = 0,
    order: Literal["position", "relevance", "recalled", "newest"] = "position",
    tier: Literal["recent", "working", "long_term"] | None = None,
) -> dict[str, Any]:
    """What is stored, as text; `start` is the position in the session's text to begin at."""
    with _turn(asked, "", id) as (name,):
        found = asked.service.memory.inspect(name, limit=limit, start=start, order=order, tier=tier)
    return {"object": "list", "data": [_block(one) for one in found], "total": found.total}


@router.post("/{id}/search")
def search(asked: Admin, id: Id, body: SearchBody) -> dict[str, Any]:
    """The passages that a question finds, best first; nothing is generated or stored."""
    settings = {} if body.blocks is None else {"blocks": body.blocks}
    if not body.query.strip():
        raise Refusal(400, "empty", "query: a question expected, got an empty one")
    with _turn(asked, "", id) as (name,):
        found = asked.service.memory.session(name).search(body.query, **settings)
    shown = [
        {"text": one.text, "score": one.score, "start": one.start, "end": one.end} for one in found
    ]
    return {"object": "list", "data": shown}


@router.post("/{id}/read")
def read(asked: Admin, id: Id, body: ReadBody) -> dict[str, Any]:
    """Read a text into a session, or what is new of a conversation; it is made where it is new."""
    service = asked.service
    # What cannot be turned into ids is refused before anything waits for it.
    if body.text is not None:
        ids = torch.tensor(service.prompts.of_document(body.text))
    else:
        messages = [message.to_dict() for message in body.messages or ()]
        ids = torch.tensor(service.prompts.of_said(messages))
    with _turn(asked, "read", id) as (name,):
        service.making.make(name)
        session = service.memory.session(name)
        if body.text is not None:
            report = session.read(ids)
            return {"id": id, "tokens": report.tokens, "blocks": report.blocks}
        remembered = session.remember(ids)
        return {"id": id, "tokens": remembered.new, "known": remembered.known,
                "blocks": remembered.blocks}  # fmt: skip


@router.post("/{id}/pin")
def pin(asked: Admin, id: Id, body: PinBody) -> dict[str, Any]:
    """Keep blocks from being evicted, or no longer."""
    with _turn(asked, "pin", id) as (name,):
        numbers = _own(asked, name, body.blocks)
        try:
            asked.service.memory.pin(numbers, body.pinned)
        except ValueError:
            raise Refusal(
                409, "too_many_pins", "more than half of a tier would be pinned"
            ) from None
    return {"blocks": numbers, "pinned": body.pinned}


@router.post("/{id}/forget")
def forget(asked: Admin, id: Id, body: ForgetBody) -> dict[str, Any]:
    """Forget the blocks that fit all that is given, in the folder as well."""
    with _turn(asked, "forget", id) as (name,):
        numbers = None if body.blocks is None else _own(asked, name, body.blocks)
        report = asked.service.memory.forget(
            name, ids=numbers, text=body.text, older_than=body.older_than
        )
    return _forgotten(report)


@router.get(
    "/{id}/export", response_class=StreamingResponse, responses=replies(kind="application/jsonl")
)
def export(asked: Admin, id: Id) -> StreamingResponse:
    """All that is stored, one block a line of JSON."""
    with _turn(asked, "", id) as (name,):
        found = asked.service.memory.inspect(name)
    audit.info("tenant=%s action=export sessions=%s done", asked.caller.tenant, id)
    lines = (json.dumps(_block(one), ensure_ascii=False) + "\n" for one in found)
    return StreamingResponse(lines, media_type="application/jsonl")


def _own(asked: Asked, name: str, wanted: list[int]) -> list[int]:
    """The numbers, each of a block of this session; raises `Refusal` for another one."""
    own = {block.id for block in asked.service.memory.inspect(name)}
    if not own.issuperset(wanted):
        raise Refusal(404, "block_not_found", "blocks: numbers of this session's blocks expected")
    return sorted(set(wanted))


def _block(block: StoredBlock) -> dict[str, Any]:
    return {
        "id": block.id,
        "text": block.text,
        "start": block.start,
        "end": block.end,
        "tier": block.tier,
        "relevance": block.relevance,
        "recalled": block.access_count,
        "stored": block.born,
        "expires": block.expires,
        "pinned": block.pinned,
    }


def _forgotten(report: Any) -> dict[str, Any]:
    # Where something is outstanding is a path of the server's, which is nobody's business.
    return {
        "blocks": report.blocks,
        "tokens": report.tokens,
        "outstanding": len(report.outstanding),
    }
