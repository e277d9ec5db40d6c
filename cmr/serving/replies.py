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
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            said = {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": _reason(ended)}
        kind = "chat.completion" if self.chat else "text_completion"
        head = self._head(kind)
        return {**head, "choices": [choice], "usage": self._usage(ended), **self._memory(ended)}

    async def stream(self, events: AsyncIterator[Event], usage: bool) -> AsyncIterator[str]:
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
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
                    yield chunk(last, _reason(event), **self._memory(event))
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


def _reason(ended: Ended) -> str:
    """Clients know no third word: an answer that was broken off is one that is not whole."""
    return "stop" if ended.reason == "stop" else "length"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
