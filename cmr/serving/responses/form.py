"""What is replied to clients of `/v1/responses`, whole or as events.

Beside it stands `memory`, as in the replies of the other endpoints.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from cmr.serving.engines.job import Ended, Job, Piece
from cmr.serving.refusals import refusal_of
from cmr.serving.replies import memory_of
from cmr.serving.responses.bodies import ResponseBody

_INCOMPLETE = {
    "length": "max_output_tokens", "cancelled": "max_output_tokens",
    "content_filter": "content_filter",
}  # fmt: skip


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ResponseForm:
    """How one reply is written: of which model, for which session as said, to what was sent."""

    model: str
    session: str | None
    job: Job
    body: ResponseBody
    id: str = field(default_factory=lambda: _id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        """The reply to who does not stream."""
        items = [_call(call) for call in ended.calls]
        if text or not items:
            items.insert(0, _message(_id("msg"), text, _status(ended)))
        return self._finished(items, ended)

    async def stream(self, events: AsyncIterator[Piece | Ended]) -> AsyncIterator[str]:
        """The reply to who streams, as server-sent events."""
        number = -1

        def event(kind: str, **said: Any) -> str:
            nonlocal number
            number += 1
            data = {"type": kind, **said, "sequence_number": number}
            return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

        begun = self._response("in_progress", [])
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        message, text, items = _id("msg"), list[str](), list[dict[str, Any]]()
        at = {"item_id": message, "output_index": 0, "content_index": 0}
        try:
            async for one in events:
                if not text and (isinstance(one, Piece) or not one.calls):
                    item = {**_message(message, "", "in_progress"), "content": []}
                    yield event("response.output_item.added", output_index=0, item=item)
                    yield event("response.content_part.added", **at, part=_part(""))
                if isinstance(one, Piece):
                    text.append(one.text)
                    yield event("response.output_text.delta", **at, delta=one.text, logprobs=[])
                    continue
                if text or not one.calls:
                    said = "".join(text)
                    items.append(_message(message, said, _status(one)))
                    yield event("response.output_text.done", **at, text=said, logprobs=[])
                    yield event("response.content_part.done", **at, part=_part(said))
                    yield event("response.output_item.done", output_index=0, item=items[0])
                for call in map(_call, one.calls):
                    where = {"item_id": call["id"], "output_index": len(items)}
                    items.append(call)
                    empty = {**call, "arguments": "", "status": "in_progress"}
                    yield event("response.output_item.added", item=empty,
                                output_index=where["output_index"])  # fmt: skip
                    arguments = call["arguments"]
                    yield event("response.function_call_arguments.delta", **where, delta=arguments)
                    yield event("response.function_call_arguments.done", **where,
                                name=call["name"], arguments=arguments)  # fmt: skip
                    yield event("response.output_item.done", item=call,
                                output_index=where["output_index"])  # fmt: skip
                done = self._finished(items, one)
                yield event(f"response.{done['status']}", response=done)
        except Exception as error:
            # The status has gone out: the error comes as the last event.
            refusal = refusal_of(error)
            failed = {**self._response("failed", items),
                      "error": {"code": refusal.kind, "message": str(refusal)}}  # fmt: skip
            yield event("response.failed", response=failed)

    def _finished(self, items: list[dict[str, Any]], ended: Ended) -> dict[str, Any]:
        reason = _INCOMPLETE.get(ended.reason)
        found = self._response(_status(ended), items)
        found["incomplete_details"] = None if reason is None else {"reason": reason}
        found["usage"] = {
            "input_tokens": ended.prompt,
            # No prompt's beginning is kept for the next one, and nothing is thought unseen.
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": ended.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ended.prompt + ended.tokens,
        }
        return {**found, "memory": memory_of(self.job, self.session, ended)}

    def _response(self, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        body, job = self.body, self.job
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": job.max_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": items,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": body.stored,
            "temperature": job.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": job.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _status(ended: Ended) -> str:
    return "incomplete" if ended.reason in _INCOMPLETE else "completed"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _message(id: str, text: str, status: str) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "status": status,
            "content": [_part(text)]}  # fmt: skip


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {"id": _id("fc"), "type": "function_call", "status": "completed",
            "call_id": call["id"], "name": function["name"],
            "arguments": function["arguments"]}  # fmt: skip
