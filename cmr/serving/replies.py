"""What is replied to who asks for an answer, in the form that clients of OpenAI's endpoints know.

Beside it stands `memory`: the session, what was read for the answer, and whether it is remembered.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from cmr.serving.engines.job import Ended, Event, Failed, Job, Piece
from cmr.serving.refusals import Refusal, refusal_of
from cmr.serving.tools import Calls


@dataclass(frozen=True)
class Form:
    """How one reply is written: `chat` or as text, of which model, for which session as said.

    `calls`: whether calls of tools are taken out of the text.
    """

    chat: bool
    model: str
    session: str | None
    job: Job
    calls: bool = False

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        """The reply to who does not stream."""
        taken = Calls()
        if self.calls:
            text = taken.take(text) + taken.rest()
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if taken.found:
                message = {**message, "content": text or None, "tool_calls": taken.found}
            said: dict[str, Any] = {"message": message}
        else:
            said = {"text": text}
        reason = _reason(ended, taken)
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if self.chat else "text_completion"
        head = self._head(kind)
        return {**head, "choices": [choice], "usage": self._usage(ended), **self._memory(ended)}

    async def stream(self, events: AsyncIterator[Event], usage: bool) -> AsyncIterator[str]:
        """The reply to who streams, as server-sent events, with the `usage` where it is wanted."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        taken = Calls()

        def chunk(said: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
            return _event({**head, "choices": [choice], **more})

        if self.chat:
            yield chunk({"delta": {"role": "assistant", "content": ""}})
        try:
            async for event in events:
                if isinstance(event, Piece):
                    text = taken.take(event.text) if self.calls else event.text
                    if text:
                        yield chunk({"delta": {"content": text}} if self.chat else {"text": text})
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    if left := taken.rest():
                        yield chunk({"delta": {"content": left}})
                    if taken.found:
                        calls = [{"index": i, **call} for i, call in enumerate(taken.found)]
                        yield chunk({"delta": {"tool_calls": calls}})
                    last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
                    yield chunk(last, _reason(event, taken), **self._memory(event))
                    if usage:
                        yield _event({**head, "choices": [], "usage": self._usage(event)})
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

    def _usage(self, ended: Ended) -> dict[str, int]:
        prompt = len(self.job.ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": ended.tokens,
            "total_tokens": prompt + ended.tokens,
        }

    def _memory(self, ended: Ended) -> dict[str, Any]:
        about = {
            "session": self.session,
            "mode": self.job.mode,
            "remembered": self.job.mode == "read_write" and not self.job.once,
            "recalled": [asdict(passage) for passage in ended.recalled],
        }
        return {"memory": about}


async def gathered(events: AsyncIterator[Event]) -> tuple[str, Ended]:
    """The whole answer and its end; raises what went wrong, a `Refusal` where its client left."""
    text = []
    async for event in events:
        if isinstance(event, Piece):
            text.append(event.text)
        elif isinstance(event, Failed):
            raise event.error
        else:
            return "".join(text), event
    raise Refusal(499, "gone", "the client left before the answer came")


def _reason(ended: Ended, taken: Calls) -> str:
    """Of an answer that was broken off, clients know no other word than of one that is too long."""
    if ended.reason != "stop":
        return "length"
    return "tool_calls" if taken.found else "stop"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
