"""What is replied to who asks for an answer, in the form that clients of OpenAI's endpoints know.

Beside it stands `memory`: the session, what was read for the answer, and whether it is remembered.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from cmr.serving.engines.job import Ended, Event, Failed, Job, Piece
from cmr.serving.refusals import Refusal, refusal_of
from cmr.serving.tools import Calls


@dataclass(frozen=True)
class Form:
    """How one reply is written: `chat` or as text, of which model, for which session as said."""

    chat: bool
    model: str
    session: str | None
    job: Job

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        """The reply to who does not stream."""
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if ended.calls:
                message |= {"content": text or None, "tool_calls": list(ended.calls)}
            said: dict[str, Any] = {"message": message}
        else:
            said = {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": _reason(ended)}
        kind = "chat.completion" if self.chat else "text_completion"
        about = memory_of(self.job, self.session, ended)
        return {**self._head(kind), "choices": [choice], "usage": _usage(ended), "memory": about}

    async def stream(self, events: AsyncIterator[Piece | Ended], usage: bool) -> AsyncIterator[str]:
        """The reply to who streams, as server-sent events, with the `usage` where it is wanted."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")

        def chunk(said: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
            return _event({**head, "choices": [choice], **more})

        if self.chat:
            yield chunk({"delta": {"role": "assistant", "content": ""}})
        try:
            async for event in events:
                if isinstance(event, Piece):
                    said = {"delta": {"content": event.text}} if self.chat else {"text": event.text}
                    yield chunk(said)
                    continue
                if event.calls:
                    calls = [{"index": i, **call} for i, call in enumerate(event.calls)]
                    yield chunk({"delta": {"tool_calls": calls}})
                last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
                about = memory_of(self.job, self.session, event)
                yield chunk(last, _reason(event), memory=about)
                if usage:
                    yield _event({**head, "choices": [], "usage": _usage(event)})
        except Exception as error:
            # The status has gone out: the error comes as the last event.
            yield _event(refusal_of(error).to_dict())
            return
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
        }


def memory_of(job: Job, session: str | None, ended: Ended) -> dict[str, Any]:
    """What a reply says of the memory: whose it is, what was read, whether more is remembered."""
    return {
        "session": session,
        "mode": job.mode,
        "remembered": job.mode == "read_write" and not job.once,
        "recalled": [asdict(passage) for passage in ended.recalled],
    }


async def told(events: AsyncIterator[Event], calls: bool) -> AsyncIterator[Piece | Ended]:
    """What an engine tells, with what went wrong raised.

    `calls`: those of tools are taken out of the text, and come with the end.
    """
    taken = Calls()
    async for event in events:
        if isinstance(event, Piece):
            if text := taken.take(event.text) if calls else event.text:
                yield Piece(text)
        elif isinstance(event, Failed):
            raise event.error
        else:
            if left := taken.rest():
                yield Piece(left)
            yield replace(event, calls=(*taken.found, *event.calls))


async def gathered(events: AsyncIterator[Piece | Ended]) -> tuple[str, Ended]:
    """The whole answer and its end; raises a `Refusal` where its client left."""
    text = list[str]()
    async for event in events:
        if isinstance(event, Ended):
            return "".join(text), event
        text.append(event.text)
    raise Refusal(499, "gone", "the client left before the answer came")


def _usage(ended: Ended) -> dict[str, int]:
    return {
        "prompt_tokens": ended.prompt,
        "completion_tokens": ended.tokens,
        "total_tokens": ended.prompt + ended.tokens,
    }


def _reason(ended: Ended) -> str:
    """Of an answer that was broken off, clients know no other word than of one that is too long."""
    if ended.reason in ("length", "cancelled"):
        return "length"
    return "tool_calls" if ended.calls else ended.reason


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
